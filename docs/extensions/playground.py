"""MkDocs hook: onnxruntime-web, which is too large for the repository, joins the playground when the site is built."""

import logging
from typing import Any

from mkdocs.structure.files import File, Files

from cifs_tf.errors import UserError
from cifs_tf.playground.vendor import vendor_runtime


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """Add its files to the site; without npm the page says that they are missing, and the rest is whole."""
    try:
        folder = vendor_runtime()
    except UserError as error:
        logging.getLogger("mkdocs.hooks").info("The playground has no onnxruntime-web: %s", error)
        return files
    for file in sorted(folder.glob("[!.]*")):
        files.append(File.generated(config, f"playground/vendor/{file.name}", abs_src_path=str(file)))
    return files
