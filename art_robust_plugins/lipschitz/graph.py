"""A Lipschitz bound of a whole network, from its exported graph.

The graph, not the module tree, determines what a network computes (`tracing`). The rules propagate the bound along it
(`propagation`), and an operation without a rule is an error (see `rules`). The result is described in `network_bound`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..bridge import preserve
from ..checks import check_sizes
from .agreement import check_graph
from .batch_statistics import Variances
from .execution import run_graph
from .network_bound import NetworkBound, bound_pairs, bound_pairs_without_rows, share_bound
from .norms import ROUND_UP, Linear
from .parametrized import ParametrizedWeights, find_parametrized_weights, select_needed
from .propagation import Propagation
from .rounding import Rounding, analyse_rounding
from .rules import Value
from .rules.movement import MOVES
from .tensors import check_initialised, dtype_of, make_samples
from .tracing import NetworkTrace


class LipschitzGraph:
    """A network's graph, traced once, from which bounds are computed with its current parameters and buffers.

    The bound is the composition of Tsuzuku, Sato, Sugiyama (Lipschitz-margin training, arXiv 1802.04034, NeurIPS
    2018), over the graph of `torch.export` at batch one in evaluation mode. Trace anew after changing anything that is
    not a parameter or buffer: a layer, a constant, an attribute.

    Constants that the network computes from its parameters, as weight normalisation does, are computed in float64
    for the proven bound, which holds for the network with these.

    Args:
        network: maps one sample [1, *input_shape] to logits [1, C].
        input_shape: shape of one sample, such as (C, H, W).
        std: the divisor of the input before the network (ART's ``preprocessing``): a number, or values that
            broadcast against ``input_shape``. Bounds are then in the units before the division.
        dtype: of the network's input. None: that of its first floating-point parameter or buffer, or float32.

    Attributes:
        vectors: state of the estimates, by graph node: the vectors with which the next power iteration starts.
        dtypes: of the floating-point values between the input and the logits.

    Raises:
        TypeError: for a network that is no module.
        ValueError: for an ``input_shape`` that is none; a network that cannot be traced, changes its buffers in
            evaluation mode, mixes the samples of a batch, or has another output, NaN or infinity; a ``std`` that is
            not positive or does not fit.
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
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: got {type(network).__name__}, expected a torch.nn.Module.")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype: got {dtype!r}, expected a floating-point type of torch, or None.")
        check_initialised(network)
        self.network = network
        self.dtype = dtype_of(network) if dtype is None else dtype
        self.input_shape = check_sizes("input_shape", input_shape)
        self.vectors: dict[str, Tensor] = {}
        self._static: dict[Hashable, Any] = {}
        self._std = None if std is None else _check_std(std, self.input_shape)
        self._analyse()

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        return self._trace.dtypes

    @property
    def computes_constants(self) -> bool:
        """Whether the logits need a constant that operations compute, such as a weight from a free parameter."""
        dependent, needed = set(self._trace.dependent_nodes()), select_needed(self._trace, ())
        made = (node for node in needed if node.op == "call_function" and node not in dependent)
        return any(node.target not in MOVES for node in made)

    def _analyse(self) -> None:
        """Make the graph; refuse a network without a bound, or one that computes something else than the graph."""
        self._trace = NetworkTrace(self.network, self.input_shape, self.dtype)
        with torch.no_grad():
            self._propagate(self._estimation())  # refuses now what has no rule; bounds wait until asked for
        self._parametrized = find_parametrized_weights(self._trace, self.network)
        with preserve(self.network), torch.no_grad():
            self.network.eval()
            samples = make_samples(self.network, self.input_shape, self.dtype)
            inner = [node for node in self._trace.dependent_nodes() if isinstance(node.meta.get("val"), Tensor)]
            check_graph(self.network, samples, lambda x: self.run(x, inner))

    def _refresh(self) -> None:
        """Trace again if a buffer or parameter has changed on which the graph's shape depends, such as a mask."""
        if not self._trace.is_current(self.network):
            self.vectors.clear()
            self._static.clear()
            self._analyse()

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
        # Index buffers may have changed since the last proven bound; an estimate uses the earlier ones.
        proof = Propagation(self.network, self.dtype, proven=True, static={})
        output = self._propagate(proof)
        bound = self._bound(output, proof)
        shares = self._shares(proof)
        operators = [replace(row, share=share) for row, share in zip(bound.operators, shares, strict=True)]
        return replace(bound, operators=tuple(operators), rounding=self._rounding(output, proof))

    def estimate(self, variances: Variances | None = None, *, cached: bool = False) -> NetworkBound:
        """The training estimate: differentiable in the parameters, not proven, usually below the proven bound.

        Each operator takes one step of power iteration from ``vectors``. Evaluation mode is assumed (no dropout).

        Args:
            variances: of the current batch, from `batch_variances`; modules without an entry, and None, use the
                running variance.
            cached: take parametrized weights from the modules, as the forward pass of the same step made them: within
                `torch.nn.utils.parametrize.cached`, they are then computed once.

        Raises:
            ValueError: for a module that was called less often than it stands in the graph.
        """
        self._refresh()
        estimation = self._estimation(variances, self._parametrized if cached else {})
        with torch.autocast(estimation.device.type, enabled=False):
            return self._bound(self._propagate(estimation), estimation)

    def run(self, x: Tensor, nodes: Sequence[Node] = ()) -> tuple[Tensor, Tensor]:
        """Run the graph itself, each sample by itself, with the network's current parameters and buffers.

        Args:
            x: [N, *input_shape], on the network's device, after the division by ``std``.
            nodes: of the graph.

        Returns:
            the logits [N, C], and the L2 norms [N, len(nodes)] of these nodes' values.
        """
        return run_graph(self._trace, self.network, x, nodes)

    def _estimation(
        self, variances: Variances | None = None, weights: ParametrizedWeights | None = None
    ) -> Propagation:
        return Propagation(
            self.network,
            self.dtype,
            proven=False,
            static=self._static,
            vectors=self.vectors,
            variances=variances,
            weights=weights,
        )

    def _propagate(self, propagation: Propagation) -> Any:
        return propagation.run(self._trace, self.input_shape, self._std)

    def _bound(self, output: Any, propagation: Propagation) -> NetworkBound:
        classes, proven = self._trace.classes, propagation.proven
        options: dict[str, Any] = {"device": propagation.device, "dtype": propagation.dtype}
        if not isinstance(output, Value):
            zeros = torch.zeros(classes, classes, **options)
            return NetworkBound(zeros.sum(), zeros, None, None)
        # Each bound so far is a chain of float64 sums, products and roots, each exact to 2**-53.
        up = ROUND_UP if proven else 1.0
        lipschitz = torch.as_tensor(output.bound, **options) * up
        if proven and not bool(torch.isfinite(lipschitz)):
            raise ValueError("network: its bound is infinite in float64, expected smaller weights.")
        operators = tuple(propagation.operators)
        logits = output
        while logits.same_differences is not None:
            logits = logits.same_differences
        if isinstance(logits.operator, Linear) and logits.parent is not None and logits.shape == (1, classes):
            before, weight = torch.as_tensor(logits.parent.bound, **options) * up, logits.operator.weight
            pairwise = bound_pairs(before, weight, proven=proven) * up
            return NetworkBound(lipschitz, pairwise, before, weight, operators)
        single = torch.as_tensor(logits.bound, **options) * up
        return NetworkBound(lipschitz, bound_pairs_without_rows(single, classes, up), None, None, operators)

    def _rounding(self, output: Any, proof: Propagation) -> Rounding:
        if not isinstance(output, Value) or proof.source is None:
            return Rounding()
        norms: dict[str, float] = {}
        for row in proof.operators:
            norms[row.node] = max(row.norm, norms.get(row.node, 0.0))
        return analyse_rounding(proof.operations, proof.source, self._trace.output, norms)

    def _shares(self, proof: Propagation) -> list[float]:
        """Each operator's share of the bound: the rules are applied again, with the proven norms as variables."""
        with torch.inference_mode(False), torch.enable_grad():
            norms = [
                torch.tensor(row.norm, dtype=torch.float64, device=proof.device, requires_grad=True)
                for row in proof.operators
            ]
            variable = Propagation(self.network, self.dtype, proven=True, static=proof.static, norms=iter(norms))
            output = self._propagate(variable)
            return share_bound(output.bound if isinstance(output, Value) else 0.0, norms)


def _check_std(std: Any, input_shape: tuple[int, ...]) -> Tensor:
    """Positive numbers that broadcast against one sample, as float64."""
    try:
        values = torch.as_tensor(std)
        fits = not values.is_complex() and values.dtype != torch.bool
        values = torch.as_tensor(std, dtype=torch.float64) if fits else values
        fits = fits and values.expand(input_shape).shape == input_shape
        fits = fits and bool((torch.isfinite(values) & (values > 0)).all())
    except (TypeError, ValueError, RuntimeError, OverflowError):  # no numbers, ragged lists, too large, no values
        fits = False
    if not fits:
        raise ValueError(f"std: got {std!r}, expected positive numbers that broadcast against {input_shape}.")
    for axis in range(values.dim()):
        first = values.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(values), values):
            values = first  # one number along this axis can be merged with what comes next
    return values
