"""Measure what a trained classifier is worth under attack; `cifs-tf evaluate` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("evaluate")
