"""``art-robust report``: evaluated runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import OutOption


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs or reports, or folders of these.")],
    out: OutOption = Path("runs/comparison"),
    pages: Annotated[
        bool, typer.Option("--pages", help="Also write each report's own page anew, beside its report.json.")
    ] = False,
) -> None:
    """Compare evaluated runs on one page.

    Example: art-robust report runs/*

    A folder inside that holds no report that can be read is left out, and the reason is said.

    Example: art-robust report runs/bang --pages
    """
    # These import torch and ART, which the help does without.
    from ..evaluation.report import COMPARISON_FILES, PAGE_FILE
    from ..locks import check_output_folder
    from ..terminal import console
    from .reports import check_folder, read_reports
    from .running import check_alone
    from .showing import show_comparison

    check_alone("report")
    check_output_folder("--out", out, COMPARISON_FILES)
    for run in runs:
        check_folder(run)
    found = read_reports(runs)
    reports, folders = found.reports, found.folders
    if pages:
        for name, each in reports.items():
            console.print(f"Written anew: {each.write_pages(folders[name])}", soft_wrap=True)
    for name, folder in folders.items():
        if not (folder / PAGE_FILE).exists():
            console.print(
                f"{name}: without a link, as {folder} holds no {PAGE_FILE}; --pages writes it.", soft_wrap=True
            )
    show_comparison(reports, out, folders, found.owners)
