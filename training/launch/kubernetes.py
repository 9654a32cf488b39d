"""Print the YAML of a training on Kubernetes; the program comes after --, as the image calls it."""

from cifs_tf.launch import kubernetes

if __name__ == "__main__":
    kubernetes.start()
