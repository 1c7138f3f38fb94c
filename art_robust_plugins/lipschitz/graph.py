"""A Lipschitz bound of a whole network, from its exported graph.

The graph, not the module tree, says what a network computes: functional calls, residual sums and reused modules stand
in it, and an operation without a rule is an error (see `rules`).
"""

from __future__ import annotations

import math
import operator as python_operator
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from ..bridge import device_of, preserved
from .agreement import check_agreement
from .constants import Decisions, replay, watch
from .norms import ROUND_UP, UNIT_ROUNDOFF, Linear, Operator, lower_estimate
from .rounding import Operation, Rounding, analyse_rounding
from .rules import RULES, UNBOUNDED, Call, Number, Scale, Value
from .structure import tensors_of

Variances = Mapping[nn.Module, Sequence[Tensor]]
"""For each batch-norm module, the variance [C] of its input in each of its calls, in order."""


@dataclass(frozen=True)
class OperatorNorm:
    """One linear operator of a network, as it entered a proven bound.

    Attributes:
        node, module: where it stands in the graph and in the module tree.
        kind: ``"Convolution"`` or ``"Linear"``, with what was merged into it, or ``"Scale"``, a multiplication entry by
            entry that was not merged, as by a weight map.
        input_shape, output_shape: of one sample.
        norm: the proven upper bound of its norm.
        method: what proved it, see `NormBound`.
        share: of the bound L, from -1 to 1. With e_i = d ln L / d ln norm_i (1 in a chain, less in parallel branches)
            it is e_i ln norm_i over the sum of all |e_j ln norm_j|: norms below 1 have negative shares. 0 for all
            where L is 0.
    """

    node: str
    module: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    norm: float
    method: str
    share: float = 0.0


@dataclass(frozen=True)
class NetworkBound:
    """Lipschitz constants (L2) of a network's logits: proven, or an estimate with gradient.

    Attributes:
        lipschitz: of all logits together; scalar.
        pairwise: [C, C], of each difference of two logits, f_t - f_j. From the last layer's rows where that is linear
            (L_pre ||w_t - w_j||, L_pre bounding the network before it), else sqrt(2) times ``lipschitz``.
        before_last: L_pre, or None where the last layer is not linear.
        last_weight: the last layer's weight [C, F] with what was merged into it, or None.
        operators: one entry for each linear operator, of a proven bound only.
        rounding: how far computed logits may lie from exact ones, of a proven bound only.
    """

    lipschitz: Tensor
    pairwise: Tensor
    before_last: Tensor | None
    last_weight: Tensor | None
    operators: tuple[OperatorNorm, ...] = ()
    rounding: Rounding = field(default_factory=Rounding)


class LipschitzGraph:
    """A network's graph, traced once, from which bounds are computed with its present parameters and buffers.

    The bound is the composition of Tsuzuku, Sato, Sugiyama (Lipschitz-margin training, arXiv 1802.04034, NeurIPS
    2018), over the graph of `torch.export` at batch one in evaluation mode. Trace anew after changing anything that is
    not a parameter or buffer: a layer, a constant, an attribute.

    Constants that the network computes from its parameters, as weight normalisation does, are computed in float64
    for the proven bound, which holds for the network with these.

    Args:
        network: maps one sample [1, *input_shape] to logits [1, C].
        input_shape: shape of one sample, such as (C, H, W).
        std: what the input is divided by before the network (ART's ``preprocessing``): a number, or values that
            broadcast against ``input_shape``. Bounds are then in the units before the division.
        dtype: of the network's input. None: that of its first floating-point parameter or buffer, or float32.

    Attributes:
        vectors: state of the estimates, by graph node: the vectors with which the next power iteration starts.
        dtypes: of the floating-point values between the input and the logits.

    Raises:
        ValueError: for a network that cannot be traced, changes its buffers in evaluation mode, mixes the samples of
            a batch, or has another output, NaN or infinity; a ``std`` that is not positive or does not fit.
        NoLipschitzRuleError: (a ValueError) for an operation that has no bound, by name.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> graph = LipschitzGraph(network, (1, 2, 2), std=0.5)
        >>> graph.upper_bound().pairwise.shape
        torch.Size([3, 3])
        >>> bool(graph.estimate().lipschitz <= graph.upper_bound().lipschitz)
        True
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        *,
        std: float | Sequence[float] | Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_initialised(network)
        self.network = network
        self.dtype = _dtype_of(network) if dtype is None else dtype
        self.input_shape = tuple(int(size) for size in input_shape)
        self.vectors: dict[str, Tensor] = {}
        self._static: dict[Hashable, Any] = {}
        self._std = None if std is None else _checked_std(std, self.input_shape)
        self._trace()

    def _trace(self) -> None:
        """Make the graph, and refuse what has no bound."""
        sample = _samples(self.network, self.input_shape, self.dtype)[:1]
        program, self._decisions = _export(self.network, sample)
        self._constants, self._module = program.constants, program.graph_module
        signature = program.graph_signature
        if signature.buffers_to_mutate:
            names = ", ".join(signature.buffers_to_mutate.values())
            raise ValueError(f"network: its forward changes the buffers {names} in evaluation mode, expected none.")
        self._inputs = {spec.arg.name: spec for spec in signature.input_specs}
        outputs = [name for name in signature.user_outputs if isinstance(name, str)]
        if len(signature.user_outputs) != 1 or len(outputs) != 1:
            raise ValueError(
                f"network: it returns {len(signature.user_outputs)} values, expected one tensor of logits."
            )
        nodes = {node.name: node for node in program.graph.nodes}
        self._output = nodes[outputs[0]]
        shape = tuple(self._output.meta["val"].shape)
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(f"network: its output for one sample has shape {shape}, expected (1, C).")
        # What the output does not need (assertions, unused branches) needs no rule.
        needed = {self._output}
        for node in reversed(program.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        self._nodes = [node for node in program.graph.nodes if node in needed]
        self.dtypes = frozenset(
            value.dtype
            for node in self._of_input()
            for value in tree_leaves(node.meta.get("val"))
            if isinstance(value, Tensor) and value.is_floating_point()
        )
        with torch.no_grad():
            self._evaluate(_Evaluation(self, proven=False))  # refuses now what has no rule; bounds wait until asked for
        self._check_agreement()

    def _refresh(self) -> None:
        """Trace anew where a buffer or parameter changed that decides the graph's shape, as a mask does."""
        if not self._decisions.hold(self.network):
            self.vectors.clear()
            self._static.clear()
            self._trace()

    @torch.no_grad()
    def upper_bound(self) -> NetworkBound:
        """The proven bound, in float64, rounding included, with the running statistics of batch normalisation.

        Raises:
            ValueError: for a network in training mode, or with NaN or infinity in its weights.
        """
        training = next((name for name, module in self.network.named_modules() if module.training), None)
        if training is not None:
            place = f"its module {training!r}" if training else "it"
            raise ValueError(f"network: {place} is in training mode, expected network.eval() for a proven bound.")
        self._refresh()
        evaluation = _Evaluation(self, proven=True)
        output = self._evaluate(evaluation)
        bound = self._bound(output, evaluation)
        shares = self._shares(evaluation)
        operators = [replace(row, share=share) for row, share in zip(bound.operators, shares, strict=True)]
        return replace(bound, operators=tuple(operators), rounding=self._rounding(output, evaluation))

    def estimate(self, variances: Variances | None = None) -> NetworkBound:
        """The training estimate: differentiable in the parameters, not proven, usually below the proven bound.

        Each operator takes one step of power iteration from ``vectors``. Evaluation mode is assumed (no dropout).

        Args:
            variances: of the current batch, from `batch_variances`; modules without an entry, and None, use the
                running variance.

        Raises:
            ValueError: for a module that was called less often than it stands in the graph.
        """
        self._refresh()
        evaluation = _Evaluation(self, proven=False, variances=variances)
        with torch.autocast(evaluation.device.type, enabled=False):
            return self._bound(self._evaluate(evaluation), evaluation)

    @torch.no_grad()
    def run(self, x: Tensor, nodes: Sequence[Node] = ()) -> tuple[Tensor, Tensor]:
        """What the graph itself computes, each sample for itself, with the network's present parameters and buffers.

        Args:
            x: [N, *input_shape], on the network's device, after the division by ``std``.
            nodes: of the graph.

        Returns:
            the logits [N, C], and the L2 norms [N, len(nodes)] of these nodes' values.
        """
        logits, norms = torch.vmap(lambda sample: self._run(sample, nodes))(x[:, None])
        return logits, norms

    def _run(self, sample: Tensor, nodes: Sequence[Node]) -> tuple[Tensor, Tensor]:
        last_use = {source: node for node in self._nodes for source in (*node.all_input_nodes, node)}
        outdated: dict[Node, list[Node]] = {}
        for source, user in last_use.items():
            outdated.setdefault(user, []).append(source)
        values: dict[Node, Any] = {}
        norms: dict[Node, Tensor] = {}
        for node in self._nodes:
            values[node] = self._computed(node, values, sample)
            if node in nodes:
                parts = [part.flatten() for part in _several(values[node]) if isinstance(part, Tensor)]
                norms[node] = torch.linalg.vector_norm(torch.cat([part for part in parts if part.is_floating_point()]))
            for source in outdated.get(node, ()):
                if source is not self._output:
                    del values[source]
        found = [norms[node] for node in nodes]
        return values[self._output][0], torch.stack(found) if found else sample.new_zeros(0)

    def _computed(self, node: Node, values: Mapping[Node, Any], sample: Tensor) -> Any:
        if node.op == "placeholder":
            spec = self._inputs[node.name]
            return sample if spec.kind is InputKind.USER_INPUT else self._stored(spec)
        if node.op != "call_function":
            return python_operator.attrgetter(str(node.target))(self._module)
        arguments: Any = torch.fx.map_arg(node.args, lambda n: values[n])
        options: Any = dict(torch.fx.map_arg(node.kwargs, lambda n: values[n]))
        if "device" in options:
            options["device"] = sample.device
        target: Any = _BATCHED.get(node.target, node.target)
        return target(*arguments, **options)

    def _stored(self, spec: Any) -> Tensor:
        target = str(spec.target)
        if spec.kind is InputKind.PARAMETER:
            return self.network.get_parameter(target)
        if spec.kind is InputKind.BUFFER:
            return self.network.get_buffer(target)
        if spec.kind is InputKind.CONSTANT_TENSOR:
            constant: Tensor = self._constants[target].to(device_of(self.network))
            return constant
        raise ValueError(f"network: it uses {target!r}, a {spec.kind.name}, expected parameters and tensors only.")

    def _check_agreement(self) -> None:
        with preserved(self.network), torch.no_grad():
            self.network.eval()
            samples = _samples(self.network, self.input_shape, self.dtype)
            if not bool(self.network(samples.clone()).isfinite().all()):
                raise ValueError("network: its outputs hold NaN or infinity, expected finite numbers.")
            inner = [node for node in self._of_input() if isinstance(node.meta.get("val"), Tensor)]
            edges = torch.stack([torch.zeros_like(samples[0]), torch.ones_like(samples[0])])
            both = torch.cat([samples, samples.round(), edges])
            inside = [float(part.abs().max()) for part in tensors_of(self.network) if part.numel()]
            # They may be mixed, or differ, in some range only.
            for scale, shift in ((1, 0), (10, 0), (255, 0), (2, -1), (20, -10)):
                x = scale * both + shift
                logits, norms = self.run(x, inner)
                largest = max([*norms.flatten().tolist(), *inside], default=0.0)
                rounding = 1e3 * largest * torch.finfo(logits.dtype).eps
                check_agreement(self.network, x, logits, 1e-3 * float(logits.abs().max()) + rounding)

    def _rounding(self, output: Any, proven: _Evaluation) -> Rounding:
        if not isinstance(output, Value) or proven.source is None:
            return Rounding()
        norms: dict[str, float] = {}
        for row in proven.operators:
            norms[row.node] = max(row.norm, norms.get(row.node, 0.0))
        return analyse_rounding(proven.operations, proven.source, self._output, norms)

    def _shares(self, proven: _Evaluation) -> list[float]:
        """Each operator's share of the bound: the graph evaluated once more, with the proven norms as variables."""
        with torch.inference_mode(False), torch.enable_grad():
            norms = [
                torch.tensor(row.norm, dtype=torch.float64, device=proven.device, requires_grad=True)
                for row in proven.operators
            ]
            output = self._evaluate(_Evaluation(self, proven=True, static=proven.static, norms=iter(norms)))
            bound = output.bound if isinstance(output, Value) else 0.0
            if not isinstance(bound, Tensor) or not bound.requires_grad:  # no operator counts in it
                return [0.0] * len(norms)
            slopes = torch.autograd.grad(bound, norms, allow_unused=True, materialize_grads=True)
        logs = [  # L e_i ln norm_i, where the norm is not 0
            float(norm * slope) * math.log(float(norm)) if float(norm) > 0 else 0.0
            for norm, slope in zip(norms, slopes, strict=True)
        ]
        total = sum(abs(log) for log in logs)
        return [log / total if 0 < total < math.inf else 0.0 for log in logs]

    def _of_input(self) -> list[Node]:
        """The nodes whose values depend on the network's input."""
        found: dict[Node, None] = {}
        for node in self._nodes:
            spec = self._inputs.get(node.name)
            if (spec and spec.kind is InputKind.USER_INPUT) or any(source in found for source in node.all_input_nodes):
                found[node] = None
        return list(found)

    def _evaluate(self, evaluation: _Evaluation) -> Any:
        """The output as a `Value` (or a tensor, if it does not depend on the input)."""
        values: dict[Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = self._placeholder(node, evaluation)
            elif node.op == "call_function":
                values[node] = self._call(node, values, evaluation)
            else:  # an attribute of the graph itself: a constant, or the graph that a control-flow operation calls
                attribute = python_operator.attrgetter(str(node.target))(self._module)
                values[node] = evaluation.constant(attribute) if isinstance(attribute, Tensor) else attribute
        return values[self._output]

    def _placeholder(self, node: Node, evaluation: _Evaluation) -> Any:
        spec = self._inputs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            value = Value((1, *self.input_shape), lambda: 1.0)
            if self._std is not None:
                x, factor, call = value, 1 / self._std.to(evaluation.device, evaluation.dtype), _place(node, evaluation)
                value = Value(x.shape, lambda: evaluation.scale(call, x.shape, factor), x, Scale(factor))
            evaluation.source = node, value
            return value
        return evaluation.constant(self._stored(spec))

    def _call(self, node: Node, values: dict[Node, Any], evaluation: _Evaluation) -> Any:
        arguments: Any = torch.fx.map_arg(node.args, lambda n: values[n])
        options: Any = torch.fx.map_arg(node.kwargs, lambda n: values[n])
        call = _place(node, evaluation)
        if node.target is python_operator.getitem:
            outputs, index = arguments
            if outputs[index] is None:
                (source,) = node.all_input_nodes
                _place(source, evaluation).refuse(f"its output {index} is used, which has no bound")
            if evaluation.proven and _depends(outputs[index]):
                evaluation.operations.append(Operation(node, call, _take, (node.args[0], index), {}))
            return outputs[index]
        if not any(isinstance(leaf, Value) for leaf in tree_leaves((arguments, options))):
            with _refusing(call):
                return evaluation.computed(call, arguments, options)
        rule = RULES.get(call.target)
        if rule is None:
            call.refuse(
                f"{UNBOUNDED.get(call.target, 'it has no Lipschitz rule')}; if you can prove a bound for it, register "
                f"one with @lipschitz_rule(torch.ops.{call.target}) before tracing"
            )
        arguments, options = tree_map(evaluation.met, (arguments, options))
        with _refusing(call):
            result = rule(call, *arguments, **options)
        if evaluation.proven and _depends(result):
            sources = {n: n if _depends(values[n]) else evaluation.met(values[n]) for n in node.all_input_nodes}
            taken: Any = torch.fx.map_arg((node.args, node.kwargs), lambda n: sources[n])
            evaluation.operations.append(Operation(node, call, rule, *taken))
        for value, made in zip(_several(result), _several(node.meta["val"]), strict=False):
            if isinstance(value, Value) and made.dtype not in (torch.float32, torch.float64):
                call.refuse(f"its result is {made.dtype}, which rounds, so it may jump; expected float32 or float64")
        return result

    def _bound(self, output: Any, evaluation: _Evaluation) -> NetworkBound:
        classes = int(self._output.meta["val"].shape[1])
        options: dict[str, Any] = {"device": evaluation.device, "dtype": evaluation.dtype}
        if not isinstance(output, Value):
            zeros = torch.zeros(classes, classes, **options)
            return NetworkBound(zeros.sum(), zeros, None, None)
        # Each bound so far is a chain of float64 sums, products and roots, each exact to 2**-53.
        up = ROUND_UP if evaluation.proven else 1.0
        lipschitz = torch.as_tensor(output.bound, **options) * up
        if evaluation.proven and not bool(torch.isfinite(lipschitz)):
            raise ValueError("network: its bound is infinite in float64, expected smaller weights.")
        operators = tuple(evaluation.operators)
        logits = output
        while logits.same_differences is not None:
            logits = logits.same_differences
        if isinstance(logits.operator, Linear) and logits.parent is not None and logits.shape == (1, classes):
            before = torch.as_tensor(logits.parent.bound, **options) * up
            weight = logits.operator.weight
            # Squares of small weights would vanish: a power of two first.
            scale = 2.0 ** math.frexp(float(weight.abs().max()))[1] if evaluation.proven else 1.0
            distances = scale * torch.cdist(weight / scale, weight / scale, compute_mode="donot_use_mm_for_euclid_dist")
            if evaluation.proven:
                # What was merged into the rows is rounded; where two rows are almost equal, that counts.
                lengths = torch.linalg.vector_norm(weight, dim=1)
                distances = (distances + 8 * UNIT_ROUNDOFF * (lengths[:, None] + lengths)).fill_diagonal_(0)
            return NetworkBound(lipschitz, before * distances * up, before, weight, operators)
        different = 1 - torch.eye(classes, **options)
        single = torch.as_tensor(logits.bound, **options) * up
        return NetworkBound(lipschitz, single * (math.sqrt(2) * up) * different, None, None, operators)


class _Evaluation:
    """One evaluation of a graph, proven or estimated; what `rules.Evaluation` asks for.

    With ``norms``, those that a proven evaluation found, in its order, it gives the proven bound as a function of them.
    """

    def __init__(
        self,
        graph: LipschitzGraph,
        *,
        proven: bool,
        variances: Variances | None = None,
        static: dict[Hashable, Any] | None = None,
        norms: Iterator[Tensor] | None = None,
    ) -> None:
        # Index buffers may have changed since the last proven bound; an estimate takes them as they were.
        self.static: dict[Hashable, Any] = static if static is not None else {} if proven else graph._static
        self.device = device_of(graph.network)
        self.network_dtype = graph.dtype
        self.dtype = torch.float64 if proven else self.network_dtype
        self.proven = proven
        self.operators: list[OperatorNorm] = []
        self.source: tuple[Node, Value] | None = None
        self.operations: list[Operation] = []  # in order, all that depend on the source
        self._network, self._vectors = graph.network, graph.vectors
        self._variances = variances or {}
        self._norms = norms
        self._used: dict[nn.Module, int] = {}

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
        index = self._used[module] = self._used.get(module, -1) + 1
        calls = self._variances[module]
        if index >= len(calls):
            raise ValueError(
                f"variances: got {len(calls)} for the module {call.module!r}, expected one for each of its calls."
            )
        return calls[index]

    def constant(self, tensor: Tensor) -> Tensor:
        """In float64; for a network in float64 as it is, since that computes with its constants in their own type."""
        if not self.proven or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        if self.network_dtype == torch.float64:
            return tensor.detach()
        return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)

    def met(self, argument: Any) -> Any:
        """A constant where it meets what depends on the input; anything else as it is."""
        if isinstance(argument, Tensor) and self.proven and argument.is_floating_point():
            return argument.double()
        return argument

    def computed(self, call: Call, arguments: Any, options: dict[str, Any]) -> Any:
        """An operation on constants alone, as weight normalisation makes them, computed with their present values."""
        if isinstance(call.target, OpOverload) and torch.Tag.nondeterministic_seeded in call.target.tags:
            call.refuse("it draws random numbers, expected a deterministic network")
        if "device" in options:
            options = {**options, "device": self.device}
        result = call.target(*arguments, **options)
        if isinstance(result, list | tuple):
            return type(result)(self.constant(part) if isinstance(part, Tensor) else part for part in result)
        return self.constant(result) if isinstance(result, Tensor) else result


@contextmanager
def batch_variances(network: nn.Module) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Collect, in a forward pass, the variance that each batch normalisation divides by in training mode.

    Gives a dictionary for `LipschitzGraph.estimate`: the variances [C] carry their gradient. Modules in evaluation
    mode are left out. Call ``clear()`` on it before the next batch, or enter anew.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        >>> graph = LipschitzGraph(network, (1, 4, 4))
        >>> with batch_variances(network) as variances:
        ...     logits = network(torch.rand(8, 1, 4, 4))
        >>> graph.estimate(variances).lipschitz.requires_grad
        True
    """
    variances: dict[nn.Module, list[Tensor]] = {}

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            x = inputs[0]
            axes = [axis for axis in range(x.dim()) if axis != 1]
            # The layer itself computes in float32 under mixed precision.
            precise = x if x.dtype == torch.float64 else x.float()
            variances.setdefault(module, []).append(precise.var(dim=axes, unbiased=False))

    handles = [m.register_forward_pre_hook(collect) for m in network.modules() if isinstance(m, _BatchNorm)]
    try:
        yield variances
    finally:
        for handle in handles:
            handle.remove()


def check_initialised(network: nn.Module) -> None:
    """Refuse a network with lazy layers that have not seen an input yet.

    Raises:
        ValueError: by name.
    """
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"network: its {name!r} has no shape yet, as a lazy layer's before its first input, expected one "
                f"forward pass of the network before."
            )


def _export(network: nn.Module, sample: Tensor) -> tuple[Any, Decisions]:
    """The graph in evaluation mode at batch one, and what the forward decided by constants.

    Operations with a rule, and with a reason to have none, stay whole, and so do those on constants alone, which are
    computed as they are; others are decomposed.
    """
    table = torch.export.default_decompositions()
    with preserved(network), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch copies trees of its own
        network.eval()
        try:
            decisions = watch(network, sample.clone())
            with replay(network, decisions):
                program = torch.export.export(network, (sample,), strict=False)
            for operation in (*RULES, *UNBOUNDED, *_on_constants(program)):
                if not any(returned.alias_info for returned in operation._schema.returns):
                    table.pop(operation, None)  # type: ignore[no-untyped-call]
            with torch.inference_mode():  # where autograd looks, softshrink is decomposed in any case
                return program.run_decompositions(table), decisions
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"network: torch.export cannot trace it for one sample of shape {tuple(sample.shape[1:])} "
                f"({type(error).__name__}: {reason}), expected a forward whose steps do not depend on the data."
            ) from error


def _on_constants(program: Any) -> set[OpOverload]:
    """The operations that are used on constants alone: what they decompose to may fail where they do not."""
    inputs = set(program.graph_signature.user_inputs)
    of_input: set[Node] = set()
    whole: set[OpOverload] = set()
    met: set[OpOverload] = set()
    for node in program.graph.nodes:
        if node.name in inputs or any(source in of_input for source in node.all_input_nodes):
            of_input.add(node)
        if isinstance(node.target, OpOverload):
            (met if node in of_input else whole).add(node.target)
    return whole - met


@contextmanager
def _refusing(call: Call) -> Iterator[None]:
    """Errors of torch and of rules, of other types than our own, as a refusal with the operation's place."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        call.refuse(f"it cannot be bounded with these arguments ({type(error).__name__}: {reason})", error)


def _samples(network: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *input_shape, generator=generator).to(device_of(network), dtype)


def _place(node: Node, evaluation: _Evaluation) -> Call:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = str(stack[-1][0]).split("@")[0] if stack else ""
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else (value,)
    shapes = tuple(tuple(part.shape) if isinstance(part, Tensor) else () for part in parts)
    return Call(node.name, node.target, module, shapes, evaluation)


def _several(results: Any) -> Sequence[Any]:
    return results if isinstance(results, list | tuple) else [results]


def _depends(value: Any) -> bool:
    """Whether it depends on the network's input."""
    return any(isinstance(part, Value) for part in _several(value))


def _take(call: Call, outputs: Sequence[Value], index: int) -> Value:
    return outputs[index]


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[Tensor]:
    shape = (-1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    normalised = (x - mean.view(shape)) * scale.view(shape)
    return (normalised if bias is None else normalised + bias.view(shape),)


_BATCHED: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.reshape,  # the batch's strides may differ from one sample's
    torch.ops.aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
"""Operations that torch.vmap runs only one sample after the other, or not at all, and what is computed instead."""


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next(
        (t.dtype for t in chain(network.parameters(), network.buffers()) if t.is_floating_point()), torch.float32
    )


def _checked_std(std: Any, input_shape: tuple[int, ...]) -> Tensor:
    values = torch.as_tensor(std, dtype=torch.float64)
    try:
        fits = values.expand(input_shape).shape == input_shape
    except RuntimeError:
        fits = False
    if not fits or not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ValueError(f"std: got {std!r}, expected positive numbers that broadcast against {input_shape}.")
    for axis in range(values.dim()):
        first = values.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(values), values):
            values = first  # one number along this axis can be merged with what comes next
    return values
