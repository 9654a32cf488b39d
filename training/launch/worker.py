"""Start one worker of several: set TF_CONFIG, then become the program, which comes after --."""

from cifs_tf.command_line import run_program
from cifs_tf.launch.worker import main

if __name__ == "__main__":
    run_program(main)
