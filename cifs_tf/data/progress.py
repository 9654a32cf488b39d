"""Progress of decoding: images per second and the time left, on a terminal as a bar, in a log as lines."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
# What takes less is not worth a sentence.
QUIET_SECONDS = 5.0


@contextlib.contextmanager
def decoding_progress(total: int) -> Iterator[Callable[[], None]]:
    """Show how far the decoding of so many images is; yield the function to call after each."""
    console, started, done, said = Console(), time.monotonic(), 0, time.monotonic()
    columns = [
        TextColumn("decoding images"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    ]
    with contextlib.ExitStack() as shown:
        bar = shown.enter_context(Progress(*columns, transient=True)) if console.is_terminal else None
        task = bar.add_task("decoding", total=total, speed="") if bar else None

        def advance() -> None:
            nonlocal done, said
            done, now = done + 1, time.monotonic()
            speed = done / max(now - started, 1e-9)
            if bar is not None and task is not None:
                bar.update(task, completed=done, speed=f"{speed:,.0f} images/s")
            elif now - said > LINE_SECONDS:
                said, left = now, (total - done) / speed
                print(f"decoding: {done:,} of {total:,} images, {speed:,.0f} images/s, {left:,.0f} s left", flush=True)

        yield advance
    seconds = time.monotonic() - started
    if seconds > QUIET_SECONDS:
        print(f"decoded {done:,} images in {seconds:,.0f} s, {done / seconds:,.0f} images/s", flush=True)
