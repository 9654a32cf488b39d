"""Start one worker of several: set TF_CONFIG, then become the program, which comes after --."""

from cifs_tf.launch import worker

if __name__ == "__main__":
    worker.start()
