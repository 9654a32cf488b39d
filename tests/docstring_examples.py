"""Run the examples in docstrings of modules, each module in a process of its own or several in one.

    python tests/docstring_examples.py cifs_tf.losses cifs_tf.layers.cifs

An example may use `keras`, `np`, `tf`, everything that `cifs_tf` exports, and what its module defines. Where it uses a
name that stands for something the reader has (`classifier`, `dataset`, ...), the rest of that example is not run.
"""

import doctest
import importlib
import sys

import keras
import numpy as np
import tensorflow as tf

import cifs_tf

AT_HAND = [
    "card",
    "classifier",
    "config",
    "dataset",
    "features",
    "header",
    "hosts",
    "ledger",
    "model",
    "pandas",
    "profile",
    "vanilla",
    "workdir",
]


def run_examples(module):
    """Run the examples of a module; raise what the first wrong one raises.

    Returns:
        the number of docstrings with examples.
    """
    public = {name: getattr(cifs_tf, name) for name in cifs_tf.__all__}
    names = {"keras": keras, "np": np, "tf": tf, **public, **vars(module)}
    examples = [each for each in doctest.DocTestFinder().find(module, globs=names) if each.examples]
    for example in examples:
        try:
            doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
        except doctest.UnexpectedException as error:
            if getattr(error.exc_info[1], "name", None) not in AT_HAND:
                raise error.exc_info[1] from None
        except doctest.DocTestFailure as failure:
            sys.exit(f"{example.name}: {failure.example.source}expected {failure.example.want}got {failure.got}")
    return len(examples)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, run_examples(importlib.import_module(name)))
