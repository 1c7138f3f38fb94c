"""Propagation of bounds: the rules applied along a traced graph, from the network's input to its logits."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ..bridge import device_of
from ..checks import describe_error
from .batch_statistics import Variances
from .network_bound import OperatorNorm
from .norms import ROUND_UP, Operator, lower_estimate
from .operation_rounding import Operation
from .parametrized import ParametrizedWeights, select_needed
from .rules import RULES, UNBOUNDED, Call, Number, Scale, Value
from .tracing import NetworkTrace


class Propagation:
    """One pass of the rules along a graph, proven or estimated; implements `rules.Evaluation`.

    Args:
        network: the traced network, with its current weights.
        dtype: of its input.
        proven: proven bounds in float64, else estimates with gradient, in the network's own type.
        static: what depends on shapes and constants alone; kept from one pass to the next.
        vectors: of estimates: by graph node, those with which each power iteration starts; updated.
        variances: of estimates: for batch normalisation.
        weights: of estimates: nodes whose values the network's modules have at hand.
        norms: those that a proven pass found, in its order: the pass gives the proven bound as a function of them.

    Attributes:
        operators: the proven norms, in order.
        source: the input's node, and its value.
        operations: in order, all that depend on the input; of a proven pass.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        *,
        proven: bool,
        static: dict[Hashable, Any],
        vectors: MutableMapping[str, Tensor] | None = None,
        variances: Variances | None = None,
        weights: ParametrizedWeights | None = None,
        norms: Iterator[Tensor] | None = None,
    ) -> None:
        self.static = static
        self.device = device_of(network)
        self.network_dtype = dtype
        self.dtype = torch.float64 if proven else dtype
        self.proven = proven
        self.operators: list[OperatorNorm] = []
        self.source: tuple[Node, Value] | None = None
        self.operations: list[Operation] = []
        self._network = network
        self._vectors = {} if vectors is None else vectors
        self._variances = variances or {}
        self._weights = weights or {}
        self._norms = norms
        self._calls: dict[nn.Module, int] = {}

    def run(self, trace: NetworkTrace, input_shape: tuple[int, ...], std: Tensor | None) -> Any:
        """The logits as a `Value` (or a tensor, if they do not depend on the input), per unit before ``std``."""
        values: dict[Node, Any] = {}
        ready = self._find_ready()
        needed = select_needed(trace, ready)
        for node in trace.nodes:
            if node not in needed:
                continue
            if node in ready:
                values[node] = ready[node].to(node.meta["val"].dtype)
            elif trace.is_input(node):
                values[node] = self._start(node, input_shape, std)
            elif node.op == "call_function":
                values[node] = self._apply(node, values)
            else:
                constant = trace.read_constant(node, self._network)
                values[node] = self._convert(constant) if isinstance(constant, Tensor) else constant
        return values[trace.output]

    def _find_ready(self) -> dict[Node, Tensor]:
        """The parametrized weights that need not be computed from their parameters."""
        ready: dict[Node, Tensor] = {}
        for node, (path, name) in self._weights.items():
            module: Any = self._network.get_submodule(path)
            weight = getattr(module, name)
            trained = any(parameter.requires_grad for parameter in module.parametrizations[name].parameters())
            # A pass without gradients, as inside of a checkpointed part, may have computed it: then it has no history.
            if weight.requires_grad or not (trained and torch.is_grad_enabled()):
                ready[node] = weight
        return ready

    def _start(self, node: Node, input_shape: tuple[int, ...], std: Tensor | None) -> Value:
        value = Value((1, *input_shape), lambda: 1.0)
        if std is not None:
            x, factor, call = value, 1 / std.to(self.device, self.dtype), self._place(node)
            value = Value(x.shape, lambda: self.scale(call, x.shape, factor), x, Scale(factor))
        self.source = node, value
        return value

    def _apply(self, node: Node, values: dict[Node, Any]) -> Any:
        """Compute an operation on constants, or bound any other by its rule."""
        arguments: Any = torch.fx.map_arg(node.args, lambda n: values[n])
        options: Any = torch.fx.map_arg(node.kwargs, lambda n: values[n])
        call = self._place(node)
        if node.target is python_operator.getitem:
            return self._take_output(node, call, *arguments)
        if not any(isinstance(leaf, Value) for leaf in tree_leaves((arguments, options))):
            with _refuse_foreign_errors(call):
                return self._compute(call, arguments, options)
        rule = RULES.get(call.target)
        if rule is None:
            call.refuse(
                f"{UNBOUNDED.get(call.target, 'it has no Lipschitz rule')}; if you can prove a bound for it, register "
                f"one with @lipschitz_rule(torch.ops.{call.target}) before tracing"
            )
        arguments, options = tree_map(self._widen, (arguments, options))
        with _refuse_foreign_errors(call):
            result = rule(call, *arguments, **options)
        if self.proven and _depends_on_input(result):
            sources = {n: n if _depends_on_input(values[n]) else self._widen(values[n]) for n in node.all_input_nodes}
            taken: Any = torch.fx.map_arg((node.args, node.kwargs), lambda n: sources[n])
            self.operations.append(Operation(node, call, rule, *taken))
        for value, traced in zip(_outputs(result), _outputs(node.meta["val"]), strict=False):
            if isinstance(value, Value) and traced.dtype not in (torch.float32, torch.float64):
                call.refuse(f"its result is {traced.dtype}, which rounds, so it may jump; expected float32 or float64")
        return result

    def _take_output(self, node: Node, call: Call, outputs: Sequence[Any], index: int) -> Any:
        """One of the outputs of the operation before."""
        if outputs[index] is None:
            (source,) = node.all_input_nodes
            self._place(source).refuse(f"its output {index} is used, which has no bound")
        if self.proven and _depends_on_input(outputs[index]):
            self.operations.append(Operation(node, call, _take, (node.args[0], index), {}))
        return outputs[index]

    def _compute(self, call: Call, arguments: Any, options: dict[str, Any]) -> Any:
        """An operation on constants alone, as weight normalisation makes them, computed with their current values."""
        if isinstance(call.target, OpOverload) and torch.Tag.nondeterministic_seeded in call.target.tags:
            call.refuse("it draws random numbers, expected a deterministic network")
        if "device" in options:
            options = {**options, "device": self.device}
        result = call.target(*arguments, **options)
        if isinstance(result, list | tuple):
            return type(result)(self._convert(part) if isinstance(part, Tensor) else part for part in result)
        return self._convert(result) if isinstance(result, Tensor) else result

    def _convert(self, constant: Tensor) -> Tensor:
        """Convert to float64; a float64 network's constants keep their type, in which the network computes."""
        if not self.proven or not (constant.is_floating_point() or constant.is_complex()):
            return constant
        if self.network_dtype == torch.float64:
            return constant.detach()
        return constant.detach().to(torch.complex128 if constant.is_complex() else torch.float64)

    def _widen(self, argument: Any) -> Any:
        """A constant where it meets what depends on the input, in float64; anything else as it is."""
        if isinstance(argument, Tensor) and self.proven and argument.is_floating_point():
            return argument.double()
        return argument

    def _place(self, node: Node) -> Call:
        """An operation's place in the network."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = str(stack[-1][0]).split("@")[0] if stack else ""
        value = node.meta.get("val")
        parts = value if isinstance(value, list | tuple) else (value,)
        shapes = tuple(tuple(part.shape) if isinstance(part, Tensor) else () for part in parts)
        return Call(node.name, node.target, module, shapes, self)

    # The methods that rules call.

    def norm(self, call: Call, operator: Operator) -> Number:
        if self._norms is not None:
            return next(self._norms)
        if not self.proven:
            estimate, self._vectors[call.name] = lower_estimate(operator, self._vectors.get(call.name))
            return estimate
        bound = operator.upper_bound()
        kind = type(operator).__name__
        shapes = operator.input_shape, operator.output_shape
        self.operators.append(OperatorNorm(call.name, call.module, kind, *shapes, bound.value, bound.method))
        return bound.value

    def scale(self, call: Call, shape: tuple[int, ...], factor: Tensor) -> Number:
        if self._norms is not None:
            return next(self._norms)
        norm = self.number(factor.abs().max())
        if isinstance(norm, float):
            self.operators.append(OperatorNorm(call.name, call.module, "Scale", shape[1:], shape[1:], norm, "exact"))
        return norm

    def number(self, value: Tensor) -> Number:
        if not self.proven or self._norms is not None:
            return value
        # torch's maxima propagate NaN; infinity would pass for a bound.
        if not bool(torch.isfinite(value)):
            raise ValueError("network: got NaN or infinity among its constants, expected finite numbers.")
        return float(value) * ROUND_UP

    def variance(self, call: Call, running: Tensor) -> Tensor:
        module = self._network.get_submodule(call.module)
        if module not in self._variances:
            return running
        index = self._calls[module] = self._calls.get(module, -1) + 1
        calls = self._variances[module]
        if index >= len(calls):
            raise ValueError(
                f"variances: got {len(calls)} for the module {call.module!r}, expected one for each of its calls."
            )
        return calls[index]


@contextmanager
def _refuse_foreign_errors(call: Call) -> Iterator[None]:
    """A context that turns foreign errors of torch and of rules into a refusal with the operation's place."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        call.refuse(f"it cannot be bounded with these arguments ({describe_error(error)})", error)


def _outputs(results: Any) -> Sequence[Any]:
    return results if isinstance(results, list | tuple) else [results]


def _depends_on_input(value: Any) -> bool:
    return any(isinstance(part, Value) for part in _outputs(value))


def _take(call: Call, outputs: Sequence[Value], index: int) -> Value:
    return outputs[index]
