"""Ask a served classifier about images: over REST or gRPC, of TensorFlow Serving or of this project's own server.

    python serving/client.py cat.png dog.jpg                          to http://127.0.0.1:8501
    python serving/client.py FOLDER --model vanilla --label canary
    python serving/client.py cat.png --url https://models.example.org --tls_ca ca.crt
    python serving/client.py cat.png --model cifs --grpc 127.0.0.1:8500
    python serving/client.py cat.png --explain --picture why.png      and which channels decided

Other programs import it:

    from cifs_tf.serving.client import Client
    probabilities = Client("http://127.0.0.1:8501", "cifs").predict(["cat.png"])["probabilities"]
"""

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
from rich.console import Console

from cifs_tf.command_line import parse_options
from cifs_tf.config import Group, bounded
from cifs_tf.errors import UserError
from cifs_tf.serving.client.client import REST_URL, Client
from cifs_tf.serving.client.images import Shape, find_images, to_array
from cifs_tf.serving.client.view import draw, explanation, prediction_table, read_labels
from cifs_tf.sizes import Resize


@dataclasses.dataclass(frozen=True)
class ClientOptions(Group):
    """Ask a served classifier about images, and print the likeliest classes.

    Args:
        images: PNG or JPEG files, or folders of them.
        url: of the REST interface.
        grpc: HOST:PORT of the gRPC interface, to ask there instead; null is REST.
        tls_ca: PEM file of the certificates to trust; null is those of the system for https, and no TLS for gRPC.
        model: name under which the model is served.
        version: of the model; null is the newest.
        label: of the model's version, such as stable; null is none.
        signature: which of the model's functions to ask; encoded takes the files as they are.
        top: how many classes to show.
        labels: JSON file with the names of the classes; null shows their numbers.
        explain: show which channels decided, and whether the probes agree with the output.
        channels: how many channels of a layer to show.
        picture: file to draw the explanation into, such as why.png.
        resize: how to resize images whose size is not that of the network, crop, stretch (or true) or pad; false sends
            them as they are, for the server to resize.
        batch_size: images per request, at most.
        timeout: seconds to wait for an answer.
    """

    images: tuple[str, ...] = ()
    url: str = REST_URL
    grpc: str | None = None
    tls_ca: str | None = None
    model: str = "default"
    version: int | None = None
    label: str | None = None
    signature: str = "encoded"
    top: int = bounded(3, low=1)
    labels: str | None = None
    explain: bool = False
    channels: int = bounded(8, low=1)
    picture: str | None = None
    resize: Resize | bool = False
    batch_size: int = 32
    timeout: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture is not None and not self.explain:
            raise UserError("--picture", self.picture, "it draws what --explain finds, give that too")


def main(argv: Sequence[str]) -> int:
    """Parse the command line, ask, print, and return 0.

    Raises:
        UserError: for input that does not fit, a server that does not answer, or what it answered.
    """
    options = parse_options(ClientOptions, "client.py", argv, __doc__ or "", positional="images")
    files = find_images(options.images)
    names, labels = [str(file) for file in files], read_labels(options.labels)
    client = Client(
        options.url if options.grpc is None else f"grpc://{options.grpc.removeprefix('grpc://')}",
        options.model,
        version=options.version,
        label=options.label,
        signature=options.signature,
        tls_ca=options.tls_ca,
        resize=options.resize,
        batch_size=options.batch_size,
        timeout=options.timeout,
    )
    outputs = client.explain(files) if options.explain else client.predict(files)
    if "probabilities" not in outputs:
        advice = f"give one with an output probabilities, its outputs are {', '.join(sorted(outputs))}"
        raise UserError("signature", options.signature, advice)
    console = Console()
    console.print(prediction_table(names, outputs["probabilities"], options.top, labels))
    if options.explain:
        for part in explanation(names, outputs, options.channels, labels):
            console.print(part)
    if options.picture is not None:
        shape = cast(Shape, client.image_shape())  # known: `explain` takes floats
        images = np.stack([to_array(file, shape, options.resize) for file in files])
        draw(options.picture, names, images, outputs, options.channels, labels)
        console.print(f"Written: {options.picture}", soft_wrap=True)
    return 0
