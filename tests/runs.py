"""The workdir of a run on digits, as run.py leaves it, made in seconds."""

from cifs_tf.config import DataConfig, ModelConfig, OutputConfig, RunConfig
from cifs_tf.data import load_dataset
from cifs_tf.runs.images import record_images
from cifs_tf.runs.recipes import dump_yaml
from cifs_tf.runs.workdir import Workdir


def write_run(path, classifier):
    """Write a workdir whose network is this one, and return it."""
    config = RunConfig(
        data=DataConfig(dataset="digits", test_examples=40),
        model=ModelConfig(importance_scale="mean_one"),
        output=OutputConfig(workdir=str(path)),
    )
    (path / "cifs").mkdir(parents=True)
    (path / "config.yaml").write_text(dump_yaml(config))
    record_images(load_dataset(config.data), Workdir(path))
    classifier.save(path / "cifs" / "last.keras")
    return path
