"""An optimizer of ``torch.optim`` as its class, parameter names and settings, without its momentum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def _named_parameters(network: nn.Module, others: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of a network, and those of other modules under their prefixes."""
    named = dict(network.named_parameters())
    for prefix, module in others.items():
        named |= dict(module.named_parameters(prefix=prefix.removesuffix(".")))
    return named


def describe_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, others: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """An optimizer as JSON data: its class, and its groups with the names of their parameters.

    Args:
        optimizer: one of ``torch.optim``.
        network: whose parameters it trains.
        others: further modules whose parameters it may train, by the prefix of their names.

    Raises:
        ValueError: another optimizer, or parameters of another network.
    """
    name = type(optimizer).__name__
    if type(optimizer) is not getattr(torch.optim, name, None):
        raise ValueError(f"classifier: got the optimizer {name}, expected one of torch.optim or None.")
    names = {id(parameter): key for key, parameter in _named_parameters(network, others).items()}
    groups = []
    for group in optimizer.param_groups:
        if any(id(parameter) not in names for parameter in group["params"]):
            raise ValueError("classifier: got an optimizer with parameters of another network, expected this one's.")
        settings = {key: _write_setting(value) for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({"parameters": [names[id(parameter)] for parameter in group["params"]], "settings": settings})
    return {"class": name, "groups": groups}


def _write_setting(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_write_setting(entry) for entry in value]
    return value.item() if isinstance(value, Tensor) else value


def make_optimizer(
    described: Mapping[str, Any], network: nn.Module, others: Mapping[str, nn.Module], path: Path
) -> torch.optim.Optimizer:
    """Make an optimizer again that `describe_optimizer` described.

    Args:
        described: what `describe_optimizer` returned.
        network: as for `describe_optimizer`.
        others: as for `describe_optimizer`.
        path: the file of the description, for the sentence of an error.

    Raises:
        ValueError: a parameter that the network does not have, or one twice.
    """
    cls = getattr(torch.optim, described["class"])
    parameters = _named_parameters(network, others)
    named = [name for group in described["groups"] for name in group["parameters"]]
    learned = set(named)
    unknown = next((name for name in named if name not in parameters), None)
    if unknown is not None or len(learned) < len(named):
        found = "a parameter twice" if unknown is None else f"the parameter {unknown!r}"
        raise ValueError(f"{path}: optimizer.groups: got {found}, expected parameters of the network, each once.")
    for name in learned - set(dict(network.named_parameters())):
        parameters[name].requires_grad_()  # a map of the input learns where an optimizer has it, and only there
    groups = [
        {
            **{key: tuple(value) if isinstance(value, list) else value for key, value in group["settings"].items()},
            "params": [parameters[name] for name in group["parameters"]],
        }
        for group in described["groups"]
    ]
    optimizer: torch.optim.Optimizer = cls(groups)
    return optimizer
