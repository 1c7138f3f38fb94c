"""A plain network as an ART classifier: its shape is read from data, its classes from a pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..checks import check_count, describe_error
from ..moved import make_alias
from ..randomness import cuda_devices, restored_random_states
from ..snapshot import restored_state
from .estimators import check_classifier
from .networks import device_of, preserve
from .outputs import describe_logits
from .plain_inputs import UNIT_BOUNDS, advise_on_layout, check_images, check_range, read_bounds, read_standardisation


class LogitsOf(nn.Module):
    """A network that returns an object with the attribute ``logits``, as those of Hugging Face do: those logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


def name_network(network: nn.Module) -> str:
    """The class of a network, without the wrapper that `as_estimator` may have put around it."""
    return type(network.network if isinstance(network, LogitsOf) else network).__name__


def is_plain(model: object) -> bool:
    """Whether ``model`` is a network and no ART estimator; what is neither is refused.

    Raises:
        TypeError: for what is neither; the sentence says what helps.
        ValueError: an ART classifier with postprocessing.
    """
    if isinstance(model, nn.Module):
        return True
    advice = _advise_on_model(model)
    if advice is not None:
        raise TypeError(f"model: got {advice}.")
    check_classifier(model)
    return False


def as_estimator(
    model: nn.Module | PyTorchClassifier,
    x: Any,
    *,
    bounds: Any = None,
    mean: Any = None,
    std: Any = None,
    nb_classes: int | None = None,
) -> PyTorchClassifier:
    """An ART classifier of a plain network, which shares its weights; an ART classifier is returned as it is.

    The network is not changed, moved, or put into another mode. What ``torch.compile`` returned stands for the module
    that it compiles, whose outputs are the same but for rounding: batches of many sizes would be compiled anew.

    Images in ``bounds`` reach it as (x - mean) / std, in float32. Outputs with an attribute ``logits`` stand for these.
    One output for each image is the logit of class 1 of two classes.

    Args:
        model: a network that maps a batch [N, ...] to logits [N, classes], on the CPU or a CUDA device.
        x: images [N, ...] in ``bounds``: their shape is the classifier's, two of them pass through the network.
        bounds: the range of the images, two numbers, or two arrays that broadcast against an image; None for (0, 1).
        mean: what is subtracted from images before they reach the network, a number or one for each channel.
        std: what the difference is divided by, as ``mean``.
        nb_classes: how many classes there are; None for what the network puts out.

    Raises:
        TypeError: for what is neither a network nor an ART ``PyTorchClassifier``.
        ValueError: images outside of ``bounds`` or of another shape than the network takes, outputs that are no logits,
            weights without a shape or a place, ``mean`` without ``std``, and keywords beside an ART classifier, which
            has its own.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        >>> estimator = as_estimator(network, torch.rand(5, 3, 4, 4), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
        >>> estimator.input_shape, estimator.nb_classes, estimator.clip_values
        ((3, 4, 4), 10, array([0., 1.], dtype=float32))
        >>> estimator.model is network
        True
    """
    given = {"bounds": bounds, "mean": mean, "std": std, "nb_classes": nb_classes}
    if not is_plain(model):
        check_no_conventions(model, **given)
        return model
    assert isinstance(model, nn.Module)
    model = _find_evaluable(model)
    device = device_of(model)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"model: its weights are on {device}, expected the CPU or a CUDA device.")
    images = check_images(x)
    shape = tuple(images.shape[1:])
    limits = read_bounds(bounds, shape)
    check_range(images, limits)
    preprocessing = read_standardisation(mean, std, shape, limits)
    few = images[[0, -1]].to(device, torch.float32)
    network, classes = _probe(model, few, preprocessing)
    if nb_classes is not None and check_count("nb_classes", nb_classes) != classes:
        raise ValueError(f"nb_classes: got {nb_classes}, expected {classes}, as many as the network puts out.")
    single = classes == 1
    # ART moves the network to the CPU or to the current GPU: let that be where it is.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return PyTorchClassifier(
            network,
            nn.BCEWithLogitsLoss() if single else nn.CrossEntropyLoss(),
            shape,
            2 if single else classes,
            clip_values=UNIT_BOUNDS if bounds is None else bounds,
            preprocessing=preprocessing,
            device_type="cpu" if device.type == "cpu" else "gpu",
        )


def check_no_conventions(model: object, **given: Any) -> None:
    """Refuse what says how a plain network takes its inputs, beside an estimator, which says so itself.

    Raises:
        ValueError: for the first of ``given`` that is not None.
    """
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise ValueError(
            f"{name}: got {given[name]!r} beside a {type(model).__name__}, expected None: the ART estimator has its "
            f"own."
        )


def copy_to(model: nn.Module | PyTorchClassifier, device: Any) -> nn.Module | PyTorchClassifier:
    """A plain network on a device: a copy where it is on another one; with None the network itself.

    Raises:
        ValueError: no such device, a device beside an ART classifier, a network that cannot be copied.
    """
    if device is None:
        return model
    if not isinstance(model, nn.Module):
        check_no_conventions(model, device=device)
        return model
    try:
        wanted = torch.empty(0, device=device).device
    except Exception as error:  # whatever torch raises of texts and of devices that are not here
        here = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu', as no GPU is here"
        raise ValueError(f"device: got {device!r}, expected {here}.") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, expected the CPU or a CUDA device.")
    if wanted == device_of(model):
        return model
    try:
        return copy.deepcopy(model).to(wanted)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the network's attributes raise
        raise ValueError(
            f"device: got {device!r}, and the network on {device_of(model)} cannot be copied there "
            f"({describe_error(error)}), expected None; move it with model.to(...)."
        ) from error


@contextmanager
def rename_model(name: str = "model") -> Iterator[None]:
    """A context for functions whose argument is a ``model``: sentences about the classifier are about that.

    Args:
        name: what the argument is called instead.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        subject, colon, rest = str(error).partition(":")
        if colon and subject in ("classifier", "estimator", "model", "network"):
            error.args = (f"{name}:{rest}", *error.args[1:])
        raise


def _find_evaluable(model: nn.Module) -> nn.Module:
    """The module that a compiled one stands for; what has no trained weights or no modes is refused."""
    original = getattr(model, "_orig_mod", None)
    network = original if isinstance(original, nn.Module) else model
    unshaped = next((name for name, value in network.named_parameters() if is_lazy(value)), None)
    if unshaped is not None:
        raise ValueError(
            f"model: its {unshaped!r} has no shape yet, as a lazy layer's before its first input, expected trained "
            f"weights; pass a batch through the network, then load them."
        )
    try:
        with preserve(network):
            network.eval()
    except NotImplementedError as error:
        raise ValueError(
            f"model: got {type(network).__name__}, which has no eval() ({error}), expected the network that it was "
            f"made of, as of a torch.export program."
        ) from error
    return network


def _advise_on_model(model: object) -> str | None:
    """How a refusal of what people take for networks begins: what came and what is expected, without the end."""
    if isinstance(model, type):
        instance = "an instance of it" if issubclass(model, nn.Module) else "an instance of a torch.nn.Module"
        return f"the class {model.__name__}, expected {instance}, such as {model.__name__}(...)"
    if isinstance(model, Mapping):
        return (
            f"{type(model).__name__}, expected a network; of a state dict, make the network first, then "
            f"network.load_state_dict(weights)"
        )
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        return f"the path or name {str(model)!r}, expected a network; load its weights with load_state_dict first"
    if isinstance(model, PyTorchClassifier):
        return None
    if callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        return (
            f"the function {name}, expected a torch.nn.Module or an ART PyTorchClassifier: what {name}() returns if it "
            f"makes one, or else a Module whose forward calls it"
        )
    return f"{type(model).__name__}, expected a torch.nn.Module or an ART PyTorchClassifier"


def _probe(model: nn.Module, few: Tensor, preprocessing: tuple[Any, Any]) -> tuple[nn.Module, int]:
    """The network that returns logits, and how many: from a pass of two images that leaves the network as it was."""
    mean, std = (torch.as_tensor(value, dtype=torch.float32, device=few.device) for value in preprocessing)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        preserve(model),
        restored_state(model),
        restored_random_states(cuda_devices()),
        torch.autocast(few.device.type, enabled=False),
    ):
        model.eval()
        try:
            outputs = model((few - mean) / std)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the network raises
            raise ValueError(
                f"model: it fails on images of shape {tuple(few.shape)} ({describe_error(error)}), expected "
                f"one that takes them{_advise_on_failure(model, tuple(few.shape[1:]))}."
            ) from error
    network = model
    if not isinstance(outputs, Tensor) and isinstance(getattr(outputs, "logits", None), Tensor):
        network, outputs = LogitsOf(model), outputs.logits
    if not isinstance(outputs, Tensor):
        inside = describe_logits(outputs, lambda tensor: tensor.dim() == 2 and len(tensor) == len(few))
        raise ValueError(
            f"model: its output is a {type(outputs).__name__}, expected logits (N, classes), or an object with the "
            f"attribute logits; wrap it in a torch module whose forward(self, x) returns {inside}."
        )
    if not outputs.is_floating_point():
        advice = "" if outputs.is_complex() else "; a chosen class has none"
        raise ValueError(f"model: its outputs are {outputs.dtype}, expected logits in floating point{advice}.")
    shape = tuple(outputs.shape)
    if len(shape) not in (1, 2) or shape[0] != len(few) or 0 in shape:
        raise ValueError(
            f"model: its output for {len(few)} images of shape {tuple(few.shape[1:])} is of shape {shape}, expected "
            f"logits ({len(few)}, classes){advise_on_layout(tuple(few.shape[1:]))}."
        )
    return network, shape[1] if len(shape) == 2 else 1


def _advise_on_failure(model: nn.Module, shape: tuple[int, ...]) -> str:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if len(devices) > 1:
        return f"; its weights are on {' and '.join(sorted(map(str, devices)))}, where one device is needed"
    if kinds:
        return f"; its weights are {min(map(str, kinds))}: use model.float(), or convert in forward"
    if len(shape) == 2:
        return "; images get an axis of channels by x[:, None] if they lack one, a single image its first by x[None]"
    return advise_on_layout(shape)


named_model = make_alias("named_model", rename_model)
