"""A certifier's analysis of a network: a float64 copy, its graph and bound, and checks that they are up to date."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..bridge import check_outputs, clip_range, copy_network, device_of, preprocessing_modules
from ..checks import describe_error
from .agreement import check_agreement, check_own_precision, find_rounding_growth, make_probes
from .certificate import certify_logits
from .graph import LipschitzGraph
from .network_bound import NetworkBound
from .norms.proving import proof_settings
from .precision import check_precision
from .structure import describe_structure
from .tensors import check_initialised, dtypes_of, tensors_of

DIFFERENCE = 1e-11
"""The tolerated difference of a logit between network and graph, beyond the proven bound of rounding, as a ratio of the
largest logit: for constants that both compute from parameters."""

COMPARED = 32
"""The number of samples, spread over all that are certified, on which network and graph are compared, in addition to
the first batch."""

_HEADROOM = 1e-6
"""The share of a data type's largest number that no value's norm may reach where its rounding is to be bounded."""

Constants = tuple[Tensor, Tensor] | None
"""The mean and standard deviation that are applied before the network."""


class NetworkAnalysis:
    """A network's copy in float64, with the preprocessing that belongs to it, its graph, and its proven bound.

    Raises:
        ValueError: for a network that cannot be copied, run in float64, traced or bounded.
    """

    def __init__(self, classifier: PyTorchClassifier, network: nn.Module, constants: Constants) -> None:
        check_initialised(network)
        self._parts = [classifier.model, *preprocessing_modules(classifier)]
        self._structure = describe_structure(network)
        self._shape, self._classes, self._constants = tuple(classifier.input_shape), classifier.nb_classes, constants
        low, high = clip_range(classifier)
        ends = [torch.as_tensor(default if end is None else end) for end, default in ((low, 0.0), (high, 1.0))]
        self._probes = make_probes(self._shape, *(end.to("cpu", torch.float64) for end in ends))
        self._network = _copy_in_float64(network)
        self._bound: NetworkBound | None = None
        self._proven_with = proof_settings()
        self._precise = False
        self._check_outputs()
        check_precision(copy_network(network).eval(), self._shape)
        std = None if constants is None else constants[1].abs()
        self._graph = LipschitzGraph(self._network, self._shape, std=std, dtype=torch.float64)
        others = self._graph.dtypes - {torch.float64}
        if others:
            raise ValueError(
                f"classifier: the network in float64 still computes in {min(map(str, others))}, expected one that "
                f"converts to no data type of its own."
            )

    def fits(self, classifier: PyTorchClassifier, network: nn.Module, constants: Constants) -> bool:
        """Whether everything but the values of weights and buffers is unchanged, as far as it can be compared."""
        parts = [classifier.model, *preprocessing_modules(classifier)]
        if parts != self._parts or (constants is None) != (self._constants is None):
            return False
        if constants is not None and self._constants is not None:
            for now, then in zip(constants, self._constants, strict=True):
                if not torch.equal(now, then):
                    return False
        return (tuple(classifier.input_shape), classifier.nb_classes) == (self._shape, self._classes) and (
            describe_structure(network) == self._structure
        )

    def update(self, network: nn.Module) -> None:
        """Copy the network's current weights, buffers, and other values that its forward reads."""
        twin = _copy_in_float64(network)
        pairs = zip(tensors_of(self._network), tensors_of(twin), strict=True)
        changed = [(mine != live).any() for mine, live in pairs]
        if changed and bool(torch.stack(changed).any()):
            self._bound = None
        self._network = self._graph.network = twin

    @property
    def bound(self) -> NetworkBound:
        """The proven bound for the current weights; proven anew where `configure_proofs` now allows a tighter one."""
        settings, kept = proof_settings(), self._bound
        if kept is not None and any(row.method == "grid" for row in kept.operators):
            kept = None if settings.allows_more(self._proven_with, device_of(self._network)) else kept
        if kept is None:
            kept = self._bound = self._graph.upper_bound()
            self._proven_with = settings
        return kept

    def check(self, network: nn.Module) -> None:
        """Compare graph and network on the same few samples, and once the network with itself in its own precision.

        Raises:
            DisagreementError: they differ by more than rounding.
        """
        logits, errors, _ = self._run(self._probes)
        inputs = self._inputs(self._probes)
        check_agreement(self._network, inputs, logits, _tolerance(logits, errors))
        if not self._precise:
            check_own_precision(copy_network(network).eval(), inputs, logits, errors)
            self._precise = True

    def certify(self, x: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """The predicted classes and the L2 radii of samples in the estimator's range.

        Raises:
            ValueError: logits that are NaN or infinite.
            DisagreementError: the network computes other logits than its graph.
        """
        logits, errors, _ = self._checked_logits(x, batch_size)
        return certify_logits(logits, self.bound.pairwise, _tolerance(logits, errors), self.bound.rounding.slope)

    def certify_as_computed(self, x: Tensor, batch_size: int, network: nn.Module) -> tuple[Tensor, Tensor]:
        """The predicted classes, and the radii within which the network, as it computes itself, keeps them.

        Args:
            x: samples in the estimator's range.
            batch_size: of a pass.
            network: the analysed one, in evaluation mode and in its own data type, with weights that are numbers.
        """
        logits, errors, largest = self._checked_logits(x, batch_size)
        growth, limits = find_rounding_growth(network), [torch.finfo(dtype) for dtype in dtypes_of(network)]
        pairwise, rounding = self.bound.pairwise, self.bound.rounding
        own = growth * errors + rounding.underflow * max(limit.tiny for limit in limits)
        own = torch.where(largest < _HEADROOM * min(limit.max for limit in limits), own, math.inf)
        if self._graph.computes_constants or _holds_subnormal(network):  # whose rounding the graph does not show
            own = torch.full_like(own, math.inf)
        # Logits whose difference is constant round differently in different places all the same.
        varying = pairwise.clamp(min=torch.finfo(pairwise.dtype).tiny)
        wider = _tolerance(logits, errors) + own[:, None].nan_to_num(nan=math.inf, posinf=math.inf)
        return certify_logits(logits, varying, wider, (1 + growth) * rounding.slope)

    def _checked_logits(self, x: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The graph's logits, finite, bounds of their errors, and each sample's largest norm of a value.

        They are compared with the network's on some samples.
        """
        parts = [self._run(some) for some in torch.split(x, batch_size)]
        logits, errors, largest = (torch.cat(part) for part in zip(*parts, strict=True))
        if not bool(logits.isfinite().all()):
            raise ValueError("x: the network's logits for it hold NaN or infinity, expected finite numbers.")
        tolerance = _tolerance(logits, errors)
        spread = torch.linspace(0, len(x) - 1, min(len(x), COMPARED)).long()
        for chosen in (torch.arange(min(len(x), batch_size)), spread):
            check_agreement(self._network, self._inputs(x[chosen]), logits[chosen], tolerance[chosen])
        return logits, errors, largest

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The graph's logits, of each sample alone, bounds of their errors, and the largest norm of a rounded value."""
        rounding = self.bound.rounding
        logits, norms = self._graph.run(self._inputs(x), rounding.nodes)
        largest = norms.amax(dim=1) if norms.shape[1] else torch.zeros_like(logits[:, 0])
        return logits, rounding.errors(norms), largest

    def _inputs(self, x: Tensor) -> Tensor:
        """[N, *input_shape] of the estimator -> float64 as the network takes them, on its device."""
        x = x.to(device_of(self._network), torch.float64)
        if self._constants is None:
            return x
        mean, std = (constant.to(x.device) for constant in self._constants)
        return (x - mean) / std

    def _check_outputs(self) -> None:
        try:
            outputs = self._network(self._inputs(torch.zeros(2, *self._shape)))
        except Exception as error:  # whatever the network raises
            raise ValueError(
                f"classifier: the network in float64 fails on inputs (2, {', '.join(map(str, self._shape))}) "
                f"({describe_error(error)}), expected one of this input_shape, without a data type of its own."
            ) from error
        check_outputs(
            outputs,
            self._classes,
            single=False,
            otherwise="nn.Linear(1, 2) after it, with weight [[0], [1]] and bias 0, gives the two logits of one output",
        )


def _holds_subnormal(network: nn.Module) -> bool:
    """Whether a weight or buffer has numbers so small that a device may take them for 0."""
    held = (tensor for tensor in tensors_of(network) if tensor.is_floating_point())
    return any(bool(((tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)).any()) for tensor in held)


def _tolerance(logits: Tensor, errors: Tensor) -> Tensor:
    """[N, 1]: how far a logit may lie from that of another evaluation of the same network in float64."""
    tolerance = 2 * errors + DIFFERENCE * logits.abs().amax(dim=1)
    return tolerance.nan_to_num(nan=math.inf, posinf=math.inf)[:, None]


@contextmanager
def plain_mode(device: torch.device) -> Iterator[None]:
    """A context without gradients, and without the caller's inference mode and mixed precision."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _copy_in_float64(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode."""
    twin = copy_network(network)
    twin.zero_grad(set_to_none=True)
    return twin.double().eval()
