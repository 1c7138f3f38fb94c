"""The attacked images of a report as PNG files of 8 bits a channel, and the verdicts on what rounding left of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray

from ..bridge import EstimatorModule, outputs_are_probabilities
from ..checks import check_path
from ..files import write_atomically
from ..fingerprints import describe_module, digest
from ..locks import check_output_folder
from ..threat import ThreatModel
from .estimator_passes import EstimatorPasses, list_modules, preserve_network
from .rendering.pixels import encode_png, has_channels_first, round_to_bytes, scale_to_unit
from .results import EvaluationResults, PointDetails
from .verdicts import DecisionRule
from .weights import FrozenWeights

_AT_ONCE = 250


@dataclass(frozen=True)
class EightBitVerdicts:
    """The results of an evaluation after rounding to 256 levels. Rounded images may lie outside of the threat's ball.

    Attributes:
        accuracy: the share of points that are classified correctly, and whose rounded image is, wherever it lies.
        accuracy_within_eps: the same, where a rounded image outside of the ball breaks no point.
        broken: the number of points that the attacks broke.
        misclassified: of these, the rounded images that are misclassified.
        within_eps: of these, the ones within eps.
        farthest: the largest distance of a rounded attacked image from its point, in the threat's norm.
    """

    accuracy: float
    accuracy_within_eps: float
    broken: int
    misclassified: int
    within_eps: int
    farthest: float


def save_rounded_images(report: EvaluationResults, folder: str | Path, classifier: PyTorchClassifier) -> dict[str, Any]:
    """Write the image of each broken point as ``<point>.png``, and judge the rounded images of all points.

    Returns:
        `EightBitVerdicts` as a dictionary.

    Raises:
        TypeError: a classifier that is not a ``PyTorchClassifier``.
        ValueError: another network than the report's, a report without clean images or of other data than images of
            one or three channels in one range.
    """
    folder = check_path("folder", folder)
    check_output_folder("folder", folder)
    details = _check_images(report)
    _check_network(report, classifier)
    threat = ThreatModel(report.settings["threat"]["norm"], report.settings["threat"]["eps"])
    low, high = report.settings["clip_values"]
    clean, first = report.adversarial.copy(), has_channels_first(report)
    clean[report.broken] = details.clean
    wrong, far = np.empty(len(clean), bool), np.empty(len(clean))
    with torch.inference_mode(False), preserve_network(classifier) as snapshot:
        classifier.model.eval()
        module = EstimatorModule(classifier, probabilities=True, straight_through=True)
        weights = FrozenWeights(list_modules(classifier))
        passes = EstimatorPasses(classifier, module, snapshot, weights, report.settings["batch_size"])
        likely = outputs_are_probabilities(passes.predict(torch.from_numpy(clean[:_AT_ONCE])))
        rule = DecisionRule(report.settings["verdict_passes"], likely, report.settings["seed"])
        for start in range(0, len(clean), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            levels = round_to_bytes(scale_to_unit(report, report.adversarial[part]))
            images = torch.from_numpy((low + levels / 255.0 * (high - low)).astype(np.float32))
            outputs = rule.predict(passes.predict, images)
            wrong[part] = rule.classify(outputs).numpy() != report.labels[part]
            far[part] = threat.distance(images.double(), torch.from_numpy(clean[part]).double()).numpy()
            for offset in report.broken[part].nonzero()[0]:
                _write_png(folder / f"{start + offset:05}.png", levels[offset], first)
    return asdict(_count(report, wrong, far, threat.eps + report.settings["tolerance"]))


def _count(
    report: EvaluationResults, wrong: NDArray[np.bool_], far: NDArray[np.float64], reach: float
) -> EightBitVerdicts:
    broken, within = report.broken, far <= reach
    return EightBitVerdicts(
        accuracy=float((report.correct & ~wrong).mean()),
        accuracy_within_eps=float((report.correct & ~(wrong & within)).mean()),
        broken=int(broken.sum()),
        misclassified=int((broken & wrong).sum()),
        within_eps=int((broken & wrong & within).sum()),
        farthest=float(far[broken].max()) if broken.any() else 0.0,
    )


def _check_images(report: EvaluationResults) -> PointDetails:
    if report.details is None:
        raise ValueError("report: got one of an earlier version, without clean images, expected one evaluated again.")
    shape = report.settings["input_shape"]
    channels = shape[0 if has_channels_first(report) else -1] if len(shape) == 3 else None
    if channels not in (1, 3):
        raise ValueError(f"report: got inputs of shape {tuple(shape)}, expected images of 1 or 3 channels.")
    if (by_feature := report.settings.get("clip_values_by_feature")) is not None:
        raise ValueError(
            f"report: got clip_values that differ by feature ({by_feature}), expected one pair of numbers."
        )
    return report.details


def _check_network(report: EvaluationResults, classifier: Any) -> None:
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"classifier: got {type(classifier).__name__}, expected the evaluated PyTorchClassifier.")
    found, wanted = digest(*describe_module(classifier.model)), report.settings["network_sha256"]
    if found != wanted:
        raise ValueError(f"classifier: got the network {found[:12]}, expected the report's, {wanted[:12]}.")
    if math.prod(classifier.input_shape) != math.prod(report.settings["input_shape"]):
        raise ValueError(
            f"classifier: got the input shape {tuple(classifier.input_shape)}, expected the report's, "
            f"{tuple(report.settings['input_shape'])}."
        )


def _write_png(path: Path, levels: NDArray[np.uint8], channels_first: bool) -> None:
    picture = encode_png(levels, channels_first)
    write_atomically(path, lambda temporary: temporary.write_bytes(picture))
