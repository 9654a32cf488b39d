"""Workers: which are alive is known from their processes, not from what they said last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cifs_tf.errors import UserError
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning.workers import Workers

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_worker_is_alive_as_long_as_its_process(tmp_path):
    workers = Workers(Workdir(tmp_path))
    assert not workers.is_alive("w1")
    program = f"import time; from cifs_tf.tuning.workers import Workers; from cifs_tf.runs.workdir import Workdir\n\
with Workers(Workdir({str(tmp_path)!r})).hold('w1'): print('here', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"here\n"
    assert workers.is_alive("w1")
    assert workers.alive() == ["w1"]
    with pytest.raises(UserError, match="KERASTUNER_TUNER_ID: received w1"), workers.hold("w1"):
        pass
    process.kill()
    process.wait()
    assert not workers.is_alive("w1")
    with workers.hold("w1"):
        assert workers.is_alive("w1")
