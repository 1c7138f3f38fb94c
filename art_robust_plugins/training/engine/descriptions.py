"""Texts that describe what determines an object's behaviour: its settings, and its functions' code and variables.

Places such as ``loss.ce.label_smoothing`` or ``method: training_loss: global epochs`` tell a user what differs. Of an
object only those attributes count that its code names; an attribute that nothing reads (a time, a folder) does not.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from art.estimators import BaseEstimator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ...fingerprints import digest
from ...keywords import find_explained
from .own_code import is_own
from .plain_texts import CODE, describe_value, plain_text

_DEPTH = 6
_LONG = 32
_QUICK = 1000
HOOK = ", hook "
"""Part of the names of hooks' entries."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), PurePath, np.generic, Tensor, np.ndarray, range, slice)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
# These are described elsewhere, or are no settings.
_APART = (ModuleType, BaseEstimator, Optimizer, LRScheduler, torch.Generator, np.random.Generator)
_OF_MODULES = frozenset(vars(nn.Module())) - {"_modules", "_buffers", "_parameters"}
# These methods do not take part in the computation, so what only they name has no effect on it.
_BESIDE = {"__init__", "__post_init__", "__repr__", "__str__", "__eq__", "__hash__", "__reduce__", "extra_repr"}
_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME"}


def names_of_classes(kind: type) -> frozenset[str]:
    """The names of attributes and globals, and the texts, in the methods of a class and its bases."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base in (object, nn.Module):
            continue
        for name, member in vars(base).items():
            function = _function_behind(member)
            if function is not None and name not in _BESIDE:
                names |= _names(find_explained(function), set())
    return frozenset(names)


def functions_of(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """The methods of a class and its bases by name, except those of libraries."""
    for base in kind.__mro__:
        if is_own(base.__module__):
            for name, member in sorted(vars(base).items()):
                function = _function_behind(member)
                if function is not None:
                    yield (name if base is kind else f"{base.__name__}.{name}"), function


class Describer:
    """Describes objects and functions, and everything that they hold; each object is described once.

    Args:
        apart: tensors, modules and objects to leave out because they are described elsewhere, such as weights.
        quick: leave out long arrays and lists.
    """

    def __init__(self, apart: Iterable[object], *, quick: bool = False) -> None:
        self._apart = {id(each): each for each in apart}
        self._seen: dict[int, object] = {}  # keeps visited objects alive, so that no id is reused
        self._classes: set[type] = set()
        self._quick = quick

    def describe(self, value: Any, place: str) -> dict[str, str]:
        """Describe an object or function; the entries' names begin with ``place``."""
        return dict(self.walk(value, place, frozenset(), _DEPTH))

    def describe_network(self, network: nn.Module) -> dict[str, str]:
        """The modules of a network, their classes and hooks; not their weights."""
        used = frozenset[str]().union(*(names_of_classes(type(module)) for module in network.modules()))
        found: dict[str, str] = {}
        for name, module in network.named_modules():
            place = f"module {name}" if name else "network"
            code = dict(self._walk_class(type(module), f"network class {type(module).__name__}", _DEPTH))
            # Other differences show in the network's outputs (see `probe`); behaviour in training mode alone does not.
            asks = "training" in names_of_classes(type(module))
            found |= {key: text for key, text in code.items() if asks or not key.startswith(CODE)}
            found |= dict(self._walk_attributes(module, place, used, _DEPTH))
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            for number, hook in enumerate(hooks):
                found |= dict(self.walk(hook, f"{place}{HOOK}{number}", used, _DEPTH))
        return found

    def describe_own(self, value: Any, place: str, left_out: Iterable[str]) -> dict[str, str]:
        """Describe an object of a user's class: its code, and the attributes that this code names."""
        kind = type(value)
        if not is_own(kind.__module__):
            return {}
        named = frozenset[str]().union(*(_names(function, set()) for _, function in functions_of(kind)))
        if isinstance(value, nn.Module):
            named |= value._modules.keys()
        held = {name: each for name, each in vars(value).items() if name in named and name not in left_out}
        found = dict(self._walk_class(kind, place, _DEPTH))
        for name, each in held.items():
            found |= dict(self.walk(each, f"{place}.{name}", named, _DEPTH))
        return found

    def describe_scheduler_functions(self, scheduler: Any, place: str = "schedule") -> dict[str, str]:
        """The functions and objects by which a scheduler computes rates, which its state does not hold."""
        found = self.describe_own(scheduler, place, ("optimizer",))
        for name, value in vars(scheduler).items():
            for number, each in enumerate(value if isinstance(value, list | tuple) else (value,)):
                inner = f"{place}.{name}[{number}]"
                if isinstance(each, LRScheduler):
                    found |= self.describe_scheduler_functions(each, inner)
                elif isinstance(each, FunctionType | MethodType | partial) or is_own(type(each).__module__):
                    found |= dict(self.walk(each, inner, frozenset(), _DEPTH))
        return found

    def walk(self, value: Any, place: str, used: frozenset[str], depth: int) -> Iterator[tuple[str, str]]:
        """Yields (place, text) of a value and all that it holds."""
        if id(value) in self._apart or isinstance(value, _APART):
            return
        if isinstance(value, Tensor | np.ndarray) and (self._quick or isinstance(value, np.memmap)):
            size = int(np.prod(value.shape))
            if isinstance(value, np.memmap):  # it may be as large as a disk
                yield place, f"{value.dtype} {list(value.shape)} in a file"
            elif size <= _QUICK:
                yield place, _shorten(value)
        elif isinstance(value, _PLAIN + _TORCH):
            yield place, _shorten(value)
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            yield from self._walk_container(value, place, used, depth)
        elif id(value) in self._seen or not depth:
            yield place, f"of {type(value).__name__}"
        else:
            self._seen[id(value)] = value
            yield from self._walk_object(value, place, used, depth - 1)

    def _walk_object(self, value: Any, place: str, used: frozenset[str], depth: int) -> Iterator[tuple[str, str]]:
        if isinstance(value, partial):
            for name, part in (("function", value.func), ("arguments", value.args), ("keywords", value.keywords)):
                # All arguments of a partial function count.
                yield from self.walk(part, f"{place}, {name}", frozenset(), depth)
        elif isinstance(value, MethodType):
            yield from self.walk(value.__func__, place, used, depth)
            yield from self.walk(value.__self__, f"{place}, self", used | _names(value.__func__, set()), depth)
        elif isinstance(value, FunctionType):
            yield from self._walk_function(value, place, depth)
        elif isinstance(value, BuiltinFunctionType):
            yield place, value.__qualname__
        elif isinstance(value, type):
            yield place, value.__qualname__
            yield from self._walk_class(value, place, depth)
        else:
            yield place, type(value).__qualname__ if callable(value) or hasattr(value, "__dict__") else _shorten(value)
            yield from self._walk_class(type(value), place, depth)
            size = None if isinstance(value, nn.Module) else _length(value)
            if size is not None:
                yield f"{place}, length", str(size)
            if isinstance(value, DataLoader):
                for name in ("dataset", "batch_size", "drop_last", "sampler", "batch_sampler", "collate_fn"):
                    yield from self.walk(getattr(value, name), f"{place}.{name}", used, depth)
            else:
                yield from self._walk_attributes(value, place, used, depth)

    def _walk_attributes(self, value: Any, place: str, used: frozenset[str], depth: int) -> Iterator[tuple[str, str]]:
        kind = type(value)
        own = is_own(kind.__module__)
        counted = used | names_of_classes(kind)
        for name, held in {**_slots(value), **getattr(value, "__dict__", {})}.items():
            if isinstance(value, nn.Module):
                if name in ("_modules", "_buffers", "_parameters"):
                    for key, part in held.items():
                        yield from self.walk(part, f"{place}.{key}", used, depth)
                    continue
                if name in _OF_MODULES:
                    continue
            hidden = name[:1] == "_" and not own
            function = isinstance(held, FunctionType | MethodType | partial)
            if not hidden and (name in counted or (isinstance(value, nn.Module) and (function or not own))):
                yield from self.walk(held, f"{place}.{name}", counted, depth)

    def _walk_class(self, kind: type, place: str, depth: int) -> Iterator[tuple[str, str]]:
        if not is_own(kind.__module__) or kind in self._classes:
            return
        self._classes.add(kind)
        named = names_of_classes(kind)
        for base in reversed(kind.__mro__):
            if is_own(base.__module__):
                for name, member in sorted(vars(base).items()):
                    if name in named and isinstance(member, (*_PLAIN, dict, list, tuple, set)) and name[:2] != "__":
                        yield from self.walk(member, f"{place}, class {name}", named, depth)
        for name, function in functions_of(kind):
            if name.rpartition(".")[2] not in _BESIDE:
                yield from self.walk(function, f"{place}: {name}", named, depth)

    def _walk_function(self, function: FunctionType, place: str, depth: int) -> Iterator[tuple[str, str]]:
        if not is_own(function.__module__):
            yield place, function.__qualname__
            return
        yield f"{CODE}{place}", _describe_code(function)
        names = frozenset(_names(function, set()))
        for name, value in _held_by(function):
            yield from self.walk(value, f"{place}, {name}", names, depth)

    def _walk_container(self, value: Any, place: str, used: frozenset[str], depth: int) -> Iterator[tuple[str, str]]:
        if isinstance(value, set | frozenset):
            entries: list[tuple[Any, Any]] = []
            yield place, _shorten(value)
        elif isinstance(value, Mapping):
            entries = [(key, held) for key, held in value.items() if key in used] if _any_named(value, used) else []
            entries = entries or list(value.items())
        else:
            entries = list(enumerate(value))
        if self._quick and len(entries) > _QUICK:
            return
        if all(isinstance(held, _PLAIN) and not isinstance(held, Tensor | np.ndarray) for _, held in entries):
            if not isinstance(value, set | frozenset):
                yield place, _shorten(dict(entries) if isinstance(value, Mapping) else list(value))
        elif depth:
            parts = [
                part
                for key, held in entries
                for part in self.walk(held, f"{place}[{plain_text(repr(key))}]", used, depth - 1)
            ]
            yield f"{place}, entries", str(len(entries))
            if len(entries) <= _LONG:
                yield from parts
            else:
                yield place, f"entries of SHA-256 {digest(*map(str, parts))[:16]}"


def _any_named(value: Mapping[Any, Any], used: frozenset[str]) -> bool:
    return any(isinstance(key, str) and key in used for key in value)


def _shorten(value: Any) -> str:
    text = describe_value(_leave_folders_out(value))
    return text if len(text) <= 300 else f"{text[:60]}... of SHA-256 {digest(text)[:16]}"


def _leave_folders_out(value: Any) -> Any:
    """Paths without their folders, since folders differ between machines."""
    if isinstance(value, str | PurePath):
        return str(value).rpartition("/")[2]
    if isinstance(value, list | tuple):
        return [_leave_folders_out(each) for each in value]
    if isinstance(value, dict):
        return {key: _leave_folders_out(each) for key, each in value.items()}
    return value


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except (TypeError, NotImplementedError):  # a stream, or no collection
        return None


def _slots(value: Any) -> dict[str, Any]:
    names = [name for base in type(value).__mro__ for name in _as_names(vars(base).get("__slots__", ()))]
    return {name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)}


def _as_names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _function_behind(member: Any) -> FunctionType | None:
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, cached_property):
        member = member.func
    function = getattr(member, "__func__", member)
    return function if isinstance(function, FunctionType) else None


def _held_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields the values that a function uses besides its arguments: defaults, closed-over variables and globals."""
    yield "defaults", [function.__defaults__, function.__kwdefaults__]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name == "__class__":
            continue
        try:
            value = cell.cell_contents
        except ValueError:  # the closure's cell is still empty
            continue
        if value is not function:
            yield f"variable {name}", value
    attributes = _all_names(function.__code__)
    for name in sorted(_global_names(function.__code__)):
        if name.startswith("__") or name not in function.__globals__:
            continue
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if is_own(value.__name__):
                for each in sorted(attributes & vars(value).keys()):
                    if not isinstance(vars(value)[each], ModuleType) and each[:2] != "__":
                        yield f"global {name}.{each}", vars(value)[each]
        else:
            yield f"global {name}", value


def _names(function: Any, seen: set[int]) -> frozenset[str]:
    """The attributes, globals and short texts that a function, and the user's functions that it calls, name."""
    if not isinstance(function, FunctionType) or id(function) in seen:
        return frozenset()
    seen.add(id(function))
    names = _all_names(function.__code__)
    if is_own(function.__module__):
        for _, value in _held_by(function):
            if isinstance(value, FunctionType) and is_own(value.__module__):
                names |= _names(value, seen)
    return names


def _all_names(code: CodeType) -> frozenset[str]:
    names = set(code.co_names) | {each for each in code.co_consts if isinstance(each, str) and len(each) < 80}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _all_names(constant)
        elif isinstance(constant, tuple):  # names of keyword arguments, and keys
            names |= {each for each in constant if isinstance(each, str)}
    return frozenset(names)


def _global_names(code: CodeType) -> set[str]:
    names = {each.argval for each in dis.get_instructions(code) if each.opname in _GLOBALS}
    return names.union(*(_global_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _describe_code(function: FunctionType) -> str:
    """A digest of a function's instructions, which hold for one version of Python."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}: SHA-256 {digest(*_instructions(function.__code__))[:16]}"


def _instructions(code: CodeType) -> Iterator[str]:
    """The instructions of the code, without line numbers, comments and docstrings."""
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    documented = sys.version_info < (3, 13) or bool(code.co_flags & 0x4000000)
    for number, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        elif not (number == 0 and documented and isinstance(constant, str)):
            yield describe_value(constant)
