"""Train, attack and export a robust classifier; `cifs-tf run` is the same program."""

from cifs_tf.programs import run

if __name__ == "__main__":
    run.start()
