"""The memory that a set of images takes, as the kernel counts it."""

import json
import subprocess
import sys

import pytest

from tests.photographs import make_photographs
from tests.running import ROOT

SIDE = 224
PIPELINE = """
import hashlib, json, sys
from cifs_tf.config import DataConfig
from cifs_tf.data import load_dataset
from cifs_tf.hardware import peak_memory
data = DataConfig(dataset=f"folder:{sys.argv[1]}", image_size=224, cache="disk", cache_dir="cache", val_examples=8)
dataset = load_dataset(data)
for _ in dataset.train.training_batches(16, seed=0).take(20):
    pass
for split in dataset.splits.values():
    split.add_to(hashlib.sha256())
print(json.dumps({"peak": peak_memory(), "images": len(dataset.train) + len(dataset.test)}))
"""


@pytest.mark.slow
def test_many_images_take_the_memory_of_few(tmp_path):
    """Decoded into the cache, trained on and gone through: 2,000 photographs of 300 MB against 100."""
    peaks = {}
    for number in (100, 2000):
        make_photographs(tmp_path / str(number), number)
        command = [sys.executable, "-c", PIPELINE, str(tmp_path / str(number))]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["images"] == number - 8
        peaks[number] = found["peak"]
    decoded = 2000 * SIDE * SIDE * 3
    assert peaks[2000] - peaks[100] < decoded / 3
