"""Time a training step on one device and shared among several: `benchmark.py scale`."""

from typing import Any

from cifs_tf.benchmarks import timing
from cifs_tf.benchmarks.options import ScaleOptions
from cifs_tf.benchmarks.timing import Say
from cifs_tf.config import MachineConfig
from cifs_tf.runs.cluster import ALONE, make_cluster


def run(options: ScaleOptions, report: Say) -> dict[str, Any]:
    """Time a step on every number of devices, in turns.

    Returns:
        `replicas`, by their number what `time_in_turns` returns, and `ratios`, by their number to one device.
    """
    config, counts = options.run_config(options.num_steps), sorted({1, *options.replicas})
    # The largest first: it divides the processor, the others take some of its parts.
    shared = {
        count: make_cluster(MachineConfig(strategy="mirrored", replicas=count))
        for count in reversed(counts)
        if count > 1
    }
    clusters = {1: ALONE, **shared}
    subjects = {}
    for count in counts:
        with clusters[count].strategy.scope():
            subjects[str(count)] = timing.training_step(config, timing.build_network(config))
    found = timing.time_in_turns(subjects, options.pairs, report)
    return {
        "replicas": found,
        "ratios": {count: timing.ratios_of(found[count], found["1"]) for count in subjects if count != "1"},
    }
