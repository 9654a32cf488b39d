"""Measure how fast this machine runs the library; `cifs-tf benchmark` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("benchmark")
