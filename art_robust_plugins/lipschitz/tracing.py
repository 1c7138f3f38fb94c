"""Tracing: the graph of operations that a network computes, by `torch.export` at batch one in evaluation mode.

The graph, not the module tree, determines what a network computes: it includes functional calls, residual sums and
reused modules.
"""

from __future__ import annotations

import operator as python_operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from ..bridge import device_of, preserve
from ..checks import describe_error
from .constants import Decisions, replay, watch
from .rules import RULES, UNBOUNDED
from .tensors import make_samples


class NetworkTrace:
    """A network's graph. It keeps no weights: code that walks along its nodes passes the current network.

    Args:
        network: maps one sample [1, *input_shape] to logits [1, C]; it is left as it is.
        input_shape: shape of one sample.
        dtype: of the network's input.

    Attributes:
        nodes: the nodes that the output needs, in the order of computation.
        output: the node of the logits.
        dtypes: of the floating-point values between the input and the logits.

    Raises:
        ValueError: for a network that cannot be traced, changes its buffers in evaluation mode, or has other outputs
            than logits [1, C].
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        program, self._decisions = _export(network, make_samples(network, input_shape, dtype)[:1])
        self._constants, self._module = program.constants, program.graph_module
        self._placeholders = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.output = _find_output(program)
        self.nodes = _select_needed(program, self.output)
        self.dtypes = frozenset(
            value.dtype
            for node in self.dependent_nodes()
            for value in tree_leaves(node.meta.get("val"))
            if isinstance(value, Tensor) and value.is_floating_point()
        )

    @property
    def classes(self) -> int:
        return int(self.output.meta["val"].shape[1])

    def is_current(self, network: nn.Module) -> bool:
        """Whether no buffer or parameter has changed on which the graph's shape depends, such as a mask."""
        return self._decisions.hold(network)

    def is_input(self, node: Node) -> bool:
        """Whether the node stands for the network's input."""
        spec = self._placeholders.get(node.name)
        return spec is not None and spec.kind is InputKind.USER_INPUT

    def dependent_nodes(self) -> list[Node]:
        """The nodes whose values depend on the network's input."""
        found: dict[Node, None] = {}
        for node in self.nodes:
            if self.is_input(node) or any(source in found for source in node.all_input_nodes):
                found[node] = None
        return list(found)

    def read_constant(self, node: Node, network: nn.Module) -> Any:
        """The current value of a node that is neither the input nor an operation.

        A parameter, a buffer, a constant, or the graph that a control-flow operation calls.
        """
        if node.op != "placeholder":
            return python_operator.attrgetter(str(node.target))(self._module)
        spec = self._placeholders[node.name]
        target = str(spec.target)
        if spec.kind is InputKind.PARAMETER:
            return network.get_parameter(target)
        if spec.kind is InputKind.BUFFER:
            return network.get_buffer(target)
        if spec.kind is InputKind.CONSTANT_TENSOR:
            return self._constants[target].to(device_of(network))
        raise ValueError(f"network: it uses {target!r}, a {spec.kind.name}, expected parameters and tensors only.")


def _export(network: nn.Module, sample: Tensor) -> tuple[Any, Decisions]:
    """Export the graph in evaluation mode at batch one, with the decisions that the forward made by constants.

    Operations with a rule, and with a reason to have none, stay whole, and so do those on constants alone, which are
    computed as they are; others are decomposed.
    """
    table = torch.export.default_decompositions()
    with preserve(network), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch copies its own trees
        network.eval()
        try:
            decisions = watch(network, sample.clone())
            with replay(network, decisions):
                program = torch.export.export(network, (sample,), strict=False)
            for operation in (*RULES, *UNBOUNDED, *_operations_on_constants(program)):
                if not any(returned.alias_info for returned in operation._schema.returns):
                    table.pop(operation, None)  # type: ignore[no-untyped-call]
            with torch.inference_mode():  # under autograd, softshrink is always decomposed
                return program.run_decompositions(table), decisions
        except Exception as error:
            raise ValueError(
                f"network: torch.export cannot trace it for one sample of shape {tuple(sample.shape[1:])} "
                f"({describe_error(error)}), expected a forward whose steps do not depend on the data."
            ) from error


def _operations_on_constants(program: Any) -> set[OpOverload]:
    """The operations that are used on constants alone: what they decompose to may fail where they do not."""
    inputs = set(program.graph_signature.user_inputs)
    dependent: set[Node] = set()
    on_constants: set[OpOverload] = set()
    on_inputs: set[OpOverload] = set()
    for node in program.graph.nodes:
        if node.name in inputs or any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
        (on_inputs if node in dependent else on_constants).update(_list_operations(node, program.graph_module))
    return on_constants - on_inputs


def _list_operations(node: Node, module: nn.Module) -> Iterator[OpOverload]:
    """The operation of a node; of one that calls graphs, as a block under autocast does, all operations in these."""
    if isinstance(node.target, OpOverload):
        yield node.target
    for source in node.all_input_nodes:
        called = python_operator.attrgetter(str(source.target))(module) if source.op == "get_attr" else None
        graphs = (
            [each.graph for each in called.modules() if isinstance(each, GraphModule)]
            if isinstance(called, GraphModule)
            else []
        )
        yield from (each.target for graph in graphs for each in graph.nodes if isinstance(each.target, OpOverload))


def _find_output(program: Any) -> Node:
    """The node of the logits; refuses what returns anything else, or changes buffers."""
    signature = program.graph_signature
    if signature.buffers_to_mutate:
        names = ", ".join(signature.buffers_to_mutate.values())
        raise ValueError(f"network: its forward changes the buffers {names} in evaluation mode, expected none.")
    outputs = [name for name in signature.user_outputs if isinstance(name, str)]
    if len(signature.user_outputs) != 1 or len(outputs) != 1:
        raise ValueError(f"network: it returns {len(signature.user_outputs)} values, expected one tensor of logits.")
    output: Node = next(node for node in program.graph.nodes if node.name == outputs[0])
    shape = tuple(output.meta["val"].shape)
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(f"network: its output for one sample has shape {shape}, expected (1, C).")
    return output


def _select_needed(program: Any, output: Node) -> list[Node]:
    """The nodes without those that the output does not need (assertions, unused branches): these need no rule."""
    needed = {output}
    for node in reversed(program.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in program.graph.nodes if node in needed]
