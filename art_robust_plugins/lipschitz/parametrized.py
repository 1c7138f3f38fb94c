"""Weights with a parametrization (`torch.nn.utils.parametrize`), computed once for a forward pass and its bound.

The graph of a network holds the operations that make such a weight from its free parameter. In a training step the
forward pass has computed the weight already: within ``parametrize.cached()`` the module returns it again at no cost.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize

from ..bridge import copy_network, preserve
from .execution import compute_constants
from .tracing import NetworkTrace

ParametrizedWeights = Mapping[Node, tuple[str, str]]
"""Map the nodes where parametrized weights are ready to the module's path and the weight's name."""


def find_parametrized_weights(trace: NetworkTrace, network: nn.Module) -> dict[Node, tuple[str, str]]:
    """The nodes of a graph that hold what ``getattr(module, name)`` gives for a parametrized weight.

    Only weights whose nodes have exactly this value, bit for bit, in evaluation mode; the graph computes the others.
    """
    dependent = set(trace.dependent_nodes())
    found: dict[Node, tuple[str, str]] = {}
    for path, module in network.named_modules():
        for name in module.parametrizations if parametrize.is_parametrized(module) else ():
            scope = f"{path}.parametrizations.{name}".lstrip(".")
            inside = [node for node in trace.nodes if scope in _module_paths(node)]
            ready = [node for node in inside if any(scope not in _module_paths(user) for user in node.users)]
            if ready and not dependent.intersection(ready) and _hold_weight(trace, network, ready, path, name):
                found.update(dict.fromkeys(ready, (path, str(name))))
    return found


def _module_paths(node: Node) -> list[str]:
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [str(path).split("@")[0] for path, _ in stack]


@torch.no_grad()
def _hold_weight(trace: NetworkTrace, network: nn.Module, nodes: list[Node], path: str, name: str) -> bool:
    with preserve(network):
        network.eval()
        weight = getattr(network.get_submodule(path), name)
        values = compute_constants(trace, network, nodes)
    return all(isinstance(value, Tensor) and torch.equal(value, weight) for value in values)


def select_needed(trace: NetworkTrace, known: Container[Node]) -> set[Node]:
    """The nodes that the logits need where the values of some nodes are known."""
    needed = {trace.output}
    for node in reversed(trace.nodes):
        if node in needed and node not in known:
            needed.update(node.all_input_nodes)
    return needed


def is_parametrized(network: nn.Module) -> bool:
    """Whether some weight of a network has a parametrization."""
    return any(parametrize.is_parametrized(module) for module in network.modules())


@torch.no_grad()
def fix_weights(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights with a parametrization are the numbers that it gives now."""
    twin = copy_network(network).eval()
    for module in list(twin.modules()):
        if not parametrize.is_parametrized(module):
            continue
        parametrizations: Any = module.parametrizations
        weights = {name: getattr(module, name).detach().clone() for name in parametrizations}
        # torch's own removal takes the weights from the class, which the copy shares with the original.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, weight in weights.items():
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return twin
