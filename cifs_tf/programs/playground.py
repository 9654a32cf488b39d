"""Attack a vanilla and a CIFS network in the browser, side by side, on this machine.

    cifs-tf playground                     two small networks that read digits
    cifs-tf playground --run runs/mine     the networks of a run of your own

It serves one page until Ctrl-C. The first start fetches onnxruntime-web from the npm registry (npm must be there), and
keeps it; nothing else is fetched, and the page itself asks no other machine.
"""

import dataclasses
import signal
import tempfile
import threading
import urllib.parse
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from cifs_tf.command_line import parse_options
from cifs_tf.config import Group, bounded
from cifs_tf.errors import UserError
from cifs_tf.playground.server import PAGE, make_server
from cifs_tf.playground.vendor import vendor_runtime
from cifs_tf.runs.trained import find_network


@dataclasses.dataclass(frozen=True)
class PlaygroundOptions(Group):
    """A page in the browser, and the networks that it shows.

    Args:
        run: workdir of a finished run, whose networks are shown; null shows those that come with the package.
        host: address to listen at.
        port: 0 takes a free one.
        open: open the browser.
    """

    run: str | None = None
    host: str = "127.0.0.1"
    port: int = bounded(0, low=0, high=65535)
    open: bool = True


def main(argv: Sequence[str]) -> None:
    """Parse the command line and serve the page until Ctrl-C."""
    options = parse_options(PlaygroundOptions, "playground", argv, __doc__ or "")
    if options.run is not None:
        find_network(options.run)
    folders = {"/": PAGE, "/vendor/": vendor_runtime()}
    with tempfile.TemporaryDirectory(prefix="cifs-playground-") as temporary:
        query = ""
        if options.run is not None:
            from cifs_tf.playground.models import write_run

            print("exporting the gradients of the run's networks", flush=True)
            names = write_run(options.run, Path(temporary))
            folders["/own/"] = Path(temporary)
            query = "?" + urllib.parse.urlencode([("model", f"own/{name}") for name in names])
        try:
            server = make_server(folders, options.host, options.port)
        except OSError as error:
            advice = f"it cannot be listened at ({error.strerror}), give another port, or 0 for a free one"
            raise UserError("--port", f"{options.host}:{options.port}", advice) from error
        # A handler that raises could do so in the midst of a request.
        signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=server.shutdown).start())
        with server:
            url = f"http://{options.host}:{server.server_address[1]}/{query}"
            print(f"The playground is at {url} (Ctrl-C ends it)", flush=True)
            if options.open:
                webbrowser.open(url)
            server.serve_forever()
