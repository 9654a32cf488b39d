"""Measure what a trained classifier is worth under attack; `cifs-tf evaluate` is the same program."""

from cifs_tf.programs import evaluate

if __name__ == "__main__":
    evaluate.start()
