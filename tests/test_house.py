"""The house of docs/house.py: the drawing is the package's, imports run downward, and a planted circle is found."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> Iterator[Any]:
    """The script is no part of the package: its folder is on the path for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        patch.delitem(sys.modules, "house", raising=False)
        import house

        yield house


@pytest.fixture(scope="module")
def modules(house: Any) -> dict[str, set[str]]:
    return house.module_imports()


@pytest.fixture(scope="module")
def rooms(house: Any, modules: dict[str, set[str]]) -> dict[str, set[str]]:
    return house.room_imports(modules)


def test_the_drawing_is_that_of_the_imports(house: Any, rooms: dict[str, set[str]]) -> None:
    assert house.DRAWING.read_text(encoding="utf-8") == house.draw(rooms)


def test_modules_import_each_other_in_no_circle(house: Any, modules: dict[str, set[str]]) -> None:
    assert sum(map(len, modules.values())) > 100
    assert house.find_circles(modules) == []


def test_rooms_import_each_other_in_no_circle(house: Any, rooms: dict[str, set[str]]) -> None:
    assert {"training", "evaluation", "lipschitz", "threat"} <= rooms.keys()
    assert house.find_circles(rooms) == []


def test_parts_of_rooms_import_each_other_in_no_circle(house: Any, modules: dict[str, set[str]]) -> None:
    parts = house.part_imports(modules)
    assert {"training.engine", "training.instruments", "training.processes", "threat"} <= parts.keys()
    assert house.find_circles(parts) == []


def test_no_import_runs_up(house: Any, rooms: dict[str, set[str]]) -> None:
    assert {house.find_floor(name) for name in rooms} == set(range(len(house.FLOORS)))
    assert house.find_upward(rooms) == []


def test_the_ground_floor_imports_nothing_above_it(house: Any, rooms: dict[str, set[str]]) -> None:
    ground = {name for name in rooms if house.find_floor(name) == 0}
    assert "threat" in ground
    assert set().union(*(rooms[name] for name in ground)) <= ground


def test_the_drawing_names_every_room_and_import(house: Any, rooms: dict[str, set[str]]) -> None:
    root = ElementTree.fromstring(house.draw(rooms))
    text = {element.text for element in root.iter() if element.text}
    assert rooms.keys() <= text
    for name, others in rooms.items():
        assert f"{name} imports {', '.join(sorted(others)) or 'nothing of the package'}" in text


def test_its_colours_can_be_told_apart(house: Any) -> None:
    """At least 3:1 for lines and 4.5:1 for text, as WCAG 2 asks for."""

    def luminance(colour: str) -> float:
        shares = [int(part, 16) / 255 for part in re.findall("..", colour.removeprefix("#"))]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted(map(luminance, (one, other)))
        return (high + 0.05) / (low + 0.05)

    for ground in (*house.BANDS, house.BOX):
        assert contrast(house.LINE, ground) >= 3
        assert contrast(house.TEXT, ground) >= 4.5


# What the finders find in packages that are made for it.


def plant(folder: Path, **files: str) -> Path:
    """A package of the given files: ``a__b`` stands for a/b.py, ``a____init__`` for a/__init__.py."""
    package = folder / "house_of_cards"
    for name, content in {"__init__": "", **files}.items():
        path = package / f"{re.sub('__(?=[a-z]|__init__)', '/', name, count=1) if name != '__init__' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return package


def find_planted(house: Any, package: Path) -> tuple[list[list[str]], list[list[str]]]:
    """The circles among the modules and among the rooms of a package, without the package's name."""
    modules = house.module_imports(package)
    circles = house.find_circles(modules), house.find_circles(house.room_imports(modules))
    among_modules, among_rooms = (
        [[name.removeprefix(f"{package.name}.") for name in circle] for circle in found] for found in circles
    )
    return among_modules, among_rooms


@pytest.mark.parametrize(
    "back",
    [
        "from . import one",
        "from .one import anything",
        "from house_of_cards import one",
        "from house_of_cards.one import anything",
        "import house_of_cards.one",
        "import house_of_cards.one as other",
        "def function():\n    from .one import anything",
        "class Kind:\n    def method(self):\n        import house_of_cards.one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import anything",
        "try:\n    from .one import anything\nexcept ImportError:\n    pass",
    ],
)
def test_a_circle_of_two_modules_is_found(house: Any, tmp_path: Path, back: str) -> None:
    package = plant(tmp_path, one="from .two import anything", two=back, three="from .one import anything")
    assert find_planted(house, package) == ([["one", "two"]], [["one", "two"]])


def test_a_circle_of_three_modules_in_one_room_is_found(house: Any, tmp_path: Path) -> None:
    room = {"room__a": "from .b import f", "room__b": "from . import c", "room__c": "from ..room.a import f"}
    package = plant(tmp_path, room____init__="", **room)
    assert find_planted(house, package) == ([["room.a", "room.b", "room.c"]], [])


def test_a_circle_through_the_init_of_a_room_is_found(house: Any, tmp_path: Path) -> None:
    package = plant(
        tmp_path, room____init__="from .a import f", room__a="from ..other import g", other="from .room import f"
    )
    assert find_planted(house, package) == ([["other", "room", "room.a"]], [["other", "room"]])


def test_a_circle_of_rooms_without_one_of_modules_is_found(house: Any, tmp_path: Path) -> None:
    first = {"east__a": "from ..west.b import f", "east__c": ""}
    second = {"west__b": "", "west__d": "from ..east.c import f"}
    package = plant(tmp_path, east____init__="", west____init__="", **first, **second)
    assert find_planted(house, package) == ([], [["east", "west"]])


def test_a_circle_of_the_parts_of_a_room_without_one_of_modules_or_rooms_is_found(house: Any, tmp_path: Path) -> None:
    package = plant(tmp_path, room____init__="", low="", room__one="")
    for folder, files in {
        "east": {"a": "from ..west.b import f\nfrom ...low import g", "c": ""},
        "west": {"b": "", "d": "from ..east.c import f"},
    }.items():
        (package / "room" / folder).mkdir()
        for name, content in {"__init__": "", **files}.items():
            (package / "room" / folder / f"{name}.py").write_text(content)
    assert find_planted(house, package) == ([], [])
    assert house.find_circles(house.part_imports(house.module_imports(package))) == [["room.east", "room.west"]]


def test_imports_that_all_run_down_are_no_circle(house: Any, tmp_path: Path) -> None:
    package = plant(
        tmp_path, low="import os", middle="from .low import f", high="from .low import f\nfrom . import middle"
    )
    assert find_planted(house, package) == ([], [])


def test_an_import_that_runs_up_is_found(house: Any) -> None:
    rooms = {
        "cli": {"evaluation"},
        "evaluation": {"cli", "new"},
        "new": {"bridge"},
        "bridge": {"threat"},
        "threat": set(),
    }
    assert house.find_upward(rooms) == [("evaluation", "cli"), ("new", "bridge")]


def test_arrows_that_a_chain_implies_are_left_out(house: Any) -> None:
    imports = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert house.drop_implied(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


@pytest.mark.parametrize("arguments", [["house.py", "--check"], ["house.py"]])
def test_the_command_refuses_a_circle(
    house: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    package = plant(tmp_path, one="from .two import f", two="from .one import f")
    imports = house.module_imports(package)
    monkeypatch.setattr(house, "module_imports", lambda: imports)
    monkeypatch.setattr(house, "DRAWING", tmp_path / "house.svg")
    monkeypatch.setattr(sys, "argv", arguments)
    assert house.main() == 1
    assert "house_of_cards.one <-> house_of_cards.two" in capsys.readouterr().out
    assert not (tmp_path / "house.svg").exists()


def test_the_command_draws_what_it_then_finds_unchanged(
    house: Any, rooms: dict[str, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house, "find_circles", lambda imports: [])
    monkeypatch.setattr(house, "DRAWING", tmp_path / "house.svg")
    for arguments, code in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr(sys, "argv", ["house.py", *arguments])
        assert house.main() == code
    assert (tmp_path / "house.svg").read_text(encoding="utf-8") == house.draw(rooms)
