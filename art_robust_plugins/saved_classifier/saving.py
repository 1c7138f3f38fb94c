"""Writing a classifier as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import nn

from ..bridge import check_classifier
from ..bridge.saved_formats import ESTIMATORS, import_providers
from ..checks import check_path
from ..files import json_text, save_tensors, sha256_of, write_sealed
from ..keywords import explain_keywords
from ..locks import check_output_folder
from .defences import defence_modules, defences_of, describe_defence, describe_standardisation, to_lists
from .layout import CLASSIFIER_FILE, FORMAT, WEIGHTS_FILE
from .losses import describe_loss
from .networks import describe_network
from .optimizers import describe_optimizer
from .record import check_record


@explain_keywords
def save_classifier(
    classifier: PyTorchClassifier,
    folder: str | Path,
    *,
    model: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save an ART classifier so that `load_classifier` gives it back: its weights and the estimator's set-up.

    ``weights.safetensors`` holds the network's state dict; ``classifier.json`` the input shape, classes, clip_values,
    mean and standard deviation, loss, the optimizer's class and settings (not its momentum), and how the network is
    made: a network of `models` carries that itself. For any other network, for a loss that is not one of ``torch.nn``,
    and for preprocessing defences the file holds the class names, and `load_classifier` must be given the objects.
    Parts of a network and defences whose format is registered are restored without help, as weight maps are in any
    network and on the input; `register_part`, `register_defence` and `register_estimator` register others.
    ``classifier.json`` has the digests of the weights and of its own entries.

    Args:
        classifier: an ART ``PyTorchClassifier`` or a `PyTorchWeightMapClassifier` (not another subclass, which would
            be loaded as another class).
        folder: made when it is missing.
        model: how `create_model` makes this network, as a network's ``recipe`` says it; by default its own ``recipe``.
        extra: a record to keep with it, as JSON data: the method, its parameters, the data, results.

    Raises:
        TypeError: for another class of estimator, a ``model`` that is no dict, or when ``extra`` is not JSON data.
        ValueError: for postprocessing, an optimizer that is not of ``torch.optim`` or has foreign parameters or
            settings, a ``model`` that makes another network, or what no classifier computes with, such as a standard
            deviation of 0.

    Example:
        >>> import tempfile
        >>> from art_robust_plugins import load_classifier
        >>> from art_robust_plugins.models import create_model
        >>> network = create_model("small-cnn", (1, 8, 8), 10)
        >>> folder = tempfile.mkdtemp()
        >>> save_classifier(PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10), folder)
        >>> load_classifier(folder).input_shape
        (1, 8, 8)
    """
    check_classifier(classifier)
    import_providers()
    if type(classifier) not in ESTIMATORS.values():
        others = " or ".join(name for name, kind in ESTIMATORS.items() if kind is not PyTorchClassifier)
        raise TypeError(
            f"classifier: got a {type(classifier).__name__}, expected ART's PyTorchClassifier itself, or {others}."
        )
    folder = check_path("folder", folder)
    check_output_folder("folder", folder)
    for name, given in (("model", model), ("extra", extra)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{name}: got a {type(given).__name__}, expected a dict, or None.")
    network: nn.Module = classifier.model
    defences = defences_of(classifier)
    modules = defence_modules(defences)
    record = {
        "format": FORMAT,
        "estimator": type(classifier).__name__,
        "input_shape": list(classifier.input_shape),
        "nb_classes": int(classifier.nb_classes),
        "channels_first": bool(classifier.channels_first),
        "clip_values": None if classifier.clip_values is None else [to_lists(v) for v in classifier.clip_values],
        "preprocessing": describe_standardisation(classifier.preprocessing),
        "preprocessing_defences": [describe_defence(defence) for defence in defences],
        "use_amp": classifier.use_amp,
        "opt_level": classifier.opt_level,
        "loss_scale": classifier.loss_scale,
        "loss": describe_loss(classifier.loss),
        "optimizer": None
        if classifier.optimizer is None
        else describe_optimizer(classifier.optimizer, network, modules),
        "model": describe_network(network, model),
        "extra": {} if extra is None else dict(extra),
        "versions": {name: version(name) for name in ("art-robust-plugins", "adversarial-robustness-toolbox", "torch")},
    }
    # Records that JSON cannot hold, or that could not be loaded, are refused before anything is written.
    check_record(json.loads(json_text(folder / CLASSIFIER_FILE, record)), "classifier")
    weights = dict(network.state_dict())
    for prefix, module in modules.items():
        weights |= module.state_dict(prefix=prefix)
    save_tensors(folder / WEIGHTS_FILE, weights)
    write_sealed(folder / CLASSIFIER_FILE, {**record, "weights_sha256": sha256_of(folder / WEIGHTS_FILE)})
