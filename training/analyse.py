"""Look inside trained networks; `cifs-tf analyse` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("analyse")
