"""What is added to ART's classifier, and how each addition describes itself in a saved one.

Saving and loading know no defence by name. They ask what is registered here: estimators that come back as their own
class, preprocessing defences that a file can hold, and what can be inserted into a network after it was made.
`weight_maps` is an example of all three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..files import Entry

ESTIMATORS: dict[str, type[PyTorchClassifier]] = {"PyTorchClassifier": PyTorchClassifier}
"""The estimators that can be saved, by the name of their class; each takes the arguments of `PyTorchClassifier`."""


class DefenceFormat(ABC):
    """How a preprocessing defence is saved and made again.

    Attributes:
        kind: the defence's class; its name stands in the file.
    """

    kind: ClassVar[type[Preprocessor]]

    @abstractmethod
    def settings(self, defence: Any) -> dict[str, Any]:
        """The arguments that make the defence anew, as JSON data."""

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
    """How something that was inserted into a network is saved and inserted again.

    Attributes:
        key: the entry of the file that describes it.
        title: what sentences call it.
    """

    key: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def describe(self, network: nn.Module) -> list[Any]:
        """What is in the network, as JSON data; an empty list where nothing is."""

    @abstractmethod
    def check(self, described: Entry) -> None:
        """Refuse what ``describe`` does not give, with a ValueError that names the entry."""

    @abstractmethod
    def attach(self, network: nn.Module, described: list[Any]) -> None:
        """Insert, in place, what ``describe`` gave."""


DEFENCES: dict[str, DefenceFormat] = {}
"""The defences that a file can hold, by the name of their class."""
PARTS: dict[str, NetworkPart] = {}
"""What can be inserted into a network, by its key."""


def register_estimator(kind: type[PyTorchClassifier]) -> None:
    """Let `save_classifier` take estimators of this class, whose weights and arguments are those of ART's."""
    ESTIMATORS[kind.__name__] = kind


def register_defence(form: DefenceFormat) -> None:
    """Let files hold the defences of one class."""
    DEFENCES[form.kind.__name__] = form


def register_part(part: NetworkPart) -> None:
    """Let files hold what is inserted into networks."""
    PARTS[part.key] = part


def format_of(defence: Preprocessor) -> DefenceFormat | None:
    """How this defence is saved; None where the caller must keep it."""
    return next((form for form in DEFENCES.values() if isinstance(defence, form.kind)), None)
