"""The files that ``art-robust evaluate`` writes beside a report: pictures, and a submission to RobustBench."""

from __future__ import annotations

from pathlib import Path

from ..bridge import input_range
from ..evaluation import EvaluationReport
from ..evaluation.robustbench import ROBUSTBENCH_POINTS
from ..terminal import console
from ..threat import ThreatModel
from .arguments import Submission
from .targets import Target

IMAGES = "images"


def check_pictures(target: Target) -> None:
    """Refuse, before any attack, inputs that are no images."""
    shape, box = tuple(target.classifier.input_shape), input_range(target.classifier)
    if len(shape) != 3 or shape[0 if target.classifier.channels_first else -1] not in (1, 3) or not box.uniform:
        raise ValueError(
            f"--png: got inputs of shape {shape} in {box}, expected images of 1 or 3 channels in one range."
        )


def write_images(report: EvaluationReport, folder: Path, target: Target) -> EvaluationReport:
    """The attacked images beside a saved report, which then says what rounding left of them."""
    judged = report.save_images(folder / IMAGES, target.classifier)
    judged.save(folder)
    return judged


def check_submission(target: Target, threats: list[ThreatModel], attacks: list[str]) -> None:
    """Refuse, before any attack, an evaluation that RobustBench has no leaderboard for."""
    name = Path(target.data.name).stem
    if name not in ROBUSTBENCH_POINTS:
        known = ", ".join(ROBUSTBENCH_POINTS)
        raise ValueError(f"--robustbench: got the data {name}, expected {known}, or an .npz file of that name.")
    if attacks != ["standard"]:
        raise ValueError(f"--robustbench: got the attacks {', '.join(attacks)}, expected standard alone.")
    if len(threats) > 1 or threats[0].norm == "L1":
        names = ", ".join(map(str, threats))
        raise ValueError(f"--robustbench: got the threats {names}, expected a single one in Linf or L2.")


def write_submission(report: EvaluationReport, target: Target, folder: Path, submission: Submission) -> None:
    """The entry for a leaderboard, and where it is."""
    path = report.to_robustbench(
        folder,
        name=submission.title or target.home.name,
        authors=submission.authors,
        dataset=Path(target.data.name).stem,
        architecture=report.settings["network"],
        model_id=target.home.name,
    )
    console.print(
        f"RobustBench: {path}, with its images beside it; look through its entries before you submit it.",
        soft_wrap=True,
    )
