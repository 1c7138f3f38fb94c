"""ART's preprocessing that belongs to the network, as differentiable functions and as constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from .straight_through import StraightThrough


def preprocessing_operations(
    classifier: PyTorchClassifier, *, fit: bool, straight_through: bool = False
) -> list[Callable[[Tensor], Tensor]]:
    """ART's preprocessing that belongs to the network, as differentiable functions of a batch.

    With ``fit``, those of ``predict`` that also apply in ``fit``; see `augmentations` for those of ``fit`` alone. With
    ``straight_through``, NumPy defences too, with an estimated gradient.
    """
    operations: list[Callable[[Tensor], Tensor]] = []
    if straight_through:
        _check_chain(classifier.preprocessing_operations)
    for defence in classifier.preprocessing_operations:
        if not straight_through:
            _check_torch(defence)
        if not defence.apply_predict or (fit and not defence.apply_fit):
            continue
        if not isinstance(defence, PreprocessorPyTorch):
            operations.append(StraightThrough(defence))
            continue
        if isinstance(defence, StandardisationMeanStdPyTorch):
            if np.any(defence.mean != 0) or np.any(defence.std != 1):
                operations.append(_standardisation(defence, classifier))
        else:
            operations.append(_first_of(defence))
    return operations


def augmentations(classifier: PyTorchClassifier) -> list[PreprocessorPyTorch]:
    """ART's defences that act in training only (``apply_fit`` without ``apply_predict``): they change the data.

    Raises:
        ValueError: one of them comes after a defence that belongs to the network, and cannot act on the data first.
    """
    found: list[PreprocessorPyTorch] = []
    network: list[str] = []
    for defence in classifier.preprocessing_operations:
        _check_torch(defence)
        if not defence.apply_fit:
            continue
        if defence.apply_predict:
            network.append(type(defence).__name__)
        elif network:
            raise ValueError(
                f"classifier: the training-only defence {type(defence).__name__} comes after {network[0]}, expected it "
                f"before all defences that also act in predict."
            )
        else:
            found.append(defence)
    return found


def preprocessing_modules(classifier: PyTorchClassifier) -> list[nn.Module]:
    """The torch modules with weights that ART's preprocessing holds, such as a learned map of the input."""
    held = [value for operation in classifier.preprocessing_operations for value in vars(operation).values()]
    return [value for value in dict.fromkeys(v for v in held if isinstance(v, nn.Module)) if value.state_dict()]


def _check_torch(defence: object) -> None:
    if not isinstance(defence, PreprocessorPyTorch):
        raise ValueError(
            f"classifier: the preprocessing {type(defence).__name__} is not a PreprocessorPyTorch, so no gradient can "
            f"pass through it; expected its PyTorch version."
        )


def _check_chain(operations: list[Preprocessor]) -> None:
    """Refuse NumPy defences in lists that ART's ``predict`` refuses too, at its first call."""
    plain = [type(operation).__name__ for operation in operations if not isinstance(operation, PreprocessorPyTorch)]
    standardised = bool(operations) and isinstance(
        operations[-1], StandardisationMeanStd | StandardisationMeanStdPyTorch
    )
    if plain and len(operations) > 1 + standardised:
        names = ", ".join(type(operation).__name__ for operation in operations)
        raise ValueError(
            f"classifier: ART applies no list of preprocessing with a NumPy defence ({plain[0]} among {names}), "
            f"expected that defence alone before mean and standard deviation; one Preprocessor whose __call__ and "
            f"estimate_gradient call several is one."
        )


def _first_of(defence: PreprocessorPyTorch) -> Callable[[Tensor], Tensor]:
    def operation(x: Tensor) -> Tensor:
        result: Tensor = defence.forward(x, None)[0]
        if len(result) != len(x):
            raise ValueError(
                f"classifier: the preprocessing {type(defence).__name__} makes {len(result)} inputs of {len(x)}, "
                f"expected one of each; with nb_samples=1 it is a randomised network, for the suite 'rand'."
            )
        return result

    return operation


def _standardisation(
    defence: StandardisationMeanStdPyTorch, classifier: PyTorchClassifier
) -> Callable[[Tensor], Tensor]:
    """ART's standardisation with its constants kept on the device (ART copies them there for every batch)."""
    mean, std = (values.float() for values in _mean_std(defence, classifier))

    def operation(x: Tensor) -> Tensor:
        nonlocal mean, std
        if mean.device != x.device:
            mean, std = mean.to(x.device), std.to(x.device)
        return (x - mean) / std

    return operation


def standardisation(classifier: PyTorchClassifier) -> tuple[Tensor, Tensor] | None:
    """The mean and standard deviation of ART's ``preprocessing``, if ``predict`` applies no other preprocessing.

    Both float64, on the CPU, shaped to broadcast against ``input_shape``; the exact values of ART's float32 ones.
    None if there is no effect, as with ART's default of (0, 1). Several standardisations are combined into one.

    Raises:
        ValueError: any other preprocessing acts in ``predict``, or constants that are not finite, do not fit
            ``input_shape``, or divide by 0.
    """
    mean, std = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for defence in classifier.preprocessing_operations:
        if not defence.apply_predict:
            continue
        own_mean, own_std = standardisation_of(defence, classifier)
        mean, std = mean + std * own_mean, std * own_std
    return (mean, std) if bool((mean != 0).any() or (std != 1).any()) else None


def standardisation_of(defence: Preprocessor, classifier: PyTorchClassifier) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of one operation that acts in ``predict``, as `standardisation` gives them."""
    if type(defence) is not StandardisationMeanStdPyTorch:  # a subclass may compute something else
        raise ValueError(
            f"classifier: the preprocessing {type(defence).__name__} acts in predict, expected none but ART's "
            f"StandardisationMeanStdPyTorch and this package's WeightMapPreprocessor."
        )
    mean, std = _mean_std(defence, classifier)
    shape = tuple(classifier.input_shape)
    try:
        fits = mean.expand(shape).shape == std.expand(shape).shape
    except RuntimeError:
        fits = False
    if not fits or not bool((mean.isfinite() & std.isfinite() & (std != 0)).all()):
        raise ValueError(
            f"classifier: the preprocessing has mean {defence.mean} and standard deviation {defence.std}, expected "
            f"finite numbers that broadcast against {shape}, and none that divides by 0."
        )
    return mean, std


def _mean_std(defence: StandardisationMeanStdPyTorch, classifier: PyTorchClassifier) -> tuple[Tensor, Tensor]:
    """The constants on the axes along which ART applies them to one sample, in float64."""
    probe = np.empty((1, *classifier.input_shape), dtype=np.float32)
    mean, std = (
        torch.as_tensor(v, device="cpu").double() for v in broadcastable_mean_std(probe, defence.mean, defence.std)
    )
    batched = mean.dim() == probe.ndim and mean.shape[0] == 1
    return (mean[0], std[0]) if batched else (mean, std)
