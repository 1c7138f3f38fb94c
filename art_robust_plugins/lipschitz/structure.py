"""A description of everything but weights that determines what a network computes, to compare with a later one."""

from __future__ import annotations

import dis
import logging
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, list, tuple, set, frozenset, deque, types.MappingProxyType)
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(Ellipsis), np.generic, np.dtype)
_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_CHANGING = (logging.Logger, type(threading.Lock()), type(threading.RLock()))
_LIBRARIES = sys.stdlib_module_names - {"__main__"} | {"torch", "numpy", "art", __name__.split(".")[0]}


class _Incomparable:
    """Stands for something that cannot be compared, and is equal only to itself, so that it counts as changed."""


def describe_structure(network: nn.Module) -> list[object]:
    """Describe everything but the values of parameters and buffers that determines what a network computes.

    Modules with their classes and hooks, attributes with all that they hold, and functions with their defaults, the
    variables that they close over and the globals that they name; of modules outside libraries the attributes that
    code names. Two descriptions of an unchanged network are equal; what cannot be compared makes them differ. What
    libraries hold, such as a patched function of torch or a variable of the environment, is not seen.

    Args:
        network: is left as it is.

    Returns:
        a list to be compared with ``==``. It refers to functions and classes, and holds copies of values.
    """
    description = _Description(network)
    found: list[object] = [str(network)]
    for name, module in network.named_modules():
        attributes = {key: description.content(value) for key, value in vars(module).items() if key not in _OWN}
        hooks = [description.content(held) for held in (module._forward_pre_hooks, module._forward_hooks)]
        found.append((name, description.class_content(type(module)), attributes, hooks))
    everywhere = torch.nn.modules.module
    found.append([list(everywhere._global_forward_pre_hooks), list(everywhere._global_forward_hooks)])
    for key, tensor in chain(network.named_parameters(), network.named_buffers()):
        found.append((key, tensor.shape, tensor.device, tensor.is_floating_point()))
    return found


class _Description:
    def __init__(self, network: nn.Module) -> None:
        self._modules = set(map(id, network.modules()))
        self._seen: dict[int, Any] = {}  # keeps visited objects alive, so that no id is reused
        self._looked_up: set[tuple[str, frozenset[str]]] = set()

    def content(self, value: Any) -> object:
        """A value with everything it holds that was not visited before."""
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            return value.dtype, value.device, tuple(value.shape), array.tobytes()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return value.dtype, value.shape, value.tobytes()
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if isinstance(value, _TORCH + _DESCRIPTORS):
            return value
        # The network's own modules are described separately; loggers and locks change when they are used.
        if id(value) in self._modules or id(value) in self._seen or isinstance(value, _CHANGING):
            return type(value)
        self._seen[id(value)] = value
        kinds: list[tuple[Any, Callable[[Any], object]]] = [
            (type, self.class_content),
            (types.FunctionType, self._function_content),
            (types.MethodType, lambda method: [self.content(method.__func__), self.content(method.__self__)]),
            ((staticmethod, classmethod), lambda method: [type(method), self.content(method.__func__)]),
            (property, lambda method: self.content(method.fget)),
            (np.ndarray, lambda array: self.content(array.tolist())),
            # Only the code that refers to it could tell which of its attributes are used.
            (types.ModuleType, lambda module: module if _of_library(module.__name__) else _Incomparable()),
            (_CONTAINERS, self._container_content),
            (object, self._object_content),
        ]
        return next(describe for kind, describe in kinds if isinstance(value, kind))(value)

    def _container_content(self, value: Any) -> object:
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        return type(value), [(self._key(key), self.content(entry)) for key, entry in entries]

    def class_content(self, kind: type) -> object:
        """A class with everything that it and its bases define, outside libraries."""
        held = [base for base in kind.__mro__ if not _of_library(base.__module__) and id(base) not in self._seen]
        self._seen.update((id(base), base) for base in held)
        skipped = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "_abc_impl")
        return kind, [
            (key, self.content(entry)) for base in held for key, entry in vars(base).items() if key not in skipped
        ]

    def _function_content(self, function: types.FunctionType) -> object:
        if _of_library(function.__module__):
            return function
        names = _find_names(function.__code__)
        cells = [_cell_contents(cell) for cell in function.__closure__ or ()]
        package = str(function.__globals__.get("__package__") or "")
        imported = {name: _find_imported(name, package) for name in names.imported}
        named = {name: function.__globals__[name] for name in names.globals if name in function.__globals__}
        used = [self._used_content(value, names.attributes) for value in cells]
        for group in (named, imported):
            used += [(name, self._used_content(value, names.attributes)) for name, value in sorted(group.items())]
        held = [function.__defaults__, function.__kwdefaults__, vars(function)]
        return function, function.__code__, used, [self.content(part) for part in held]

    def _used_content(self, value: Any, attributes: frozenset[str]) -> object:
        """A value that code uses; of a module, only the attributes that the code names."""
        if not isinstance(value, types.ModuleType):
            return self.content(value)
        if _of_library(value.__name__) or (value.__name__, attributes) in self._looked_up:
            return value
        self._looked_up.add((value.__name__, attributes))
        held = {name: entry for name, entry in vars(value).items() if name in attributes}
        return value, [(name, self._used_content(entry, attributes)) for name, entry in sorted(held.items())]

    def _object_content(self, value: Any) -> object:
        partial = [getattr(value, name) for name in ("func", "args", "keywords") if hasattr(value, name)]
        slots = [
            (name, getattr(value, name, None))
            for base in type(value).__mro__
            for name in _slot_names(vars(base).get("__slots__", ()))
            if name not in ("__dict__", "__weakref__")
        ]
        attributes = getattr(value, "__dict__", None)
        if attributes is None and not slots and not partial:
            # Functions in C and operations of torch do not change; nothing is known about anything else.
            return value if callable(value) and _of_library(getattr(value, "__module__", None)) else _Incomparable()
        return self.class_content(type(value)), [self.content(part) for part in (partial, slots, attributes)]

    def _key(self, key: Any) -> object:
        return (type(key), key) if isinstance(key, _PLAIN) else self.content(key)


def _of_library(module: str | None) -> bool:
    return (module or "builtins").split(".")[0] in _LIBRARIES


@dataclass(frozen=True)
class _Names:
    """The names that a function's code, and the functions in it, look up."""

    globals: frozenset[str]
    attributes: frozenset[str]
    imported: frozenset[str]


@lru_cache(maxsize=4096)
def _find_names(code: types.CodeType) -> _Names:
    found: dict[str, set[str]] = {"GLOBAL": set(), "ATTR": set(), "IMPORT": set()}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found["GLOBAL"].add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            found["ATTR"].add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            found["IMPORT"].add(instruction.argval)
    inner = [_find_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    # getattr takes an attribute's name as a text.
    texts = {constant for constant in code.co_consts if isinstance(constant, str) and constant.isidentifier()}
    return _Names(
        frozenset(found["GLOBAL"]).union(*(names.globals for names in inner)),
        frozenset(found["ATTR"] | texts).union(*(names.attributes for names in inner)),
        frozenset(found["IMPORT"]).union(*(names.imported for names in inner)),
    )


def _find_imported(name: str, package: str) -> types.ModuleType | None:
    """A module that code imports, where it was: by its whole name, or from the code's package or one above it."""
    while package and f"{package}.{name}" not in sys.modules:
        package = package.rpartition(".")[0]
    return sys.modules.get(f"{package}.{name}" if package else name)


def _cell_contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _slot_names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
