"""The formats of additions to ART's classifier, which describe themselves in a saved classifier.

Saving and loading know no defence by name. They use what is registered here: estimators that are restored as their own
class, preprocessing defences that a file can hold, and parts that can be inserted into an existing network.
``weight_map/saved_format.py`` is an example of all three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..files import Entry

ESTIMATORS: dict[str, type[PyTorchClassifier]] = {"PyTorchClassifier": PyTorchClassifier}
"""The estimators that can be saved, by the name of their class; each takes the arguments of `PyTorchClassifier`."""


class DefenceFormat(ABC):
    """The format in which a preprocessing defence is saved, and from which it is made again.

    Attributes:
        kind: the defence's class, whose name is in the file.
    """

    kind: ClassVar[type[Preprocessor]]

    @abstractmethod
    def settings(self, defence: Any) -> dict[str, Any]:
        """The constructor's arguments of the defence, as JSON data."""

    @abstractmethod
    def module(self, defence: Any) -> nn.Module:
        """The torch module that holds the defence's weights."""

    @abstractmethod
    def check_settings(self, settings: Entry) -> None:
        """Refuse settings of a file that no such defence has, with a ValueError that names the entry."""

    @abstractmethod
    def check_size(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor], place: str) -> None:
        """Refuse settings of another size than the weights, before ``make`` takes memory.

        ``place`` begins the sentence of the ValueError.
        """

    @abstractmethod
    def make(self, settings: Mapping[str, Any]) -> Preprocessor:
        """A new defence."""


class NetworkPart(ABC):
    """The format in which parts that were inserted into a network are saved, and from which they are inserted again.

    Attributes:
        key: the entry of the file that describes it.
        title: its name in error sentences.
    """

    key: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def describe(self, network: nn.Module) -> list[Any]:
        """The parts in the network as JSON data; an empty list if there are none."""

    @abstractmethod
    def check(self, described: Entry) -> None:
        """Refuse entries that ``describe`` cannot have written, with a ValueError that names the entry."""

    @abstractmethod
    def attach(self, network: nn.Module, described: list[Any]) -> None:
        """Insert, in place, the parts that ``describe`` described."""


DEFENCES: dict[str, DefenceFormat] = {}
"""The defences that a file can hold, by the name of their class."""
PARTS: dict[str, NetworkPart] = {}
"""The parts that can be inserted into a network, by their keys."""

PROVIDERS = ("art_robust_plugins.weight_map.saved_format",)
"""The modules of this package that register formats when they are imported."""


def import_providers() -> None:
    """Import the `PROVIDERS`: a file may hold a format whose module nobody has imported yet."""
    for module in PROVIDERS:
        import_module(module)


def register_estimator(kind: type[PyTorchClassifier]) -> None:
    """Let `save_classifier` accept estimators of this class, which must have the weights and arguments of ART's."""
    ESTIMATORS[kind.__name__] = kind


def register_defence(form: DefenceFormat) -> None:
    """Let files hold the defences of one class."""
    DEFENCES[form.kind.__name__] = form


def register_part(part: NetworkPart) -> None:
    """Let files hold parts of one kind that are inserted into networks."""
    PARTS[part.key] = part


def format_of(defence: Preprocessor) -> DefenceFormat | None:
    """The format of this defence; None if the caller must keep it."""
    return next((form for form in DEFENCES.values() if isinstance(defence, form.kind)), None)
