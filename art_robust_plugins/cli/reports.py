"""The reports that lie in the folders of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..escapes import printable
from ..evaluation import EvaluationReport
from ..evaluation.evaluator import STATE_FILE
from ..evaluation.report import REPORT_FILE
from ..experiments.runs import EVALUATIONS, STATE
from ..terminal import console

_INSIDE = (f"{EVALUATIONS}/*", f"{EVALUATIONS}/*/*", "*", "*/*", f"*/{EVALUATIONS}/*", f"*/{EVALUATIONS}/*/*")
"""Where reports lie in the folder of a run, of several reports, of several runs; a sweep has a folder for each eps."""


@dataclass
class FoundReports:
    """Reports by their names on the page, with the folders that hold them and the runs that they are of."""

    reports: dict[str, EvaluationReport] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    owners: dict[str, Path] = field(default_factory=dict)

    def add(self, report: EvaluationReport, folder: Path, others: Sequence[Path]) -> None:
        """Add a report under the name of its run, and its own where ``others`` hold more of that run."""
        owner = _find_owner(folder)
        alone = sum(owner in (other, *other.parents) for other in others) == 1
        inside = "" if alone else f", {folder.relative_to(owner / EVALUATIONS)}"
        label = f"{owner.resolve().name}{inside}"
        name = label if label not in self.reports else str(folder)
        self.reports[name], self.folders[name], self.owners[name] = report, folder, owner

    def holds(self, folder: Path) -> bool:
        """Whether the report of a folder is among these."""
        return any(folder.resolve() == other.resolve() for other in self.folders.values())


def check_folder(run: Path) -> None:
    """Refuse what is no folder.

    Raises:
        FileNotFoundError: for such a path.
    """
    if not run.is_dir():
        got = "which is a file" if run.exists() else "which is not there"
        raise FileNotFoundError(f"RUN: got {run}, {got}, expected the folder of a run or a report.")


def read_reports(runs: Sequence[Path]) -> FoundReports:
    """The reports in folders; what is left out, and why, is printed.

    Raises:
        ValueError: there is none; where only one is there, which cannot be read, it says why.
    """
    found = FoundReports()
    unread: list[str] = []
    for run in runs:
        finished, unfinished = _list_folders(run)
        for folder in unfinished:
            _leave_out(folder, "its evaluation is not finished.")
        if not finished:
            _leave_out(run, "no report is in it.")
        for folder in finished:
            if found.holds(folder):  # given twice
                continue
            try:
                found.add(EvaluationReport.load(folder), folder, finished)
            except (ValueError, OSError) as error:
                unread.append(str(error))
                _leave_out(folder, unread[-1])
    if not found.reports:
        wanted = "RUN: got no folder with a report, expected some that art-robust evaluate wrote."
        raise ValueError(unread[0] if len(unread) == 1 else wanted)
    return found


def _leave_out(folder: Path, reason: str) -> None:
    told = printable(f"{folder}: left out, {reason}")
    console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _list_folders(run: Path) -> tuple[list[Path], list[Path]]:
    """The folders of reports in a folder, and those of evaluations that are not finished."""
    found = [run, *(each for pattern in _INSIDE for each in sorted(run.glob(pattern)) if each.is_dir())]
    folders = [each for each in dict.fromkeys(found) if STATE not in each.relative_to(run).parts]
    finished = [each for each in folders if (each / REPORT_FILE).exists()]
    begun = [each for each in folders if (each / STATE).exists() or (each / STATE_FILE).exists()]
    return finished, [each for each in begun if each not in finished]


def _find_owner(folder: Path) -> Path:
    """The run whose report lies in a folder; that folder itself, where it is no run's."""
    return next((above.parent for above in folder.parents if above.name == EVALUATIONS), folder)
