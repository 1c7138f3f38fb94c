"""``art-robust benchmark``."""

from __future__ import annotations

import json
from pathlib import Path

from art_robust_plugins.experiments.recipes import available_recipes

from .builders import RECIPE


def test_benchmark(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("benchmark", "--list")
    assert code == 0
    assert all(name in text for name in available_recipes())
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.replace("epochs = 40", "epochs = 1").replace('"plain"', '"`plain` | <b>"'))
    kept = tmp_path / "kept.json"
    code, text = run("benchmark", path, "--out", tmp_path / "own", "--record", kept)
    assert code == 0
    assert "| training | seeds | clean | attacked, Linf 0.1 |" in text
    assert r"| \`plain\` \| &lt;b> |" in text
    record = json.loads(kept.read_text())
    assert record == json.loads((tmp_path / "own" / "results.json").read_text())
    assert record["command"] == "art-robust benchmark own.toml"
    code, text = run("benchmark", path, "--quick", "--quiet", "--out", tmp_path / "quick")
    assert code == 0
    assert "(1 of 1)" not in text
    assert "epoch" not in text
    assert "these are no measurements" in text
    assert json.loads((tmp_path / "quick" / "results.json").read_text())["quick"]
