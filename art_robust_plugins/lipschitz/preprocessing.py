"""A classifier's network together with the preprocessing of ``predict`` that has a Lipschitz bound."""

from __future__ import annotations

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..bridge import device_of, standardisation, standardisation_of
from ..weight_map import WeightMapPreprocessor


class InputMap(nn.Module):
    """A `WeightMapPreprocessor` as a module: the map, the kernel, the range."""

    def __init__(self, preprocessor: WeightMapPreprocessor) -> None:
        super().__init__()
        self.preprocessor, self.layer = preprocessor, preprocessor.layer

    def forward(self, x: Tensor) -> Tensor:
        return self.preprocessor.forward(x)[0]

    def extra_repr(self) -> str:
        return str(self.preprocessor.settings)


class Standardisation(nn.Module):
    """ART's mean and standard deviation as a module; the constants are kept in float64."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.mean.tolist()}, {self.std.tolist()}"


def find_bounded_network(
    classifier: PyTorchClassifier, *, training: bool = False
) -> tuple[nn.Module, tuple[Tensor, Tensor] | None]:
    """The network to bound, and the mean and standard deviation that act before it, or None.

    With a `WeightMapPreprocessor` all preprocessing of ``predict`` is part of the network, whose modules and weights
    are the classifier's own. A subclass of it may compute something else, and is refused.

    Args:
        classifier: an ART ``PyTorchClassifier``.
        training: for the network of ``fit`` rather than that of ``predict``: they must be the same.

    Raises:
        ValueError: other preprocessing acts in ``predict``, or, with ``training``, a map acts there alone.
    """
    acting = [operation for operation in classifier.preprocessing_operations if operation.apply_predict]
    maps = [operation for operation in acting if type(operation) is WeightMapPreprocessor]
    if not maps:
        return classifier.model, standardisation(classifier)
    if training and not all(operation.apply_fit for operation in maps):
        raise ValueError("classifier: its WeightMapPreprocessor acts in predict alone, expected in training as well.")
    network, device = nn.Sequential(), device_of(classifier.model)
    for number, operation in enumerate(acting):
        if type(operation) is WeightMapPreprocessor:
            network.add_module(f"preprocessing_{number}", InputMap(operation).to(device))
        else:
            mean, std = standardisation_of(operation, classifier)
            if bool((mean != 0).any() or (std != 1).any()):
                network.add_module(f"preprocessing_{number}", Standardisation(mean, std).to(device))
    network.add_module("network", classifier.model)
    return network, None
