"""Descriptions of an evaluation: texts for reports, and digests by which a resumed evaluation is recognised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from ..bridge import name_network, preprocessing_modules
from ..fingerprints import describe_module, digest
from ..threat import ThreatModel
from .estimator_passes import EstimatorPasses
from .libraries import SUITES, Attack, suite_of
from .options import EvaluationOptions, Samples
from .preparation import Preparation

FAST = (
    "The fast level is NOT the standard evaluation: of AutoAttack's four stages it leaves out fab-t and square, and on "
    "a GPU it searches in bfloat16, with each image that it finds confirmed in float32."
)
VERSION_ENTRIES = ("version of art-robust-plugins", "version of torch")
"""The entries of a fingerprint that are texts for people."""


def compute_fingerprint(
    options: EvaluationOptions, samples: Samples, passes: EstimatorPasses, prepared: Preparation
) -> dict[str, str]:
    """The settings that must be the same for a stopped evaluation to continue."""
    estimator = options.estimator
    learned = [part for module in preprocessing_modules(estimator) for part in describe_module(module)]
    limits = estimator.clip_values
    # NumPy's text of a large array omits its middle.
    plain = [str(limits if passes.range.uniform else limits.tolist()), *describe_preprocessing(estimator)]
    chosen = [f"{each.attack.name} {each.parameters}" for each in prepared.attacks]
    return {
        "network": digest(*describe_module(estimator.model)),
        "preprocessing": digest(*plain, *learned),
        "x": digest(samples.x),
        "y": digest(samples.y),
        "threat": f"{options.threat.norm} {options.threat.eps!r}",
        "choice of attacks": digest(*chosen),
        "attack library": str(prepared.packages),
        "backend": options.backend,
        "batch_size": str(options.batch_size),
        "seed": str(options.seed),
        "version of art-robust-plugins": version("art-robust-plugins"),
        "version of torch": str(torch.__version__),
    }


def describe_attacks(options: EvaluationOptions, passes: EstimatorPasses, prepared: Preparation) -> dict[str, Any]:
    """The threat, and the attacks that run."""
    attacks = [each.attack for each in prepared.attacks]
    stages = [attack.name for attack in attacks if suite_of(attack) == "standard"]
    return {
        "threat": describe_threat(options.threat, *passes.range.hull),
        "attacks": [attack.name for attack in attacks],
        "autoattack": stages == [attack.name for attack in SUITES["standard"]],
        "fast": runs_fast_level(prepared),
        "backend": options.backend,
        "attack_library": prepared.packages,
    }


def describe_inputs(samples: Samples, passes: EstimatorPasses) -> dict[str, Any]:
    """The points, and how the estimator takes them."""
    estimator, box = passes.estimator, passes.range
    return {
        "points": len(samples.x),
        "classes": estimator.nb_classes,
        "input_shape": list(estimator.input_shape),
        "channels_first": bool(estimator.channels_first),
        "clip_values": list(box.hull),
        "clip_values_by_feature": None if box.uniform else str(box),
        "preprocessing": describe_preprocessing(estimator),
        "straight_through": passes.module.straight_through,
    }


def describe_network(passes: EstimatorPasses) -> dict[str, Any]:
    """The network, and where it runs."""
    network, device = passes.estimator.model, passes.device
    parameter = next(iter(network.parameters()), None)
    return {
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device),
        "dtype": "torch.float32" if parameter is None else str(parameter.dtype),
        "network": name_network(network),
    }


def describe_versions() -> dict[str, str]:
    """The versions of what a result depends on."""
    return {
        "art-robust-plugins": version("art-robust-plugins"),
        "adversarial-robustness-toolbox": version("adversarial-robustness-toolbox"),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def list_not_run(options: EvaluationOptions, prepared: Preparation) -> list[str]:
    """List what did not run: attacks that cannot run here, and the parts of suites that were not asked for."""
    fast = [FAST] if runs_fast_level(prepared) else []
    return [*prepared.not_run, *fast, *_list_left_out(options.attacks)]


def runs_fast_level(prepared: Preparation) -> bool:
    """Whether some attack is one of the fast level, which is not the standard evaluation."""
    return any(suite_of(each.attack) == "fast" for each in prepared.attacks)


def describe_preprocessing(estimator: PyTorchClassifier) -> list[str]:
    """Each step of ART's preprocessing with its parameters, except the standardisation by 0 and 1 that ART adds."""
    steps = []
    for operation in estimator.preprocessing_operations:
        named = {name: getattr(operation, name, None) for name in getattr(operation, "params", [])}
        # Other parameters, such as networks, have no text that is the same in every run.
        plain = (bool, int, float, str, tuple, list, np.ndarray, np.generic)
        values = {name: np.asarray(value).tolist() for name, value in named.items() if isinstance(value, plain)}
        if (values.get("mean"), values.get("std")) != (0.0, 1.0):
            steps.append(f"{type(operation).__name__}({', '.join(f'{k}={v!r}' for k, v in values.items())})")
    return steps


def describe_threat(threat: ThreatModel, low: float, high: float) -> dict[str, Any]:
    """The threat as JSON data, with a text for people: of images in [0, 1] in levels of 255."""
    levels = threat.norm == "Linf" and (low, high) == (0, 1)
    text = str(threat) if levels else f"{threat.norm} {threat.eps:g}"
    return {"norm": threat.norm, "eps": threat.eps, "text": text}


def join_names(names: Sequence[str]) -> str:
    """The names as an enumeration: "a, b and c"."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _list_left_out(attacks: Sequence[Attack]) -> Iterator[str]:
    """Yield the parts of suites that were not asked for."""
    asked = {attack.name for attack in attacks}
    for name, suite in SUITES.items():
        missing = [attack.name for attack in suite if attack.name not in asked]
        if len(missing) == len(suite):
            yield f"The suite {name!r}."
        elif missing:
            yield f"Of the suite {name!r}: {join_names(missing)}."
