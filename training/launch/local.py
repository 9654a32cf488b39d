"""Train with several processes on this machine; the program comes after --."""

from cifs_tf.command_line import run_program
from cifs_tf.launch.local import main

if __name__ == "__main__":
    run_program(main)
