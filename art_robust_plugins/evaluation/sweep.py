"""Robust accuracy at several eps, without attacking a point again that a smaller eps has broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import nn

from ..bridge import as_estimator, device_of, is_plain
from ..files import Entry, read_json, read_sealed, write_sealed
from ..keywords import explain_keywords
from ..locks import check_output_folder
from ..processes import find_processes
from ..threat import ThreatModel
from .evaluator import Evaluator
from .flags import merge_flags
from .libraries import resolve
from .report import EvaluationReport
from .results import AttackResult, PointDetails
from .samples import collect_samples, read_samples
from .settings import describe_threat

SWEEP_FILE = "sweep.json"
_FORMAT = "art-robust-plugins sweep 2"


@explain_keywords
def sweep(
    estimator: PyTorchClassifier | nn.Module,
    norm: str | float,
    eps: Sequence[float | str],
    x: Any,
    y: Any = None,
    *,
    attacks: str | Sequence[str] = "standard",
    state_dir: str | Path | None = None,
    bounds: Any = None,
    mean: Any = None,
    std: Any = None,
    nb_classes: int | None = None,
    **settings: Any,
) -> dict[float, EvaluationReport]:
    """Evaluate at each radius, from the smallest on; each report is about all points.

    An image that breaks a point within eps lies within every larger eps too. So only the points that are left are
    attacked again, in new batches with their random numbers: a point's verdict may differ from that of an evaluation at
    that eps alone.

    Args:
        estimator: as for `Evaluator`, an ART ``PyTorchClassifier`` or a plain network.
        norm: of the threats, ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: the radii, in the units of the estimator's input.
        x: samples, as `Evaluator.evaluate` takes them; or, without y, a ``Dataset``, a ``DataLoader`` or batches.
        y: labels, as class indices [N] or one-hot rows [N, classes].
        attacks: stages of AutoAttack: a suite of them (``"standard"``, ``"rand"``), or some by name.
        state_dir: keeps the state, in a folder for each radius; larger radii may join later.
        bounds: of a plain network, as are ``mean``, ``std`` and ``nb_classes``: see `Evaluator`.
        mean: as ``bounds``.
        std: as ``bounds``.
        nb_classes: as ``bounds``.
        settings: ``batch_size``, ``seed`` and the other keywords of `Evaluator`.

    Returns:
        The reports by radius, the smallest first. ``settings["reused"]`` says how many points an earlier one broke.

    Raises:
        ValueError: no radius, or one twice in six digits; attacks that are no stages (their accuracies count all
            points); a ``state_dir`` of other radii; and as `Evaluator` does.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
        >>> x, y = np.random.rand(20, 1, 8, 8).astype("float32"), np.arange(20) % 10
        >>> reports = sweep(classifier, "Linf", [0.1, 0.05], x, y, attacks="apgd-ce", verbose=False)
        >>> list(reports)
        [0.05, 0.1]
        >>> reports[0.1].robust_accuracy <= reports[0.05].robust_accuracy
        True
    """
    if isinstance(eps, str) or not isinstance(eps, Iterable):
        raise ValueError(f"eps: got {eps!r}, expected several radii, as [0.05, 0.1].")
    threats = sorted((ThreatModel(norm, radius) for radius in eps), key=lambda threat: threat.eps)
    # Folders and tables name a radius by these texts.
    if not threats or len({f"{threat.eps:g}" for threat in threats}) < len(threats):
        raise ValueError(f"eps: got {list(eps)}, expected at least one radius, and each once in six digits.")
    other = [attack.name for attack in resolve(attacks) if not (attack.cumulative and attack.bounded)]
    if other:
        raise ValueError(f"attacks: got {', '.join(other)}, expected stages of AutoAttack such as 'standard'.")
    if is_plain(estimator):
        x, y = collect_samples(x, y)
    classifier = as_estimator(estimator, x, bounds=bounds, mean=mean, std=std, nb_classes=nb_classes)
    # All are made before any runs, so that a setting that does not fit is refused at once.
    evaluators = [
        Evaluator(
            classifier,
            threat,
            attacks=attacks,
            state_dir=None if state_dir is None else Path(state_dir) / f"{threat.eps:g}",
            **settings,
        )
        for threat in threats
    ]
    if state_dir is not None:
        if find_processes(device_of(classifier.model)).is_main_process:
            check_output_folder("state_dir", state_dir, [SWEEP_FILE])
        _check_radii(Path(state_dir) / SWEEP_FILE, threats)
    images, labels = read_samples(x, y, classifier)
    reports: dict[float, EvaluationReport] = {}
    before: EvaluationReport | None = None
    for evaluator in evaluators:
        left = np.arange(len(images)) if before is None else before.robust.nonzero()[0]
        if before is None:
            report = evaluator.evaluate(images, labels)
        elif len(left):
            report = merge_reports(before, evaluator.evaluate(images[left], labels[left]), left)
        else:
            report = _report_all_broken(before, evaluator.threat)
        reports[evaluator.threat.eps] = before = report
    return reports


def _check_radii(path: Path, threats: Sequence[ThreatModel]) -> None:
    """Each radius attacks the points that smaller ones left, so only larger radii may join a folder."""
    now = [f"{threat.norm} {threat.eps:g}" for threat in threats]
    was = _read_radii(path) if path.exists() else []
    common = min(len(was), len(now))
    if was[:common] != now[:common]:
        raise ValueError(
            f"state_dir: the state in {path.parent} is of a sweep over {', '.join(was)}, got {', '.join(now)}, "
            f"expected the same ones and larger ones; choose another folder for this sweep."
        )
    if len(now) > len(was):
        write_sealed(path, {"format": _FORMAT, "radii": now})


def _read_radii(path: Path) -> list[str]:
    """The radii of a sweep, as text; earlier versions wrote a bare list of them."""
    record = read_json(path)
    radii = record if isinstance(record, list) else read_sealed(path, _FORMAT).get("radii")
    entry = Entry(radii, f"{path}: radii")
    for each in entry.list_of(1000):
        try:
            threat = ThreatModel(*each.text().split(" "))
        except (TypeError, ValueError):
            each.refuse("a norm and a radius, such as 'Linf 0.1'")
        if f"{threat.norm} {threat.eps:g}" != each.value:
            each.refuse(f"{threat.norm} {threat.eps:g}")
    return entry.texts()


def merge_reports(before: EvaluationReport, after: EvaluationReport, left: NDArray[Any]) -> EvaluationReport:
    """The report of all points at the larger eps; ``after`` is the report of the points ``left`` alone."""
    adversarial = before.adversarial.copy()
    adversarial[left] = after.adversarial
    robust = _spread(after.robust, left, len(before.robust))
    attacks = []
    for result in after.attacks:
        stands = _spread(result.robust, left, len(before.robust))
        attacks.append(replace(result, robust=stands, robust_accuracy=float(stands.mean())))
    examples = replace(after.examples, indices=left[after.examples.indices])
    return replace(
        before,
        robust_accuracy=float(robust.mean()),
        robust=robust,
        adversarial=adversarial,
        attacks=attacks,
        flags=merge_flags(before.flags + after.flags),
        # The curve, and its description, stay those of the first points.
        settings={**after.settings, "diagnostics": before.settings["diagnostics"], **_describe_reused(before)},
        examples=examples if len(examples.indices) else before.examples,
        details=_merge_details(before, after, left),
    )


def _merge_details(before: EvaluationReport, after: EvaluationReport, left: NDArray[Any]) -> PointDetails | None:
    if before.details is None or after.details is None:
        return None
    attacked, breakers = before.details.attacked_outputs.copy(), before.details.breakers.copy()
    attacked[left], breakers[left] = after.details.attacked_outputs, after.details.breakers
    broken = [before.broken.nonzero()[0], left[after.broken]]
    clean = np.concatenate([before.details.clean, after.details.clean])
    return PointDetails(clean[np.concatenate(broken).argsort()], before.details.outputs, attacked, breakers)


def _report_all_broken(before: EvaluationReport, threat: ThreatModel) -> EvaluationReport:
    """The report at a larger eps when no point is left: no attack has to run."""
    idle: dict[str, Any] = {"seconds": 0.0, "forward_calls": 0, "backward_calls": 0}
    attacks: list[AttackResult] = [replace(result, **idle) for result in before.attacks]
    described = describe_threat(threat, *before.settings["clip_values"])
    return replace(
        before, attacks=attacks, settings={**before.settings, "threat": described, **_describe_reused(before)}
    )


def _spread(stands: NDArray[np.bool_], left: NDArray[Any], points: int) -> NDArray[np.bool_]:
    whole = np.zeros(points, dtype=bool)
    whole[left] = stands
    return whole


def _describe_reused(before: EvaluationReport) -> dict[str, Any]:
    broken = int((before.correct & ~before.robust).sum())
    return {
        "points": before.settings["points"],
        "points_sha256": before.settings["points_sha256"],
        "reused": {"eps": before.settings["threat"]["eps"], "points": broken},
    }
