"""Texts that identify a training run: a resumed run must have the same ones as its checkpoint.

Weights, momenta and progress are left out. Everything is described as the user gave it, at the start of `fit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.optim import Optimizer

from ...bridge import preprocessing_modules
from .descriptions import Describer
from .plain_texts import describe_value, plain_text

_OF_TRAINERS = {"classifier", "options", "instruments", "history", "epochs_done", "share", "samples", "processes"}
_OF_TRAINERS |= {"input_range", "estimator_module", "forward_pass", "training_defences"}
FORM = f"2, torch {torch.__version__}"
"""The version of this description; entries that only one of two versions has are not compared."""
LATER_PARAMETERS = {"start_noise": 0.0, "local_weight_grows": False, "local_direction": "kl", "smoothness": "kl"}
"""Settings that older checkpoints lack, with the values that their runs had."""
# How the optimizer's step is implemented, and what is described elsewhere.
_NO_HYPERPARAMETERS = {"params", "param_names", "initial_lr", "fused", "foreach", "capturable", "differentiable"}


def describe_estimator(classifier: PyTorchClassifier) -> dict[str, str]:
    """The network (not its weights), loss, ranges and preprocessing of an ART classifier."""
    network, loss = classifier.model, classifier.loss
    parameters = [f"{name} {p.dtype}{'' if p.requires_grad else ' frozen'}" for name, p in network.named_parameters()]
    return {
        "network": plain_text(network),
        "types of modules": ", ".join(f"{n}: {type(m).__name__}".lstrip(": ") for n, m in network.named_modules()),
        "parameters": ", ".join(parameters),
        "loss": describe_object(loss),
        "nb_classes": str(classifier.nb_classes),
        "input_shape": str(tuple(classifier.input_shape)),
        "channels_first": str(classifier.channels_first),
        "clip_values": describe_value(classifier.clip_values),
        "preprocessing of the classifier": ", ".join(map(describe_object, classifier.preprocessing_operations)),
    }


def describe_held(trainer: Any, scheduler: Any, loader: object, *, quick: bool = False) -> dict[str, str]:
    """The state and settings of network, loss, method, instruments, preprocessing, scheduler and loader, by entry.

    Some entries change while a run trains, such as counters: `resuming.check_identity` does not compare these.

    Args:
        trainer: with its classifier and instruments.
        scheduler: of the learning rate, or None.
        loader: of the data; None for arrays.
        quick: leave out long arrays, which training does not change.
    """
    classifier = trainer.classifier
    modules = [*classifier.model.modules(), *(m for p in preprocessing_modules(classifier) for m in p.modules())]
    weights = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    # The data of `fit`, and what the trainer reads from the classifier, are described elsewhere.
    apart = [*modules, *weights, classifier, trainer, *trainer.instruments]
    described = Describer(apart).describe_network(classifier.model)
    described |= Describer(apart).describe(classifier.loss, "loss function")
    described |= Describer(apart).describe_own(trainer, "method", _OF_TRAINERS)
    for number, each in enumerate(trainer.instruments):
        described |= Describer(apart).describe_own(each, f"instrument {number}", ())
    for number, each in enumerate(classifier.preprocessing_operations):
        described |= Describer(apart).describe_own(each, f"preprocessing {number}", ())
    if scheduler is not None:
        described |= Describer(apart).describe_scheduler_functions(scheduler)
    if loader is not None:
        described |= Describer(apart, quick=quick).describe(loader, "data loader")
    return described


def describe_method(trainer: object, instruments: Iterable[object]) -> dict[str, str]:
    """A trainer's and its instruments' settings, those of their base classes too."""
    left_out = {"classifier", "options", "instruments"}
    left_out |= {name for name, default in LATER_PARAMETERS.items() if getattr(trainer, name, None) == default}
    return {
        "settings of the method": describe_object(trainer, left_out),
        "settings of the instruments": ", ".join(map(describe_object, instruments)),
    }


def describe_groups(classifier: PyTorchClassifier) -> dict[str, str]:
    """The optimizer's groups: their parameters in order, and their hyper-parameters with the initial learning rates."""
    owners = [("", classifier.model)]
    owners += [(f"preprocessing[{k}].", module) for k, module in enumerate(preprocessing_modules(classifier))]
    names = {id(p): f"{prefix}{name}" for prefix, owner in owners for name, p in owner.named_parameters()}
    optimizer: Optimizer = classifier.optimizer
    described = {"groups of the optimizer": str(len(optimizer.param_groups))}
    for number, group in enumerate(optimizer.param_groups):
        place = f"optimizer group {number}"
        described[f"{place} parameters"] = ", ".join(
            names.get(id(p), f"another one {tuple(p.shape)}") for p in group["params"]
        )
        values = {key: value for key, value in group.items() if key not in _NO_HYPERPARAMETERS}
        values["lr"] = group.get("initial_lr", group["lr"])  # the initial rate, which a scheduler does not change
        described |= {f"{place} {key}": describe_value(value) for key, value in values.items()}
    return described


def describe_scheduler(scheduler: Any) -> dict[str, str]:
    """A scheduler's state, entry by entry: its settings, which stay the same, and its progress."""
    if scheduler is None or not hasattr(scheduler, "state_dict"):
        return {}
    return {f"scheduler {place}".rstrip(): text for place, text in _leaves(scheduler.state_dict(), "")}


def describe_arrays(x: Tensor, y: Tensor, prefix: str = "") -> dict[str, str]:
    """The content of data; images in uint8 count as the numbers in float32 that they become."""
    return {f"{prefix}x": describe_value(x, torch.float32), f"{prefix}y": describe_value(y)}


def describe_object(value: Any, left_out: Iterable[str] = ()) -> str:
    """An object's type, and the settings that its constructor, or that of a base class, takes."""
    if isinstance(value, FunctionType | MethodType | partial | type):
        return describe_value(value)
    known = dict.fromkeys(getattr(value, "params", ()) if not isinstance(value, nn.Module) else ())
    for kind in type(value).__mro__:
        if isinstance(vars(kind).get("__init__"), FunctionType):
            known |= dict.fromkeys(list(inspect.signature(vars(kind)["__init__"]).parameters)[1:])
    known |= dict.fromkeys(("apply_fit", "apply_predict"))
    own = {name: _attribute(value, name) for name in known if name not in left_out}
    texts = [f"{name}={describe_value(held)}" for name, held in own.items() if held is not inspect.Parameter.empty]
    if isinstance(value, nn.Module):
        texts += [f"{name}={describe_value(tensor)}" for name, tensor in value.named_buffers() if name not in own]
    return f"{type(value).__name__}({', '.join(texts)})"


def _attribute(owner: object, name: str) -> Any:
    for each in (name, f"_{name}"):
        if hasattr(owner, each):
            return getattr(owner, each)
    return inspect.Parameter.empty


def _leaves(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield from _leaves(held, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(held, Mapping | list | tuple) for held in value):
        yield f"{place}, entries", str(len(value))
        for number, held in enumerate(value):
            yield from _leaves(held, f"{place}[{number}]")
    else:
        yield place, describe_value(value)
