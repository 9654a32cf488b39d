"""Serve exported models over REST and gRPC; `cifs-tf serve` is the same program."""

from cifs_tf.programs.console import start_program

if __name__ == "__main__":
    start_program("serve")
