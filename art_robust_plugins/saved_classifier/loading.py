"""Reading a saved classifier: its record, and the classifier itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from torch import nn

from ..bridge.saved_formats import ESTIMATORS, format_of, import_providers
from ..checks import check_path, describe_error
from ..files import load_tensors, read_sealed, sha256_of
from ..keywords import explain_keywords
from ..models import MODELS
from ..randomness import cuda_devices
from .defences import defence_modules, defences_of, from_lists, make_defences
from .layout import CLASSIFIER_FILE, FORMAT, UNSEALED, WEIGHTS_FILE
from .losses import make_loss
from .networks import find_difference, make_network
from .optimizers import make_optimizer
from .record import check_record


def describe_classifier(folder: str | Path) -> dict[str, Any]:
    """The content of a saved classifier's ``classifier.json``; ``["extra"]`` is the record kept with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one that `save_classifier` wrote, was changed since, or has an entry that no classifier
            has. (Records of earlier versions carry no digest; their entries are checked all the same.)
    """
    path = check_path("folder", folder) / CLASSIFIER_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"folder: got {folder}, which holds no {CLASSIFIER_FILE}, expected one that save_classifier or art-robust "
            f"train wrote."
        )
    record = read_sealed(path, FORMAT, UNSEALED)
    import_providers()
    check_record(record, str(path))
    return record


@explain_keywords
def load_classifier(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    loss: nn.Module | None = None,
    preprocessing_defences: Preprocessor | list[Preprocessor] | None = None,
    device: str | torch.device | None = None,
) -> PyTorchClassifier:
    """The ART classifier that `save_classifier` saved: its weights, preprocessing, loss and optimizer.

    The network is in evaluation mode. The optimizer has its settings and no momentum.

    Args:
        folder: where it was saved.
        model: the network, for one that is not of `models`; it gets the saved weights, in place, and the saved weight
            maps where it has none.
        loss: the loss, for one that is not of ``torch.nn``.
        preprocessing_defences: the defences, when the classifier had any that does not describe itself in the file (as
            a `WeightMapPreprocessor` does).
        device: ``"cpu"`` or ``"cuda"`` (ART knows the current one only); by default ``"cuda"`` where there is one.

    Raises:
        FileNotFoundError: one of the two files is missing.
        TypeError: ``model`` or ``loss`` is no torch module.
        ValueError: a file cannot be read, or was changed; weights do not fit the network, or its outputs the classes;
            something that only the caller has is missing, or given though the file has it; an unknown device.
    """
    folder = check_path("folder", folder)
    path = folder / CLASSIFIER_FILE
    record = describe_classifier(folder)
    for name, given in (("model", model), ("loss", loss)):
        if given is not None and not isinstance(given, nn.Module):
            raise TypeError(f"{name}: got a {type(given).__name__}, expected a torch module, or None.")
    device_type = _choose_device_type(device)
    weights = load_tensors(folder / WEIGHTS_FILE)
    if sha256_of(folder / WEIGHTS_FILE) != record.get("weights_sha256"):
        raise ValueError(f"{folder / WEIGHTS_FILE}: got other weights than {CLASSIFIER_FILE} was written with.")
    try:
        network = make_network(record["model"], model, weights, path)
        defences = make_defences(record["preprocessing_defences"], preprocessing_defences, weights, path)
        difference = find_difference(weights, network.state_dict())
        if difference is not None:
            raise ValueError(f"{folder / WEIGHTS_FILE}: {difference}.")
        network.load_state_dict(weights)
        state = copy.deepcopy(network.state_dict())
        layers = defence_modules(defences or [])
        make: Any = ESTIMATORS[record.get("estimator", "PyTorchClassifier")]
        clip_values = record["clip_values"]
        preprocessing = record["preprocessing"]
        classifier: PyTorchClassifier = make(
            network.eval(),
            make_loss(record["loss"], loss, path),
            tuple(record["input_shape"]),
            record["nb_classes"],
            optimizer=None
            if record["optimizer"] is None
            else make_optimizer(record["optimizer"], network, layers, path),
            use_amp=record["use_amp"],
            opt_level=record["opt_level"],
            loss_scale=record["loss_scale"],
            channels_first=record["channels_first"],
            clip_values=None if clip_values is None else tuple(from_lists(value) for value in clip_values),
            preprocessing_defences=defences,
            preprocessing=None if preprocessing is None else tuple(from_lists(value) for value in preprocessing),
            device_type=device_type,
        )
    except (TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{path}: got a record that fits no estimator ({error}), expected save_classifier's."
        ) from error
    _check_outputs(classifier, path)
    network.load_state_dict(state)  # there are networks that change while they predict
    return classifier


def _check_outputs(classifier: PyTorchClassifier, path: Path) -> None:
    """Two inputs must give two rows of as many outputs as the record has classes."""
    shape, classes = tuple(classifier.input_shape), int(classifier.nb_classes)
    network: nn.Module = classifier.model
    plain = all(format_of(defence) is not None for defence in defences_of(classifier))
    try:
        with torch.random.fork_rng(devices=cuda_devices()):
            if type(network) in MODELS.values() and plain:
                # Without memory for the inputs, whose size a file may overstate.
                with torch.no_grad():
                    found = tuple(copy.deepcopy(network).to("meta")(torch.empty(2, *shape, device="meta")).shape)
            else:
                found = classifier.predict(np.zeros((2, *shape), dtype=np.float32)).shape
    except Exception as error:  # whatever the network or ART raises for inputs that do not fit
        raise ValueError(
            f"{path}: input_shape: got {shape}, which the network does not take ({describe_error(error)}), "
            f"expected the shape of its inputs."
        ) from error
    if found != (2, classes) and not (classes == 2 and found == (2, 1)):
        raise ValueError(f"{path}: nb_classes: got {classes}, but the network's outputs for 2 inputs are {found}.")


def _choose_device_type(device: str | torch.device | None) -> str:
    if device is None:
        return "gpu"
    current = f" or 'cuda:{torch.cuda.current_device()}'" if torch.cuda.is_available() else ""
    expected = f"expected 'cpu'{current}, which ART can use here."
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device: got {device!r}, {expected}")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: got {device!r}, {expected}") from None
    if wanted.type == "cpu":
        return "cpu"
    there = wanted.type == "cuda" and torch.cuda.is_available()
    if there and wanted.index in (None, torch.cuda.current_device()):
        return "gpu"
    raise ValueError(f"device: got {str(wanted)!r}, {expected}")
