"""ART's preprocessing of a saved classifier: its mean and standard deviation, and its defences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn

from ..bridge.saved_formats import DEFENCES, format_of
from .layout import DEFENCE_WEIGHTS, WEIGHTS_FILE
from .networks import find_difference


def to_lists(value: Any) -> Any:
    """A number or an array as JSON data."""
    return np.asarray(value).tolist()


def from_lists(value: Any) -> Any:
    """The inverse of `to_lists`."""
    return np.asarray(value, dtype=np.float32) if isinstance(value, list) else value


def describe_standardisation(preprocessing: Preprocessor | None) -> list[Any] | None:
    """ART's mean and standard deviation as JSON data."""
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, StandardisationMeanStdPyTorch):
        raise ValueError(
            f"classifier: got the preprocessing {type(preprocessing).__name__}, expected a (mean, standard deviation) "
            f"or None; pass other operations as preprocessing_defences."
        )
    return [to_lists(preprocessing.mean), to_lists(preprocessing.std)]


def defences_of(classifier: PyTorchClassifier) -> list[Preprocessor]:
    """The preprocessing defences as a list; ART accepts a single one or a list."""
    defences = classifier.preprocessing_defences or []
    return list(defences) if isinstance(defences, list) else [defences]


def describe_defence(defence: Preprocessor) -> Any:
    """The class and settings of a defence that a file can hold; of any other its class's name."""
    form = format_of(defence)
    if form is None:
        return type(defence).__name__
    return {"class": form.kind.__name__, "settings": form.settings(defence)}


def defence_modules(defences: list[Preprocessor]) -> dict[str, nn.Module]:
    """The modules of the defences whose weights the file holds, by the prefix of their weights' names."""
    formats = ((number, defence, format_of(defence)) for number, defence in enumerate(defences))
    return {f"{DEFENCE_WEIGHTS}{number}.": form.module(each) for number, each, form in formats if form is not None}


def make_defences(
    described: list[Any], given: Preprocessor | list[Preprocessor] | None, weights: dict[str, Tensor], path: Path
) -> list[Preprocessor] | None:
    """The caller's defences and those in the file, in order; the weights of the latter are removed from ``weights``."""
    defences = list(given) if isinstance(given, list) else [] if given is None else [given]
    came = [type(defence).__name__ for defence in defences]
    names = [entry for entry in described if isinstance(entry, str)]
    if came != names:
        raise ValueError(
            f"preprocessing_defences: got {', '.join(came) or 'none'}, expected {', '.join(names) or 'none'} as "
            f"saved in {path}."
        )
    for number, entry in enumerate(described):
        if isinstance(entry, str):
            continue
        prefix = f"{DEFENCE_WEIGHTS}{number}."
        own = {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
        form = DEFENCES[entry["class"]]
        # Sizes are compared first: a file may name a size for which there is no memory.
        form.check_size(entry["settings"], own, f"{path}: preprocessing_defences[{number}].settings")
        made = form.make(entry["settings"])
        module = form.module(made)
        difference = find_difference(own, module.state_dict())
        if difference is not None:
            raise ValueError(f"{path.with_name(WEIGHTS_FILE)}: {difference}.")
        module.load_state_dict(own)
        defences.insert(number, made)
    return defences or None
