"""An ART classifier as files: its weights as safetensors, everything else as JSON. Nothing is unpickled."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from torch import Tensor, nn

from .bridge import check_classifier
from .classifier_record import check_record, is_loss
from .files import json_text, load_tensors, read_sealed, save_tensors, sha256_of, write_sealed
from .models import MODELS, create_model
from .randomness import cuda_devices
from .weight_map import PyTorchWeightMapClassifier, WeightMapPreprocessor
from .weight_map.insert import attach_described, describe_weight_maps

WEIGHTS_FILE = "weights.safetensors"
CLASSIFIER_FILE = "classifier.json"
_FORMAT = "art-robust-plugins classifier 2"
_UNSEALED = ("art-robust-plugins classifier 1",)
_ESTIMATORS = (PyTorchClassifier, PyTorchWeightMapClassifier)


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
    Weight maps come back by themselves: those in a network, whichever it is, and a `WeightMapPreprocessor`.
    ``classifier.json`` carries the digests of the weights and of its own entries.

    Args:
        classifier: an ART ``PyTorchClassifier`` or a `PyTorchWeightMapClassifier` (not another subclass, which would
            come back as another class).
        folder: made when it is missing.
        model: how `create_model` makes this network, as a network's ``recipe`` says it; by default its own ``recipe``.
        extra: a record to keep with it, as JSON data: the method, its parameters, the data, results.

    Raises:
        TypeError: for another class of estimator, or when ``extra`` is not JSON data.
        ValueError: for postprocessing, an optimizer that is not of ``torch.optim`` or has foreign parameters or
            settings, a ``model`` that makes another network, or what no classifier computes with, such as a standard
            deviation of 0.

    Example:
        >>> import tempfile
        >>> network = create_model("small-cnn", (1, 8, 8), 10)
        >>> folder = tempfile.mkdtemp()
        >>> save_classifier(PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10), folder)
        >>> load_classifier(folder).input_shape
        (1, 8, 8)
    """
    check_classifier(classifier)
    if type(classifier) not in _ESTIMATORS:
        raise TypeError(
            f"classifier: got a {type(classifier).__name__}, expected ART's PyTorchClassifier itself, or "
            f"PyTorchWeightMapClassifier."
        )
    network: nn.Module = classifier.model
    maps = {
        f"preprocessing_defences.{number}.": defence.layer
        for number, defence in enumerate(_defences(classifier))
        if isinstance(defence, WeightMapPreprocessor)
    }
    record = {
        "format": _FORMAT,
        "estimator": type(classifier).__name__,
        "input_shape": list(classifier.input_shape),
        "nb_classes": int(classifier.nb_classes),
        "channels_first": bool(classifier.channels_first),
        "clip_values": None if classifier.clip_values is None else [_listed(v) for v in classifier.clip_values],
        "preprocessing": _mean_std(classifier.preprocessing),
        "preprocessing_defences": [_described_defence(defence) for defence in _defences(classifier)],
        "use_amp": classifier.use_amp,
        "opt_level": classifier.opt_level,
        "loss_scale": classifier.loss_scale,
        "loss": _described_loss(classifier.loss),
        "optimizer": None
        if classifier.optimizer is None
        else _described_optimizer(classifier.optimizer, network, maps),
        "model": _described_model(network, model),
        "extra": dict(extra or {}),
        "versions": {name: version(name) for name in ("art-robust-plugins", "adversarial-robustness-toolbox", "torch")},
    }
    folder = Path(folder)
    # What JSON cannot hold, and what could not be loaded, is refused before anything is written.
    check_record(json.loads(json_text(folder / CLASSIFIER_FILE, record)), "classifier")
    weights = dict(network.state_dict())
    for prefix, layer in maps.items():
        weights |= layer.state_dict(prefix=prefix)
    save_tensors(folder / WEIGHTS_FILE, weights)
    write_sealed(folder / CLASSIFIER_FILE, {**record, "weights_sha256": sha256_of(folder / WEIGHTS_FILE)})


def describe_classifier(folder: str | Path) -> dict[str, Any]:
    """The content of a saved classifier's ``classifier.json``; ``["extra"]`` is the record kept with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one that `save_classifier` wrote, was changed since, or has an entry that no classifier
            has. (Records of earlier versions carry no digest; their entries are checked all the same.)
    """
    path = Path(folder) / CLASSIFIER_FILE
    record = read_sealed(path, _FORMAT, _UNSEALED)
    check_record(record, str(path))
    return record


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
        preprocessing_defences: the defences, when the classifier had any other than `WeightMapPreprocessor`.
        device: ``"cpu"`` or ``"cuda"`` (ART knows the current one only); by default ``"cuda"`` where there is one.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file cannot be read, or was changed; weights do not fit the network, or its outputs the classes;
            something that only the caller has is missing, or given though the file has it; an unknown device.
    """
    path = Path(folder) / CLASSIFIER_FILE
    record = describe_classifier(folder)
    device_type = _device_type(device)
    weights = load_tensors(Path(folder) / WEIGHTS_FILE)
    if sha256_of(Path(folder) / WEIGHTS_FILE) != record.get("weights_sha256"):
        raise ValueError(f"{Path(folder) / WEIGHTS_FILE}: got other weights than {CLASSIFIER_FILE} was written with.")
    try:
        network = _made_model(record["model"], model, weights, path)
        defences = _made_defences(record["preprocessing_defences"], preprocessing_defences, weights, path)
        difference = _first_difference(weights, network.state_dict())
        if difference is not None:
            raise ValueError(f"{Path(folder) / WEIGHTS_FILE}: {difference}.")
        network.load_state_dict(weights)
        state = copy.deepcopy(network.state_dict())
        layers = {
            f"preprocessing_defences.{number}.": defence.layer
            for number, defence in enumerate(defences or ())
            if isinstance(defence, WeightMapPreprocessor)
        }
        made = {kind.__name__: kind for kind in _ESTIMATORS}[record.get("estimator", "PyTorchClassifier")]
        clip_values = record["clip_values"]
        preprocessing = record["preprocessing"]
        classifier = made(
            network.eval(),
            _made_loss(record["loss"], loss, path),
            tuple(record["input_shape"]),
            record["nb_classes"],
            optimizer=None
            if record["optimizer"] is None
            else _made_optimizer(record["optimizer"], network, layers, path),
            use_amp=record["use_amp"],
            opt_level=record["opt_level"],
            loss_scale=record["loss_scale"],
            channels_first=record["channels_first"],
            clip_values=None if clip_values is None else tuple(_unlisted(value) for value in clip_values),
            preprocessing_defences=defences,
            preprocessing=None if preprocessing is None else tuple(_unlisted(value) for value in preprocessing),
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
    plain = all(isinstance(defence, WeightMapPreprocessor) for defence in _defences(classifier))
    try:
        with torch.random.fork_rng(devices=cuda_devices()):
            if type(network) in MODELS.values() and plain:
                # Without memory for the inputs, whose size a file may overstate.
                with torch.no_grad():
                    found = tuple(copy.deepcopy(network).to("meta")(torch.empty(2, *shape, device="meta")).shape)
            else:
                found = classifier.predict(np.zeros((2, *shape), dtype=np.float32)).shape
    except Exception as error:  # whatever the network or ART raises for inputs that do not fit
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path}: input_shape: got {shape}, which the network does not take ({type(error).__name__}: {reason}), "
            f"expected the shape of its inputs."
        ) from error
    if found != (2, classes) and not (classes == 2 and found == (2, 1)):
        raise ValueError(f"{path}: nb_classes: got {classes}, but the network's outputs for 2 inputs are {found}.")


def _listed(value: Any) -> Any:
    return np.asarray(value).tolist()


def _unlisted(value: Any) -> Any:
    return np.asarray(value, dtype=np.float32) if isinstance(value, list) else value


def _mean_std(preprocessing: Preprocessor | None) -> list[Any] | None:
    if preprocessing is None:
        return None
    if not isinstance(preprocessing, StandardisationMeanStdPyTorch):
        raise ValueError(
            f"classifier: got the preprocessing {type(preprocessing).__name__}, expected a (mean, standard deviation) "
            f"or None; pass other operations as preprocessing_defences."
        )
    return [_listed(preprocessing.mean), _listed(preprocessing.std)]


def _defences(classifier: PyTorchClassifier) -> list[Preprocessor]:
    defences = classifier.preprocessing_defences or []
    return list(defences) if isinstance(defences, list) else [defences]


def _described_defence(defence: Preprocessor) -> Any:
    if not isinstance(defence, WeightMapPreprocessor):
        return type(defence).__name__
    return {"class": "WeightMapPreprocessor", "settings": defence.settings}


def _made_defences(
    described: list[Any], given: Preprocessor | list[Preprocessor] | None, weights: dict[str, Tensor], path: Path
) -> list[Preprocessor] | None:
    """The caller's defences and those that the file itself holds, in order; takes the latter's from ``weights``."""
    defences = list(given) if isinstance(given, list) else [] if given is None else [given]
    came = [type(defence).__name__ for defence in defences]
    names = [entry for entry in described if isinstance(entry, str)]
    if came != names:
        raise ValueError(
            f"preprocessing_defences: got {', '.join(came) or 'none'}, expected {', '.join(names) or 'none'} as "
            f"saved in {path}."
        )
    for number, entry in enumerate(described):
        if not isinstance(entry, str):
            prefix = f"preprocessing_defences.{number}."
            own = {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
            stored = own.get("map")
            # Compared first: a file may name a size for which there is no memory.
            if stored is None or sorted(entry["settings"]["input_shape"]) != sorted(stored.shape):
                size = None if stored is None else tuple(stored.shape)
                raise ValueError(
                    f"{path}: preprocessing_defences[{number}].settings: got the input_shape "
                    f"{entry['settings']['input_shape']}, expected the size of its map, {size}."
                )
            made = WeightMapPreprocessor(**entry["settings"])
            difference = _first_difference(own, made.layer.state_dict())
            if difference is not None:
                raise ValueError(f"{path.with_name(WEIGHTS_FILE)}: {difference}.")
            made.layer.load_state_dict(own)
            defences.insert(number, made)
    return defences or None


def _arguments_of(loss: nn.Module) -> dict[str, Any]:
    """A torch loss's constructor arguments, read from its attributes of the same names."""
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(loss).__init__).parameters:
        value = getattr(loss, name, None)
        if name != "self" and value is not None:
            arguments[name] = {"tensor": value.tolist()} if isinstance(value, Tensor) else value
    return arguments


def _described_loss(loss: nn.Module) -> dict[str, Any]:
    name = type(loss).__name__
    own = type(loss) is not getattr(nn, name, None) or not is_loss(type(loss))
    return {"class": name, "arguments": None if own else _arguments_of(loss)}


def _made_loss(described: Mapping[str, Any], given: nn.Module | None, path: Path) -> nn.Module:
    name, arguments = described["class"], described["arguments"]
    if given is not None:
        if type(given).__name__ != name:
            raise ValueError(f"loss: got {type(given).__name__}, expected {name} as saved in {path}.")
        return given
    if arguments is None:
        raise ValueError(f"loss: got none, expected the {name} of the classifier saved in {path}.")
    made: nn.Module = getattr(nn, name)(**{key: _unlisted_tensor(value) for key, value in arguments.items()})
    return made


def _unlisted_tensor(value: Any) -> Any:
    return torch.tensor(value["tensor"]) if isinstance(value, dict) else value


def _named_parameters(network: nn.Module, others: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of a network, and those of other modules under their prefixes."""
    named = dict(network.named_parameters())
    for prefix, module in others.items():
        named |= dict(module.named_parameters(prefix=prefix.removesuffix(".")))
    return named


def _described_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, others: Mapping[str, nn.Module]
) -> dict[str, Any]:
    name = type(optimizer).__name__
    if type(optimizer) is not getattr(torch.optim, name, None):
        raise ValueError(f"classifier: got the optimizer {name}, expected one of torch.optim or None.")
    names = {id(parameter): key for key, parameter in _named_parameters(network, others).items()}
    groups = []
    for group in optimizer.param_groups:
        if any(id(parameter) not in names for parameter in group["params"]):
            raise ValueError("classifier: got an optimizer with parameters of another network, expected this one's.")
        settings = {key: _setting(value) for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({"parameters": [names[id(parameter)] for parameter in group["params"]], "settings": settings})
    return {"class": name, "groups": groups}


def _setting(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_setting(entry) for entry in value]
    return value.item() if isinstance(value, Tensor) else value


def _made_optimizer(
    described: Mapping[str, Any], network: nn.Module, others: Mapping[str, nn.Module], path: Path
) -> torch.optim.Optimizer:
    cls = getattr(torch.optim, described["class"])
    parameters = _named_parameters(network, others)
    named = [name for group in described["groups"] for name in group["parameters"]]
    learned = set(named)
    unknown = next((name for name in named if name not in parameters), None)
    if unknown is not None or len(learned) < len(named):
        found = "a parameter twice" if unknown is None else f"the parameter {unknown!r}"
        raise ValueError(f"{path}: optimizer.groups: got {found}, expected parameters of the network, each once.")
    for name in learned - set(dict(network.named_parameters())):
        parameters[name].requires_grad_()  # a map of the input learns where an optimizer has it, and only there
    groups = [
        {
            **{key: tuple(value) if isinstance(value, list) else value for key, value in group["settings"].items()},
            "params": [parameters[name] for name in group["parameters"]],
        }
        for group in described["groups"]
    ]
    optimizer: torch.optim.Optimizer = cls(groups)
    return optimizer


def _described_model(network: nn.Module, model: Mapping[str, Any] | None) -> dict[str, Any]:
    """The class of the network and, where `create_model` can make it, its recipe."""
    # Only a network of models: another's attribute of that name means something else.
    own: Any = network.recipe if type(network) in MODELS.values() else None
    recipe = own if model is None else model
    maps = describe_weight_maps(network)
    described: dict[str, Any] = {"class": type(network).__name__, "recipe": None}
    if recipe is not None:
        with torch.device("meta"):
            twin = create_model(**recipe)
        try:
            attach_described(twin, maps)
            difference = _first_difference(network.state_dict(), twin.state_dict())
        except ValueError as error:  # it has no such modules
            difference = str(error)
        if type(twin) is type(network) and difference is None:
            described["recipe"] = dict(recipe)
        elif model is not None:
            raise ValueError(f"model: {difference or f'makes a {type(twin).__name__}, not the given network'}.")
        # A network that was changed after it was made is the caller's own, and must be given at loading.
    return {**described, "weight_maps": maps} if maps else described


def _made_model(
    described: Mapping[str, Any], given: nn.Module | None, weights: Mapping[str, Tensor], path: Path
) -> nn.Module:
    name, recipe, maps = described["class"], described["recipe"], described.get("weight_maps", [])
    network = given
    if network is None:
        if recipe is None:
            raise ValueError(f"model: got none, expected a network of the class {name} as saved in {path}.")
        _check_recipe(recipe, maps, weights, path)
        with torch.random.fork_rng(devices=[]):
            network = create_model(**recipe)
    there = describe_weight_maps(network)
    if not there:
        attach_described(network, maps)
    elif there != maps:
        raise ValueError(f"model: got the weight maps {there}, expected {maps or 'none'} as saved in {path}.")
    return network


def _check_recipe(recipe: Mapping[str, Any], maps: list[Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a recipe of another network than the one whose weights are there, before it takes memory or time."""
    depth = recipe.get("depth", 0)
    if depth > len(weights):  # each layer has a weight
        raise ValueError(f"{path}: model.recipe.depth: got {depth}, but there are {len(weights)} weights.")
    try:
        with torch.device("meta"):
            twin = create_model(**recipe)
            attach_described(twin, maps)
    except Exception as error:  # whatever torch raises of arguments that no network has
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path}: model.recipe: got arguments that make no network ({reason}), expected others."
        ) from error
    expected = twin.state_dict()
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("preprocessing_defences.")}
    difference = _first_difference(own, expected)
    if difference is not None:
        raise ValueError(f"{path.with_name(WEIGHTS_FILE)}: {difference}.")


def _first_difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What first keeps ``weights`` from being the state of a network, as the middle of a sentence."""
    for name, own in expected.items():
        if name not in weights:
            return f"got no weights {name!r}, which the network has"
        tensor = weights[name]
        if tensor.shape != own.shape:
            return f"got {name!r} of shape {tuple(tensor.shape)}, expected {tuple(own.shape)} as in the network"
        if tensor.dtype != own.dtype:
            return f"got {name!r} of type {tensor.dtype}, expected {own.dtype} as in the network"
    for name in weights:
        if name not in expected:
            return f"got the weights {name!r}, which the network does not have"
    return None


def _device_type(device: str | torch.device | None) -> str:
    if device is None:
        return "gpu"
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return "cpu"
    there = wanted.type == "cuda" and torch.cuda.is_available()
    if there and wanted.index in (None, torch.cuda.current_device()):
        return "gpu"
    current = f" or 'cuda:{torch.cuda.current_device()}'" if torch.cuda.is_available() else ""
    raise ValueError(f"device: got {str(wanted)!r}, expected 'cpu'{current}, which ART can use here.")
