"""What a training run is made of, as texts by name: a run and the checkpoint that it resumes must have the same.

Weights, momenta and progress are no part of it. All is described as the user gave it, at the start of `fit`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from ...bridge import preprocessing_modules
from ...fingerprints import digest

CODE = "code of the "
"""Begins the names of what only one version of Python compiles alike."""

_OF_ONE_PROCESS = re.compile(r" at 0x[0-9a-fA-F]+|, device='\w+(:\d+)?'")
_LIBRARIES = {"torch", "art", "numpy", __name__.partition(".")[0], *sys.stdlib_module_names} - {"__main__"}
# How an optimizer's step is carried out, and what is described by itself.
_NO_HYPERPARAMETERS = {"params", "param_names", "initial_lr", "fused", "foreach", "capturable", "differentiable"}
_SHORT = 16


def plain_text(value: Any) -> str:
    """A setting as text, without memory addresses and devices: two processes differ in them, and a resumed run too."""
    return _OF_ONE_PROCESS.sub("", str(value))


def describe_estimator(classifier: PyTorchClassifier) -> dict[str, str]:
    """The network (not its weights), loss, ranges and preprocessing of an ART classifier."""
    network, loss = classifier.model, classifier.loss
    plain = [
        f"{name}.{key}={describe_value(value)}".lstrip(".")
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if key[0] != "_" and key != "training" and _is_constant(value)
    ]
    parameters = [f"{name} {p.dtype}{'' if p.requires_grad else ' frozen'}" for name, p in network.named_parameters()]
    described = {
        "network": plain_text(network),
        "types of modules": ", ".join(f"{n}: {type(m).__name__}".lstrip(": ") for n, m in network.named_modules()),
        "attributes of modules": ", ".join(plain),
        "parameters": ", ".join(parameters),
        "loss": describe_object(loss),
        "nb_classes": str(classifier.nb_classes),
        "input_shape": str(tuple(classifier.input_shape)),
        "channels_first": str(classifier.channels_first),
        "clip_values": describe_value(classifier.clip_values),
        "preprocessing of the classifier": ", ".join(map(describe_object, classifier.preprocessing_operations)),
    }
    # What else a network computes shows in its outputs; what it does in training alone does not.
    in_training = [m for m in network.modules() if any("training" in f.__code__.co_names for f in _functions_of(m))]
    held = [v for m in network.modules() for key, v in vars(m).items() if key[0] != "_" and callable(v)]
    return described | {
        f"{CODE}modules that ask whether they train": _code(in_training),
        f"{CODE}functions that modules hold": _code(v for v in held if not isinstance(v, nn.Module)),
        f"{CODE}loss": _code([loss]),
        f"{CODE}preprocessing": _code(classifier.preprocessing_operations),
    }


def describe_method(trainer: object, instruments: Iterable[object]) -> dict[str, str]:
    """A trainer's and its instruments' settings, those of their base classes too, and the code of one's own."""
    left_out = {"classifier", "options", "instruments"}
    return {
        "settings of the method": describe_object(trainer, left_out),
        "settings of the instruments": ", ".join(map(describe_object, instruments)),
        f"{CODE}method": _code([trainer]),
        f"{CODE}instruments": _code(instruments),
    }


def describe_groups(classifier: PyTorchClassifier) -> dict[str, str]:
    """The optimizer's groups: which parameters in which order, and each hyper-parameter, at its initial rate."""
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
        values["lr"] = group.get("initial_lr", group["lr"])  # which a scheduler leaves as it was
        described |= {f"{place} {key}": describe_value(value) for key, value in values.items()}
    return described


def describe_scheduler(scheduler: Any) -> dict[str, str]:
    """A scheduler's state, entry by entry: settings, which stay, and its progress."""
    if scheduler is None or not hasattr(scheduler, "state_dict"):
        return {}
    return {f"scheduler {place}".rstrip(): text for place, text in _leaves(scheduler.state_dict(), "")}


def describe_scheduler_code(scheduler: Any) -> dict[str, str]:
    """The functions of one's own by which a scheduler computes rates; its state does not hold them."""
    return {f"{CODE}scheduler": _code([] if scheduler is None else _find_functions(scheduler))}


def describe_arrays(x: Tensor, y: Tensor, prefix: str = "") -> dict[str, str]:
    """The content of data."""
    return {f"{prefix}x": describe_value(x), f"{prefix}y": describe_value(y)}


def describe_loader(loader: object) -> dict[str, str]:
    """What is known of a loader before it is iterated: types, sizes, and the arrays that its data set holds in memory.

    Nothing is drawn from it: of a data set that reads files, only its type and length are known.
    """
    return dict(_describe_source(loader, "loader", depth=4))


def describe_object(value: Any, left_out: Iterable[str] = ()) -> str:
    """An object as its type with the settings that its constructor, or that of a base class, takes."""
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


def describe_value(value: Any) -> str:
    """A setting as a text that is the same in every process; of many numbers the digest."""
    if isinstance(value, np.generic):
        return str(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return _describe_array(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _describe_container(value)
    if isinstance(value, partial):
        return f"partial({describe_value(value.func)}, {describe_value(value.args)}, {describe_value(value.keywords)})"
    named = callable(value) and hasattr(value, "__qualname__")
    kind: Any = type(value)
    if named or (kind.__repr__ is object.__repr__ and kind.__str__ is object.__str__):
        return str(value.__qualname__ if named else kind.__qualname__)
    return plain_text(repr(value))


def _describe_array(value: Tensor | np.ndarray[Any, Any]) -> str:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return plain_text(value.tolist())
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    if tensor.layout != torch.strided:
        return plain_text(tensor)
    if tensor.numel() <= _SHORT:
        return str(tensor.tolist())
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} of SHA-256 {digest(tensor)[:16]}"


def _describe_container(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{describe_value(key)}: {describe_value(held)}" for key, held in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe_value, value)) + "]"
    return "{" + ", ".join(sorted(map(describe_value, value))) + "}"


def _attribute(owner: object, name: str) -> Any:
    for each in (name, f"_{name}"):
        if hasattr(owner, each):
            return getattr(owner, each)
    return inspect.Parameter.empty


def _is_constant(value: object) -> bool:
    # Whole numbers may count something; what they set shows in the outputs.
    return isinstance(value, bool | float | str) or (callable(value) and not isinstance(value, nn.Module))


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


def _describe_source(source: object, place: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yields (place, description) for each part of an object that holds data or chooses among them."""
    if isinstance(source, Tensor | np.ndarray):
        mapped = isinstance(source, np.memmap)  # as large as a disk, perhaps
        yield place, f"{source.dtype} {list(source.shape)} in a file" if mapped else describe_value(source)
    elif isinstance(source, list | tuple):
        yield from _described_list(source, place, depth)
    else:
        yield place, type(source).__name__
        yield from _describe_attributes(source, place, depth)


def _described_list(source: Sequence[object], place: str, depth: int) -> Iterator[tuple[str, str]]:
    yield f"{place}, entries", str(len(source))
    if all(isinstance(each, int | float) for each in source):
        yield place, f"numbers of SHA-256 {digest(plain_text(list(source)))[:16]}"
    elif depth:
        for number, each in enumerate(source):
            if isinstance(each, Tensor | np.ndarray | list | tuple | Dataset):
                yield from _describe_source(each, f"{place}[{number}]", depth - 1)


def _describe_attributes(source: object, place: str, depth: int) -> Iterator[tuple[str, str]]:
    held = dict(vars(source)) if hasattr(source, "__dict__") else {}
    if isinstance(source, DataLoader):
        held = {key: getattr(source, key) for key in ("dataset", "batch_size", "drop_last", "sampler", "batch_sampler")}
    size = _length(source)
    if size is not None:
        yield f"{place}, length", str(size)
    chooses = isinstance(source, DataLoader | Sampler | Dataset)
    for key, value in held.items():
        if key in ("batch_size", "drop_last", "replacement", "shuffle", "size"):
            yield f"{place}.{key}", plain_text(value)
        elif (
            isinstance(value, Tensor | np.ndarray)
            or (chooses and isinstance(value, list | tuple))
            or (isinstance(value, Dataset | Sampler) and depth)
        ):
            yield from _describe_source(value, f"{place}.{key}", depth - 1)


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):  # a stream
        return None


def _code(owners: Iterable[object]) -> str:
    """A digest of what functions and classes of one's own do, for one version of Python."""
    parts = [part for owner in owners for function in _functions_of(owner) for part in _code_of(function)]
    return f"{sys.version_info[0]}.{sys.version_info[1]}: SHA-256 {digest(*parts)[:16]}" if parts else "none"


def _find_functions(owner: object) -> Iterator[object]:
    """Yields an object, the functions in its attributes, and the same of the schedulers inside it."""
    yield owner
    for value in vars(owner).values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, FunctionType | partial):
                yield each
            elif isinstance(each, torch.optim.lr_scheduler.LRScheduler):
                yield from _find_functions(each)


def _functions_of(owner: Any) -> Iterator[FunctionType]:
    """A function, or the methods of an object's class and its bases, where they are not a library's."""
    if isinstance(owner, partial):
        owner = owner.func
    if isinstance(owner, MethodType):
        owner = owner.__func__
    if isinstance(owner, FunctionType):
        if _is_own(owner.__module__):
            yield owner
        return
    for kind in (owner if isinstance(owner, type) else type(owner)).__mro__:
        if not _is_own(kind.__module__):
            continue
        for _, member in sorted(vars(kind).items()):
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if isinstance(function, FunctionType):
                yield function


def _is_own(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    if root in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _code_of(function: FunctionType) -> Iterator[str]:
    yield function.__name__
    yield describe_value(function.__defaults__) + describe_value(function.__kwdefaults__)
    yield from _instructions(function.__code__)
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, int | float | str) and not name.startswith("__"):
            yield f"{name}={value!r}"
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(value, bool | int | float | str | Tensor | np.ndarray):
            yield describe_value(value)
        elif isinstance(value, FunctionType) and value is not function and _is_own(value.__module__):
            yield from _instructions(value.__code__)


def _instructions(code: CodeType) -> Iterator[str]:
    """What the code does; where it stands in its file, comments and docstrings are left out."""
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    documented = sys.version_info < (3, 13) or bool(code.co_flags & 0x4000000)
    for number, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        elif not (number == 0 and documented and isinstance(constant, str)):
            yield describe_value(constant)
