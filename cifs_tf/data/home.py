"""Where the pixels of a dataset live: in memory, or decoded in a folder of the cache."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from cifs_tf import sizes
from cifs_tf.config import DataConfig
from cifs_tf.data import decoding, resizing
from cifs_tf.data.memory import check_memory, fits_memory
from cifs_tf.data.resizing import mode_of
from cifs_tf.data.stored import digest_of

# Of a dataset's name in that of its folder: systems take 255 bytes.
NAME_LETTERS = 50


def lives_in_memory(config: DataConfig, num_bytes: int) -> bool:
    """Return whether images of so many bytes are to be in memory: as `cache` says, or if they fit.

    Raises:
        UserError: if they are to be there, and do not fit.
    """
    if config.cache == "memory":
        check_memory("--cache", config.cache, num_bytes)
    return config.cache == "memory" or (config.cache == "auto" and fits_memory(num_bytes))


def cache_folder(config: DataConfig, name: str, parts: Sequence[str]) -> Path:
    """Return the folder for images that are brought to this size in this way by this code.

    Args:
        config: `image_size`, `resize` and `cache_dir` are read.
        name: of the dataset; the folder's begins with it.
        parts: what else tells the dataset from others.
    """
    base = Path(os.path.expanduser(config.cache_dir or default_cache_dir()))
    size = None if config.image_size is None else (config.image_size, config.image_size)
    files = [*Path(decoding.__path__[0]).glob("*.py"), *(Path(str(module.__file__)) for module in (resizing, sizes))]
    code = "".join(file.read_text(encoding="utf-8") for file in sorted(files))
    how = (str(size), mode_of(config) if size else "", tf.__version__, hashlib.sha256(code.encode()).hexdigest())
    what = "\0".join((*parts, *how)).encode()
    return base / f"{name[:NAME_LETTERS]}-{digest_of(what)}"


def default_cache_dir() -> str:
    """Return where decoded images are kept if nothing else is said: in the user's folder of caches."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "cifs-tf", "images")
