"""The pages as people use them, in a real browser: sorted, filtered, opened, hidden, copied."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from art_robust_plugins.evaluation import EvaluationReport, Flag, save_comparison
from art_robust_plugins.evaluation.rendering import comparison_markdown, conclude

from ..made import EPS, make_detailed
from .browser import Browser, Page, needs_chromium

pytestmark = [pytest.mark.slow, needs_chromium]

NAMES = ("strong", '=1+1 [a](b) | 50% {x} _y_ \\z ~ ^ # $ & "q" <i>', "*weak", "middle")


@pytest.fixture(scope="module")
def reports() -> dict[str, EvaluationReport]:
    """Four networks on the same 40 points, whose numbers have another order in every column."""
    flag = Flag("zero-gradients", "warning", "Seen.", "Look.")
    severe = Flag("no-gradients", "severe", "None.", "Look.")
    left = {NAMES[0]: 30, NAMES[1]: 24, NAMES[2]: 5, NAMES[3]: 20}
    attacks = [("fgsm", "ball"), ("pgd-20", "ball"), ("cw", "minimal"), ("pixle", "none")]
    found = {}
    for number, (name, count) in enumerate(left.items()):
        radii = np.linspace(0, 0.3, 40) * (number + 1) if number < 3 else None
        flags = [[], [flag], [severe, flag], []][number]
        report = make_detailed(np.arange(40) < count, radii=radii, attacks=attacks, flags=flags)
        results = [replace(each, seconds=each.seconds * (4 - number) ** 2) for each in report.attacks]
        found[name] = replace(report, attacks=results)
    return found


@pytest.fixture(scope="module")
def folder(reports: dict[str, EvaluationReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison, and beside it the page of one report."""
    place = tmp_path_factory.mktemp("pages")
    epochs = [
        {"loss": 2.0, "validation_accuracy": 0.3, "seconds": 4.0},
        {"loss": 1.0, "validation_accuracy": 0.6, "seconds": 4.0},
    ]
    histories = {NAMES[0]: epochs, NAMES[2]: epochs[:1]}
    reports[NAMES[0]].save(place / "one")
    save_comparison(reports, place, folders={NAMES[0]: place / "one"}, histories=histories)
    return place


def test_the_verdict_is_first_and_the_same_everywhere(
    browser: Browser, folder: Path, reports: dict[str, EvaluationReport]
) -> None:
    said = conclude(reports)
    page = browser.open(folder / "index.html")
    assert page.run("document.querySelector('.conclusion').textContent") == said
    assert page.run("document.querySelector('.conclusion').getBoundingClientRect().bottom") < 400, "on the first screen"
    text = (folder / "index.md").read_text()
    assert said[:20] in text
    assert comparison_markdown(reports) == text
    best = reports[NAMES[0]]
    assert said.startswith(f"{NAMES[0]} has the highest worst case: {best.robust_accuracy:.1%} of 40 points")
    assert said.endswith("3 warnings, 1 of them severe.")


def read_column(page: Page, column: int) -> list[tuple[float | None, str]]:
    """Values and texts of the leaderboard's column, as they stand."""
    cells = page.run(
        f"[...document.querySelectorAll('.leaderboard tbody tr')].map(row => row.cells[{column}]).map(cell =>"
        "['value' in cell.dataset ? Number(cell.dataset.value) : null, cell.dataset.text])"
    )
    return [(value, text) for value, text in cells]


def test_every_column_sorts_by_mouse_and_by_keyboard(browser: Browser, folder: Path) -> None:
    page = browser.open(folder / "index.html")
    heads = page.run("[...document.querySelectorAll('.leaderboard button.sort')].map(each => each.textContent)")
    assert heads[:2] == ["network", "worst case"]
    assert {"AutoAttack", "clean", "certified", "median certified radius", "training", "passes", "flags"} <= set(heads)
    for column, head in enumerate(heads):
        button = f"document.querySelectorAll('.leaderboard button.sort')[{column}]"
        state = f"{button}.closest('th').getAttribute('aria-sort')"
        page.click(button)
        seen = [read_column(page, column)]
        orders = [page.run(state)]
        page.press("Enter" if column % 2 else " ")  # the button has the focus
        seen.append(read_column(page, column))
        orders.append(page.run(state))
        assert sorted(orders) == ["ascending", "descending"], head
        for order, cells in zip(orders, seen, strict=True):
            numbers = [value for value, _ in cells if value is not None]
            assert numbers == sorted(numbers, reverse=order == "descending"), head
            assert [value for value, _ in cells][len(numbers) :] == [None] * (4 - len(numbers)), head
        if head == "network":
            assert [text for _, text in seen[0]][-2:] == ["middle", "strong"]
            assert seen[1] == seen[0][::-1]
        assert page.run("document.querySelectorAll('.leaderboard th[aria-sort]').length") == 1


def test_badges_open_their_evidence_and_names_their_reports(browser: Browser, folder: Path) -> None:
    page = browser.open(folder / "index.html")
    badge = "document.querySelector('details.badge.severe')"
    assert not page.run(f"{badge}.querySelector('p').checkVisibility()")
    page.click(f"{badge}.querySelector('summary')")
    assert page.run(f"{badge}.querySelector('p').checkVisibility()")
    assert page.run(f"{badge}.querySelector('p').textContent") == "severe: None. Look."
    page.press("Enter")
    assert not page.run(f"{badge}.querySelector('p').checkVisibility()")
    with page.loading():
        page.click("document.querySelector('.leaderboard tbody a')")
    assert page.run("location.pathname").endswith("/one/report.html")
    assert page.run("document.title") == "Robustness evaluation, Linf 0.1"


def test_legends_hide_networks_and_kinds_of_lines(browser: Browser, folder: Path) -> None:
    for name in ("index.html", "one/report.html"):
        page = browser.open(folder / name)
        seen = (
            "[...document.querySelector('.figures').querySelectorAll('.series')]"
            ".filter(each => getComputedStyle(each).display !== 'none')"
            ".map(each => [each.dataset.series, each.dataset.kind].join())"
        )
        whole = page.run(seen)
        kinds = {each.split(",")[1] for each in whole}
        assert kinds == {"solid", "dashed"}
        certified = "document.querySelector('.legend [data-kind=dashed]')"
        page.click(certified)
        assert page.run(f"{certified}.ariaPressed") == "false"
        solid = page.run(seen)
        assert solid == [each for each in whole if each.endswith("solid")]
        if name == "index.html":
            first = "document.querySelector('.legend [data-series=\"1\"]')"
            page.click(first)
            assert page.run(seen) == [each for each in solid if not each.startswith("1,")]
            page.click(certified)
            assert page.run(seen) == [each for each in whole if not each.startswith("1,")]
            page.click(first)
        else:
            page.press(" ")
        assert page.run(seen) == whole


def test_figures_tell_their_values_to_the_keyboard(browser: Browser, folder: Path) -> None:
    page = browser.open(folder / "index.html")
    page.run("document.querySelector('svg.chart g[tabindex=\"0\"]').focus()")
    told = []
    for _ in range(3):
        told.append(page.run("document.activeElement.getAttribute('aria-label')"))
        page.press("ArrowRight")
    assert told == [
        f"{NAMES[0]}, eps {eps}: {value}%" for eps, value in (("0", "100.0"), ("0.05", "80.0"), ("0.1", "75.0"))
    ]
    for chart in page.run("[...document.querySelectorAll('svg.chart')].map(each => each.getAttribute('aria-label'))"):
        assert re.search(r"\d", chart), "the description has values"


FILTERS = {
    "label": lambda report, point: report.labels[point] == 3,
    "prediction": lambda report, point: report.labels[point] == 3,
    "when attacked": lambda report, point: report.labels[point] + (not report.robust[point]) == 4,
    "verdict": lambda report, point: not report.robust[point],
    "broken by": lambda report, point: not report.robust[point] and point % 2 == 1,
    "certified": lambda report, point: report.radii[point] >= EPS,
}
CHOICES = {"label": "3", "prediction": "3", "when attacked": "4", "verdict": "1", "broken by": "1", "certified": "1"}


def choose(page: Page, name: str, value: str) -> list[int]:
    """Set a filter, and give back the points that are listed, over all pages of the list."""
    found = page.run(
        f"""(() => {{ const room = document.getElementById("explorer-room"), value = {json.dumps(value)};
        const labels = [...room.querySelectorAll("label")];
        const select = labels.find(each => each.firstChild.data === {json.dumps(name)}).lastChild;
        select.value = value;
        if (select.value !== value) return "no such choice";
        select.dispatchEvent(new Event("change"));
        const found = [], [back, forth] = room.querySelectorAll(".explorer-pages button");
        while (!back.disabled) back.click();
        for (;;) {{
          const listed = [...room.querySelectorAll(".explorer-list tbody button")];
          found.push(...listed.map(each => Number(each.dataset.point)));
          if (forth.disabled) return found;
          forth.click();
        }} }})()"""
    )
    assert isinstance(found, list), (name, found)
    return found


def test_each_filter_and_pairs_of_them(browser: Browser, folder: Path, reports: dict[str, EvaluationReport]) -> None:
    page = browser.open(folder / "index.html")
    ranked = [NAMES[0], NAMES[1], NAMES[3], NAMES[2]]
    for number, name in ((1, NAMES[1]), (3, NAMES[2])):
        report = reports[name]
        assert choose(page, "network", str(number)) == list(range(40))
        for one, keeps in FILTERS.items():
            expected = [point for point in range(40) if keeps(report, point)]
            assert choose(page, one, CHOICES[one]) == expected, one
            assert 0 < len(expected) < 40, "the case is vacuous"
            for other, also in FILTERS.items():
                if other > one:
                    both = [point for point in expected if also(report, point)]
                    assert choose(page, other, CHOICES[other]) == both, (one, other)
                    assert choose(page, other, "") == expected
            choose(page, one, "")
        losses = np.sum([~each.robust for each in reports.values()], axis=0)
        assert choose(page, "broken in", "one") == np.flatnonzero(losses == 1).tolist()
        assert choose(page, "broken in", "all") == np.flatnonzero(losses == 4).tolist()
        own = np.flatnonzero((losses == 1) & ~report.robust).tolist()
        assert choose(page, "broken in", "this") == own
        choose(page, "broken in", "")
        expected = [point for point in range(40) if not report.robust[point] and report.radii[point] >= EPS]
        assert choose(page, "flag", "certified-yet-broken") == expected
        choose(page, "flag", "")
    assert ranked == page.run("[...document.querySelector('#explorer-room select').options].map(each => each.text)")
    assert choose(page, "network", "2") == list(range(40))  # without certificates
    assert choose(page, "certified", "1") == []
    assert choose(page, "certified", "0") == list(range(40))


@pytest.mark.parametrize("by", ["click", "Enter", " "])
def test_a_point_opens_by_mouse_and_by_keyboard(
    by: str, browser: Browser, folder: Path, reports: dict[str, EvaluationReport]
) -> None:
    report = reports[NAMES[0]]
    page = browser.open(folder / "one" / "report.html")
    first = "document.querySelector('.explorer-list tbody button[tabindex=\"0\"]')"
    assert choose(page, "verdict", "1")[:2] == [30, 31]
    if by == "click":
        page.click("document.querySelectorAll('.explorer-list tbody td')[4]")  # anywhere in the second row
    else:
        page.run(f"{first}.focus()")
        page.press("ArrowDown")
        page.press(by)
    detail = "document.querySelector('.explorer-detail')"
    assert page.run(f"{detail}.querySelector('h3').textContent") == "Point 31"
    assert page.run("document.activeElement.dataset.point") == "31"
    images = page.run(
        f"Promise.all([...{detail}.querySelectorAll('img')].map(async each => {{ await each.decode();"
        "return [each.naturalWidth, each.closest('figure').querySelector('figcaption').textContent, each.alt]; }))"
    )
    assert [caption.split(" ")[0] for _, caption, _ in images] == ["clean", "change", "attacked"]
    assert all(width == 2 for width, _, _ in images)
    assert images[0][2] == "Point 31, clean, label 1"
    assert images[2][2] == "Point 31, attacked, classified as 2"
    facts = dict(
        page.run(f"[...{detail}.querySelectorAll('dt')].map(each => [each.textContent, each.nextSibling.textContent])")
    )
    assert facts["distance, Linf"] == "0.099 of eps 0.1"
    assert facts["broken by"] == "apgd-t"
    assert report.radii is not None
    assert float(facts["certified radius"].split(" ")[0]) == pytest.approx(report.radii[31], rel=1e-3)
    rows = page.run(
        f"[...{detail}.querySelector('table').rows].slice(1).map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert report.details is not None
    for outputs, column in ((report.details.outputs, 1), (report.details.attacked_outputs, 2)):
        chances = np.exp(outputs[31].astype(np.float64))
        chances /= chances.sum()
        for row in rows:
            assert float(row[column].rstrip(" %")) == pytest.approx(
                100 * chances[int(row[0].split(" ")[0])], abs=0.0051
            )


def test_tables_are_copied_as_they_stand(browser: Browser, folder: Path) -> None:
    """CSV that spreadsheets read as text, Markdown of whole rows, LaTeX without a bare special character."""
    take = (
        "copied = []; Object.defineProperty(navigator, 'clipboard', "
        "{ value: { writeText: async text => { copied.push(text); } } });"
    )
    for name in ("index.html", "one/report.html"):
        page = browser.open(folder / name, before=take)
        shape = page.run(
            "(() => { const { rows } = document.querySelector('.table table');"
            "return [rows.length, rows[0].cells.length]; })()"
        )
        for number in range(3):
            page.click(f"document.querySelectorAll('.table .tools button')[{number}]")
        page.run("new Promise(done => setTimeout(done))")
        latex, markdown, table = page.run("copied")
        cells = list(csv.reader(io.StringIO(table)))
        assert [len(cells), len(cells[0])] == shape
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in cells for cell in row)
        lines = markdown.splitlines()
        assert len(lines) == shape[0] + 1
        assert all(len(re.split(r"(?<!\\)\|", line)) == shape[1] + 2 for line in lines)
        body = latex.split("\\hline\n", 1)[1].rsplit("\\hline", 1)[0].splitlines()
        assert len(body) == shape[0]
        for line in body:
            row = line.removesuffix(" \\hline").removesuffix(" \\\\")
            assert not row.startswith(("[", "*")), "an argument of the line before"
            assert len(re.split(r" & ", row)) == shape[1]
            bare = re.sub(r"\\[a-z0-9]+\{\}|\\[{}$&#_%]|\{[\[*]\}| & ", "", row)
            assert not set(bare) & set('\\{}$&#_%~^<>|"'), bare
        if name == "index.html":
            assert cells[0][0] == "network"
            assert cells[2][0] == "'" + NAMES[1]
            assert cells[1][:2] == [NAMES[0], "75.0%"]
            assert "75.0\\%" in latex
            assert "{*}weak" in latex


def test_a_table_stands_as_text_where_nothing_can_be_copied(browser: Browser, folder: Path) -> None:
    nothing = "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
    page = browser.open(folder / "index.html", before=nothing)
    page.click("document.querySelectorAll('.table .tools button')[2]")
    assert page.run("document.querySelector('textarea.copied').value").startswith('"network","worst case"')


def test_points_have_addresses_and_the_list_has_pages(browser: Browser, folder: Path) -> None:
    page = browser.open(folder / "one" / "report.html")
    opened = "document.querySelector('.explorer-detail h3').textContent"
    assert page.run(opened) == "Point 30", "the first one that was broken"
    page.run("new Promise(done => { addEventListener('hashchange', done); location.hash = '#point-33'; })")
    assert page.run(opened) == "Point 33"
    page.run("""document.querySelector('.explorer-list button[tabindex="0"]').focus()""")
    reached = []
    for key in ("Home", "ArrowDown", "PageDown"):
        page.press(key)
        reached.append(page.run("document.activeElement.dataset.point"))
    assert reached == ["0", "1", "13"]
    page.click("document.querySelector('.explorer input')")
    for digit in "17":
        page.command("Input.insertText", text=digit)
    page.press("Enter")
    assert page.run(opened) == "Point 17"


def test_every_copy_button_has_its_table(browser: Browser, folder: Path) -> None:
    page = browser.open(folder / "one" / "report.html")
    counts = page.run(
        "[document.querySelectorAll('.table > .tools').length, document.querySelectorAll('.table table').length]"
    )
    assert counts[0] == counts[1] >= 5


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index.html", "one/report.html"])
def test_pages_fit_the_screen_with_everything_open(
    name: str, width: int, dark: bool, browser: Browser, folder: Path
) -> None:
    page = browser.open(folder / name, width, dark=dark)
    page.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.run("document.documentElement.scrollWidth") == width
    charts = page.run("[...document.querySelectorAll('svg.chart')].map(each => each.getBoundingClientRect().width)")
    assert len(charts) >= 2
    assert all(200 < drawn <= width for drawn in charts)
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(18, 23, 29)" if dark else "rgb(255, 255, 255)")
    unnamed = page.run(
        "[...document.querySelectorAll('table')].filter(each => !each.caption).length"
        " + [...document.querySelectorAll('th')].filter(each => !each.scope).length"
        " + [...document.images].filter(each => !each.alt).length"
    )
    assert unnamed == 0
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0, "a skip link is seen when reached"
