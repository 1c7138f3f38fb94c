"""Execution of a traced graph on a batch, each sample by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..bridge import device_of
from ..checks import describe_error
from .tracing import NetworkTrace


@torch.no_grad()
def run_graph(trace: NetworkTrace, network: nn.Module, x: Tensor, nodes: Sequence[Node] = ()) -> tuple[Tensor, Tensor]:
    """Run the graph with the network's current parameters and buffers.

    Args:
        trace: of the network.
        network: with the weights to use.
        x: [N, *input_shape], on the network's device.
        nodes: of the graph.

    Returns:
        the logits [N, C], and the L2 norms [N, len(nodes)] of these nodes' values.
    """
    users = _last_users(trace)

    def run_sample(sample: Tensor) -> tuple[Tensor, Tensor]:
        values: dict[Node, Any] = {}
        norms: dict[Node, Tensor] = {}
        for node in trace.nodes:
            values[node] = _compute(trace, network, node, values, sample)
            if node in nodes:
                norms[node] = _norm(values[node])
            for source in users.get(node, ()):
                if source is not trace.output:
                    del values[source]
        found = [norms[node] for node in nodes]
        return values[trace.output][0], torch.stack(found) if found else sample.new_zeros(0)

    try:
        logits, norms = torch.vmap(run_sample)(x[:, None])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # vmap does not support all operations; the loop below reports any other cause
        logits, norms = _run_one_by_one(run_sample, x)
    return logits, norms


@torch.no_grad()
def compute_constants(trace: NetworkTrace, network: nn.Module, nodes: Sequence[Node]) -> list[Any]:
    """The values of nodes that do not depend on the network's input, with its current parameters and buffers."""
    needed = set(nodes)
    for node in reversed(trace.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    values: dict[Node, Any] = {}
    nothing = torch.empty(0, device=device_of(network))
    for node in trace.nodes:
        if node in needed:
            values[node] = _compute(trace, network, node, values, nothing)
    return [values[node] for node in nodes]


def _run_one_by_one(run_sample: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    try:
        rows = [run_sample(sample[None]) for sample in x]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the operations raise
        raise ValueError(
            f"network: its graph fails on a sample of shape {tuple(x.shape[1:])} ({describe_error(error)}), "
            f"expected operations that run on the network's device."
        ) from error
    return torch.stack([logits for logits, _ in rows]), torch.stack([norms for _, norms in rows])


def _last_users(trace: NetworkTrace) -> dict[Node, list[Node]]:
    """Map each node to the nodes whose values are not needed after it."""
    last_use = {source: node for node in trace.nodes for source in (*node.all_input_nodes, node)}
    users: dict[Node, list[Node]] = {}
    for source, user in last_use.items():
        users.setdefault(user, []).append(source)
    return users


def _compute(trace: NetworkTrace, network: nn.Module, node: Node, values: Mapping[Node, Any], sample: Tensor) -> Any:
    if trace.is_input(node):
        return sample
    if node.op != "call_function":
        return trace.read_constant(node, network)
    arguments: Any = torch.fx.map_arg(node.args, lambda n: values[n])
    options: Any = dict(torch.fx.map_arg(node.kwargs, lambda n: values[n]))
    if "device" in options:
        options["device"] = sample.device
    target: Any = _BATCHED.get(node.target, node.target)
    return target(*arguments, **options)


def _norm(value: Any) -> Tensor:
    """The L2 norm of an operation's floating-point outputs together."""
    parts = value if isinstance(value, list | tuple) else [value]
    tensors = [part.flatten() for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    if not tensors:  # whole numbers and booleans are exact
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(tensors[0] if len(tensors) == 1 else torch.cat(tensors))
    return norm


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor]:
    shape = (-1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    normalised = (x - mean.view(shape)) * scale.view(shape)
    return (normalised if bias is None else normalised + bias.view(shape),)


def _rrelu(x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Tensor:
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


_BATCHED: dict[Any, Any] = {
    torch.ops.aten.rrelu.default: _rrelu,
    torch.ops.aten.view.default: torch.reshape,  # the batch's strides may differ from one sample's
    torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
"""Operations that torch.vmap runs only one sample after the other, or not at all, and what is computed instead."""
