"""`insert_weight_maps`: weight maps after chosen blocks of a network that is there already.

A map becomes a child named ``weight_map`` of the module that it follows, and a forward hook of that module, a plain
function, sends the module's output through it. The network's classes, its code and the names in its state dict stay
what they are; copies, pickles, traces and exports of the network hold the map.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Tuple  # noqa: UP035 (TorchScript reads the annotation of the hook)

import torch
from torch import Tensor, nn
from torch.nn.modules import conv, dropout, flatten, fold, linear, padding, pixelshuffle, pooling, upsampling
from torch.utils._pytree import tree_leaves

from ..bridge import device_of, preserved
from .layer import Kernel, PaddingMode, WeightMap2d, check_settings, checked_sizes

logger = logging.getLogger(__name__)

NAME = "weight_map"
"""The name of the map in the module that it follows."""

Place = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""Modules: a qualified name, in which ``*`` and ``?`` stand for anything, a type, or a function of name and module."""

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_KINDS = (conv, dropout, flatten, fold, linear, padding, pixelshuffle, pooling, upsampling)
_NO_PART_OF_A_BLOCK = {module.__name__ for module in _KINDS}
"""Where torch keeps the layers that are neither normalisation nor activation."""


def through_weight_map(
    module: Any,
    input: Tuple[Tensor],  # noqa: UP006
    output: Tensor,
) -> Tensor:
    """The hook. At a module's level, so that it can be copied, pickled and scripted with the network."""
    mapped: Tensor = module.weight_map(output)
    return mapped


def keep_weight_maps(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The hook of loading: a state dict without any of the network's maps leaves all of them as they are."""
    own: dict[str, Tensor] = {}
    for name, layer in weight_maps(module).items():
        own |= layer.state_dict(prefix=f"{prefix}{name}.{NAME}." if name else f"{prefix}{NAME}.")
    if not own.keys() & state_dict.keys():
        state_dict.update(own)


def insert_weight_maps(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    where: Place | Iterable[Place] | None = None,
    kernel: Kernel = "smoothing",
    kernel_size: int = 3,
    alpha: float = 1.0,
    bias: bool = False,
    padding_mode: PaddingMode = "zeros",
    inplace: bool = False,
) -> nn.Module:
    """Put a `WeightMap2d` after chosen blocks of a network; see there for the paper and what is ours.

    One forward pass in evaluation mode finds the sizes, another one checks the result; modes, gradients and random
    states stay as they are. `weight_maps` lists what was inserted, and so does the log.

    By default a map follows each stage's first block. Blocks are the network's residual ones and their like (the
    innermost modules of several convolutions with images in and out), or, where there are none, its convolutions,
    each with the normalisation and activation modules that come straight after it. A stage is a run of blocks with
    outputs of one height and width; stages smaller than ``kernel_size`` get no map, whatever the kernel. Say ``where``
    for networks with other blocks: DenseNets get theirs after the first dense layer of each stage, ConvNeXts after the
    stem and the convolutions that make images smaller.

    State dicts: no name changes, and each map adds ``<module>.weight_map.map`` (and ``.bias``). Weights that were
    saved before the insertion load afterwards too, into the whole network, and leave the maps as they are; one that
    holds some of the maps only is an error, as torch has it. Make the optimizer afterwards, or it will not know the
    maps.

    Args:
        model: any network of modules whose samples are images at the places in question.
        input_shape: shape of one sample as the network gets it, such as (C, H, W).
        where: the modules that get a map: a qualified name (``*`` and ``?`` stand for anything), a type of module, a
            function of the name and the module that gives True or False, or several of these. A map after an
            ``nn.Sequential`` is one after its last module. TorchScript inside the network stays as it is.
        kernel: as for `WeightMap2d`, and so are the next four.
        kernel_size: 3 or 5.
        alpha: of the unsharp kernel.
        bias: learn a bias for each place too.
        padding_mode: what the kernel finds outside the image.
        inplace: change ``model`` itself and return it; otherwise a copy.

    Raises:
        TypeError: for a model that is not a module.
        ValueError: for settings that `WeightMap2d` refuses; a network in TorchScript, or one that cannot be copied or
            does not run on such a sample; no block found; a place that fits no module, or a module whose output is no
            image [N, C, H, W], that runs more than once in a forward pass, or has a map.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        >>> augmented = insert_weight_maps(network, (1, 8, 8), kernel="unsharp")
        >>> for name, layer in weight_maps(augmented).items():
        ...     print(name, layer)
        1 WeightMap2d(4, 8, 8, kernel='unsharp', kernel_size=3, alpha=1, bias=False, padding_mode='zeros')
        >>> sorted(set(augmented.state_dict()) - set(network.state_dict()))
        ['1.weight_map.map']
    """
    settings: dict[str, Any] = {
        "kernel": kernel,
        "kernel_size": kernel_size,
        "alpha": alpha,
        "bias": bias,
        "padding_mode": padding_mode,
    }
    check_settings(**settings)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: got TorchScript, expected a plain module; script it after the insertion.")
    network = model if inplace else copied("model", model, "inplace=True")
    sample = _sample(network, input_shape)
    trace = _Trace(network, sample)
    places = trace.stages(kernel_size) if where is None else trace.chosen(listed(where))
    for name in places:
        if isinstance(getattr(network.get_submodule(name), NAME, None), WeightMap2d):
            raise ValueError(f"where: the module {name!r} has a weight map already, expected one without.")
    inserted: list[str] = []
    try:
        for name in places:
            _, channels, height, width = trace.once[name].output.shape
            like = trace.once[name].output
            layer = WeightMap2d(channels, height, width, **settings, device=like.device, dtype=like.dtype)
            attach(network, name, layer)
            inserted.append(name)
        _check(network, sample, inserted)
    except BaseException:
        for name in inserted:
            _detach(network.get_submodule(name))
        raise
    _let_older_weights_load(network)
    for name in inserted:
        logger.info("weight map after %s: %s", name or "the network", getattr(network.get_submodule(name), NAME))
    return network


def weight_maps(model: nn.Module) -> dict[str, WeightMap2d]:
    """The maps that were inserted into a network, by the qualified name of the module that each one follows.

    Example:
        >>> weight_maps(nn.Sequential(nn.ReLU()))
        {}
    """
    found: dict[str, WeightMap2d] = {}
    for name, module in model.named_modules():
        layer = getattr(module, NAME, None)
        if isinstance(layer, WeightMap2d) and through_weight_map in module._forward_hooks.values():
            found[name] = layer
    return found


def describe_weight_maps(model: nn.Module) -> list[dict[str, Any]]:
    """The inserted maps without their weights, as JSON data for `attach_described`."""
    return [
        {"after": name, "size": [layer.channels, layer.height, layer.width], **layer.settings}
        for name, layer in weight_maps(model).items()
    ]


def attach_described(model: nn.Module, described: Sequence[Mapping[str, Any]]) -> None:
    """Insert maps, in place, as `describe_weight_maps` wrote them down.

    Raises:
        ValueError: for a module that the network does not have, or settings that no `WeightMap2d` has.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    for entry in described:
        settings = {key: value for key, value in entry.items() if key not in ("after", "size")}
        layer = WeightMap2d(*entry["size"], **settings, device=like.device, dtype=like.dtype)
        attach(model, entry["after"], layer)
    _let_older_weights_load(model)


def attach(model: nn.Module, name: str, layer: WeightMap2d) -> None:
    """Let ``layer`` follow the module of this name.

    Raises:
        ValueError: there is no such module, or something stands in the way of a map in it.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"where: the network has no module {name!r} for a weight map.") from error
    if hasattr(module, NAME):
        raise ValueError(f"where: {name!r} has an attribute {NAME!r} already, expected a module without.")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"where: {name!r} is a {type(module).__name__}, expected a plain module, not TorchScript.")
    if _is_sequential(module) or isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise ValueError(f"where: {name!r} is a {type(module).__name__} of modules, expected one of these modules.")
    module.add_module(NAME, layer)
    layer.train(module.training)
    module.register_forward_hook(through_weight_map)


def _let_older_weights_load(network: nn.Module) -> None:
    hooks = network._load_state_dict_pre_hooks.values()
    if weight_maps(network) and not any(getattr(hook, "hook", None) is keep_weight_maps for hook in hooks):
        network.register_load_state_dict_pre_hook(keep_weight_maps)  # type: ignore[no-untyped-call]


def copied(name: str, value: Any, otherwise: str) -> Any:
    """A deep copy of what the caller gave; where there is none, the error says what to do ``otherwise``."""
    try:
        return copy.deepcopy(value)
    except Exception as error:  # whatever the network's attributes raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name}: it cannot be copied ({type(error).__name__}: {reason}), expected one that copy.deepcopy copies, "
            f"or {otherwise}."
        ) from error


def _detach(module: nn.Module) -> None:
    delattr(module, NAME)
    for key, hook in list(module._forward_hooks.items()):
        if hook is through_weight_map:
            del module._forward_hooks[key]


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module: arguments, output, when it began and ended, and whether no other (but a map) ran in it."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    output: Any
    began: int
    ended: int
    leaf: bool

    def holds(self, other: _Call) -> bool:
        return self.began < other.began and other.ended < self.ended


class _Trace:
    """What a network's modules did in one forward pass of two samples.

    ``once``: the modules that ran once and gave one image for each sample, by name, in the order in which they ended.
    """

    def __init__(self, network: nn.Module, sample: Tensor) -> None:
        self.network = network
        self.calls: list[_Call] = []
        self._recorded(sample)
        runs: dict[nn.Module, int] = {}
        for call in self.calls:
            runs[call.module] = runs.get(call.module, 0) + 1
        self.runs = {call.name: runs[call.module] for call in self.calls}
        images = [call for call in self.calls if _is_image(call.output) and len(call.output) == len(sample)]
        self.once = {call.name: call for call in images if self.runs[call.name] == 1}
        # Those of one pixel weigh channels, as in squeeze and excitation.
        convolutions = [call for call in images if isinstance(call.module, _CONVOLUTIONS)]
        self._convolutions = [call for call in convolutions if call.output.shape[2:].numel() > 1]
        self._leaves = sorted((call for call in self.calls if call.leaf), key=lambda call: call.began)

    def stages(self, smallest: int) -> list[str]:
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

    def chosen(self, where: Sequence[Place]) -> list[str]:
        """The modules that some place describes."""
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
            near = get_close_matches(place, self.once, n=1, cutoff=0.5) if isinstance(place, str) else []
            hint = f"; did you mean {near[0]!r}?" if near else f", {expected}"
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

    def _several_convolutions(self) -> list[_Call]:
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

    def _end_of_block(self, start: _Call) -> _Call:
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

    def _last(self, call: _Call) -> _Call:
        """The last module of a Sequential, for a map inside would shift the places of its modules."""
        while _is_sequential(call.module):
            inner = [other for other in self.once.values() if call.holds(other) and other.output is call.output]
            direct = [other for other in inner if other.name.rpartition(".")[0] == call.name]
            if not direct:
                raise ValueError(
                    f"where: the Sequential {call.name!r} ends with a module that does not run exactly once, expected "
                    f"one that does."
                )
            call = direct[-1]
        return call

    def _recorded(self, sample: Tensor) -> None:
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
            self.calls.append(_Call(names[module], module, arguments, output, start, next(clock), leaf))

        handles = [module.register_forward_pre_hook(enter) for module in names]
        handles += [module.register_forward_hook(leave) for module in names]
        try:
            _run(network, sample, "model: it")
        finally:
            for handle in handles:
                handle.remove()


def _check(network: nn.Module, sample: Tensor, inserted: Sequence[str]) -> None:
    """Each map must act once: a module may be used in a way of its own, or call all of its children itself."""
    counts = dict.fromkeys(inserted, 0)

    def counting(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    layers = [network.get_submodule(f"{name}.{NAME}" if name else NAME) for name in inserted]
    handles = [layer.register_forward_hook(counting(name)) for name, layer in zip(inserted, layers, strict=True)]
    try:
        _run(network, sample, "where: with the weight maps the network")
    finally:
        for handle in handles:
            handle.remove()
    for name, count in counts.items():
        if count != 1:
            module = type(network.get_submodule(name)).__name__
            raise ValueError(
                f"where: the map after {name!r} ({module}) acts {count} times in a forward pass, expected a module "
                f"that is called once, and does not itself call all modules inside it."
            )


def _run(network: nn.Module, sample: Tensor, subject: str) -> None:
    """A forward pass in evaluation mode that leaves no trace."""
    devices = [sample.device] if sample.device.type == "cuda" else []
    with preserved(network), torch.no_grad(), torch.random.fork_rng(devices=devices):
        network.eval()
        try:
            network(sample.clone())
        except Exception as error:  # whatever the network raises
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{subject} fails on two samples of input_shape {tuple(sample.shape[1:])} ({type(error).__name__}: "
                f"{reason}), expected a network for such inputs."
            ) from error


def _sample(network: nn.Module, input_shape: Sequence[int]) -> Tensor:
    sizes = checked_sizes("input_shape", input_shape)
    like = next(
        (t for t in itertools.chain(network.parameters(), network.buffers()) if t.is_floating_point()), torch.empty(())
    )
    sample = torch.rand(2, *sizes, generator=torch.Generator().manual_seed(0))
    return sample.to(device_of(network), like.dtype)


def listed(where: Place | Iterable[Place]) -> list[Place]:
    """Several places, or one, as a list."""
    several = isinstance(where, Iterable) and not isinstance(where, str | type | nn.Module)
    places: list[Any] = list(where) if several else [where]  # type: ignore[arg-type]
    if not places:
        raise ValueError(
            "where: got nothing, expected names, types or functions, or None for each stage's first block."
        )
    for place in places:
        kind = isinstance(place, type) and issubclass(place, nn.Module)
        function = callable(place) and not isinstance(place, type | nn.Module)
        if not (isinstance(place, str) or kind or function):
            raise ValueError(f"where: got {place!r}, expected a name, a type of module, or a function of both.")
    return places


def _fits(name: str, module: nn.Module, place: Place) -> bool:
    if isinstance(place, str):
        return fnmatchcase(name, place)
    if isinstance(place, type):
        return isinstance(module, place)
    return bool(place(name, module))


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
