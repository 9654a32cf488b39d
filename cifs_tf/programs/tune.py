"""Search hyper-parameters for the best robust accuracy on validation images.

    python training/tune.py --dataset svhn                                          beta, as in the paper's Table E.1
    python training/tune.py --dataset svhn --search beta,top_k --tuner bayesian --max_trials 20
    python training/tune.py --dataset svhn --workers 2                              two processes on this machine

All options of run.py are the base of every trial. Everything is written to --workdir; the same command again continues
there. docs/tuning.md tells how several machines share a search.
"""

from collections.abc import Sequence
from pathlib import Path

from cifs_tf.extras import require
from cifs_tf.runs.recipes import check_names, parse_flat
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning.options import SearchConfig, groups_of_options


def main(argv: Sequence[str]) -> None:
    """Parse the command line and search."""
    config = SearchConfig.from_flat(parse_flat("tune.py", (__doc__ or "").splitlines()[0], argv, groups_of_options()))
    require("tune")
    name = config.data.dataset.replace(":", "-").replace("/", "-")
    workdir = Workdir(config.output.workdir or Path("runs") / f"tune-{name}")
    workdir.check(config)
    check_names(config)
    # After the check: importing TensorFlow takes seconds, an error should not.
    from cifs_tf.tuning.search import search

    search(config, workdir, argv)
