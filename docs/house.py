"""Draws the house: which room of the package imports which, from the imports themselves.

python docs/house.py            writes docs/house.svg
python docs/house.py --check    exits with 1 where the drawing is not the one that stands there, or rooms go in a circle

A room is a module or a folder directly in the package. Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import argparse
import ast
import html
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "art_robust_plugins"
DRAWING = ROOT / "docs" / "house.svg"

Imports = Mapping[str, set[str]]


def module_imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Each module of a package, by its dotted name -> the modules of the package that it imports."""
    files = {
        ".".join([package.name, *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }
    imports: dict[str, set[str]] = {}
    for name, path in files.items():
        here = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                source = _resolve(node, here)
                named = {f"{source}.{alias.name}" for alias in node.names} & files.keys()
                # A module that is imported by its name is meant, not the package that holds it.
                found |= named if named and len(named) == len(node.names) else named | ({source} & files.keys())
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & files.keys()
        imports[name] = found - {name}
    return imports


def _resolve(node: ast.ImportFrom, here: str) -> str:
    if node.level == 0:
        return node.module or ""
    parts = here.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def room_imports(modules: Imports) -> dict[str, set[str]]:
    """The same between rooms; the package's own ``__init__`` is the door, and no room."""

    def room(name: str) -> str | None:
        parts = name.split(".")
        return parts[1] if len(parts) > 1 else None

    rooms: dict[str, set[str]] = {}
    for name, imported in modules.items():
        if (own := room(name)) is not None:
            others = {other for other in map(room, imported) if other not in (None, own)}
            rooms.setdefault(own, set()).update(other for other in others if other is not None)
    return rooms


def find_circles(imports: Imports) -> list[list[str]]:
    """The groups of names that import each other in a circle (the strongly connected ones, by Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(imports.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                circles.append(sorted(group))

    for name in imports:
        if name not in index:
            visit(name)
    return circles


def find_floors(rooms: Imports) -> list[list[str]]:
    """The rooms by floor, the ground floor first: each stands on the floor above the highest that it imports."""
    floor: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in floor:
            floor[name] = 1 + max((height(other) for other in rooms[name]), default=-1)
        return floor[name]

    for name in rooms:
        height(name)
    return [sorted(name for name in rooms if floor[name] == level) for level in range(max(floor.values()) + 1)]


def draw(rooms: Imports) -> str:
    """The house as SVG: a box a room, and a line an import, down to what is used; hovering names the imports."""
    floors = find_floors(rooms)
    width, height, gap_x, gap_y, margin = 118, 30, 14, 64, 20
    widest = max(map(len, floors)) * (width + gap_x) - gap_x
    total = (widest + 2 * margin, len(floors) * (height + gap_y) - gap_y + 2 * margin)
    place: dict[str, tuple[float, float]] = {}
    for level, names in enumerate(floors):
        left = margin + (widest - len(names) * (width + gap_x) + gap_x) / 2
        y = total[1] - margin - height - level * (height + gap_y)
        place |= {name: (left + number * (width + gap_x), y) for number, name in enumerate(names)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" role="img" '
        f'font-family="sans-serif" font-size="13">',
        "<title>The rooms of the package: each imports only rooms on lower floors</title>",
        f'<rect width="{total[0]}" height="{total[1]}" fill="#ffffff"/>',
    ]
    for name, others in sorted(rooms.items()):
        x, y = place[name]
        for other in sorted(others):
            to_x, to_y = place[other]
            lines.append(
                f'<line x1="{x + width / 2:g}" y1="{y + height:g}" x2="{to_x + width / 2:g}" y2="{to_y:g}" '
                f'stroke="#8a94a6"><title>{html.escape(name)} imports {html.escape(other)}</title></line>'
            )
    for name, (x, y) in sorted(place.items()):
        uses = ", ".join(sorted(rooms[name])) or "nothing of the package"
        lines.append(
            f"<g><title>{html.escape(name)} imports {html.escape(uses)}</title>"
            f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="4" fill="#eef3fb" stroke="#33517e"/>'
            f'<text x="{x + width / 2:g}" y="{y + 20:g}" text-anchor="middle" fill="#16233a">{html.escape(name)}</text>'
            "</g>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    modules = module_imports()
    rooms = room_imports(modules)
    circles = find_circles(modules) + find_circles(rooms)
    for circle in circles:
        print(f"circle: {' <-> '.join(circle)}")
    if circles:
        return 1
    drawing = draw(rooms)
    if check and (not DRAWING.exists() or DRAWING.read_text(encoding="utf-8") != drawing):
        print(f"{DRAWING.name} is out of date: python docs/house.py")
        return 1
    if not check:
        DRAWING.write_text(drawing, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
