"""Pages in a real browser: printed, of reports with hostile texts, and of unusual reports."""

from __future__ import annotations

import html
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_robust_plugins.evaluation import AttackResult, EvaluationReport, Flag, save_comparison
from art_robust_plugins.evaluation.rendering import render_comparison, render_report
from art_robust_plugins.evaluation.results import Examples

from ..made import make_detailed, make_report
from .browser import Browser, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

POLICY = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
EVIL = (
    "\"'`></title></style></script></textarea><script>owned=1</script><img src=x onerror=owned=1><svg onload=owned=1>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison, and beside it the page of one report."""
    place = tmp_path_factory.mktemp("pages")
    reports = {
        name: make_detailed(np.arange(40) < left, radii=np.linspace(0, 0.3, 40))
        for name, left in (("strong", 30), ("weak", 5))
    }
    reports["strong"].save(place / "one")
    save_comparison(reports, place, folders={"strong": place / "one"})
    return place


@pytest.mark.parametrize("name", ["index.html", "one/report.html"])
def test_pages_print(name: str, browser: Browser, folder: Path) -> None:
    page = browser.open(folder / name, dark=True)
    assert page.print().startswith(b"%PDF-")
    assert page.run("document.querySelectorAll('details.fold').length") > 0
    assert page.run("[...document.querySelectorAll('details.fold')].every(each => each.open)"), (
        "what was folded is printed"
    )
    page.command(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("getComputedStyle(document.body).color") == "rgb(31, 41, 51)"


def make_hostile() -> EvaluationReport:
    """A report with script in each text that it may hold."""
    report = make_detailed(np.arange(12) >= 5, radii=np.linspace(0, 1, 12))
    texts = (
        "device",
        "dtype",
        "network",
        "network_sha256",
        "date",
        "backend",
        "points_sha256",
        "clip_values_by_feature",
    )
    settings: dict[str, Any] = {
        **report.settings,
        **dict.fromkeys(texts, EVIL),
        **{name: [EVIL] for name in ("preprocessing", "could_not_run", "not_run", "straight_through")},
        **{name: {EVIL: EVIL} for name in ("attack_library", "versions")},
        "threat": {**report.settings["threat"], "text": EVIL},
        "certificate": {**report.settings["certificate"], "method": EVIL},
        "autoattack": False,
    }
    attacks = [
        replace(each, name=f"{EVIL}{number}", summary=EVIL, parameters={EVIL: EVIL})
        for number, each in enumerate(report.attacks)
    ]
    attacks[3] = AttackResult(**{**vars(attacks[3]), "bounded": False, "constraint": "none"})
    settings["attacks"] = [each.name for each in attacks]
    return replace(report, settings=settings, attacks=attacks, flags=[Flag(EVIL, "severe", EVIL, EVIL)])


def test_hostile_texts_run_nothing_even_without_the_policy(browser: Browser, tmp_path: Path) -> None:
    report = make_hostile()
    history = [{"loss": 1.0, f"{EVIL}accuracy": 0.5, EVIL: EVIL}]
    pages = {
        "single": render_report(report),
        "compared": render_comparison(
            {EVIL: report, "other": make_detailed(np.arange(12) >= 2)}, {EVIL: EVIL}, {EVIL: history}
        ),
        "canary": render_report(report).replace("</main>", "<script>owned=1</script></main>"),
    }
    for name, text in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_text(re.sub(POLICY, "", text))
        page = browser.open(path)
        page.run(
            "(() => { for (const each of document.querySelectorAll('details')) each.open = true;"
            "for (const each of document.querySelectorAll('button')) each.click();"
            "for (const each of document.querySelectorAll('.explorer-list tr')) each.click(); })()"
        )
        page.run("new Promise(done => setTimeout(done, 100))")
        assert page.run("typeof owned") == ("number" if name == "canary" else "undefined")
        assert page.run("document.querySelectorAll('.explorer-list tbody tr').length") > 0, "our script ran"
        assert EVIL.replace("\\", "") in html.unescape(page.run("document.body.textContent"))
    path.write_text(pages["canary"])
    assert browser.open(path).run("typeof owned") == "undefined", "the policy stops what escaping might miss"


def make_unusual() -> dict[str, EvaluationReport]:
    half = np.arange(12) % 2 == 0
    bounded = [("pgd-20", "ball"), ("fgsm", "ball")]
    own = [("deepfool", "minimal"), ("cw", "minimal"), ("pixle", "none")]

    def only(*names: str) -> EvaluationReport:
        report = make_detailed(half, attacks=[*bounded, *own])
        attacks = [each for each in report.attacks if each.name in names]
        return replace(
            report, attacks=attacks, settings={**report.settings, "attacks": list(names), "autoattack": False}
        )

    def make_shaped(*shape: int) -> EvaluationReport:
        report = make_detailed(half)
        assert report.details is not None
        size = int(np.prod(shape))

        def fill(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.repeat(images.reshape(len(images), 4)[:, :1], size, axis=1).reshape(len(images), *shape)

        examples = vars(report.examples)
        return replace(
            report,
            adversarial=fill(report.adversarial),
            details=replace(report.details, clean=fill(report.details.clean)),
            examples=Examples(
                **{**examples, "clean": fill(examples["clean"]), "adversarial": fill(examples["adversarial"])}
            ),
            settings={**report.settings, "input_shape": list(shape)},
        )

    return {
        "vectors": make_shaped(7),
        "a pixel": make_shaped(1, 1, 1),
        "large": make_shaped(3, 224, 224),
        "one class": make_detailed(np.arange(12) != 3),
        "none robust": make_detailed(half & False),
        "all robust": make_detailed(half | True, radii=np.full(12, 1.0)),
        "one point": make_detailed(np.array([False])),
        "own measure": only("deepfool", "cw", "pixle"),
        "single attacks": only("pgd-20", "fgsm"),
        "earlier": make_report(half),
    }


@pytest.mark.parametrize("name", make_unusual())
def test_unusual_reports_have_whole_pages(name: str, browser: Browser, tmp_path: Path) -> None:
    report = make_unusual()[name]
    page_path = report.save(tmp_path / "a" / "run")
    moved = shutil.move(tmp_path / "a", tmp_path / "moved")
    for made in page_path.parent.parent.parent.glob("moved/run/report.*"):
        if made.suffix != ".json":
            made.unlink()
    again = EvaluationReport.load(Path(moved) / "run")
    pages = [again.write_pages(Path(moved) / "run"), save_comparison({"x": again, "y": again}, tmp_path / "compared")]
    for path in pages:
        page = browser.open(path, 390)
        assert page.run("document.documentElement.scrollWidth") == 390
        text = page.run("document.body.innerText")
        assert not re.search(
            r"\b(NaN|undefined|null|None|Infinity)\b",
            text.replace("None of the checks", "").replace("None to show", ""),
        ), name
        assert page.run("document.querySelector('.explorer-detail h3').textContent").startswith("Point ")
        broken = page.run("Promise.all([...document.images].map(each => each.decode().then(() => 0, () => 1)))")
        assert sum(broken) == 0
        assert path.stat().st_size < 3_000_000
