"""Search hyper-parameters for the best robust accuracy on validation images; `cifs-tf tune` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("tune")
