"""onnxruntime-web, which the page runs on: fetched from the npm registry by npm, checked, and kept."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from cifs_tf.errors import UserError

VERSION = "1.30.0"
# Of the package, as the registry lists it.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
NOTICE = f"""onnxruntime-web {VERSION}, from the npm registry, unchanged. Licence: MIT.
Copyright (c) Microsoft Corporation. All rights reserved. See https://github.com/microsoft/onnxruntime/blob/main/LICENSE
sha512 of the package: {SHA512}
"""


def cache_folder() -> Path:
    """Return where the files are kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cifs-tf" / f"onnxruntime-web-{VERSION}"


def vendor_runtime() -> Path:
    """Return the folder with onnxruntime-web's files, after fetching them if they are not there.

    Returns:
        the folder.

    Raises:
        UserError: if npm is missing or fails, or the package is not the one that was tested.
    """
    folder = cache_folder()
    if all((folder / name).is_file() for name in (*FILES, "NOTICE.txt")):
        return folder
    package = f"onnxruntime-web@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm",
            None,
            f"install Node.js, whose npm fetches {package}, or put {', '.join(FILES)} and NOTICE.txt into {folder}",
        )
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", package, "--silent", "--pack-destination", temporary]
        done = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError("npm", f"pack {package}", f"it failed ({reason}), try again with a network")
        content = archives[0].read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
            raise UserError("npm", f"pack {package}", "its hash is not that of the package that was tested; not used")
        unpacked = Path(temporary) / "files"
        unpacked.mkdir()
        with tarfile.open(archives[0]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise UserError("npm", f"pack {package}", f"it holds no {name}")
                (unpacked / name).write_bytes(member.read())
        (unpacked / "NOTICE.txt").write_text(NOTICE)
        folder.mkdir(parents=True, exist_ok=True)
        for file in unpacked.iterdir():
            # Beside its place first: another process may fetch it too.
            shutil.copy(file, folder / f".{os.getpid()}-{file.name}")
            (folder / f".{os.getpid()}-{file.name}").replace(folder / file.name)
    return folder
