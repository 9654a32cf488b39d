"""Measure what a trained classifier is worth under attack; `cifs-tf evaluate` is the same program."""

import signal

if __name__ == "__main__":
    # They wait until the program is prepared for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    from cifs_tf.programs.console import start_program

    start_program("evaluate")
