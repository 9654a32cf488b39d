"""Programs under fire."""

import signal
import subprocess

import numpy as np
import pytest


@pytest.fixture
def kill_at_random_moments():
    """Start a program again and again, and kill it (SIGKILL) at a random share of its undisturbed time."""

    def kill(start, num_kills, duration):
        """`start` makes the process; returns how many were killed before they ended by themselves."""
        rng, kills = np.random.default_rng(num_kills), 0
        for _ in range(num_kills):
            process = start()
            try:
                process.communicate(timeout=rng.uniform(0.3, 0.95) * duration)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
        return kills

    return kill
