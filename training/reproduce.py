"""Reproduce the paper's tables and figures; `cifs-tf reproduce` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("reproduce")
