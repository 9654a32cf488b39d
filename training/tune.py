"""Search hyper-parameters for the best robust accuracy on validation images; `cifs-tf tune` is the same program."""

import signal

if __name__ == "__main__":
    # They wait until the program is prepared for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    from cifs_tf.programs.console import start_program

    start_program("tune")
