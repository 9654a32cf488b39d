"""Run `python -m cifs_tf COMMAND`, which is the console command `cifs-tf COMMAND`."""

from cifs_tf.programs import console

console.start()
