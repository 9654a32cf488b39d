"""Serve exported models over REST and gRPC; `cifs-tf serve` is the same program."""

from cifs_tf.programs import serve

if __name__ == "__main__":
    serve.start()
