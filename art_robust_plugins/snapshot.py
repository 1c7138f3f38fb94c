"""Copies of a network's state that can be put back: weights, buffers, submodules, extra state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .fingerprints import describe_value, digest


class Snapshot:
    """The state of a network at one moment.

    Kept are the values of all parameters, buffers and other tensors that modules hold as attributes, which of them and
    which submodules stand under which name, and the extra state of modules that have any. This takes as much memory as
    the weights do. Left alone are other attributes, and an extra state that cannot be read or copied, such as an open
    file. But where a pass adds a tensor or a submodule, which is taken away again, the module's numbers, texts and
    flags are put back with it: one of them may say that it is there.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> snapshot = Snapshot(layer)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> snapshot.restore()
        ['weight']
        >>> bool((layer.weight != 0).any())
        True
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [_Held(name, module) for name, module in network.named_modules()]

    def restore(self) -> list[str]:
        """Put everything back; the names of the parameters, buffers, submodules and extra states that had changed."""
        with torch.inference_mode(False), torch.no_grad():
            return [name for held in self._modules for name in held.restore()]


@contextmanager
def restored_state(network: nn.Module) -> Iterator[Snapshot]:
    """A context that leaves the state of ``network`` as it was, however it is left."""
    snapshot = Snapshot(network)
    try:
        yield snapshot
    finally:
        snapshot.restore()


class _Held:
    """The state that one module holds itself, without its submodules."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        registered = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        self.attributes = None if _is_scripted(module) else _Attributes(module)
        loose = {} if self.attributes is None else self.attributes.loose
        # Lazy modules have no values yet; their first pass makes them, which is no change.
        self.values = {
            key: (tensor, tensor.detach().clone())
            for key, tensor in {**registered, **loose}.items()
            if not is_lazy(tensor)
        }
        self.registered = set(registered)
        self.extra = self._copy_extra_state()

    def _copy_extra_state(self) -> Any:
        """A copy of the module's extra state; None where it has none, or cannot be given it back."""
        methods = ("get_extra_state", "set_extra_state")
        if _is_scripted(self.module) or any(
            getattr(type(self.module), method) is getattr(nn.Module, method) for method in methods
        ):
            return None
        try:
            return copy.deepcopy(self.module.get_extra_state())
        except Exception:  # whatever the module raises, or what cannot be copied
            return None

    def restore(self) -> Iterator[str]:
        changed = {
            key
            for key, (_, value) in self.values.items()
            if key in self.registered and not _same(getattr(self.module, key, None), value)
        }
        if self.attributes is not None:
            changed |= self.attributes.restore()
        for tensor, value in self.values.values():
            if not _same(tensor, value):
                _assign(tensor, value)
        yield from (f"{self.name}.{key}".lstrip(".") for key in sorted(changed))
        if self.extra is not None and digest(*describe_value(self.extra)) != digest(
            *describe_value(self.module.get_extra_state())
        ):
            self.module.set_extra_state(copy.deepcopy(self.extra))
            yield f"{self.name} (extra state)".strip()


class _Attributes:
    """The identity of each tensor and submodule of one module, by its name; not of TorchScript."""

    def __init__(self, module: nn.Module) -> None:
        self.held = vars(module)
        self.tables = {name: (self.held[name], dict(self.held[name])) for name in _TABLES}
        self.temporary = set(self.held["_non_persistent_buffers_set"])
        self.loose = {key: value for key, value in self.held.items() if isinstance(value, Tensor)}
        self.plain = {key: value for key, value in self.held.items() if isinstance(value, _PLAIN)}

    def restore(self) -> set[str]:
        """Put back what stands where; the names of entries that are new, are gone, or hold another submodule."""
        changed: set[str] = set()
        new = False
        for name, (table, kept) in self.tables.items():
            now = dict(self.held[name])
            changed |= kept.keys() ^ now.keys()
            changed |= {
                key
                for key in kept.keys() & now.keys()
                if now[key] is not kept[key] and (name == "_modules" or now[key] is None or kept[key] is None)
            }
            new = new or any(now[key] is not None and kept.get(key) is None for key in now)
            if self.held[name] is not table:
                self.held[name] = table
            if len(kept) != len(table) or any(table.get(key, self) is not value for key, value in kept.items()):
                table.clear()
                table.update(kept)
        temporary = self.held["_non_persistent_buffers_set"]
        if temporary != self.temporary:
            temporary.clear()
            temporary.update(self.temporary)
        registered = {key for _, kept in self.tables.values() for key in kept}
        for key in [*self.held]:
            # An attribute of a registered name would hide what is registered.
            if key in registered or (isinstance(self.held[key], Tensor) and key not in self.loose):
                new = True
                del self.held[key]
        for key, tensor in self.loose.items():
            if self.held.get(key) is not tensor:
                self.held[key] = tensor
        if new:
            self.held.update(self.plain)
        return changed


_TABLES = ("_parameters", "_buffers", "_modules")
_PLAIN = (type(None), bool, int, float, str)
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor holds nothing but its numbers, in an order that its strides say."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def _assign(tensor: Tensor, value: Tensor) -> None:
    """Give a tensor the values of another: not a change that autograd counts, as an earlier graph may still wait."""
    alike = _is_dense(tensor) and _is_dense(value) and tensor.shape == value.shape
    if alike and tensor.dtype == value.dtype and tensor.device == value.device:
        tensor.data.copy_(value)
    elif tensor.layout == value.layout and tensor.layout in _COMPRESSED:  # which an assignment to data leaves alone
        tensor.data.resize_as_sparse_(value).copy_(value)
    else:
        tensor.data = value.clone()


def _same(one: object, other: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN is the same as NaN."""
    kinds = ("dtype", "layout", "device", "is_nested", "is_quantized")
    if not isinstance(one, Tensor) or any(getattr(one, kind) != getattr(other, kind) for kind in kinds):
        return False
    if one.is_nested:
        pieces, others = one.unbind(), other.unbind()
        return len(pieces) == len(others) and all(map(_same, pieces, others))
    if one.shape != other.shape:
        return False
    return _same_numbers(one, other) if _is_dense(one) else _same_entries(one, other)


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one is other or torch.equal(one, other):
        return True
    return one.is_floating_point() and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def _same_entries(one: Tensor, other: Tensor) -> bool:
    """`_same` for sparse and quantised tensors of one shape."""
    if one.layout != torch.sparse_coo:
        return digest(*describe_value(one)) == digest(*describe_value(other))
    one, other = one.detach().coalesce(), other.coalesce()
    return _same(one.indices(), other.indices()) and _same(one.values(), other.values())
