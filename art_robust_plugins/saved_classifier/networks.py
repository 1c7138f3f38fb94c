"""The network of a saved classifier, which `create_model` or the caller makes again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bridge.saved_formats import PARTS
from ..checks import quote_error
from ..models import MODELS, create_model
from .layout import DEFENCE_WEIGHTS, WEIGHTS_FILE


def describe_network(network: nn.Module, model: Mapping[str, Any] | None) -> dict[str, Any]:
    """The class of the network, its inserted parts, and its recipe if `create_model` can make it."""
    # Only a network of models: another's attribute of that name means something else.
    own: Any = network.recipe if type(network) in MODELS.values() else None
    recipe = own if model is None else model
    parts = {key: found for key, part in PARTS.items() if (found := part.describe(network))}
    entry: dict[str, Any] = {"class": type(network).__name__, "recipe": None}
    if recipe is not None:
        twin = _make_twin(recipe)
        try:
            attach_parts(twin, parts)
            difference = find_difference(network.state_dict(), twin.state_dict())
        except ValueError as error:  # it has no such modules
            difference = str(error)
        if type(twin) is type(network) and difference is None:
            entry["recipe"] = dict(recipe)
        elif model is not None:
            raise ValueError(f"model: {difference or f'makes a {type(twin).__name__}, not the given network'}.")
        # A network that was changed after it was made is the caller's own, and must be given at loading.
    return {**entry, **parts}


def _make_twin(recipe: Mapping[str, Any]) -> nn.Module:
    """The network of a recipe, without its weights."""
    for name in ("name", "input_shape", "nb_classes"):
        if name not in recipe:
            raise ValueError(f"model: got no {name!r}, expected the arguments of create_model.")
    if not all(isinstance(key, str) for key in recipe):
        raise ValueError(f"model: got the names {list(recipe)}, expected the arguments of create_model.")
    with torch.device("meta"):
        return create_model(**recipe)


def make_network(
    described: Mapping[str, Any], given: nn.Module | None, weights: Mapping[str, Tensor], path: Path
) -> nn.Module:
    """The caller's network, or a new one, with its inserted parts but without the saved weights."""
    name, recipe = described["class"], described["recipe"]
    parts = {key: described[key] for key in PARTS if described.get(key)}
    network = given
    if network is None:
        if recipe is None:
            raise ValueError(f"model: got none, expected a network of the class {name} as saved in {path}.")
        _check_recipe(recipe, parts, weights, path)
        with torch.random.fork_rng(devices=[]):
            network = create_model(**recipe)
    for key, part in PARTS.items():
        there, expected = part.describe(network), parts.get(key, [])
        if not there:
            part.attach(network, expected)
        elif there != expected:
            raise ValueError(f"model: got the {part.title} {there}, expected {expected or 'none'} as saved in {path}.")
    return network


def attach_parts(network: nn.Module, parts: Mapping[str, list[Any]]) -> None:
    """Insert the saved network's parts into a new one, in place."""
    for key, described in parts.items():
        PARTS[key].attach(network, described)


def _check_recipe(
    recipe: Mapping[str, Any], parts: Mapping[str, list[Any]], weights: Mapping[str, Tensor], path: Path
) -> None:
    """Refuse a recipe of another network than the one whose weights are there, before it takes memory or time."""
    depth = recipe.get("depth", 0)
    if depth > len(weights):  # each layer has a weight
        raise ValueError(f"{path}: model.recipe.depth: got {depth}, but there are {len(weights)} weights.")
    try:
        with torch.device("meta"):
            twin = create_model(**recipe)
            attach_parts(twin, parts)
    except Exception as error:  # whatever torch raises of arguments that no network has
        reason = quote_error(error)
        raise ValueError(
            f"{path}: model.recipe: got arguments that make no network ({reason}), expected others."
        ) from error
    expected = twin.state_dict()
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(DEFENCE_WEIGHTS)}
    difference = find_difference(own, expected)
    if difference is not None:
        raise ValueError(f"{path.with_name(WEIGHTS_FILE)}: {difference}.")


def find_difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first difference between ``weights`` and the state of a network, as part of a sentence."""
    for name, own in expected.items():
        if name not in weights:
            return f"got no weights {name!r}, which the network has"
        tensor = weights[name]
        if tensor.shape != own.shape:
            return f"got {name!r} of shape {tuple(tensor.shape)}, expected {tuple(own.shape)} as in the network"
        if tensor.dtype != own.dtype:
            return f"got {name!r} of type {tensor.dtype}, expected {own.dtype} as in the network"
    for name in weights:
        if name not in expected:
            return f"got the weights {name!r}, which the network does not have"
    return None
