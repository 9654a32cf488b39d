"""Record docs/figures/attack.webp, the moving picture of the documentation: the third and fourth step of the tour.

python docs/figures/attack.py        needs Playwright, Chromium and Pillow
"""

import io
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from cifs_tf.playground.server import PAGE, make_server
from cifs_tf.playground.vendor import vendor_runtime

FILE = Path(__file__).with_name("attack.webp")
WIDTH, SCALE = 1100, 0.75
STEP_MS, PAUSE_MS = 220, 2600
LIMIT = 10**6
# Both networks under one attacker, who first looks at the final prediction alone, then at the probes and the mask too.
ATTACKERS = (
    ({"beta": "0", "mask": "detached"}, "PGD on the final prediction alone"),
    ({"beta": "2", "mask": "full"}, "PGD on the probes too, and through the mask"),
)
STATE = {"image": "13", "kind": "pgd", "epsilon": "0.15"}
CAPTION = """(text) => {
  let line = document.getElementById("caption");
  if (!line) {
    line = document.createElement("p");
    line.id = "caption";
    line.style.cssText = "grid-column: 1 / -1; margin: 0; font-size: 1.35rem; font-weight: bold";
    document.getElementById("networks").prepend(line);
  }
  line.textContent = text;
}"""


def record(page: Page, url: str) -> tuple[list[Image.Image], list[int]]:
    """Return the frames, and how long each is shown in milliseconds."""
    frames, times = [], []
    for attacker, text in ATTACKERS:
        query = "&".join(f"{name}={value}" for name, value in {**STATE, **attacker, "step": "0"}.items())
        page.goto("about:blank")
        page.goto(f"{url}#{query}")
        page.wait_for_selector("body[data-attacks='1']")
        for step in range(21):
            page.eval_on_selector("#step", f"(it) => {{ it.value = {step}; it.dispatchEvent(new Event('input')); }}")
            page.evaluate(CAPTION, f"{text}, ε = {STATE['epsilon']}: step {step} of 20")
            with Image.open(io.BytesIO(page.locator("#networks").screenshot())) as shot:
                size = [round(SCALE * side) for side in shot.size]
                frames.append(shot.convert("RGB").resize(size, Image.Resampling.LANCZOS))
            times.append(PAUSE_MS if step in (0, 20) else STEP_MS)
    return frames, times


def main() -> None:
    """Open the playground, record it, and write the file."""
    server = make_server({"/": PAGE, "/vendor/": vendor_runtime()}, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": WIDTH, "height": 1000}, color_scheme="light").new_page()
        frames, times = record(page, f"http://127.0.0.1:{server.server_address[1]}/")
        browser.close()
    server.shutdown()
    height = max(frame.height for frame in frames)
    even = [Image.new("RGB", (frame.width, height), "white") for frame in frames]
    for canvas, frame in zip(even, frames, strict=True):
        canvas.paste(frame)
    even[0].save(FILE, save_all=True, append_images=even[1:], duration=times, loop=0, quality=60, method=6)
    if FILE.stat().st_size > LIMIT:
        raise SystemExit(f"{FILE} has {FILE.stat().st_size} bytes, more than {LIMIT}: record it smaller")


if __name__ == "__main__":
    main()
