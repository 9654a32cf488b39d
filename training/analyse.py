"""Look inside trained networks; `cifs-tf analyse` is the same program."""

from cifs_tf.programs import analyse

if __name__ == "__main__":
    analyse.start()
