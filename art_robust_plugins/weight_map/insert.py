"""`insert_weight_maps`: weight maps after chosen blocks of an existing network.

A map becomes a child named ``weight_map`` of the module that it follows, and a forward hook of that module, a plain
function, sends the module's output through it. The network's classes, its code and the names in its state dict stay
what they are; copies, pickles, traces and exports of the network hold the map.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Tuple  # noqa: UP035 (TorchScript reads the annotation of the hook)

import torch
from torch import Tensor, nn

from ..bridge import copy_deeply
from ..checks import check_flag, check_type
from ..choices import Kernel
from ..keywords import explain_keywords
from .layer import PaddingMode, WeightMap2d, check_settings
from .trace import ModuleTrace, Place, is_sequential, make_sample, run_once

logger = logging.getLogger(__name__)

NAME = "weight_map"
"""The name of the map in the module that it follows."""


def through_weight_map(
    module: Any,
    input: Tuple[Tensor],  # noqa: UP006
    output: Tensor,
) -> Tensor:
    """The forward hook; a function at module level, so that it can be copied, pickled and scripted with the network."""
    mapped: Tensor = module.weight_map(output)
    return mapped


def keep_weight_maps(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The hook of ``load_state_dict``: a state dict without any maps leaves the network's maps as they are."""
    own: dict[str, Tensor] = {}
    for name, layer in weight_maps(module).items():
        own |= layer.state_dict(prefix=f"{prefix}{name}.{NAME}." if name else f"{prefix}{NAME}.")
    if not own.keys() & state_dict.keys():
        state_dict.update(own)


@explain_keywords
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

    By default a map follows each stage's first block. Blocks are residual blocks and similar modules (the
    innermost modules of several convolutions with images in and out), or, where there are none, its convolutions,
    each with the normalisation and activation modules that come straight after it. A stage is a run of blocks with
    outputs of one height and width; stages smaller than ``kernel_size`` get no map, whatever the kernel. Say ``where``
    for networks with other blocks: DenseNets get theirs after the first dense layer of each stage, ConvNeXts after the
    stem and the convolutions that make images smaller.

    State dicts: no name changes, and each map adds ``<module>.weight_map.map`` (and ``.bias``). Weights that were
    saved before the insertion load afterwards too, into the whole network, and leave the maps as they are; one that
    holds only some of the maps is an error, as in torch. Make the optimizer afterwards, or it will not train the maps.

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
        padding_mode: of the kernel, at the border of the image.
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
    check_flag("inplace", inplace)
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: got TorchScript, expected a plain module; script it after the insertion.")
    network = model if inplace else copy_deeply("model: it", model, "one that copy.deepcopy copies, or inplace=True")
    sample = make_sample(network, input_shape)
    trace = ModuleTrace(network, sample)
    places = trace.find_stages(kernel_size) if where is None else trace.choose(list_places(where))
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


@explain_keywords
def weight_maps(model: nn.Module) -> dict[str, WeightMap2d]:
    """The maps that were inserted into a network, by the qualified name of the module that each one follows.

    Example:
        >>> weight_maps(nn.Sequential(nn.ReLU()))
        {}

    Raises:
        TypeError: for anything but a module.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
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
    if is_sequential(module) or isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise ValueError(f"where: {name!r} is a {type(module).__name__} of modules, expected one of these modules.")
    module.add_module(NAME, layer)
    layer.train(module.training)
    module.register_forward_hook(through_weight_map)


def _let_older_weights_load(network: nn.Module) -> None:
    hooks = network._load_state_dict_pre_hooks.values()
    if weight_maps(network) and not any(getattr(hook, "hook", None) is keep_weight_maps for hook in hooks):
        network.register_load_state_dict_pre_hook(keep_weight_maps)  # type: ignore[no-untyped-call]


def _detach(module: nn.Module) -> None:
    delattr(module, NAME)
    for key, hook in list(module._forward_hooks.items()):
        if hook is through_weight_map:
            del module._forward_hooks[key]


def _check(network: nn.Module, sample: Tensor, inserted: Sequence[str]) -> None:
    """Refuse maps that do not act exactly once: a module may be bypassed, or call all of its children itself."""
    counts = dict.fromkeys(inserted, 0)

    def counting(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    layers = [network.get_submodule(f"{name}.{NAME}" if name else NAME) for name in inserted]
    handles = [layer.register_forward_hook(counting(name)) for name, layer in zip(inserted, layers, strict=True)]
    try:
        run_once(network, sample, "where: with the weight maps the network")
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


def list_places(where: Place | Iterable[Place]) -> list[Place]:
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
