"""Train, attack and export a robust classifier; `cifs-tf run` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("run")
