"""Draws the house: which room of the package imports which, found in the imports themselves.

python docs/house.py            writes docs/house.svg
python docs/house.py --check    compares it with the drawing that is there, and writes nothing

Both exit with 1 for modules, rooms or parts of rooms that import each other in a circle, and for an import of a room on
a higher floor. A room is a module or a folder directly in the package, a part one directly in a room. Imports inside
functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import argparse
import ast
import html
import sys
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "art_robust_plugins"
DRAWING = ROOT / "docs" / "house.svg"

FLOORS: list[tuple[str, tuple[str, ...]]] = [
    ("ground floor", ()),
    ("bridge to ART,\ndata", ("bridge", "data")),
    ("networks,\ncertificates,\ntraining", ("models", "weight_map", "lipschitz", "training")),
    ("evaluation", ("evaluation",)),
    ("saved classifiers,\nexport, registry", ("saved_classifier", "export", "registry")),
    ("experiments", ("experiments",)),
    ("command line", ("cli",)),
]
"""The floors, upwards, and the rooms on each. A room that is not named is on the ground floor, and may not import one
that is."""
DOORS = ("__main__",)
"""Modules that open the package, and hold nothing."""

WIDTH, HEIGHT, GAP, PITCH, MARGIN, LABELS = 150, 32, 16, 76, 20, 140
"""Pixels: a room's width and height, between rooms, from row to row, around all, and for the floors' names."""
LINE_HEIGHT = 18
SWEEPS = 24
"""The number of times that the rows are ordered."""
LINE, TEXT, BOX, BANDS = "#4a5f80", "#16233a", "#ffffff", ("#e3eaf5", "#f2f5fa")

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
    """The same between rooms; the package's ``__init__`` and `DOORS` are no rooms."""

    def room(name: str) -> str | None:
        parts = name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] not in DOORS else None

    rooms: dict[str, set[str]] = {}
    for name, imported in modules.items():
        if (own := room(name)) is not None:
            others = {other for other in map(room, imported) if other not in (None, own)}
            rooms.setdefault(own, set()).update(other for other in others if other is not None)
    return rooms


def part_imports(modules: Imports) -> dict[str, set[str]]:
    """The same between the parts of rooms, as ``training.engine`` and ``training.options``, and rooms that are one."""

    def part(name: str) -> str:
        return ".".join(name.split(".")[1:3])

    parts: dict[str, set[str]] = {}
    for name, imported in modules.items():
        if own := part(name):
            parts.setdefault(own, set()).update({*map(part, imported)} - {"", own})
    return parts


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


def find_floor(name: str) -> int:
    """The floor of a room: its place in `FLOORS`; 0, the ground floor, for a room that is not named there."""
    return next((floor for floor, (_, names) in enumerate(FLOORS) if name in names), 0)


def find_upward(rooms: Imports) -> list[tuple[str, str]]:
    """The imports that run up: the room, and the one on a higher floor that it imports."""
    return [
        (name, other)
        for name, others in rooms.items()
        for other in sorted(others)
        if find_floor(other) > find_floor(name)
    ]


def drop_implied(imports: Imports) -> dict[str, set[str]]:
    """The imports that no chain of others implies (the transitive reduction; there must be no circle)."""

    def reach(name: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in imports[name]))

    return {name: others - set().union(*map(reach, others)) for name, others in imports.items()}


# ---------------------------------------------------------------------------------------------------------- the drawing

Point = tuple[str, int]
"""A room at its row, or a place at which an arrow from the room passes through a row."""


def find_rows(rooms: Imports) -> dict[str, int]:
    """The row of each room above the ground floor, from 0: above the rooms of its floor that it imports."""
    rows: dict[str, int] = {}
    for floor in range(1, len(FLOORS)):
        first = max(rows.values(), default=-1) + 1
        names = [name for name in rooms if find_floor(name) == floor]

        def height(name: str, first: int = first, names: list[str] = names) -> int:
            return max((height(other) + 1 for other in rooms[name] if other in names), default=first)

        rows |= {name: height(name) for name in names}
    return rows


def lay_out(imports: Imports, rows: Mapping[str, int]) -> tuple[dict[Point, float], list[list[Point]]]:
    """The horizontal centre of each room and passing place, and the arrows as the points that they go through.

    Rows are ordered by the mean of the neighbours (Sugiyama, Tagawa, Toda 1981), which leaves few crossings.
    """
    arrows = [
        [
            (name, rows[name]),
            *((f"{name} > {other}", row) for row in range(rows[name] - 1, rows[other], -1)),
            (other, rows[other]),
        ]
        for name in sorted(rows)
        for other in sorted(imports[name])
    ]
    neighbours: dict[Point, list[Point]] = {(name, row): [] for name, row in sorted(rows.items())}
    for arrow in arrows:
        for above, below in pairwise(arrow):
            neighbours.setdefault(above, []).append(below)
            neighbours.setdefault(below, []).append(above)
    levels = [[point for point in neighbours if point[1] == row] for row in range(max(rows.values()) + 1)]
    centre = {point: float(place) * (WIDTH + GAP) for level in levels for place, point in enumerate(level)}
    for sweep in range(SWEEPS):
        for level in levels if sweep % 2 else reversed(levels):
            wanted = {
                point: sum(centre[other] for other in neighbours[point]) / len(neighbours[point])
                if neighbours[point]
                else centre[point]
                for point in level
            }
            level.sort(key=lambda point: (wanted[point], point))
            centre |= _spread(level, wanted, rows)
    left = min(centre.values())
    return {point: round(x - left) for point, x in centre.items()}, arrows


def _spread(level: list[Point], wanted: Mapping[Point, float], rows: Mapping[str, int]) -> dict[Point, float]:
    """Places as near to the wanted ones as their order and widths allow: groups that touch move as one."""
    size = {point: (WIDTH if point[0] in rows else 0) + GAP for point in level}
    groups: list[tuple[list[Point], float, float]] = []  # points, the wanted left end, the width
    for point in level:
        group = ([point], wanted[point] - size[point] / 2, float(size[point]))
        while groups and groups[-1][1] + groups[-1][2] > group[1]:
            points, start, width = groups.pop()
            count = len(points) + len(group[0])
            start = (start * len(points) + (group[1] - width) * len(group[0])) / count
            group = (points + group[0], start, width + group[2])
        groups.append(group)
    centre: dict[Point, float] = {}
    for points, left, _ in groups:
        for point, before in zip(points, accumulate((size[each] for each in points), initial=0), strict=False):
            centre[point] = left + before + size[point] / 2
    return centre


def draw(rooms: Imports) -> str:
    """The house as SVG: a box for each room, and an arrow down to each room that it imports.

    Imports that a chain of arrows implies, and those of the ground floor, are not drawn: hovering names all of them.
    """
    rows = find_rows(rooms)
    upper = {name: {other for other in others if other in rows} for name, others in rooms.items() if name in rows}
    centre, arrows = lay_out(drop_implied(upper), rows)
    ground = sorted(name for name in rooms if name not in rows)
    count = max(rows.values()) + 1
    columns = max(4, (max(centre.values()) + WIDTH) // (WIDTH + GAP))
    inner = max(max(centre.values()) + WIDTH, columns * (WIDTH + GAP) - GAP)
    slab = -(-len(ground) // columns) * (HEIGHT + GAP) - GAP
    total = (inner + LABELS + 3 * MARGIN, count * PITCH + slab + 3 * MARGIN)

    def top(row: int) -> int:
        return MARGIN + (count - 1 - row) * PITCH + (PITCH - HEIGHT) // 2

    shift = LABELS + 2 * MARGIN + WIDTH // 2 + (inner - WIDTH - max(centre.values())) // 2
    place = {name: (centre[name, row] + shift - WIDTH // 2, top(row)) for name, row in rows.items()}
    first = count * PITCH + 2 * MARGIN
    for number, name in enumerate(ground):
        line, column = divmod(number, columns)
        place[name] = (LABELS + 2 * MARGIN + column * (WIDTH + GAP), first + line * (HEIGHT + GAP))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" role="img" '
        f'font-family="sans-serif" font-size="14">',
        "<title>The rooms of the package: each imports only rooms below it</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{total[0]}" height="{total[1]}" fill="#ffffff"/>',
    ]
    for floor, (title, _) in enumerate(FLOORS):
        names = ground if floor == 0 else [name for name in rows if find_floor(name) == floor]
        if names:
            around = MARGIN if floor == 0 else (PITCH - HEIGHT) // 2
            high = min(place[name][1] for name in names) - around + 2
            low = max(place[name][1] for name in names) + HEIGHT + around - 2
            lines += _draw_band(title, BANDS[floor % 2], high, low, total[0])
    for arrow in arrows:
        lines.append(_draw_arrow(arrow, [(centre[point] + shift, top(point[1])) for point in arrow]))
    for name, (x, y) in sorted(place.items()):
        uses = ", ".join(sorted(rooms[name])) or "nothing of the package"
        lines.append(
            f"<g><title>{html.escape(name)} imports {html.escape(uses)}</title>"
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" fill="{BOX}" stroke="{LINE}"/>'
            f'<text x="{x + WIDTH // 2}" y="{y + 21}" text-anchor="middle" fill="{TEXT}">{html.escape(name)}</text>'
            "</g>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _draw_band(title: str, colour: str, high: int, low: int, width: int) -> list[str]:
    parts = title.split("\n")
    first = (high + low) // 2 + 5 - LINE_HEIGHT * (len(parts) - 1) // 2
    return [
        f'<rect x="{MARGIN // 2}" y="{high}" width="{width - MARGIN}" height="{low - high}" fill="{colour}"/>',
        *(
            f'<text x="{MARGIN}" y="{first + LINE_HEIGHT * number}" fill="{TEXT}">{html.escape(part)}</text>'
            for number, part in enumerate(parts)
        ),
    ]


def _draw_arrow(arrow: list[Point], points: list[tuple[float, int]]) -> str:
    """A curve that leaves the upper room at its lower edge, and runs straight down through the rows that it passes."""
    x, y = points[0][0], points[0][1] + HEIGHT
    path = f"M{x:g} {y:g}"
    for number, (next_x, next_y) in enumerate(points[1:], 1):
        middle = (y + next_y) / 2
        path += f" C{x:g} {middle:g} {next_x:g} {middle:g} {next_x:g} {next_y:g}"
        x, y = next_x, next_y
        if number < len(points) - 1:
            y += HEIGHT
            path += f" V{y:g}"
    title = f"<title>{html.escape(arrow[0][0])} imports {html.escape(arrow[-1][0])}</title>"
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.3" marker-end="url(#head)">{title}</path>'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    modules = module_imports()
    rooms = room_imports(modules)
    circles = find_circles(modules) + find_circles(rooms) + find_circles(part_imports(modules))
    for circle in circles:
        print(f"circle: {' <-> '.join(circle)}")
    upward = find_upward(rooms)
    for name, other in upward:
        print(f"upward: {name} imports {other}, which is on a higher floor")
    if circles or upward:
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
