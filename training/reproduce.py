"""Reproduce the paper's tables and figures; `cifs-tf reproduce` is the same program."""

from cifs_tf.programs import reproduce

if __name__ == "__main__":
    reproduce.start()
