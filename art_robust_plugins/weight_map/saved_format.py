"""Weight maps in a saved classifier: in the network, on the input, and in the estimator with weight maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art.defences.preprocessor.preprocessor import Preprocessor
from torch import Tensor, nn

from ..bridge.saved_formats import DefenceFormat, NetworkPart, register_defence, register_estimator, register_part
from ..files import Entry
from .classifier import PyTorchWeightMapClassifier
from .insert import attach_described, describe_weight_maps
from .preprocessor import WeightMapPreprocessor


class WeightMapFormat(DefenceFormat):
    """The format of the map on the input."""

    kind = WeightMapPreprocessor

    def settings(self, defence: WeightMapPreprocessor) -> dict[str, Any]:
        return defence.settings

    def module(self, defence: WeightMapPreprocessor) -> nn.Module:
        return defence.layer

    def check_settings(self, settings: Entry) -> None:
        for size in settings["input_shape"].list_of(3, length=3):
            size.whole(1)

    def check_size(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor], place: str) -> None:
        stored = weights.get("map")
        if stored is None or sorted(settings["input_shape"]) != sorted(stored.shape):
            size = None if stored is None else tuple(stored.shape)
            raise ValueError(
                f"{place}: got the input_shape {settings['input_shape']}, expected the size of its map, {size}."
            )

    def make(self, settings: Mapping[str, Any]) -> Preprocessor:
        return WeightMapPreprocessor(**settings)


class WeightMaps(NetworkPart):
    """The format of the maps in a network."""

    key = "weight_maps"
    title = "weight maps"

    def describe(self, network: nn.Module) -> list[Any]:
        return describe_weight_maps(network)

    def check(self, described: Entry) -> None:
        for each in described.list_of(10_000):
            each["after"].text()
            for size in each["size"].list_of(3, length=3):
                size.whole(1)

    def attach(self, network: nn.Module, described: list[Any]) -> None:
        attach_described(network, described)


register_estimator(PyTorchWeightMapClassifier)
register_defence(WeightMapFormat())
register_part(WeightMaps())
