"""Ask a served classifier about images; `cifs-tf predict` is the same program."""

import _signal  # signal imports modules of its own first: a Ctrl-C in that time would be a traceback

if __name__ == "__main__":
    # They wait until the program is prepared for them.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP))
    from cifs_tf.programs.console import start_program

    start_program("predict")
