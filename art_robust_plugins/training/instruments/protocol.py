"""The protocol of instruments, which can be attached to a network while it trains.

An instrument changes how a network computes (its activations, its backward pass) without changing the network: it is
entered before the first batch and leaves no trace afterwards. Any trainer can carry any number of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Set
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor, nn

from ...checks import find_nearest
from ...keywords import KnownKeywords
from ..processes import Share

LayerPattern = str | type[nn.Module]
"""A module's qualified name, in which ``*`` and ``?`` stand for anything, or a type of module."""


class Instrument(ABC, KnownKeywords):
    """The protocol between the training loop and what it attaches to the network.

    The loop enters `attached` once around all epochs, and calls `begin_step` before each batch. What `state_dict`
    returns is stored in checkpoints and given back to `load_state_dict` when a run resumes.

    Where several processes train together, the instrument sees this process's share of each batch. ``share`` then
    describes it and gives access to the whole batch; all processes call every method, `state_dict` included.
    """

    name: ClassVar[str]
    share: Share | None = None
    """Set before `begin_step`; None when the batch is whole."""

    @abstractmethod
    def __repr__(self) -> str:
        """The instrument with its settings: a resumed run must carry the same."""

    @abstractmethod
    def attached(self, network: nn.Module) -> AbstractContextManager[object]:
        """A context within which the instrument acts on ``network``, and after which the network is as before."""

    def begin_step(self, y: Tensor) -> None:
        """Take the labels of the next batch: int64 [N], or class probabilities [N, C]."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state that the instrument keeps between batches."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an earlier run, as `state_dict` returned it."""
        if state:
            raise ValueError(f"state: got entries {sorted(state)}, but the instrument {self.name!r} keeps none.")


def select_modules(
    network: nn.Module, patterns: Iterable[LayerPattern], types: tuple[type[nn.Module], ...]
) -> dict[str, LayerPattern]:
    """The modules of ``types`` that some pattern describes: qualified name -> the first pattern that fits.

    Raises:
        ValueError: when a pattern fits no module of these types; the message names the nearest module.
    """
    candidates = {name: module for name, module in network.named_modules() if isinstance(module, types)}
    patterns = list(patterns)
    selected: dict[str, LayerPattern] = {}
    for pattern in patterns:
        fitting = [name for name, module in candidates.items() if _fits(name, module, pattern)]
        if not fitting:
            raise ValueError(_no_such_layer(pattern, list(candidates)))
        for name in fitting:
            selected.setdefault(name, pattern)
    return {name: selected[name] for name in candidates if name in selected}


def check_instruments(given: Iterable[Instrument]) -> tuple[Instrument, ...]:
    """The instruments that the user gave.

    Raises:
        TypeError: something other than instruments.
        ValueError: one object twice.
    """
    instruments = tuple(given) if isinstance(given, Iterable) and not isinstance(given, type) else None
    if instruments is None or not all(isinstance(each, Instrument) for each in instruments):
        raise TypeError(f"instruments: got {given!r}, expected a list of Instrument objects, as [BANG()].")
    if len(set(map(id, instruments))) < len(instruments):
        raise ValueError(f"instruments: got one object twice in {list(instruments)}, expected each once.")
    return instruments


def join_instruments(own: Instrument, others: Iterable[Instrument]) -> tuple[Instrument, ...]:
    """A method's own instrument, and those that the user gave.

    Raises:
        TypeError: the others are no instruments.
        ValueError: one object twice among them.
    """
    return (own, *check_instruments(others))


def in_order(patterns: Iterable[LayerPattern]) -> list[LayerPattern]:
    """The patterns in their order; those of a set are sorted, since its order differs between processes."""
    return sorted(patterns, key=repr) if isinstance(patterns, Set) else list(patterns)


def list_patterns(layers: LayerPattern | Iterable[LayerPattern] | None) -> list[LayerPattern] | None:
    """One pattern or several as a list; None for None.

    Raises:
        ValueError: for anything else, and for no pattern.
    """
    if layers is None:
        return None
    if not isinstance(layers, Iterable | type):
        raise ValueError(f"layers: got {layers!r}, expected names of layers or types of modules.")
    listed = [layers] if isinstance(layers, str | type) else in_order(layers)
    for pattern in listed:
        check_pattern(pattern)
    if not listed:
        raise ValueError("layers: got none, expected at least one name or type, or None.")
    return listed


def check_pattern(pattern: object) -> None:
    """Refuse what is neither a name of layers nor a type of modules.

    Raises:
        ValueError: for such a value.
    """
    if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
        raise ValueError(f"layers: got {pattern!r}, expected names of layers or types of modules.")


def _fits(name: str, module: nn.Module, pattern: LayerPattern) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else isinstance(module, pattern)


def _no_such_layer(pattern: LayerPattern, names: list[str]) -> str:
    written = repr(pattern) if isinstance(pattern, str) else pattern.__name__
    example = find_nearest(pattern, names) or next(iter(names), None)
    hint = f"such as {example!r}" if example else "but the network has no layer that could be meant"
    return f"layers: got {written}, which no layer of the network fits, expected a name or type {hint}."
