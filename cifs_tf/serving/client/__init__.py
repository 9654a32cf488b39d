"""Ask a served classifier, over REST or gRPC."""

from cifs_tf.serving.client.client import Client

__all__ = ["Client"]
