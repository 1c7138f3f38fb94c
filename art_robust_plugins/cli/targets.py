"""The network and data of ``evaluate`` and ``certify``: a run's folder, or a network that a file or a package makes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..bridge import as_estimator, is_plain
from ..checks import suggest
from ..data import Dataset
from ..experiments.training_record import read_training_record
from ..files import load_state, load_tensors
from ..saved_classifier import load_classifier
from ..saved_classifier.networks import find_difference
from ..threat import ThreatModel, parse_norm
from .arguments import NetworkOptions
from .data import load_everywhere, load_test_data


@dataclass(frozen=True)
class Target:
    """The classifier that is evaluated or certified, with its data.

    Attributes:
        classifier: the classifier, with its weights.
        home: the folder where results go by default.
        data: whose test images are in the classifier's range.
        trained_on: the data of its training, where a run says so; "" where nothing does.
        threat: that of its training, where a run says so.
        is_run: it is a run's folder, not a network that a file makes.
    """

    classifier: PyTorchClassifier
    home: Path
    data: Dataset
    trained_on: str | None
    threat: ThreatModel | None
    is_run: bool


def load_target(argument: str, options: NetworkOptions) -> Target:
    """The network, and the data.

    Raises:
        ValueError: an argument that names neither, options that do not go with it, a file that fails, other weights.
        FileNotFoundError: there is no such file or folder.
    """
    data, weights = options.data, options.weights
    place, colon, name = argument.rpartition(":")
    if not colon or Path(argument).is_dir():
        if argument.endswith(".py"):
            raise ValueError(f"RUN: got {argument}, expected what in it is the network: {argument}:NAME.")
        for option in ("weights", "bounds", "mean", "std"):
            if (value := getattr(options, option)) is not None:
                raise ValueError(f"--{option}: got {value} beside a run, expected it beside FILE.py:NAME alone.")
        return _load_run(Path(argument), data)
    if data is None:
        raise ValueError(f"--data: got none beside {argument}, expected the name of the test data.")
    model = _make_network(place, name, argument)
    if weights is not None:
        _load_weights(model if isinstance(model, nn.Module) else model.model, weights)
    home = Path("runs") / (name if weights is None else f"{name}-{weights.stem}")
    limits, subtrahend, divisor = (
        _read_numbers(f"--{option}", getattr(options, option)) for option in ("bounds", "mean", "std")
    )
    if limits is not None and len(limits) != 2:
        raise ValueError(f"--bounds: got {options.bounds}, expected LOW,HIGH.")
    loaded = load_everywhere(data, test_only=True)
    if limits is not None:
        loaded = replace(loaded, x_test=limits[0] + loaded.x_test * (limits[1] - limits[0]))
    classifier = as_estimator(model, loaded.x_test, bounds=limits, mean=subtrahend, std=divisor)
    return Target(classifier, home, loaded, "", None, is_run=False)


def choose_threats(target: Target, norm: str | None, eps: list[str], *, default: str) -> tuple[list[ThreatModel], str]:
    """The threats that are asked for, or that of the training; and where they come from, as a text, or "".

    Args:
        target: the network.
        norm: its spelling on the command line.
        eps: the radii.
        default: the norm where neither the command line nor the training says one.

    Raises:
        ValueError: no radius, or one or a norm that is none.
    """
    trained = target.threat
    chosen = parse_norm(norm if norm is not None else default if trained is None else trained.norm)
    if eps:
        return [ThreatModel(chosen, radius) for radius in eps], ""
    if trained is None or trained.norm != chosen:
        known = "no radius is known" if trained is None else f"the training's threat was {trained}"
        raise ValueError(f"--eps: got none, and {known}, expected a radius in {chosen} such as 8/255.")
    return [trained], "that of the training"


def _load_run(run: Path, data: str | None) -> Target:
    test = load_test_data(run, data)
    record = read_training_record(run)
    parameters = record.get("parameters")
    text = parameters.get("threat") if isinstance(parameters, Mapping) else None
    norm, space, radius = text.partition(" ") if isinstance(text, str) else ("", "", "")
    threat = ThreatModel(norm, radius) if space else None
    return Target(load_classifier(run), run, test, record.get("data"), threat, is_run=True)


def _make_network(place: str, name: str, argument: str) -> nn.Module | PyTorchClassifier:
    if not place or not name or ":" in place:
        raise ValueError(f"RUN: got {argument}, expected FILE.py:NAME, package.module:NAME, or the folder of a run.")
    with _importing(place) as module:
        if not hasattr(module, name):
            known = _list_candidates(module)
            listed = f"one of {', '.join(known)}" if known else "a file with a network, or a function that returns one"
            raise ValueError(
                f"RUN: got {argument}, and no {name!r} is in {place}, expected {listed}{suggest(name, known)}"
            )
        found: Any = getattr(module, name)
        if not isinstance(found, nn.Module | PyTorchClassifier) and callable(found):
            found = _call(found, argument)
    try:
        is_plain(found)
    except TypeError as error:
        raise ValueError(f"RUN: of {argument}, {error}") from None
    made: nn.Module | PyTorchClassifier = found
    return made


def _list_candidates(module: ModuleType) -> list[str]:
    """The names in a module that may be a network: what is defined there, and networks from elsewhere."""
    networks = (nn.Module, PyTorchClassifier)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, networks) or (callable(value) and getattr(value, "__module__", "") == module.__name__))
    ]


@contextmanager
def _importing(place: str) -> Iterator[ModuleType]:
    """The module of a file or of a dotted name, whose neighbours can be imported as they are when Python runs it."""
    file = Path(place)
    is_file = place.endswith(".py")
    if is_file and not file.is_file():
        raise FileNotFoundError(f"RUN: there is no file {place}.")
    if not is_file and not all(part.isidentifier() for part in place.split(".")):
        near = "" if not file.with_name(f"{file.name}.py").is_file() else f"; did you mean {place}.py?"
        raise ValueError(f"RUN: got {place!r}, expected a file that ends in .py, or package.module{near or '.'}")
    folder = str(file.resolve().parent) if is_file else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        try:
            module = _import_file(file) if is_file else importlib.import_module(place)
        except ModuleNotFoundError as error:
            missing = "which is no module" if error.name == place.partition(".")[0] else f"which imports {error.name!r}"
            raise ValueError(f"RUN: got {place}, {missing}, expected one that is installed, or in {folder}.") from error
        except (Exception, SystemExit) as error:  # whatever a user's file raises
            raise ValueError(
                f"RUN: got {place}, which fails when it is imported ({type(error).__name__}: {error}), expected one "
                f"that does not; --debug, before the command, shows where."
            ) from error
        yield module
    finally:
        sys.path.remove(folder)


def _import_file(file: Path) -> ModuleType:
    # A name of its own: that of the file may be that of a package.
    spec = importlib.util.spec_from_file_location(f"network_of_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes and pickles look there
    spec.loader.exec_module(module)
    return module


def _call(make: Any, argument: str) -> Any:
    try:
        required = [
            each.name
            for each in inspect.signature(make).parameters.values()
            if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # builtins may have no signature
        required = []
    if required:
        raise ValueError(
            f"RUN: got {argument}, which needs {', '.join(required)}, expected a function without required arguments."
        )
    try:
        return make()
    except (Exception, SystemExit) as error:  # whatever a user's function raises
        raise ValueError(
            f"RUN: got {argument}, which fails when it is called ({type(error).__name__}: {error}), expected one that "
            f"returns a network; --debug, before the command, shows where."
        ) from error


def _load_weights(network: nn.Module, path: Path) -> None:
    """Weights from a file that is never unpickled, with the names, shapes and types of the network's own."""
    found: Any = _read_weights(path)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        inside = (
            [key for key, value in found.items() if isinstance(value, Mapping)] if isinstance(found, Mapping) else []
        )
        hint = f" (it has one at {inside[0]!r}: save that alone)" if inside else ""
        raise ValueError(f"--weights: got {path}, which holds no state dict{hint}, expected named tensors.")
    difference = find_difference(found, network.state_dict())
    if difference is not None:
        wrapped = bool(found) and all(name.startswith("module.") for name in found)
        hint = "; its names begin with 'module.', as DataParallel's do: save network.module's" if wrapped else ""
        wanted = "" if "expected" in difference else ", expected those of the network"
        raise ValueError(f"--weights: {path}: {difference}{wanted}{hint}.")
    network.load_state_dict(dict(found))


def _read_weights(path: Path) -> Any:
    """Read a file of weights; a refusal speaks of the option, and of what people save."""
    try:
        return load_tensors(path) if path.suffix == ".safetensors" else load_state(path)
    except (ValueError, OSError) as error:
        told = str(error).rpartition(", expected ")[0] or str(error).rstrip(".")
        raise ValueError(
            f"--weights: {told}, expected a .safetensors file, or what torch.save(network.state_dict(), path) writes."
        ) from error


def _read_numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        example = "0,255" if option == "--bounds" else "0.5,0.5,0.5"
        raise ValueError(
            f"{option}: got {text!r}, expected numbers with commas between them, such as {example}."
        ) from None
