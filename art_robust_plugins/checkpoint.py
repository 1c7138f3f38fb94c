"""Files that survive a killed process, and that never run code when they are read.

Weights are safetensors, descriptions are JSON, training state is a `torch.save` archive read with ``weights_only``.
Every file is written beside its place and then moved there, so that a reader meets the old file or the new one.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from safetensors import SafetensorError
from torch import Tensor, nn

from .bridge import check_classifier
from .models import MODELS, create_model
from .weight_map import PyTorchWeightMapClassifier, WeightMapPreprocessor
from .weight_map.insert import attach_described, describe_weight_maps

WEIGHTS_FILE = "weights.safetensors"
CLASSIFIER_FILE = "classifier.json"
_FORMAT = "art-robust-plugins classifier 1"
_ESTIMATORS = (PyTorchClassifier, PyTorchWeightMapClassifier)


def _new_file_mode() -> int:
    """The mode that the user's umask gives to new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


_NEW_FILE_MODE = _new_file_mode()


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, then move it to ``path`` in one step.

    The folder is made when it is missing. The temporary file ends in the same suffix, and is removed when ``write``
    raises; what stood at ``path`` is then still there.

    Args:
        path: where the file shall stand.
        write: gets the temporary path, and writes the whole file there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(path, lambda temporary: temporary.write_text("done"))
        >>> path.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_NEW_FILE_MODE)  # writers differ in the mode that they give
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say for what
        raise


def write_json(path: str | Path, data: Any) -> None:
    """Write ``data`` as indented JSON. NumPy numbers are written as numbers.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        TypeError: for values that JSON does not have, such as tensors.
    """
    text = _json_text(path, data)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _json_text(path: str | Path, data: Any) -> str:
    try:
        return json.dumps(data, indent=2, allow_nan=False, default=_plain_number) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: got data with NaN, infinity or a cycle, expected JSON data.") from error


def _plain_number(value: object) -> Any:
    if isinstance(value, np.number | np.bool_):
        return value.item()
    raise TypeError(f"data: got a {type(value).__name__}, expected JSON data: numbers, text, lists, dicts.")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not JSON.
    """
    expected = "a JSON file"
    path = _readable(path, expected)
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        _refuse(path, expected)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors. Tensors that share memory are written once each.

    Args:
        path: the file, customarily ``*.safetensors``.
        tensors: dense tensors of any shape and device.
        metadata: text for the header of the file.

    Raises:
        TypeError: when a value is not a dense tensor.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> save_tensors(path, {"x": torch.arange(3)})
        >>> load_tensors(path)
        {'x': tensor([0, 1, 2])}
    """
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise TypeError(f"tensors: got a {type(tensor).__name__} at {name!r}, expected a dense tensor.")
        single = tensor.detach().cpu().contiguous()
        storage = single.untyped_storage().data_ptr()
        plain[name] = single.clone() if storage in storages else single
        storages.add(storage)
    header = {"format": "pt", **(metadata or {})}
    write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(plain, header)))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is cut short, or is not safetensors (a pickle is never opened).
    """
    expected = "a safetensors file"
    path = _readable(path, expected)
    try:
        # Not load_file: its tensors are mapped memory, which a later change of the file would change or break.
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError:
        _refuse(path, expected)


def save_state(path: str | Path, state: Any) -> None:
    """Write nested training state: dicts, lists, tuples, tensors, numbers, text, booleans, None.

    Tensors keep their type and are read back on the CPU; mappings of any class become dicts.

    Raises:
        TypeError: when the state holds something else; the sentence says where.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.pt"
        >>> save_state(path, {"epoch": 3, "generator": torch.zeros(2)})
        >>> load_state(path)
        {'epoch': 3, 'generator': tensor([0., 0.])}
    """
    plain = _plain_state(state, "state")
    save_archive(path, plain)


def save_archive(path: str | Path, value: Any) -> None:
    """Write ``value`` as `torch.save` does, but with the OSError that a full disk deserves: torch raises another."""
    archive = io.BytesIO()
    torch.save(value, archive)
    write_atomically(path, lambda temporary: temporary.write_bytes(archive.getbuffer()))


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote, tensors on the CPU. Only data are read: no code of the file can run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is cut short, is a bare pickle, or holds objects other than data.
    """
    expected = "a training state as save_state writes it"
    path = _readable(path, expected)
    # torch.load also reads its format of before 2020, a bare pickle; that one is never opened.
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            _refuse(path, expected)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                _refuse(path, expected)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(
            f"{path}: got a pickle of objects other than tensors, numbers, text and their containers, which is not "
            f"opened, expected {expected}."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        _refuse(path, expected)


def _plain_state(value: Any, place: str) -> Any:
    if isinstance(value, Tensor):
        single = value.detach()
        # torch.save writes the whole storage behind a view.
        whole = single.untyped_storage().nbytes() == single.numel() * single.element_size()
        return single if whole else single.clone()
    if isinstance(value, Mapping):
        return {_plain_state(key, place): _plain_state(entry, f"{place}[{key!r}]") for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain_state(entry, f"{place}[{i}]") for i, entry in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.number | np.bool_):
        return value.item()
    raise TypeError(
        f"{place}: got a {type(value).__name__}, expected tensors, numbers, text, None, or dicts, lists and tuples "
        f"of them."
    )


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

    Args:
        classifier: an ART ``PyTorchClassifier`` or a `PyTorchWeightMapClassifier` (not another subclass, which would
            come back as another class).
        folder: made when it is missing.
        model: how `create_model` makes this network, as a network's ``recipe`` says it; by default its own ``recipe``.
        extra: a record to keep with it, as JSON data: the method, its parameters, the data, results.

    Raises:
        TypeError: for another class of estimator, or when ``extra`` is not JSON data.
        ValueError: for postprocessing, an optimizer that is not of ``torch.optim`` or has foreign parameters, or a
            ``model`` that makes another network.

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
    _json_text(folder / CLASSIFIER_FILE, record)  # what JSON cannot hold is refused before anything is written
    weights = dict(network.state_dict())
    for prefix, layer in maps.items():
        weights |= layer.state_dict(prefix=prefix)
    save_tensors(folder / WEIGHTS_FILE, weights)
    write_json(folder / CLASSIFIER_FILE, {**record, "weights_sha256": _sha256(folder / WEIGHTS_FILE)})


def describe_classifier(folder: str | Path) -> dict[str, Any]:
    """The content of a saved classifier's ``classifier.json``; ``["extra"]`` is the record kept with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one that `save_classifier` wrote.
    """
    path = Path(folder) / CLASSIFIER_FILE
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        found = repr(record.get("format")) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
        raise ValueError(f"{path}: got the format {found}, expected {_FORMAT!r}.")
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
        ValueError: a file cannot be read; weights do not fit the network; something that only the caller has is
            missing, or given though the file has it; an unknown device.
    """
    path = Path(folder) / CLASSIFIER_FILE
    record = describe_classifier(folder)
    device_type = _device_type(device)
    weights = load_tensors(Path(folder) / WEIGHTS_FILE)
    if _sha256(Path(folder) / WEIGHTS_FILE) != record.get("weights_sha256"):
        raise ValueError(f"{Path(folder) / WEIGHTS_FILE}: got other weights than {CLASSIFIER_FILE} was written with.")
    try:
        network = _made_model(record["model"], model, path)
        defences = _made_defences(record["preprocessing_defences"], preprocessing_defences, weights, path)
        difference = _first_difference(weights, network.state_dict())
        if difference is not None:
            raise ValueError(f"{Path(folder) / WEIGHTS_FILE}: {difference}.")
        network.load_state_dict(weights)
        layers = {
            f"preprocessing_defences.{number}.": defence.layer
            for number, defence in enumerate(defences or ())
            if isinstance(defence, WeightMapPreprocessor)
        }
        made = {kind.__name__: kind for kind in _ESTIMATORS}.get(record.get("estimator", "PyTorchClassifier"))
        if made is None:
            raise ValueError(
                f"{path}: got the estimator {record['estimator']!r}, expected one of ART's or this package."
            )
        clip_values = record["clip_values"]
        preprocessing = record["preprocessing"]
        return made(
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
    except KeyError as error:
        raise ValueError(f"{path}: got no entry {error}, expected the record that save_classifier writes.") from error
    except TypeError as error:
        raise ValueError(
            f"{path}: got a record that fits no estimator ({error}), expected save_classifier's."
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
            made = WeightMapPreprocessor(**entry["settings"])
            prefix = f"preprocessing_defences.{number}."
            own = {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
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
    own = type(loss) is not getattr(nn, name, None)
    return {"class": name, "arguments": None if own else _arguments_of(loss)}


def _made_loss(described: Mapping[str, Any], given: nn.Module | None, path: Path) -> nn.Module:
    name, arguments = described["class"], described["arguments"]
    if given is not None:
        if type(given).__name__ != name:
            raise ValueError(f"loss: got {type(given).__name__}, expected {name} as saved in {path}.")
        return given
    if arguments is None:
        raise ValueError(f"loss: got none, expected the {name} of the classifier saved in {path}.")
    cls = _class_in(nn, name, nn.Module, path)
    made: nn.Module = cls(**{key: _unlisted_tensor(value) for key, value in arguments.items()})
    return made


def _unlisted_tensor(value: Any) -> Any:
    return torch.tensor(value["tensor"]) if isinstance(value, dict) else value


def _class_in(module: Any, name: str, base: type, path: Path) -> Any:
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        known = f"{module.__name__} in torch {torch.__version__}"
        raise ValueError(f"{path}: got the class {name!r}, expected one of {known}.")
    return found


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
    cls = _class_in(torch.optim, described["class"], torch.optim.Optimizer, path)
    parameters = _named_parameters(network, others)
    learned = {name for group in described["groups"] for name in group["parameters"]}
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


def _made_model(described: Mapping[str, Any], given: nn.Module | None, path: Path) -> nn.Module:
    name, recipe, maps = described["class"], described["recipe"], described.get("weight_maps", [])
    network = given
    if network is None:
        if recipe is None:
            raise ValueError(f"model: got none, expected a network of the class {name} as saved in {path}.")
        with torch.random.fork_rng(devices=[]):
            network = create_model(**recipe)
    there = describe_weight_maps(network)
    if not there:
        attach_described(network, maps)
    elif there != maps:
        raise ValueError(f"model: got the weight maps {there}, expected {maps or 'none'} as saved in {path}.")
    return network


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


def _readable(path: str | Path, expected: str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected {expected}.")
    if not path.is_file():
        raise ValueError(f"{path}: got a folder, expected {expected}.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: got {error.strerror!r} when reading, expected {expected}.") from error
    return path


def _refuse(path: Path, expected: str) -> NoReturn:
    """Say what a file that is not as expected looks like; raises from the reader's own error."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        found = "an empty file"
    elif start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = "a pickle, which is never opened"
    elif start.startswith(b"PK"):
        found = "a zip archive" if zipfile.is_zipfile(path) else "a zip archive cut short or damaged"
    elif start[8:9] == b"{":
        found = "a safetensors file cut short or damaged" if "safetensors" in expected else "a safetensors file"
    elif start[:1] in (b"{", b"["):
        found = "JSON cut short or damaged" if "JSON" in expected else "text"
    else:
        found = "a file of another kind"
    raise ValueError(f"{path}: got {found}, expected {expected}.") from None
