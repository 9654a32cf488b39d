"""The page in Chromium: it computes what Python computes, every control answers, and nothing leaves the page."""

import os
import shutil
import subprocess
import tarfile
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import PGD
from cifs_tf.errors import UserError
from cifs_tf.losses import head_weights
from cifs_tf.playground.server import PAGE, find_file, make_server, read_file
from cifs_tf.playground.vendor import vendor_runtime
from cifs_tf.presets import from_preset

pytestmark = pytest.mark.slow  # a browser's start alone takes seconds

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed: apt-get install chromium", allow_module_level=True)
# As root and without the network: its own look-ups for updates would be refused.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
STATE = dict(image="4", kind="cw", epsilon="0.15", beta="2", mask="full", target="7", step="9")  # noqa: C408
AXE = "axe-core@4.14.1"
# Of 1280 and 390 pixels; kept there for whoever wants to look at them.
SCREENSHOTS = os.environ.get("CIFS_SCREENSHOTS")


@pytest.fixture(scope="module")
def url():
    try:
        runtime = vendor_runtime()
    except UserError as error:
        pytest.skip(f"onnxruntime-web cannot be fetched: {error}")
    server = make_server({"/": PAGE, "/vendor/": runtime}, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page, what it asked for, and what it complained of."""

    def __init__(self, browser, url, width=1280, scheme="light", fragment=""):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)  # of a busy machine; what fails says so at once
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.errors.append(line.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url + fragment)
        self.page.wait_for_selector("body[data-attacks]")

    def after(self, act):
        """Do something that starts an attack, and wait until one is done."""
        before = int(self.page.get_attribute("body", "data-attacks"))
        act()
        self.page.wait_for_function(f"Number(document.body.dataset.attacks) > {before}")

    def verdicts(self):
        return self.page.locator(".verdict").all_inner_texts()

    def slide(self, name, value):
        self.page.eval_on_selector(
            f"#{name}", "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
        )


def open_page(browser, url, **how):
    """Open a page; at the end it must have complained of nothing, and have asked nobody but its own server."""
    visit = Visit(browser, url, **how)
    yield visit
    assert visit.errors == []
    assert [request for request in visit.requests if not request.startswith((url, "data:", "blob:"))] == []
    visit.context.close()


@pytest.fixture(scope="module")
def visit(browser, url):
    yield from open_page(browser, url)


@pytest.fixture(scope="module")
def narrow(browser, url):
    """A phone, dark, with a state in the URL."""
    yield from open_page(browser, url, width=390, scheme="dark", fragment=f"#{urllib.parse.urlencode(STATE)}")


RUN = """async ([count, settings, names]) => {
  const worker = new Worker("worker.js", { type: "module" });
  const answers = (types) => new Promise((resolve, reject) => {
    const found = [];
    worker.onmessage = ({ data }) => {
      if (data.type === "error") reject(new Error(data.message));
      found.push(data);
      if (types.includes(data.type)) resolve(found);
    };
  });
  let done = answers(["loaded"]);
  const urls = names.map((name) => new URL(`models/${name}`, location.href).href);
  worker.postMessage({ id: 1, type: "load", urls });
  const [{ networks: [{ about, shape }] }] = await done;
  const bytes = Uint8Array.from(atob(about.pixels), (letter) => letter.charCodeAt(0));
  const size = shape.reduce((a, b) => a * b), all = settings.map(() => []);
  for (const [s, setting] of settings.entries()) {
    for (let i = 0; i < count; i++) {
      const pixels = Float32Array.from(bytes.subarray(i * size, (i + 1) * size), (byte) => byte / 255);
      done = answers(["attack-done"]);
      worker.postMessage({ id: 2 + i, type: "attack", pixels, label: about.labels[i], setting });
      const found = (await done).filter((data) => data.type === "attacked");
      const plain = ({ x, heads }) => ({ x: Array.from(x), heads });
      all[s].push(found.map(({ steps }) => [plain(steps[0]), plain(steps.at(-1))]));
    }
  }
  worker.terminate();
  return { shape, labels: about.labels.slice(0, count), all };
}"""


SETTINGS = [{"kind": "pgd", "epsilon": 0.1, "beta": "0", "mask": "detached", "target": None}]
SETTINGS.append({**SETTINGS[0], "kind": "cw", "beta": "2", "mask": "full"})


ATTACKED = [("digits", 50), pytest.param(("fashion_mnist", 10), marks=pytest.mark.soak)]


@pytest.fixture(scope="module", params=ATTACKED, ids=lambda dataset: dataset[0])
def attacked(request, visit):
    """Stored images under both settings, attacked in the page: twenty steps of epsilon / 10."""
    dataset, count = request.param
    names = [f"{dataset}_{defense}" for defense in ("vanilla", "cifs")]
    return names, visit.page.evaluate(RUN, [count, SETTINGS, names])


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("setting", [0, 1])
def test_heads_and_pgd_images_agree_with_python(attacked, index, setting):
    names, attacked = attacked
    network, beta, mask = from_preset(names[index]), SETTINGS[setting]["beta"], SETTINGS[setting]["mask"]
    labels = np.array(attacked["labels"], np.int32)
    answers = [both[index] for both in attacked["all"][setting]]
    x, heads = (
        [np.array([each[step][key] for each in answers], np.float32) for step in (0, 1)] for key in ("x", "heads")
    )
    images, adversarial = (each.reshape(-1, *attacked["shape"]) for each in x)
    heads_fn = network.heads_fn(mask)
    for pixels, received in ((images, heads[0]), (adversarial, heads[1])):
        expected = heads_fn(tf.constant(pixels)).numpy()
        np.testing.assert_allclose(received, expected, atol=1e-4)
        assert (received[:, 0].argmax(-1) == expected[:, 0].argmax(-1)).all()
    loss = {"pgd": "cross_entropy", "cw": "cw_margin"}[SETTINGS[setting]["kind"]]
    attack = PGD(epsilon=0.1, step_size=0.01, num_steps=20, loss=loss)
    weights = head_weights(beta, network.num_probes)
    expected = attack(heads_fn, tf.constant(images), tf.constant(labels), head_weights=weights).numpy()
    predicted = heads_fn(tf.constant(expected)).numpy()[:, 0].argmax(-1)
    assert (heads[1][:, 0].argmax(-1) == predicted).all()
    # Where the network is sure of the label to 1e-5, the gradient of the cross-entropy is that of rounding errors.
    natural = -tf.nn.log_softmax(heads[0][:, 0]).numpy()[np.arange(len(labels)), labels]
    told = (natural > 1e-5) | (loss == "cw_margin")
    same = np.abs(adversarial - expected).reshape(len(labels), -1).max(axis=1) <= 1e-4
    assert (same | ~told).sum() >= len(labels) - 1, f"{(told & ~same).sum()} of {told.sum()} images differ"


def test_controls_answer(visit):
    page = visit.page
    visit.after(lambda: page.locator("#images button").nth(7).click())
    assert page.get_attribute("#images button:nth-child(8)", "aria-pressed") == "true"
    visit.after(lambda: visit.slide("epsilon", "0"))
    assert all("right" in verdict or "fooled" in verdict for verdict in visit.verdicts())
    natural = visit.verdicts()
    visit.after(lambda: visit.slide("epsilon", "0.3"))
    assert all("fooled" in verdict for verdict in visit.verdicts())
    visit.slide("step", "0")
    assert visit.verdicts() == natural
    page.click("#forward")
    assert page.input_value("#step") == "1"
    for kind, last in (("fgsm", "1"), ("cw", "20"), ("square", "20"), ("pgd", "20")):
        visit.after(lambda kind=kind: page.select_option("#kind", kind))
        assert page.get_attribute("#step", "max") == last
    before = page.locator("#loss-plot polyline").nth(1).get_attribute("points")
    visit.after(lambda: page.select_option("#beta", "infinity"))
    assert page.locator("#loss-plot polyline").nth(1).get_attribute("points") != before
    visit.after(lambda: page.select_option("#mask", "full"))
    visit.after(lambda: page.select_option("#target", "7"))
    assert "reads 7 instead of 3" in visit.verdicts()[0]
    assert page.locator(".channels").count() == 2
    assert "Probe's top-2" in page.locator(".network .note").last.inner_text()


def test_the_url_restores_the_state(visit, narrow):
    """Of the other page, which was opened with it."""
    page = visit.page
    visit.after(lambda: page.locator("#images button").nth(4).click())
    for name in ("kind", "beta", "mask", "target"):
        visit.after(lambda name=name: page.select_option(f"#{name}", STATE[name]))
    visit.after(lambda: visit.slide("epsilon", STATE["epsilon"]))
    visit.slide("step", STATE["step"])
    assert dict(urllib.parse.parse_qsl(page.evaluate("location.hash.slice(1)"))) == STATE
    for name in ("kind", "epsilon", "beta", "mask", "target", "step"):
        assert narrow.page.input_value(f"#{name}") == STATE[name]
    assert narrow.verdicts() == visit.verdicts()


def test_nonsense_in_the_url_is_ignored(narrow):
    nonsense = "image=1e9&epsilon=7&kind=__proto__&beta=x&pixels=%%%&step=-3&target=99"
    narrow.after(lambda: narrow.page.evaluate(f"location.hash = '{nonsense}'"))
    assert narrow.page.input_value("#epsilon") == "0.1"
    assert narrow.page.input_value("#kind") == "pgd"
    assert narrow.page.input_value("#target") == ""
    assert narrow.page.locator("#loss-plot polyline").count() == 2


def test_drawing_with_the_keyboard(visit):
    page = visit.page
    visit.after(lambda: page.click("#draw-clear"))
    page.focus("#pad")
    page.keyboard.press("ArrowUp")
    visit.after(lambda: page.keyboard.press("Space"))
    assert "pixels=" in page.evaluate("location.hash")
    visit.after(lambda: page.select_option("#label", "1"))
    visit.after(lambda: page.locator("#images button").first.click())
    assert "pixels=" not in page.evaluate("location.hash")


def test_an_image_file_and_what_is_none(visit, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), (255, 255, 255)).save(tmp_path / "white.png")
    visit.after(lambda: visit.page.set_input_files("#file", tmp_path / "white.png"))
    (tmp_path / "no.png").write_text("no image")
    visit.page.set_input_files("#file", tmp_path / "no.png")
    visit.page.wait_for_selector("#status.error")
    assert "no.png cannot be read as an image" in visit.page.inner_text("#status")
    visit.after(lambda: visit.page.locator("#images button").first.click())


def test_accuracy_of_all_images(visit):
    page = visit.page
    visit.after(lambda: page.select_option("#kind", "fgsm"))
    for count in (1, 2):
        page.click("#measure")
        page.wait_for_function(f"document.querySelectorAll('#results tbody tr').length === {count}")
        page.wait_for_selector("#measure:not([disabled])")
        page.select_option("#beta", "2")
    rows = [row.split("\t") for row in page.locator("#results tbody tr").all_inner_texts()]
    worst = page.inner_text("#results tfoot tr").split("\t")
    assert all(50 <= int(cell.strip("%")) <= 100 for row in rows for cell in row[1:])
    for network in (1, 2):
        assert int(worst[network].strip("%")) <= min(int(row[network].strip("%")) for row in rows)


def test_the_tour_and_the_picture(visit):
    page = visit.page
    visit.after(lambda: page.click("#tour-start"))
    fooled = []
    for _ in range(4):
        visit.after(lambda: page.click("#tour-next"))
        fooled.append(["fooled" in verdict for verdict in visit.verdicts()])
    # What the words of the third and the fourth step say.
    assert fooled[1:3] == [[True, False], [True, True]]
    assert "5 of 5" in page.inner_text("#tour-text")
    page.click("#tour-end")
    assert not page.is_visible("#tour")
    with page.expect_download() as download:
        page.click("#save")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("which", ["visit", "narrow"])
def test_nothing_is_wider_than_the_window(which, request):
    page = request.getfixturevalue(which).page
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"playground_{width}.png", full_page=True)


def test_the_first_load_is_small(narrow):
    """All files that the page asked for, as they travel."""
    folders = {"/": PAGE, "/vendor/": vendor_runtime()}
    files = {find_file(urllib.parse.urlsplit(request).path, folders) for request in narrow.requests} - {None}
    assert {".html", ".js", ".wasm", ".onnx"} <= {file.suffix for file in files}
    assert sum(len(read_file(file, "gzip")[0]) for file in files) < 5_000_000


def test_a_model_that_is_not_there_is_said(browser, url):
    context = browser.new_context()
    page = context.new_page()
    page.goto(url + "?model=models/none")
    page.wait_for_selector("#status.error")
    assert "models/none" in page.inner_text("#status")
    page.goto(url + "?model=http://127.0.0.2/models/x")
    page.wait_for_selector("#status.error")
    assert "own site" in page.inner_text("#status")
    context.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core, which looks for what keeps people with a screen reader or a keyboard out."""
    folder, npm = tmp_path_factory.mktemp("axe"), shutil.which("npm")
    if npm is None or subprocess.run([npm, "pack", AXE, "--silent"], cwd=folder, capture_output=True).returncode:
        pytest.skip(f"{AXE} cannot be fetched: npm is missing, or its registry")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as package:
        return package.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("which", ["visit", "narrow"])
def test_no_serious_fault_of_accessibility(which, request, axe):
    page = request.getfixturevalue(which).page
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    assert [f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")] == []


def test_a_verdict_is_of_the_image_that_was_attacked(visit):
    """While the next one is under attack, the page goes on telling of the last."""
    before, both = visit.page.evaluate("""() => {
      const verdicts = () => [...document.querySelectorAll(".verdict")].map((each) => each.textContent).join();
      const before = verdicts();
      document.querySelectorAll("#images button")[5].click();
      window.dispatchEvent(new Event("resize"));
      return [before, [verdicts(), document.querySelector("#target option:disabled").textContent]];
    }""")
    label = visit.page.eval_on_selector("#label", "label => label.selectedOptions[0].textContent")
    assert both == [before, label]


def test_a_link_that_is_cut_shows_a_stored_image(browser, url):
    for visit in open_page(browser, url, fragment="#pixels=A&label=3"):
        assert all(visit.verdicts())
        assert visit.page.get_attribute("#images button >> nth=0", "aria-pressed") == "true"


def test_networks_of_other_images_are_left_out(browser, url):
    models = "?model=models/fashion_mnist_cifs&model=models/digits_cifs"
    for visit in open_page(browser, url, fragment=models):
        assert visit.page.inner_text("#status").endswith("than models/fashion_mnist_cifs: models/digits_cifs")
        assert len(visit.verdicts()) == 1
        visit.page.click("#forward")


def test_networks_of_ones_own_have_no_tour(browser, url):
    """It tells what the page's own networks do; of others that would be wrong."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url + "?model=models/digits_cifs#tour=2")
    page.wait_for_selector("body[data-ready=yes]")
    assert page.is_hidden("#tour-start")
    assert page.is_hidden("#tour")


def test_a_link_leads_to_the_other_networks(browser, url):
    for visit in open_page(browser, url, width=390):
        visit.page.click("#datasets a:not([aria-current])")
        visit.page.wait_for_selector("#label option >> text=Ankle boot", state="attached")
        visit.page.wait_for_selector("body[data-attacks]")
        assert visit.page.inner_text("#datasets a[aria-current]") == "Fashion-MNIST"
        assert "by the strict suite" in visit.page.inner_text("#honest")
        assert visit.page.is_hidden("#tour-start")
