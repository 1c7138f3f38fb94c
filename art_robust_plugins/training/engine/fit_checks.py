"""Checks before the first step of ``fit``: options, devices and losses that would fail, or change results, later."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...bridge import device_of, preprocessing_modules, preserve
from ..options import TrainingOptions
from ..processes import Processes
from .first_step import check_optimizer, check_single_samples
from .loss_checks import check_averages, check_reduction
from .method import TrainingMethod

_WITHOUT_BFLOAT16 = ("AVX2", "NO AVX")
"""The capabilities, as torch names them, of x86 processors without AVX-512."""


def check_options(options: TrainingOptions, classifier: PyTorchClassifier, *, validated: bool) -> None:
    """Refuse options that do not fit the classifier, or the lack of validation data.

    Raises:
        ValueError: for such options.
    """
    check_optimizer(classifier.optimizer, [classifier.model, *preprocessing_modules(classifier)])
    check_reduction(classifier.loss)
    device = device_of(classifier.model)
    if options.compile == "reduce-overhead" and device.type != "cuda":
        raise ValueError(f"compile: got 'reduce-overhead' (CUDA graphs) for a network on {device}, expected 'default'.")
    if options.keep_best and not validated:
        raise ValueError("validation_data: got none with keep_best, expected a pair (x, y).")
    _check_augmentation(options, classifier)


def warn_of_emulation(options: TrainingOptions, device: torch.device) -> None:
    """Warn if bfloat16 is asked for on a CPU that emulates it, and computes in float32 faster."""
    if options.mixed_precision != "bf16" or device.type != "cpu":
        return
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() in ("x86_64", "amd64") and capability in _WITHOUT_BFLOAT16:
        warnings.warn(
            f"mixed_precision: got 'bf16' on a CPU without AVX-512 ({capability}), where torch emulates bfloat16 and "
            f"computes slower than in float32, expected 'no'.",
            stacklevel=2,
        )


def check_setup(method: TrainingMethod, processes: Processes, sizes: Iterable[int]) -> None:
    """Refuse a device or loss that would fail, or give other results than asked for, during training.

    Args:
        method: the trainer.
        processes: the processes that train together.
        sizes: the batch sizes that are known.

    Raises:
        ValueError: for such a device or loss, and for passes of one sample that a batch normalisation refuses.
    """
    classifier, device = method.classifier, device_of(method.classifier.model)
    several, parts = processes.count > 1, method.options.accumulation_steps > 1
    if several and device.type == "cuda" and device != processes.device:
        raise ValueError(
            f"classifier: its network is on {device} where this process works on {processes.device}, "
            f"expected accelerate.PartialState() to be made before the classifier."
        )
    if several or parts:
        with preserve(classifier.model), torch.no_grad():
            classifier.model.eval()
            outputs = method.estimator_module(_draw_images(method, 2))
        check_averages(classifier, outputs, "several processes" if several else "accumulation_steps")
    _check_single_samples(method, processes, sizes)


def _check_single_samples(method: TrainingMethod, processes: Processes, sizes: Iterable[int]) -> None:
    """Refuse passes of a single sample, at which a batch normalisation would fail, possibly after many steps."""
    parts = method.options.accumulation_steps
    in_a_pass = {max(size // min(parts, size) // processes.count, 1) for size in sizes}
    if 1 not in in_a_pass:
        return
    whole = processes.count == 1 and parts == 1
    at = "a batch of one sample" if whole else "a batch of which one sample passes through the network by itself"
    network = method.classifier.model
    with preserve(network):
        method.enter_training_mode()
        check_single_samples(method.estimator_module, network, _draw_images(method, 1), in_a_pass, at=at)


def _draw_images(method: TrainingMethod, count: int) -> Tensor:
    """Random images within the classifier's range, on its device."""
    classifier = method.classifier
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.rand(count, *classifier.input_shape, generator=generator, device="cpu").to(device_of(classifier.model))
    low, high = (None if limit is None else torch.as_tensor(limit) for limit in method.input_range)
    if low is None or high is None or not bool(low.isfinite().all() & high.isfinite().all()):
        return x
    return low + x * (high - low)


def _check_augmentation(options: TrainingOptions, classifier: PyTorchClassifier) -> None:
    kind, padding, shape = options.augmentation, options.crop_padding, tuple(classifier.input_shape)
    if kind == "none":
        return
    if len(shape) != 3:
        raise ValueError(f"augmentation: got {kind!r} for inputs of shape {shape}, expected images of three axes.")
    height, width = shape[1:] if classifier.channels_first else shape[:2]
    if kind == "crop-flip" and padding >= min(height, width):
        raise ValueError(f"crop_padding: got {padding} for images of {height} x {width} pixels, expected fewer.")
