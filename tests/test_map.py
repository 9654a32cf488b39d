"""The maps of the code, in CONTRIBUTING and in the README, agree with the tree."""

import re
from pathlib import Path

import pytest

from tests.test_imports import FREE, ORDER, SERVER, SERVER_ROOMS

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
README = (ROOT / "README.md").read_text()
ROOMS = {
    path.name if path.is_file() else f"{path.name}/"
    for path in (ROOT / "cifs_tf").iterdir()
    if not path.name.startswith(("_", ".")) and (path.is_dir() or path.suffix == ".py")
}


def section(text, title):
    """The section of a page under a heading."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def table(title):
    """What lies where, from a table of CONTRIBUTING."""
    return dict(re.findall(r"^\| `(.+?)` \| (.*) \|$", section(CONTRIBUTING, title), re.MULTILINE))


MAP = table("Where things live")
SERVER_MAP = {f"{SERVER}/{room}": holds for room, holds in table("The server").items()}


def place(room):
    """Where a room stands in the order of imports; the free ones are in front, in any order."""
    name = room.removesuffix("/").removesuffix(".py")
    return -1 if name in FREE else ORDER.index(name)


def check_rooms(rooms, expected):
    assert sorted(rooms) == sorted(expected)
    assert rooms == sorted(rooms, key=place)


@pytest.mark.parametrize(("path", "holds"), [*MAP.items(), *SERVER_MAP.items()])
def test_what_is_mapped_exists(path, holds):
    """The path of each line, and the files and folders that the line says are in it."""
    assert (ROOT / path).exists()
    assert (ROOT / path).is_dir() == path.endswith("/")
    for name in re.findall(r"`([\w/]+(?:/|\.py))`", holds):
        assert (ROOT / path / name).exists(), name


def test_every_room_is_mapped_once_in_the_order_of_imports():
    check_rooms([path.removeprefix("cifs_tf/") for path in MAP if path.startswith("cifs_tf/")], ROOMS)


def test_the_rooms_of_the_server_are_mapped_too():
    assert list(SERVER_MAP) == [f"{SERVER}/{room}/" for room in SERVER_ROOMS if room != "server"]


def test_the_readme_lists_the_rooms_too():
    """All but the small modules that any room may import."""
    block = re.search(r"^```text\n(cifs_tf/.*?)^```", section(README, "Architecture"), re.DOTALL | re.MULTILINE)[1]
    lines = re.findall(r"^  ((?:\w+(?:/|\.py) ?)+)", block, re.MULTILINE)
    check_rooms([room for line in lines for room in line.split()], [room for room in ROOMS if place(room) >= 0])


def test_what_is_beside_the_package_is_mapped():
    assert [path for path in MAP if not path.startswith("cifs_tf/")] == [
        "training/",
        "serving/",
        "tests/",
        "docs/",
        "notebooks/",
    ]
