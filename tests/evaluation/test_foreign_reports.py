"""Reports of unknown origin: what no evaluation gives is refused, and what may stand in one is shown as text."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Data
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, Flag, compare, save_comparison
from art_robust_plugins.files import load_tensors, save_tensors, seal, sha256_of

from .builders import custom, step, wrap


@pytest.fixture(scope="module")
def report(network: nn.Module, data: Data) -> EvaluationReport:
    attacks = [custom(step, name="one"), custom(lambda x, y, setting: 1 - x, name="far", constraint="none")]
    evaluator = Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=attacks, verbose=False)
    found = evaluator.evaluate(*data)
    assert 0 < found.robust_accuracy < found.clean_accuracy
    flags = [Flag("first", "warning", "Seen.", "Look.")]
    return replace(found, flags=flags, radii=None)


@pytest.fixture(scope="module")
def report_folder(report: EvaluationReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.save(folder)
    return folder


@pytest.fixture
def copied_folder(report_folder: Path, tmp_path: Path) -> Path:
    """A folder with what is read back of a report."""
    for name in ("report.json", "arrays.safetensors"):
        shutil.copy(report_folder / name, tmp_path)
    return tmp_path


def place(value: Any, path: str, new: Any) -> None:
    """Set an entry of nested data, as in ``"attacks.0.name"``."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        value = value[part]
    value[last] = new


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("clean_accuracy", 1.0),
        ("robust_accuracy", 0.3),
        ("robust_accuracy", True),
        ("robust_accuracy", 10**200),
        ("attacks.0.robust_accuracy", 0.9),
        ("attacks.0.robust_accuracy", -1),
        ("attacks.0.name", 3),
        ("attacks.0.seconds", "1"),
        ("attacks.0.forward_calls", 1.5),
        ("attacks.0.bounded", False),
        ("attacks.0.constraint", "sphere"),
        ("attacks.0.parameters", []),
        ("attacks", []),
        ("flags.0.severity", "<script>alert(1)</script>"),
        ("flags.0.severity", "fine"),
        ("flags.0.name", None),
        ("flags", [{"name": "a", "severity": "note", "evidence": "", "advice": ""}] * 1001),
        ("settings.classes", "<img src=x onerror=alert(1)>"),
        ("settings.classes", 3),
        ("settings.seed", "<b>"),
        ("settings.seed", -1),
        ("settings.batch_size", ["<b>"]),
        ("settings.batch_size", 0),
        ("settings.physical_batch_size", "<b>"),
        ("settings.points", 39),
        ("settings.points", 40.0),
        ("settings.autoattack", True),
        ("settings.fast", "no"),
        ("settings.attacks", ["one", "other"]),
        ("settings.clip_values", [1, 0]),
        ("settings.clip_values", ["<b>", 1]),
        ("settings.input_shape", [1, 8, 9]),
        ("settings.input_shape", ["<b>"]),
        ("settings.threat.text", "Linf 8/255"),
        ("settings.threat.eps", 0.05),
        ("settings.threat.eps", 0),
        ("settings.threat.norm", "L0"),
        ("settings.tolerance", "<b>"),
        ("settings.network_sha256", 12),
        ("settings.versions", {"torch": 2}),
        ("settings.diagnostics.points", "<b>"),
        ("settings.diagnostics.seconds", -1),
        ("settings.preprocessing", "text"),
        ("settings.certificate", {"method": 3}),
        ("settings.reused", {"eps": 0.1, "points": 1000}),
        ("curve", []),
        ("curve.0", [0.1, 2]),
        ("curve.0", [0.1]),
        ("curve.0", 1),
        ("attacks.0.seconds", 1e308),
        ("attacks.0.forward_calls", 10**200),
        ("settings.batch_size", 10**290),
        ("settings.clip_values", [-1e308, 1e308]),
        ("settings.threat.eps", 1e308),
        ("settings.diagnostics.seconds", 1e308),
        ("settings.tolerance", 1e308),
        ("curve.0.0", 1e308),
        ("script", "<b>"),
    ],
)
def test_entries_that_no_evaluation_gives(entry: str, value: Any, copied_folder: Path) -> None:
    """Whoever changed them knows how the digest is made."""
    path = copied_folder / "report.json"
    record = json.loads(path.read_text())
    place(record, entry, value)
    path.write_text(json.dumps(seal(record)))
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        EvaluationReport.load(copied_folder)
    sentence = str(refusal.value)
    assert sentence.startswith(f"{path}: ")
    name = "threat.text" if value == 0.05 else re.sub(r"\.(\d+)", r"[\1]", entry)
    known = ("input_shape", "points", "classes")
    assert name.split(".", 1)[-1] in sentence or any(part in entry for part in known)
    assert "\n" not in sentence
    assert len(sentence) < 400 + len(str(path))


@pytest.mark.parametrize("size", [5e-324, 1e-300, 3.4e38])
def test_the_largest_and_smallest_numbers_are_shown(size: float, copied_folder: Path, tmp_path: Path) -> None:
    path = copied_folder / "report.json"
    record = json.loads(path.read_text())
    place(record, "settings.threat.eps", size)
    place(record, "settings.threat.text", str(ThreatModel(record["settings"]["threat"]["norm"], size)))
    place(record, "curve", [[0.0, 1.0], [size, 0.5], [3.4e38, 0.0]])
    place(record, "attacks.0.seconds", 3.4e38)
    place(record, "attacks.0.forward_calls", 2**63 - 1)
    path.write_text(json.dumps(seal(record)))
    loaded = EvaluationReport.load(copied_folder)
    assert f"{size:g}" in str(loaded)
    loaded.save(tmp_path / "again")
    assert f"{size:g}" in (tmp_path / "again" / "report.html").read_text()


@pytest.mark.parametrize("entry", ["settings.seed", "settings", "curve", "flags", "clean_accuracy", "settings.threat"])
def test_missing_entries(entry: str, copied_folder: Path) -> None:
    path = copied_folder / "report.json"
    record = json.loads(path.read_text())
    *way, last = entry.split(".")
    inside = record
    for part in way:
        inside = inside[part]
    del inside[last]
    path.write_text(json.dumps(seal(record)))
    with pytest.raises(ValueError, match=f"{entry}: got no such entry"):
        EvaluationReport.load(copied_folder)


def test_a_changed_digit_is_noticed_and_earlier_reports_load(report: EvaluationReport, copied_folder: Path) -> None:
    path = copied_folder / "report.json"
    text = path.read_text()
    record = json.loads(text)
    changed = text.replace(f'"seed": {report.settings["seed"]}', '"seed": 7')
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ValueError, match=r"report\.json: sha256: got "):
        EvaluationReport.load(copied_folder)
    del record["sha256"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"report\.json: sha256: got no such entry"):
        EvaluationReport.load(copied_folder)
    record["format"] = "art-robust-plugins report 3"
    path.write_text(json.dumps(record))
    assert EvaluationReport.load(copied_folder).robust_accuracy == report.robust_accuracy
    record["robust_accuracy"] /= 2
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"report\.json: robust_accuracy: got"):
        EvaluationReport.load(copied_folder)


def flip(values: Any) -> Any:
    return ~values


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("robust", flip),
        ("correct", flip),
        ("attacks", flip),
        ("robust", lambda values: values[:-1]),
        ("robust", lambda values: values.float()),
        ("labels", lambda values: values + 100),
        ("labels", lambda values: values.int()),
        ("adversarial", lambda values: values * float("nan")),
        ("adversarial", lambda values: values[:, :, :4]),
        ("examples.indices", lambda values: values + 1000),
        ("examples.labels", lambda values: (values + 1) % 10),
        ("examples.predictions", lambda values: values - 100),
        ("examples.clean", lambda values: values[:, :, :4]),
        ("examples.adversarial", lambda values: values.double()),
    ],
)
def test_arrays_that_do_not_bear_the_totals_out(name: str, change: Callable[[Any], Any], copied_folder: Path) -> None:
    path, arrays = copied_folder / "report.json", copied_folder / "arrays.safetensors"
    tensors = load_tensors(arrays)
    save_tensors(arrays, {**tensors, name: change(tensors[name]).contiguous()})
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), "arrays_sha256": sha256_of(arrays)})))
    with pytest.raises(ValueError, match=r"report\.json: \S+: got "):
        EvaluationReport.load(copied_folder)


class Tags(HTMLParser):
    """The tags of a page, and its attributes but for pictures and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attributes}


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)> | [a](http://b) $x_{$ `c`\n\x1b[31m =1"


def test_texts_of_a_report_are_shown_as_text(report: EvaluationReport, tmp_path: Path) -> None:
    """Each text that a report may hold, in each of its pages and in comparisons; its numbers cannot be texts."""
    plain = Tags(compare({"a": report, "b": report})).tags
    report.save(tmp_path / "plain")
    alone = Tags((tmp_path / "plain" / "report.html").read_text()).tags
    texts = ("device", "dtype", "network", "network_sha256", "date", "backend")
    settings: dict[str, Any] = {
        **report.settings,
        **dict.fromkeys(texts, HOSTILE),
        **{name: [HOSTILE] for name in ("preprocessing", "could_not_run", "not_run")},
        **{name: {HOSTILE: HOSTILE} for name in ("attack_library", "versions")},
        "attacks": [f"={HOSTILE}", "far"],
        # These are refused when a report is read; a report may be made in other ways.
        **dict.fromkeys(("seed", "classes", "batch_size", "physical_batch_size"), HOSTILE),
        "threat": {**report.settings["threat"], "text": HOSTILE},
    }
    first = replace(report.attacks[0], name=f"={HOSTILE}", summary=HOSTILE, parameters={HOSTILE: HOSTILE})
    flags = [Flag(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]  # type: ignore[arg-type]
    hostile = replace(report, settings=settings, attacks=[first, report.attacks[1]], flags=flags)
    hostile.save(tmp_path / "hostile")
    save_comparison({HOSTILE: hostile, "_": hostile, "": report}, tmp_path)

    page, comparison = (tmp_path / "hostile" / "report.html").read_text(), (tmp_path / "index.html").read_text()
    for text in (page, comparison):
        found = Tags(text)
        assert set(found.tags) <= {*plain, *alone, "h3", "ul", "li", "details", "summary", "small", "b"}
        assert not {name for name in found.names if name.startswith("on")} | found.names & {"style", "srcdoc", "action"}
        assert "\x1b" not in text
    assert page.count("<img") == alone.count("img")
    for path in (tmp_path / "hostile" / "report.md", tmp_path / "index.md"):
        text = path.read_text()
        for begins in ("<script", "<img", " | [", "http://", "\x1b"):
            assert begins not in text
        assert not any(line.startswith(("alert", "<", "=1")) for line in text.splitlines())
    with (tmp_path / "hostile" / "verdicts.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head[3].startswith("'=")
    assert len(lines) == len(report.labels)
    assert "\x1b" not in str(hostile)
    assert len(str(hostile).splitlines()) == len(str(report).splitlines()) + 1  # it names one that could not run


@pytest.mark.parametrize(
    ("radius", "good"), [(0.1, True), (-1.0, True), (np.inf, True), (-2.0, False), (np.nan, False)]
)
def test_the_radii_of_a_foreign_report(
    radius: float, good: bool, report: EvaluationReport, copied_folder: Path
) -> None:
    path, arrays = copied_folder / "report.json", copied_folder / "arrays.safetensors"
    radii = torch.full((len(report.labels),), radius, dtype=torch.float64)
    save_tensors(arrays, {**load_tensors(arrays), "radii": radii})
    record = {**json.loads(path.read_text()), "arrays_sha256": sha256_of(arrays)}
    path.write_text(json.dumps(seal(record)))
    with pytest.raises(ValueError, match=r"settings\.certificate: got None"):
        EvaluationReport.load(copied_folder)
    certificate = {"method": "m", "largest constant of a difference of logits (L2)": 1.0, "seconds": 0.0}
    record["settings"]["certificate"] = certificate
    path.write_text(json.dumps(seal(record)))
    if good:
        assert EvaluationReport.load(copied_folder).certified_accuracy == float(radius >= 0.1)
    else:
        with pytest.raises(ValueError, match="radii: got "):
            EvaluationReport.load(copied_folder)
