"""What a network holds, kept so that it can be put back: weights, buffers, submodules, extra state."""

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
    the weights do.

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
        """Put everything back; the names of the parameters, buffers and extra states that had changed."""
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
    """What one module holds itself, without its submodules' own."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        registered = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        loose = {} if _is_scripted(module) else {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
        # Lazy modules have no values yet; their first pass makes them, which is no change.
        self.values = {
            key: (tensor, tensor.detach().clone())
            for key, tensor in {**registered, **loose}.items()
            if not is_lazy(tensor)
        }
        self.registered = set(registered)
        self.children = dict(module.named_children())
        self.extra = self._extra_state()

    def _extra_state(self) -> Any:
        """A copy of the module's extra state; None where it has none, or cannot be given it back."""
        methods = ("get_extra_state", "set_extra_state")
        if _is_scripted(self.module) or any(
            getattr(type(self.module), method) is getattr(nn.Module, method) for method in methods
        ):
            return None
        return copy.deepcopy(self.module.get_extra_state())

    def restore(self) -> Iterator[str]:
        for key, (tensor, value) in self.values.items():
            now = getattr(self.module, key, None)
            changed = not (isinstance(now, Tensor) and _same(now, value))
            # TorchScript hands out another object for a tensor each time.
            replaced = now is not tensor and not _is_scripted(self.module)
            if replaced:
                setattr(self.module, key, tensor)
            if (changed or replaced) and not _same(tensor, value):
                if tensor.shape == value.shape and tensor.dtype == value.dtype and tensor.device == value.device:
                    # Not a change that autograd counts: a graph of an earlier pass may still wait for its backward.
                    tensor.data.copy_(value)
                else:
                    tensor.data = value.clone()
            if changed and key in self.registered:
                yield f"{self.name}.{key}".lstrip(".")
        if not _is_scripted(self.module):
            for key, child in self.children.items():
                if getattr(self.module, key, None) is not child:
                    setattr(self.module, key, child)
        if self.extra is not None and digest(*describe_value(self.extra)) != digest(
            *describe_value(self.module.get_extra_state())
        ):
            self.module.set_extra_state(copy.deepcopy(self.extra))
            yield f"{self.name} (extra state)".strip()


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN is the same as NaN."""
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    if one is other or torch.equal(one, other):
        return True
    return one.is_floating_point() and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
