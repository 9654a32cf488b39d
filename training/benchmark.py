"""Measure how fast this machine runs the library; `cifs-tf benchmark` is the same program."""

from cifs_tf.programs import benchmark

if __name__ == "__main__":
    benchmark.start()
