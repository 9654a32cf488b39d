"""Versions that are whole or not there: several writers at once, killed writers, bad places."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from cifs_tf.errors import UserError
from cifs_tf.files import EXPORTING, hold_lock, is_locked, publish_version, remove_abandoned, remove_unfinished

# Begins a version in the folder of its argument, says so, and takes as long as its input is open.
SLOW_WRITER = """
import sys
from cifs_tf.files import publish_version

def write(path):
    (path / "half").write_text("half")
    print("begun", flush=True)
    sys.stdin.read()

publish_version(sys.argv[1], write)
"""


def begin(base):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process


def names(base):
    return sorted(child.name for child in base.iterdir())


def write(path):
    (path / "file").write_text("whole")


def test_versions_count_up_from_the_highest(tmp_path):
    (tmp_path / "00000007").mkdir()
    (tmp_path / "notes").mkdir()
    assert publish_version(tmp_path, write) == tmp_path / "8"
    assert publish_version(tmp_path, write, 12) == tmp_path / "12"
    assert publish_version(tmp_path, write) == tmp_path / "13"
    with pytest.raises(UserError, match="version: received 7"):
        publish_version(tmp_path, write, 7)
    assert names(tmp_path) == ["00000007", "12", "13", "8", "notes"]


def test_what_a_killed_writer_began_is_removed_by_the_next(tmp_path):
    killed = begin(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = names(tmp_path)
    assert left
    assert [name for name in left if not name.startswith(EXPORTING)] == []
    publish_version(tmp_path, write)
    assert names(tmp_path) == ["1"]


def test_what_a_living_writer_began_is_left_alone(tmp_path):
    living = begin(tmp_path)
    remove_abandoned(tmp_path)
    assert publish_version(tmp_path, write).name == "1"
    living.communicate()
    # It takes the number that is free when it is done.
    assert living.returncode == 0
    assert names(tmp_path) == ["1", "2"]
    assert (tmp_path / "2" / "half").exists()


def test_what_is_being_written_is_left_alone(tmp_path):
    """A chief that starts again cleans up while its workers, here or on other machines, go on."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        name = f".writing-{platform.node()}-{living.pid}-step-1.npz"
        here, elsewhere, abandoned = (
            tmp_path / "trial" / each for each in (name, ".writing-another-1-a.npz", ".writing-another-1-b.npz")
        )
        here.parent.mkdir()
        for file in (here, elsewhere, abandoned):
            file.touch()
        os.utime(abandoned, (0, 0))
        remove_unfinished(tmp_path)
        assert (here.exists(), elsewhere.exists(), abandoned.exists()) == (True, True, False)
        living.communicate()
    remove_unfinished(tmp_path)
    assert not here.exists()


def test_many_writers_at_once_get_numbers_of_their_own(tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(publish_version(tmp_path, write).name)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, found)) == list(range(1, 21))
    assert names(tmp_path) == sorted(found)


def test_of_two_writers_of_one_version_the_slower_is_refused(tmp_path):
    def slow(path):
        write(path)
        publish_version(tmp_path, lambda path: (path / "file").write_text("first"), 3)

    with pytest.raises(UserError, match="version: received 3"):
        publish_version(tmp_path, slow, 3)
    assert (tmp_path / "3" / "file").read_text() == "first"
    assert names(tmp_path) == ["3"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    def fail(path):
        write(path)
        raise error

    with pytest.raises(error):
        publish_version(tmp_path, fail)
    assert names(tmp_path) == []


def test_a_base_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "base").write_text("")
    with pytest.raises(UserError, match=r"base: .* cannot be written to"):
        publish_version(tmp_path / "base", write)


def test_a_full_disk_is_named(tmp_path):
    def fail(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        publish_version(tmp_path, fail)
    assert names(tmp_path) == []


def test_a_lock_is_held_until_its_context_ends(tmp_path):
    path = tmp_path / ".lock"
    assert not is_locked(path)
    assert not path.exists()
    with hold_lock(path):
        assert is_locked(path)
        with pytest.raises(BlockingIOError, match="another process holds the lock"), hold_lock(path):
            pass
    assert not is_locked(path)
    with hold_lock(path):
        pass


HOLDER = """
import sys, pathlib
from cifs_tf.files import hold_lock

with hold_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_holds_no_lock(tmp_path):
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        holder.kill()
    assert not is_locked(path)
