"""Print an sbatch script; the program comes after --."""

from cifs_tf.launch import slurm

if __name__ == "__main__":
    slurm.start()
