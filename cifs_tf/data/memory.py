"""What fits into memory and onto a disk: what is free of them, and what a set of images takes at its peak."""

import math
import os
import shutil
from pathlib import Path

from cifs_tf.errors import UserError

# A set is there twice at the peak: as it was read, and as the tensor that batches are gathered from.
COPIES = 2
# The rest is for the network and its attacks.
MEMORY_SHARE = 0.5
CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def fits_memory(num_bytes: int) -> bool:
    """Return whether images of so many bytes, with the copies that a run makes, leave half of the free memory alone."""
    return COPIES * num_bytes <= MEMORY_SHARE * free_memory()


def check_memory(option: str, received: str, num_bytes: int) -> None:
    """Refuse images that would not fit into memory, or only just.

    Args:
        option: that asks for them, for the error.
        received: its value.
        num_bytes: of their pixels.

    Raises:
        UserError: with what they take at the peak, and what is free.
    """
    needed, free = COPIES * num_bytes, free_memory()
    if needed > free:
        advice = (
            f"its images take {needed / 2**30:.1f} GiB of memory at the peak and {free / 2**30:.1f} GiB are free; give "
            "a smaller --image_size, or a folder of images with --cache disk"
        )
        raise UserError(option, received, advice)


def free_memory() -> int:
    """Return the bytes that this process can still take: of the machine, or of its control group if that has fewer."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass  # no Linux: what the machine has
    for limit, used in CONTROL_GROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or without a limit
            continue
    return max(0, free)


def check_disk(folder: Path, num_bytes: int) -> None:
    """Refuse a folder on a disk that has not so many bytes left.

    Raises:
        UserError: if so.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        needed, left = (math.ceil(number / 2**20) for number in (num_bytes, free))
        advice = f"the decoded images take {needed:,} MiB and its disk has {left:,} MiB left"
        raise UserError("--cache_dir", folder, f"{advice}; give a folder on another, or a smaller --image_size")
