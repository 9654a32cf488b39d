"""Time a training step of each method on the same network: `benchmark.py methods`."""

import dataclasses
from typing import Any

from cifs_tf.benchmarks import timing
from cifs_tf.benchmarks.options import REFERENCE, MethodsOptions
from cifs_tf.benchmarks.timing import Say


def run(options: MethodsOptions, report: Say) -> dict[str, Any]:
    """Time a step of every method, in turns.

    Returns:
        `methods`, by their name what `time_in_turns` returns, and `ratios`, by their name to PGD.
    """
    config = options.run_config(options.num_steps, options.defense)
    subjects = {}
    for method in dict.fromkeys((REFERENCE, *options.methods)):
        of_method = dataclasses.replace(config, train=dataclasses.replace(config.train, method=method))
        subjects[method] = timing.training_step(of_method, timing.build_network(of_method))
    found = timing.time_in_turns(subjects, options.pairs, report)
    for timed in found.values():
        del timed["flops"]  # are those of PGD
    ratios = {name: timing.ratios_of(found[name], found[REFERENCE]) for name in subjects if name != REFERENCE}
    return {"methods": found, "ratios": ratios}
