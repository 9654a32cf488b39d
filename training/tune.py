"""Search hyper-parameters for the best robust accuracy on validation images; `cifs-tf tune` is the same program."""

from cifs_tf.programs import tune

if __name__ == "__main__":
    tune.start()
