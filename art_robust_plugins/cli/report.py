"""``art-robust report``: evaluated runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import OutOption


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or of single reports.")],
    out: OutOption = Path("runs/comparison"),
    pages: Annotated[
        bool, typer.Option("--pages", help="Also write each report's own page anew, beside its report.json.")
    ] = False,
) -> None:
    """Compare evaluated runs on one page.

    Example: art-robust report runs/*

    Example: art-robust report runs/bang --pages
    """
    # These import torch and ART, which the help does without.
    from ..evaluation import EvaluationReport
    from ..evaluation.evaluator import STATE_FILE
    from ..evaluation.report import COMPARISON_FILES, REPORT_FILE
    from ..experiments.runs import EVALUATIONS, STATE
    from ..locks import check_output_folder
    from ..terminal import console
    from .running import check_alone
    from .showing import show_comparison

    check_alone("report")
    check_output_folder("--out", out, COMPARISON_FILES)
    reports: dict[str, EvaluationReport] = {}
    folders, owners = {}, {}
    for run in runs:
        # A sweep has a folder for each radius.
        inside = [f"{up}{EVALUATIONS}/{depth}" for up in ("", "*/") for depth in ("*", "*/*")]
        found = [run, *(folder for pattern in inside for folder in sorted(run.glob(pattern)) if folder.name != STATE)]
        finished = [folder for folder in found if (folder / REPORT_FILE).exists()]
        for folder in found:
            if folder not in finished and ((folder / STATE).exists() or (folder / STATE_FILE).exists()):
                console.print(f"{folder}: left out, its evaluation is not finished.", style="yellow", soft_wrap=True)
        if not finished:
            console.print(f"{run}: left out, no report is in it.", style="yellow", soft_wrap=True)
        for folder in finished:
            owner = next((above.parent for above in folder.parents if above.name == EVALUATIONS), folder)
            alone = sum(owner in (other, *other.parents) for other in finished) == 1
            label = owner.name if alone else f"{owner.name}, {folder.relative_to(owner / EVALUATIONS)}"
            name = label if label not in reports else str(folder)
            reports[name], folders[name], owners[name] = EvaluationReport.load(folder), folder, owner
    if not reports:
        raise ValueError("RUN: got no folder with a report, expected some that art-robust evaluate wrote.")
    if pages:
        for name, found_report in reports.items():
            console.print(f"Written anew: {found_report.write_pages(folders[name])}", soft_wrap=True)
    show_comparison(reports, out, folders, owners)
