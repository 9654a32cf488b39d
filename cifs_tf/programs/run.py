"""Train, attack and export a robust classifier.

    python training/run.py                      digits, in minutes on two CPU cores
    python training/run.py --dataset svhn       the paper's recipe for SVHN
    python training/run.py --dataset folder:PATH --image_size 64

Everything is written to --workdir; the same command again continues there.
"""

from collections.abc import Sequence
from pathlib import Path

from cifs_tf.runs.recipes import check_names, parse_config
from cifs_tf.runs.workdir import Workdir


def main(argv: Sequence[str]) -> None:
    """Parse the command line and run."""
    config = parse_config("run.py", (__doc__ or "").splitlines()[0], argv)
    workdir = Workdir(config.output.workdir or Path("runs") / config.data.dataset.replace(":", "-").replace("/", "-"))
    workdir.check(config)
    check_names(config)
    # After the check: importing TensorFlow takes seconds, an error should not.
    from cifs_tf.runs.pipeline import run

    run(config, workdir)
