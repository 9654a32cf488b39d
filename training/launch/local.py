"""Train with several processes on this machine; the program comes after --."""

from cifs_tf.launch import local

if __name__ == "__main__":
    local.start()
