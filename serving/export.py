"""Publish a trained run as a version that a server takes up; `cifs-tf export` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("export")
