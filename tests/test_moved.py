"""Earlier paths of modules: imports and pickles keep working, and one warning names the current path."""

import importlib
import pickle
import subprocess
import sys

import pytest

from art_robust_plugins.moved import MOVED
from art_robust_plugins.training import BANG, bang_gradients


@pytest.mark.parametrize(("earlier", "current"), MOVED.items())
def test_an_earlier_path_is_the_module_itself(earlier, current, monkeypatch):
    monkeypatch.delitem(sys.modules, f"art_robust_plugins.{earlier}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"{earlier} .*art_robust_plugins.{current}"):
        module = importlib.import_module(f"art_robust_plugins.{earlier}")
    assert module is importlib.import_module(f"art_robust_plugins.{current}")
    assert module.__spec__.name == f"art_robust_plugins.{current}"


def test_a_pickle_of_an_earlier_version_loads():
    instrument = BANG(beta=0.5)
    written = pickle.dumps(instrument, protocol=0)
    earlier = written.replace(type(instrument).__module__.encode(), b"art_robust_plugins.training.bang")
    assert earlier != written
    sys.modules.pop("art_robust_plugins.training.bang", None)
    with pytest.warns(DeprecationWarning, match="training.bang has moved"):
        loaded = pickle.loads(earlier)
    assert repr(loaded) == repr(instrument)


def test_a_name_is_imported_from_an_earlier_path():
    code = (
        "from art_robust_plugins.training.bang import bang_gradients as earlier\n"
        "from art_robust_plugins.training import bang_gradients\n"
        "assert earlier is bang_gradients"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert bang_gradients.__module__ == "art_robust_plugins.training.methods.bang"


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("art_robust_plugins.training.nowhere")
