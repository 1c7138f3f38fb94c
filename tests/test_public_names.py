"""The package's names: what it offers, where it comes from, and how it is refused."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import art_robust_plugins
from art_robust_plugins import TrainingOptions


def test_names_that_type_checkers_see_are_those_that_are_imported() -> None:
    tree = ast.parse(Path(art_robust_plugins.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(seen) == set(art_robust_plugins.__all__)
    for name, module in seen.items():
        source = import_module(f"art_robust_plugins.{module}")
        assert getattr(art_robust_plugins, name) is getattr(source, name)


def test_star_import_dir_and_modules() -> None:
    names: dict[str, object] = {}
    exec("from art_robust_plugins import *", names)
    assert set(art_robust_plugins.__all__) <= names.keys()
    assert {*art_robust_plugins.__all__, "__version__"} <= set(dir(art_robust_plugins))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = art_robust_plugins.no_such_name
    code = "import art_robust_plugins; print(art_robust_plugins.lipschitz.rules.__name__)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "art_robust_plugins.lipschitz.rules\n"


def test_a_pickle_by_the_public_name_loads_in_a_new_process(tmp_path: Path) -> None:
    path = tmp_path / "options.pickle"
    path.write_bytes(pickle.dumps(TrainingOptions(seed=3)))
    code = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb')).seed)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "3\n"


@pytest.mark.parametrize("module", ["evaluation.results", "evaluation.flags", "saved_classifier.layout"])
def test_data_import_neither_torch_nor_art(module: str) -> None:
    code = (
        f"import sys, art_robust_plugins.{module}; print(*[name for name in ('torch', 'art') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def test_a_function_is_not_replaced_by_the_module_of_its_name() -> None:
    code = (
        "from art_robust_plugins.evaluation.sweep import sweep as first\n"
        "from art_robust_plugins.evaluation import sweep, transfer\n"
        "import art_robust_plugins.evaluation.transfer\n"
        "assert sweep is first\n"
        "assert art_robust_plugins.evaluation.transfer is transfer and callable(transfer)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
