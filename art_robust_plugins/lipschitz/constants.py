"""Decisions of a network's forward that depend on its constants, such as a mask's places or a buffer's number.

`torch.export` traces with tensors that have shapes but no values, so it cannot know the shape of ``x[:, mask]`` or the
value of ``float(scale)``. Therefore a forward pass with values is run first, and everything that it reads from tensors
that do not depend on the input is recorded (`watch`); the trace then gets the recorded values in turn (`replay`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NUMBERS: frozenset[Any] = frozenset(
    (
        Tensor.item,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
    )
)
_LISTS: frozenset[Any] = frozenset((Tensor.tolist,))  # tensors without values make one of their numbers, one by one
_ARRAYS: frozenset[Any] = frozenset((Tensor.numpy, Tensor.__array__))
_PLACES: frozenset[Any] = frozenset((torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere))
_INDEXED: frozenset[Any] = frozenset((Tensor.__getitem__, Tensor.__setitem__))
_SELECTED: frozenset[Any] = frozenset((torch.masked_select, Tensor.masked_select))
_TELLING = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))
_BY_INDEX: frozenset[Any] = frozenset((torch.ops.aten.index.Tensor, torch.ops.aten.masked_select.default))
_KINDS = {
    "number": _NUMBERS | _LISTS,
    "array": _ARRAYS,
    "places": _PLACES | {torch.where},
    "index": _INDEXED,
    "selection": _SELECTED,
}


class Decisions:
    """The values that one forward pass read from its constants, in order, and the parameters and buffers of these.

    Attributes:
        answers: for each reading, its kind and its value; None if the value depended on the network's input or on
            random numbers, and after any such reading, since Python code may have used the value.
        sources: copies of the parameters and buffers that were read, by name.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[str, Any]] = []
        self.sources: dict[str, Tensor] = {}

    def hold(self, network: nn.Module) -> bool:
        """Whether all values that were read are unchanged."""
        live = _named_tensors(network)
        return all(
            name in live and torch.equal(live[name].detach(), value.to(live[name]))
            for name, value in self.sources.items()
        )


def watch(network: nn.Module, sample: Tensor) -> Decisions:
    """Run the network on one sample [1, *input_shape], and record what it reads from its constants."""
    decisions = Decisions()
    before = {name: tensor.detach().clone() for name, tensor in network.named_buffers()}
    origins = _Origins(network, sample)
    with origins, _in_forward(network, lambda: _Watching(decisions, origins)):
        network(sample)
    live = _named_tensors(network)
    for name, tensor in before.items():  # a forward that changes buffers is refused later, by what is traced
        live[name].copy_(tensor)
    decisions.sources = {name: live[name].detach().clone() for name in sorted(origins.read)}
    return decisions


@contextmanager
def replay(network: nn.Module, decisions: Decisions) -> Iterator[None]:
    """A context in which each forward pass of the network gets the values recorded in the first one."""
    with _in_forward(network, lambda: _Replaying(decisions)):
        yield


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The parameters, buffers and inputs that each tensor depends on, followed through operations by its storage."""

    def __init__(self, network: nn.Module, sample: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[str] = set()
        self.knows_input = False  # whether Python code does: a number, or a shape that depends on values
        self._of: dict[int, frozenset[str | None]] = {}  # None: the network's input, or random numbers
        self._alive: list[Tensor] = []  # a storage that is freed would give its address to another one
        for name, tensor in _named_tensors(network).items():
            self._set(tensor, frozenset((name,)))
        self._set(sample, frozenset((None,)))

    def of(self, arguments: Any) -> frozenset[str | None]:
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        return frozenset().union(*(self._of.get(_address(tensor), frozenset()) for tensor in tensors))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        found = self.of((args, kwargs))
        if torch.Tag.nondeterministic_seeded in func.tags:
            found |= {None}
        if not _TELLING.isdisjoint(func.tags) and None in self.of(args[1:] if func in _BY_INDEX else args):
            self.knows_input = True
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        for tensor in tree_leaves((result, written)):
            if isinstance(tensor, Tensor):
                self._set(tensor, found | self._of.get(_address(tensor), frozenset()))
        return result

    def _set(self, tensor: Tensor, origins: frozenset[str | None]) -> None:
        self._of[_address(tensor)] = origins
        self._alive.append(tensor)


class _Watching(TorchFunctionMode):
    def __init__(self, decisions: Decisions, origins: _Origins) -> None:
        super().__init__()
        self._decisions, self._origins = decisions, origins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = _what_is_read(func, args, kwargs)
        if read is not None:
            origins = self._origins.of(read)
            self._origins.knows_input |= None in origins
            known = not self._origins.knows_input
            if known:
                self._origins.read.update(name for name in origins if name is not None)
            answers = np.array(result).ravel().tolist() if func in _LISTS else [_answer(func, args, kwargs, result)]
            self._decisions.answers.extend((_kind(func), answer if known else None) for answer in answers)
        return result


class _Replaying(TorchFunctionMode):
    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self._answers = iter(decisions.answers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _what_is_read(func, args, kwargs) is None:
            return func(*args, **kwargs)
        shape = tuple(args[0].shape) if func in _LISTS else (1,)
        found: list[tuple[str, Any]] = [next(self._answers, ("", None)) for _ in range(math.prod(shape))]
        if any(kind != _kind(func) for kind, _ in found):
            raise RuntimeError("the forward reads other constants when it is traced than when it runs")
        answers = [answer for _, answer in found]
        if any(answer is None for answer in answers):  # it depends on the input: torch.export says so
            return func(*args, **kwargs)
        if func in _LISTS:
            return np.array(answers, dtype=object).reshape(shape).tolist()
        answer: Any = answers[0]
        if func in _INDEXED:
            x, index, *values = args
            return func(x, _with_places(index, answer), *values)
        if func in _SELECTED:
            places, whole = answer
            return args[0].expand(whole)[places]
        return answer


def _what_is_read(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The tensors whose values (not shapes) the function returns to Python or turns into a shape; None for none."""
    if func in _NUMBERS | _LISTS | _ARRAYS | _PLACES:
        return args[0]
    if func is torch.where and len(args) + len(kwargs) == 1:
        return [*args, *kwargs.values()]
    if func in _INDEXED:
        masks = [part for part in _parts(args[1]) if _is_mask(part)]
        return masks or None
    if func in _SELECTED:
        return args[1] if len(args) > 1 else kwargs["mask"]
    return None


def _kind(func: Any) -> str:
    return next(kind for kind, functions in _KINDS.items() if func in functions)


def _answer(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Any:
    if func in _INDEXED:
        return [_places(part) for part in _parts(args[1]) if _is_mask(part)]
    if func in _SELECTED:
        mask = args[1] if len(args) > 1 else kwargs["mask"]
        shape = torch.broadcast_shapes(args[0].shape, mask.shape)  # type: ignore[no-untyped-call]
        return mask.expand(shape).nonzero(as_tuple=True), shape
    return result.copy() if isinstance(result, np.ndarray) else result


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_mask(part: Any) -> bool:
    if isinstance(part, np.ndarray):
        part = torch.as_tensor(part)
    return isinstance(part, Tensor) and part.dim() > 0 and part.dtype in (torch.bool, torch.uint8)


def _places(mask: Tensor | np.ndarray[Any, Any]) -> tuple[Tensor, ...]:
    return torch.as_tensor(mask).nonzero(as_tuple=True)


def _with_places(index: Any, answers: list[tuple[Tensor, ...]]) -> tuple[Any, ...]:
    """The index with each mask replaced by the places that it selects, one tensor for each of the mask's axes."""
    found = iter(answers)
    parts: list[Any] = []
    for part in _parts(index):
        parts.extend(next(found) if _is_mask(part) else [part])
    return tuple(parts)


@contextmanager
def _in_forward(network: nn.Module, make: Callable[[], TorchFunctionMode]) -> Iterator[None]:
    """A mode of its own around each call of the network, inside all other modes."""
    modes: list[TorchFunctionMode] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        modes.append(make())
        modes[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    handles = [
        network.register_forward_pre_hook(enter, prepend=True),
        network.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        # torch.export leaves out the second hook after a forward that fails. An end takes the latest mode off torch's
        # stack, whichever it is: torch's own has taken ours, and ours takes the one that is left.
        while modes:
            modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _named_tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
