"""Executes the tutorials anew, so that they show what the package of today prints.

python docs/notebooks.py                all of them
python docs/notebooks.py art_user       some of them, by name

Needs the dependency group ``notebooks`` beside the package. The files keep no date and no cell's time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> None:
    """Run a notebook's cells in order and keep their outputs; an exception in a cell ends it."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": TUTORIALS}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    notebook.metadata = METADATA
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tutorials; all where none is named")
    names = parser.parse_args().names or sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
    for name in names:
        print(name)
        execute(TUTORIALS / f"{name}.ipynb")


if __name__ == "__main__":
    main()
