"""Ask a served classifier about images; `cifs-tf predict` is the same program."""

from cifs_tf.programs import predict

if __name__ == "__main__":
    predict.start()
