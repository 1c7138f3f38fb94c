"""A trace of a network's modules in one forward pass, and the ends of its convolutional blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import conv, dropout, flatten, fold, linear, padding, pixelshuffle, pooling, upsampling
from torch.utils._pytree import tree_leaves

from ..bridge import device_of, preserve
from ..checks import check_sizes, describe_error, suggest
from .layer import WeightMap2d

Place = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""Selects modules: a qualified name with wildcards ``*`` and ``?``, a type, or a function of name and module."""

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_KINDS = (conv, dropout, flatten, fold, linear, padding, pixelshuffle, pooling, upsampling)
_NO_PART_OF_A_BLOCK = {module.__name__ for module in _KINDS}
"""The modules of torch with layers that are neither normalisation nor activation."""


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module: arguments, output, when it began and ended, and whether no other (but a map) ran in it."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    output: Any
    began: int
    ended: int
    leaf: bool

    def holds(self, other: ModuleCall) -> bool:
        return self.began < other.began and other.ended < self.ended


class ModuleTrace:
    """The calls of a network's modules in one forward pass of two samples.

    ``once``: the modules that ran once and gave one image for each sample, by name, in the order in which they ended.
    """

    def __init__(self, network: nn.Module, sample: Tensor) -> None:
        self.network = network
        self.calls: list[ModuleCall] = []
        self._record(sample)
        runs: dict[nn.Module, int] = {}
        for call in self.calls:
            runs[call.module] = runs.get(call.module, 0) + 1
        self.runs = {call.name: runs[call.module] for call in self.calls}
        images = [call for call in self.calls if _is_image(call.output) and len(call.output) == len(sample)]
        self.once = {call.name: call for call in images if self.runs[call.name] == 1}
        # Convolutions with one output pixel weigh channels, as in squeeze and excitation.
        convolutions = [call for call in images if isinstance(call.module, _CONVOLUTIONS)]
        self._convolutions = [call for call in convolutions if call.output.shape[2:].numel() > 1]
        self._leaves = sorted((call for call in self.calls if call.leaf), key=lambda call: call.began)

    def find_stages(self, smallest: int) -> list[str]:
        """The last module of each stage's first block; see `insert_weight_maps`."""
        blocks = self._several_convolutions() or [
            end for end in map(self._end_of_block, self._convolutions) if end.name in self.once
        ]
        blocks.sort(key=lambda call: call.ended)
        places: list[str] = []
        size: Any = None
        for block in blocks:
            before, size = size, block.output.shape[2:]
            if size != before and min(size) >= smallest:
                places.append(self._last(block).name)
        if not places:
            raise ValueError(
                f"model: got a {type(self.network).__name__} in which no convolutional block of at least "
                f"{smallest}x{smallest} pixels runs once, expected one, or where to say what gets a map."
            )
        return list(dict.fromkeys(places))

    def choose(self, where: Sequence[Place]) -> list[str]:
        """The modules that any of the places describes."""
        found: set[str] = set()
        for place in where:
            fitting = [name for name, module in self.network.named_modules() if _fits(name, module, place)]
            usable = [name for name in fitting if name in self.once]
            # A pattern or type may fit other modules as well; if there is nothing else, or by name, it is a mistake.
            if not usable or (isinstance(place, str) and place in fitting and place not in usable):
                raise ValueError(self._refusal(place, fitting))
            found.update(self._last(self.once[name]).name for name in usable)
        return [name for name in self.once if name in found]

    def _refusal(self, place: Place, fitting: list[str]) -> str:
        written = repr(place) if isinstance(place, str) else getattr(place, "__name__", repr(place))
        expected = f"expected a module that gives images once in a forward pass, such as {list(self.once)[-1:]}."
        if not fitting:
            hint = suggest(place, self.once, f", {expected}")
            return f"where: got {written}, which no module of the network fits{hint}"
        name = place if isinstance(place, str) and place in fitting else fitting[0]
        runs = self.runs.get(name, 0)
        if isinstance(self.network.get_submodule(name), torch.jit.ScriptModule):
            came = "is TorchScript"
        elif runs != 1:
            came = f"runs {runs} times in a forward pass" if runs else "does not run in a forward pass"
        else:
            output = next(call.output for call in self.calls if call.name == name)
            came = f"gives {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
        return f"where: got {written}, but the module {name!r} {came}, {expected}"

    def _several_convolutions(self) -> list[ModuleCall]:
        """Modules such as residual blocks: several convolutions, all with images of its input's or output's size."""
        found = []
        for call in self.once.values():
            inner = [other for other in self._convolutions if call.holds(other)]
            if call.module is self.network or isinstance(call.module, _CONTAINERS) or len(inner) < 2:
                continue
            inputs = [value.shape[2:] for value in tree_leaves(call.arguments) if _is_image(value)]
            if inputs and all(other.output.shape[2:] in (*inputs, call.output.shape[2:]) for other in inner):
                found.append(call)
        return [call for call in found if not any(call.holds(other) for other in found)]

    def _end_of_block(self, start: ModuleCall) -> ModuleCall:
        """The last module of the block that a convolution begins."""
        end = start
        for leaf in self._leaves:
            if leaf.began < end.ended:
                continue
            follows = bool(leaf.arguments) and leaf.arguments[0] is end.output
            same = follows and leaf.name in self.once and leaf.output.shape == end.output.shape
            if not same or type(leaf.module).__module__ in _NO_PART_OF_A_BLOCK:
                break
            end = leaf
        # A module around it that only adds functions, such as an activation.
        for call in self.once.values():
            around = call.holds(end) and call.module is not self.network
            if around and not isinstance(call.module, _CONTAINERS) and call.output.shape == end.output.shape:
                inner = [other for other in self._convolutions if call.holds(other)]
                end = call if inner == [start] else end
        return end

    def _last(self, call: ModuleCall) -> ModuleCall:
        """The last module of a Sequential, since a map inside would shift the indices of its modules."""
        while is_sequential(call.module):
            inner = [other for other in self.once.values() if call.holds(other) and other.output is call.output]
            direct = [other for other in inner if other.name.rpartition(".")[0] == call.name]
            if not direct:
                raise ValueError(
                    f"where: the Sequential {call.name!r} ends with a module that does not run exactly once, expected "
                    f"one that does."
                )
            call = direct[-1]
        return call

    def _record(self, sample: Tensor) -> None:
        network = self.network
        names = {
            module: name for name, module in network.named_modules() if not isinstance(module, torch.jit.ScriptModule)
        }
        began: list[tuple[int, int]] = []  # when, and how many calls had ended by then
        clock = itertools.count()

        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            began.append((next(clock), len(self.calls)))

        def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            start, before = began.pop()
            leaf = all(isinstance(call.module, WeightMap2d) for call in self.calls[before:])
            self.calls.append(ModuleCall(names[module], module, arguments, output, start, next(clock), leaf))

        handles = [module.register_forward_pre_hook(enter) for module in names]
        handles += [module.register_forward_hook(leave) for module in names]
        try:
            run_once(network, sample, "model: it")
        finally:
            for handle in handles:
                handle.remove()


def run_once(network: nn.Module, sample: Tensor, subject: str) -> None:
    """A forward pass in evaluation mode that leaves no trace."""
    devices = [sample.device] if sample.device.type == "cuda" else []
    with preserve(network), torch.no_grad(), torch.random.fork_rng(devices=devices):
        network.eval()
        try:
            network(sample.clone())
        except Exception as error:  # whatever the network raises
            raise ValueError(
                f"{subject} fails on two samples of input_shape {tuple(sample.shape[1:])} ({describe_error(error)}), "
                f"expected a network for such inputs."
            ) from error


def make_sample(network: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Two random inputs of this shape, the same ones every time, of the network's device and type."""
    sizes = check_sizes("input_shape", input_shape)
    like = next(
        (t for t in itertools.chain(network.parameters(), network.buffers()) if t.is_floating_point()), torch.empty(())
    )
    sample = torch.rand(2, *sizes, generator=torch.Generator().manual_seed(0))
    return sample.to(device_of(network), like.dtype)


def _fits(name: str, module: nn.Module, place: Place) -> bool:
    if isinstance(place, str):
        return fnmatchcase(name, place)
    if isinstance(place, type):
        return isinstance(module, place)
    try:
        return bool(place(name, module))
    except Exception as error:  # whatever the function raises
        raise ValueError(
            f"where: got {place!r}, which fails for the module {name!r} ({describe_error(error)}), expected a "
            f"function of a name and a module that gives True or False."
        ) from error


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()


def is_sequential(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Sequential`` whose ``forward`` is torch's own."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
