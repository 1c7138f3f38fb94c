"""The comparing page: its tables, its drawings, what it links to, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_robust_plugins.evaluation import EvaluationReport, Flag, compare, save_comparison
from art_robust_plugins.evaluation.rendering import comparison_markdown, render_comparison
from art_robust_plugins.evaluation.rendering.curves import draw_curves, draw_training
from art_robust_plugins.evaluation.rendering.svg import COLOURS, GROUNDS, SHAPES, choose_evenly, choose_ticks

from ..made import make_report

HOSTILE = "\"'><script>alert(1)</script><svg onload=alert(1)> </script> {{ 7 * 7 }} =1\x1b[31m"


def of(robust: int, points: int = 40, **given: Any) -> EvaluationReport:
    return make_report(np.arange(points) < robust, **given)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the tables as rows of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attributes}))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def read_colours(scheme: str) -> dict[str, str]:
    """The colours of a page's style by name, as they are on a light screen, on a dark one, or on paper."""
    style = "".join(re.findall("<style>(.*?)</style>", compare({"a": of(1)}), re.S))
    before = {"light": "^", "dark": r"@media \(prefers-color-scheme: dark\) \{ ", "print": "@media print { "}[scheme]
    found = {}
    for room in (":root", r"\.explorer"):
        for kind in ("^", before, before.replace("@media", "@media screen and")):
            match = re.search(kind + room + r" \{([^}]*)\}", style, re.M)
            found |= dict(re.findall(r"--([\w-]+): (#\w+)", match[1])) if match else {}
    return {
        name: value if len(value) == 7 else "#" + "".join(2 * digit for digit in value[1:])
        for name, value in found.items()
    }


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_colour_is_seen_on_its_ground(scheme: str) -> None:
    """3:1 for figures, 4.5:1 for texts; the lines of grids and tables are decoration."""
    colours = read_colours(scheme)
    assert colours["ground"] == GROUNDS[scheme == "dark"]
    style = compare({"a": of(1)})
    bars = dict(re.findall(r"svg\.bars \.(\w+) \{ color: (#\w{6}); \}", style))
    assert set(bars) == {"clean", "bounded", "own", "worst", "certified"}
    seen = [(colour, colours[ground]) for colour in (*COLOURS, *bars.values()) for ground in ("ground", "raised")]
    # A bar of the leaderboard lies on its scale, and the interval on both.
    assert "svg.bar .scale { stroke: var(--line)" in style
    seen += [(colours[one], colours[other]) for one, other in (("bar", "line"), ("ink", "bar"), ("ink", "line"))]
    for one, other in seen:
        assert contrast(one, other) >= 3, (one, other)
    texts = [(name, ground) for name in ("ink", "quiet", "link") for ground in ("ground", "raised")]
    texts += [(name, "mark") for name in ("ink", "quiet", "severe", "fine")]
    for name in ("severe", "warning", "fine"):
        texts += [(name, "ground"), (name, f"{name}-ground"), ("ink", f"{name}-ground")]
    for name, ground in texts:
        assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def test_no_two_of_many_series_look_alike() -> None:
    looks = {(COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]) for number in range(60)}
    assert len(looks) == 60


def test_rows_are_networks_by_worst_case() -> None:
    page = Elements(compare({"weak": of(10), "best": of(30), "middle": of(20)}))
    head, *rows = page.tables[0]
    assert head[:2] == ["network", "worst case"]
    assert [row[0] for row in rows] == ["best", "middle", "weak"]
    assert [float(row[1].split("%")[0]) for row in rows] == [75.0, 50.0, 25.0]
    (sorted_by,) = [each for each in page.all("th") if "aria-sort" in each]
    assert sorted_by["aria-sort"] == "descending"
    for table in page.tables:
        assert len({len(row) for row in table}) == 1


def test_every_table_has_a_caption_and_every_head_a_scope() -> None:
    page = Elements(compare({"a": of(10, attacks=[("far", "none")]), "b": of(20, radii=np.ones(40))}))
    assert len(page.all("caption")) == len(page.tables) >= 4
    assert all(each["scope"] in ("row", "col") for each in page.all("th"))


def test_attacks_by_their_own_measure_are_never_beside_bounded_ones() -> None:
    attacks = [("fgsm", "ball"), ("cw", "minimal"), ("pixle", "none")]
    reports = {"a": of(10, attacks=attacks), "b": of(20, attacks=attacks)}
    heads = [set(table[0]) for table in Elements(compare(reports)).tables]
    own = {"cw (smallest change)", "pixle (own measure)"}
    assert {"network", *own} in heads
    assert {"network", "fgsm"} in heads
    assert not any(head & own and head - own - {"network"} for head in heads)
    for line in comparison_markdown(reports).splitlines():
        assert not ("pixle" in line and "fgsm" in line and line.startswith("|") and "parameters" not in line)


def test_flags_open_their_evidence() -> None:
    flag = Flag("zero-gradients", "warning", "Seen at <7> points.", "Look.")
    text = compare({"a": of(10, flags=[flag]), "b": of(20)})
    badge = text[text.index('<details class="badge warning">') :]
    assert badge.index("<summary>zero-gradients</summary>") < badge.index("Seen at &lt;7&gt; points.")


def test_marks_tell_their_values_and_can_be_reached() -> None:
    radii = np.linspace(0, 0.2, 40)
    page = Elements(str(draw_curves({"<a>": of(10, radii=radii)}, {"<a>": 3}).drawing))
    marks = [each for each in page.all("g") if each.get("role") == "img"]
    assert all(each["tabindex"] == "0" for each in marks)
    labels = [each["aria-label"] for each in marks]
    assert "<a>, eps 0.05: 80.0%" in labels
    assert f"<a>, certified at eps 0.05: {100 * (radii >= 0.05).mean():.1f}%" in labels
    assert {each["data-series"] for each in page.all("g") if "data-series" in each} == {"3"}


def test_trainings_are_drawn_from_their_histories() -> None:
    history = [{"epoch": number, "loss": 1 / number, "validation_accuracy": 0.5, "seconds": 2.0} for number in (1, 2)]
    broken = [{"loss": float("nan"), "validation_robust_accuracy": 0.25}, {"loss": "none"}, {"loss": True}]
    figures = draw_training({"a": history, "b": broken, "unknown": history}, {"a": 0, "b": 1})
    assert [figure.name for figure in figures] == ["loss", "validation accuracy", "validation robust accuracy"]
    assert [figure.series for figure in figures] == [[0], [0], [1]]
    assert "a, epoch 2: loss 0.5" in figures[0].drawing
    assert "b, epoch 1: validation robust accuracy 25%" in figures[2].drawing
    page = Elements(render_comparison({"a": of(10), "b": of(20)}, histories={"a": history}))
    times = dict(zip(page.tables[0][0], page.tables[0][2], strict=True))
    assert times["training"].startswith("4.0 s")


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [-3.0, 5.0], [1e-30, 2e-30], [1e29], [7.0, 7.0], [1.0, 1.0000001]]
)
def test_any_loss_can_be_drawn(values: list[float]) -> None:
    (figure,) = draw_training({"a": [{"loss": value} for value in values]}, {"a": 0})
    for number in re.findall(r'transform="translate\(([^)]*)\)"', figure.drawing):
        across, down = map(float, number.split())
        assert 0 <= across <= 640
        assert 0 <= down <= 330


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.37, 2.41), (-5.0, 5.0), (1e-12, 3e-12), (0.0, 98765.0)])
def test_ticks_are_round_and_hold_the_range(low: float, high: float) -> None:
    ticks = [value for value, _ in choose_ticks(low, high)]
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_places_are_chosen_evenly_with_both_ends() -> None:
    assert choose_evenly(3, 24) == [0, 1, 2]
    chosen = choose_evenly(1000, 24)
    assert len(set(chosen)) == 24
    assert (chosen[0], chosen[-1]) == (0, 999)


@pytest.mark.parametrize("radius", [0.0, 1e-300, 1e-9, 0.05, 1e30, np.inf])
def test_any_radius_can_be_drawn(radius: float) -> None:
    # The points' data are base64, in which any short word may stand.
    text = re.sub("<script.*?</script>", "", compare({"a": of(10, radii=np.full(40, radius))}), flags=re.S)
    assert 'data-value="inf"' not in text
    assert "nan" not in text.lower().replace("nano", "")
    assert "inf" not in re.sub("Linf|inference", "", text) or radius == np.inf


def test_the_page_links_to_reports_wherever_they_were_saved(tmp_path: Path) -> None:
    names = {
        "in": tmp_path / "all" / "x y",
        "beside": tmp_path / "one&",
        "far": tmp_path.parent / f"{tmp_path.name}-far" / "javascript:alert(1)",
    }
    report = of(10)
    for place in names.values():
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.html").write_text("")
    given = {**names, "none": tmp_path / "nothing"}
    far = f"../../{tmp_path.name}-far/javascript%3Aalert%281%29/report.html"
    page = save_comparison(dict.fromkeys(given, report), tmp_path / "all", folders=given)
    links = [each["href"] for each in Elements(page.read_text()).all("a")]
    assert links == ["#content", "x%20y/report.html", "../one%26/report.html", far]


def test_names_of_other_reports_are_refused(tmp_path: Path) -> None:
    for given in ({"folders": {"b": tmp_path}}, {"histories": {"b": []}}):
        with pytest.raises(ValueError, match=f"{next(iter(given))}: got 'b'"):
            save_comparison({"a": of(1)}, tmp_path / "out", **given)
    with pytest.raises(ValueError, match="histories: got int"):
        save_comparison({"a": of(1)}, tmp_path / "out", histories={"a": 3})  # type: ignore[dict-item]
    assert not (tmp_path / "out").exists()


def test_only_our_script_may_run() -> None:
    text = compare({"a": of(1), HOSTILE: of(2)})
    (policy,) = [each["content"] for each in Elements(text).all("meta") if "http-equiv" in each]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        sources = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert len(sources) == 2
        digests = [base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources]
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
        assert f"{tag}-src {allowed};" in policy


def test_hostile_texts_are_texts() -> None:
    flags = [Flag(HOSTILE, "warning", HOSTILE, HOSTILE)]
    attacks = [(HOSTILE, "ball"), (f"{HOSTILE} 2", "none")]
    history = [{"loss": 1.0, f"{HOSTILE}accuracy": 0.5, HOSTILE: HOSTILE, "seconds": HOSTILE}]
    report = of(10, flags=flags, attacks=attacks, radii=np.ones(40), not_run=[HOSTILE], network=HOSTILE, date=HOSTILE)
    text = render_comparison({HOSTILE: report, "b": of(3)}, {HOSTILE: "javascript%3Ax"}, {HOSTILE: history})
    page = Elements(text)
    assert page.all("script") == [{"type": "application/json", "id": "explorer-data"}, {}, {}]
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert "\x1b" not in text
    shown = re.sub('<script type="application/json".*?</script>', "", text, flags=re.S)
    assert "49" not in re.sub(r"\d*\.\d+", "", html.unescape(shown).split("</style>")[-1].split("<script>")[0])


def test_a_large_comparison_stays_small() -> None:
    generator = np.random.default_rng(0)
    report = make_report(generator.random(10_000) < 0.5, radii=generator.random(10_000))
    history = [{"loss": 1.0 / epoch, "validation_accuracy": 0.5, "seconds": 1.0} for epoch in range(1, 201)]
    names = [f"network {number}" for number in range(20)]
    text = render_comparison(dict.fromkeys(names, report), histories=dict.fromkeys(names, history))
    assert len(text.encode()) < 3_000_000
