"""The methods and instruments that are installed: this package's own, and those that other packages add.

A method is an entry point of the group ``art_robust_plugins.methods`` that names a subclass of an ART ``Trainer``,
``Preprocessor`` or estimator; an instrument, one of ``art_robust_plugins.instruments`` that names a subclass of
`Instrument`. This package lists its own in its pyproject.toml; any other package can do the same.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from art.defences.preprocessor.preprocessor import Preprocessor
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from art.estimators.estimator import BaseEstimator

from .checks import suggest
from .keywords import find_meant
from .training.instruments import Instrument

GROUP = "art_robust_plugins.methods"
INSTRUMENTS = "art_robust_plugins.instruments"
_BASES = {GROUP: (Trainer, Preprocessor, BaseEstimator), INSTRUMENTS: (Instrument,)}
_EXPECTED = {
    GROUP: "a subclass of an ART Trainer, Preprocessor or estimator",
    INSTRUMENTS: "a subclass of art_robust_plugins.training.Instrument",
}


def available_methods() -> dict[str, type]:
    """Every installed method by name, in alphabetical order.

    Raises:
        TypeError: an entry point that names something else than a subclass of ART's ``Trainer``, ``Preprocessor`` or
            estimator.
        ImportError: an entry point that cannot be loaded.
        ValueError: two packages that use one name.

    Example:
        >>> available_methods()["bang"].__name__
        'BANGTrainer'
    """
    return {name: _load_class(point) for name, point in _find_points(GROUP).items()}


def available_instruments() -> dict[str, type[Instrument]]:
    """Every installed instrument by name, in alphabetical order; what can go wrong is as in `available_methods`.

    Example:
        >>> available_instruments()["bang"].__name__
        'BANG'
    """
    return {name: _load_class(point) for name, point in _find_points(INSTRUMENTS).items()}


def method(name: str, argument: str = "name") -> type:
    """The class of one method.

    Args:
        name: of the method.
        argument: what a refusal calls the name.

    Raises:
        ValueError: no method has this name; the message suggests the nearest.
    """
    return _find_class(name, GROUP, argument)


def create(name: str, classifier: PyTorchClassifier, **parameters: Any) -> Any:
    """Make a method by name, ready for a classifier.

    Args:
        name: as `available_methods` lists it.
        classifier: what a trainer trains, and an estimator takes its network and settings from (``from_classifier``).
            A preprocessor is independent of it.
        **parameters: the method's own arguments.

    Raises:
        ValueError: an unknown method (the nearest is suggested), or what the method refuses.
        TypeError: a parameter that the method does not have.

    Example:
        >>> from art.estimators.classification import PyTorchClassifier
        >>> from torch import nn, optim
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> optimizer = optim.SGD(network.parameters(), 0.1)
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> create("bang", classifier, epsilon=0.5).epsilon
        0.5
    """
    kind = method(name)
    make: Any = kind
    if issubclass(kind, BaseEstimator):
        make = getattr(kind, "from_classifier", None)
        if make is None:
            raise TypeError(f"name: the estimator {name!r} has no from_classifier, which create needs.")
    _check_parameters(name, make, parameters)
    return make(**parameters) if issubclass(kind, Preprocessor) else make(classifier, **parameters)


def create_instrument(name: str, **parameters: Any) -> Instrument:
    """Make an instrument by name, for the ``instruments`` of a trainer.

    Raises:
        ValueError: an unknown instrument (the nearest is suggested), or what it refuses.
        TypeError: a parameter that the instrument does not have.

    Example:
        >>> create_instrument("bang", beta=0.4)
        BANG(BANGSetting(beta=0.4, epsilon=0.815, ratio=1.0), layers=None, cap=None)
    """
    kind = _find_class(name, INSTRUMENTS)
    _check_parameters(name, kind, parameters)
    instrument: Instrument = kind(**parameters)
    return instrument


def parameters_of(kind: type) -> dict[str, Any]:
    """The own arguments of a method or instrument, with their defaults (``inspect.Parameter.empty`` for none)."""
    signature = inspect.signature(getattr(kind, "from_classifier", kind))
    own = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p.default for p in own if p.name not in {"classifier", "options", "instruments"}}


def _check_parameters(name: str, make: Any, parameters: dict[str, Any]) -> None:
    accepted = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return
    own = [parameter for parameter in accepted if parameter not in {"self", "classifier"}]
    for given in parameters:
        if given not in own:
            meant = find_meant(given, accepted)
            expected = meant or f"{'some of ' + ', '.join(own) if own else 'none'}"
            hint = suggest(given, () if meant else own, f", expected {expected}.")
            raise TypeError(f"{given}: {name!r} has no such parameter{hint}")


def _find_class(name: str, group: str, argument: str = "name") -> type:
    points = _find_points(group)
    if not isinstance(name, str) or name not in points:
        known = ", ".join(map(repr, points))
        raise ValueError(f"{argument}: got {name!r}, expected one of {known}{suggest(name, points)}")
    return _load_class(points[name])


def _find_points(group: str) -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        # An editable and a regular installation of one package both list it.
        if point.name in points and point.value != points[point.name].value:
            claims = f"{points[point.name].value} and by {point.value}"
            raise ValueError(f"the name {point.name!r} is claimed by {claims}, expected one of them to be renamed.")
        points[point.name] = point
    return points


def _load_class(point: EntryPoint) -> type:
    try:
        loaded = point.load()
    except Exception as error:  # whatever another package does when it is imported
        raise ImportError(f"the entry point {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, _BASES[point.group])):
        expected = _EXPECTED[point.group]
        raise TypeError(f"the entry point {point.name!r} ({point.value}) is {loaded!r}, expected {expected}.")
    return loaded
