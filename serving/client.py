"""Ask a served classifier about images; `cifs-tf predict` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("predict")
