"""`PyTorchLipschitzCertifier`: deterministic, proven L2 robustness of an ART classifier, from its Lipschitz constants.

Tsuzuku, Sato, Sugiyama: Lipschitz-Margin Training (arXiv 1802.04034, NeurIPS 2018). With K_tj a Lipschitz constant of
the difference f_t - f_j of two logits, and t the predicted class, no change of the input x that is shorter than

    radius(x) = min_{j != t} (f_t(x) - f_j(x)) / K_tj

changes the prediction. Status: exact, in the paper's "++" form K_tj = L_pre ||w_t - w_j|| where the last layer is
linear, else with K = sqrt(2) L. The constants are the proven ones of `LipschitzGraph`, for the network's whole graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor, nn

from ..bridge import (
    check_classifier,
    check_threat,
    clip_range,
    device_of,
    image_tensor,
    label_tensor,
    preprocessing_modules,
)
from ..checks import check_count
from ..network_outputs import check_outputs
from ..threat import ThreatModel, radius_of
from .agreement import DisagreementError, check_agreement, probes
from .graph import LipschitzGraph, NetworkBound, OperatorNorm, check_initialised
from .precision import check_precision
from .preprocessing import bounded_network
from .structure import describe_structure, tensors_of

ROUND_DOWN = 1 - 1e-9
"""Factor on every radius."""

DIFFERENCE = 1e-11
"""What a logit may differ by between the network and its graph besides the proven bound of rounding, as a share of the
largest logit: for constants that both compute from parameters."""

OWN_ROUNDING = 0.03
"""The same between float64 and the network's own precision, which may be that of TF32 or bfloat16."""

COMPARED = 32
"""On how many samples, spread over all that are certified, the network is compared with its graph; besides the first
batch."""

_Constants = tuple[Tensor, Tensor] | None
_T = TypeVar("_T")


@dataclass(frozen=True)
class LipschitzReport:
    """Which operators make a network's Lipschitz bound what it is; ``print`` shows a table.

    Attributes:
        operators: one entry for each linear operator, in the order of the network. In a chain of these and functions
            of slope 1, ``lipschitz`` is the product of their norms.
        lipschitz: the proven bound (L2) of all logits together, per unit of the estimator's input.
        largest_pair: the largest of the constants K of differences of two logits.
    """

    operators: tuple[OperatorNorm, ...]
    lipschitz: float
    largest_pair: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The operators as plain data, one dictionary each with the fields of `OperatorNorm`."""
        return [asdict(row) for row in self.operators]

    def __str__(self) -> str:
        table = [["module", "node", "kind", "input", "output", "norm", "proof", "share"]]
        for row in self.operators:
            shapes = ["x".join(map(str, shape)) for shape in (row.input_shape, row.output_shape)]
            table.append([row.module, row.node, row.kind, *shapes, f"{row.norm:.6g}", row.method, f"{row.share:+.1%}"])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
        bounds = f"all logits: {self.lipschitz:.6g}, difference of two: at most {self.largest_pair:.6g}"
        return "\n".join([*lines, bounds])


class PyTorchLipschitzCertifier(PyTorchClassifier):
    """An ART classifier that certifies its predictions: deterministic, proven L2 radii.

    Lipschitz-margin certificate of Tsuzuku, Sato, Sugiyama (arXiv 1802.04034, NeurIPS 2018), exact. In all else it
    is ART's ``PyTorchClassifier``: train it, attack it, ``predict`` with it.

    The certificate is that of a float64 copy of the network in evaluation mode; ``predict`` runs in float32 and may
    differ where two logits are closer than its rounding. ART's mean and standard deviation are part of it, and so are
    a `WeightMapPreprocessor` and what the network does to its input itself.

    Graph and bound are kept: a second certificate costs a forward pass in float64. They are made anew when layers,
    hooks, attributes or functions of the network change, and whenever these hold what cannot be compared (new weights
    alone need a new bound only). Before each answer the network as it is now must agree with the kept graph; where it
    does not, it is analysed anew, and refused if it then disagrees still.

    Args:
        model, loss, input_shape, nb_classes, ...: those of ``PyTorchClassifier``, in its order. See `from_classifier`
            for a classifier that is there already.

    Raises:
        ValueError: postprocessing defences, or preprocessing in ``predict`` that is neither ART's mean and standard
            deviation nor a `WeightMapPreprocessor`. With the first certificate: a network that cannot be bounded
            (`NoLipschitzRuleError`, by name), copied, traced or run in float64, or has other outputs than
            [N, nb_classes].

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> _ = nn.init.eye_(network[1].weight)
        >>> certifier = PyTorchLipschitzCertifier(network, nn.CrossEntropyLoss(), (1, 1, 2), 2, clip_values=(0, 1))
        >>> prediction, radius = certifier.certify(torch.tensor([[[[0.9, 0.2]]], [[[0.3, 0.4]]]]))
        >>> prediction, radius.round(4)  # the distance of a linear network's boundary is 0.7 / sqrt(2) for the first
        (array([0, 1]), array([0.495 , 0.0707]))
        >>> certifier.certified_accuracy([[[[0.9, 0.2]]], [[[0.3, 0.4]]]], [0, 1], eps="36/255")
        0.5
        >>> print(certifier.lipschitz_report())
        module  node    kind    input  output  norm  proof  share
        1       linear  Linear  2      2       1     svd    +100.0%
        all logits: 1, difference of two: at most 1.41421
    """

    source: ClassVar[str] = "Tsuzuku, Sato, Sugiyama: Lipschitz-Margin Training, arXiv 1802.04034 (exact)"

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        use_amp: bool = False,
        opt_level: str = "O1",
        loss_scale: float | str | None = "dynamic",
        channels_first: bool = True,
        clip_values: Any = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        device_type: str = "gpu",
    ) -> None:
        super().__init__(
            model,
            loss,
            input_shape,
            nb_classes,
            optimizer=optimizer,
            use_amp=use_amp,
            opt_level=opt_level,
            loss_scale=loss_scale,
            channels_first=channels_first,
            clip_values=clip_values,
            preprocessing_defences=preprocessing_defences,
            postprocessing_defences=postprocessing_defences,
            preprocessing=preprocessing,
            device_type=device_type,
        )
        self._analysis: _Analysis | None = None
        check_classifier(self)
        bounded_network(self)

    @classmethod
    def from_classifier(cls, classifier: PyTorchClassifier) -> PyTorchLipschitzCertifier:
        """A certifier of the same network: it shares the network, the loss, the optimizer and all settings.

        What trains one trains the other. The network stays on its device and in its mode.

        Raises:
            TypeError: for what is not an ART ``PyTorchClassifier``.
            ValueError: as the class, at once: the network is traced here.

        Example:
            >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 3, clip_values=(0, 1))
            >>> certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
            >>> certifier.model is network
            True
        """
        check_classifier(classifier)
        network: nn.Module = classifier.model
        device = device_of(network)
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"classifier: its network is on {device}, expected the CPU or a CUDA device.")
        # ART moves the network to the CPU or to the current GPU: let that be where it is.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            certifier = cls(
                network,
                classifier.loss,
                classifier.input_shape,
                classifier.nb_classes,
                optimizer=classifier.optimizer,
                opt_level=classifier.opt_level,
                loss_scale=classifier.loss_scale,
                channels_first=classifier.channels_first,
                clip_values=classifier.clip_values,
                preprocessing_defences=classifier.preprocessing_defences,
                postprocessing_defences=classifier.postprocessing_defences,
                preprocessing=classifier.preprocessing,
                device_type="cpu" if device.type == "cpu" else "gpu",
            )
        # The constructor would hand the network to apex a second time.
        certifier.set_params(use_amp=classifier.use_amp)
        certifier._analysed()
        return certifier

    def certify(
        self, x: Any, batch_size: int = 128, *, norm: str = "L2"
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The predicted classes, and radii within which no change of the input changes them.

        Radii are in the units of ``x``, before ART's preprocessing; a tie of two logits has radius 0. They are rounded
        down, and each margin is lessened first by the proven bound of rounding in the whole graph (`rounding`), twice:
        for the logits here, and for those that float64 computes elsewhere within the radius. Where rounding exceeds
        the margin nothing is proven, and the radius is 0. An infinite radius is one of exact arithmetic.

        The logits are those of the graph that the bound analyses. The network itself must agree with them, on a few
        samples that are always the same, on the first batch, and on 32 samples spread over all of ``x``.

        Args:
            x: inputs [N, *input_shape] in the estimator's range, an array or a tensor; taken as float32.
            batch_size: how many samples a forward pass takes.
            norm: of the changes: ``"L2"``; ``"L1"``, whose ball lies in the L2 ball of the same radius; ``"Linf"``,
                the L2 radius over the root of the number of features, which is loose.

        Returns:
            the predictions, int64 [N], and the radii, float64 [N], at least 0, infinite where no input changes them.

        Raises:
            ValueError: inputs of another shape or range, an unknown norm, a batch size that is not a positive whole
                number, logits or weights that are NaN or infinite; a network or preprocessing as in the class,
                or a network that computes something else than its graph.
        """
        norm = ThreatModel(norm, 1.0).norm
        batch_size = check_count("batch_size", batch_size)
        with _plain_mode(device_of(self.model)):
            images = image_tensor(x, self)
            prediction, radius = self._when_agreed(lambda analysis: analysis.certify(images, batch_size))
        if norm == "Linf":
            radius = radius / math.sqrt(math.prod(self.input_shape))
        return prediction.cpu().numpy(), radius.cpu().numpy()

    def certified_accuracy(self, x: Any, y: Any, eps: float | str, batch_size: int = 128, *, norm: str = "L2") -> float:
        """The share of samples that are classified correctly, with a radius of at least ``eps``.

        Args:
            x: inputs [N, *input_shape], as `certify` takes them.
            y: labels, as class indices [N] or one-hot rows [N, nb_classes].
            eps: the radius, in the units of ``x``: a number, or a fraction as text such as ``"36/255"``; 0 gives the
                plain accuracy of the float64 network.
            batch_size: as for `certify`.
            norm: as for `certify`.

        Returns:
            a number from 0 to 1.

        Raises:
            ValueError: as `certify`; labels that do not fit; an ``eps`` that is negative or not a number, or whose
                ball holds every input within ``clip_values``.
        """
        radius = radius_of(eps, zero=True)
        check_threat(ThreatModel(norm, 1.0), self, value=radius)
        images = image_tensor(x, self)
        labels = label_tensor(y, self.nb_classes, samples=len(images)).cpu().numpy()
        prediction, certified = self.certify(images, batch_size, norm=norm)
        return float(((prediction == labels) & (certified >= radius)).mean())

    def lipschitz_constants(self) -> NDArray[np.float64]:
        """K [nb_classes, nb_classes]: proven L2 Lipschitz constants of all differences of two logits.

        Per unit of the estimator's input, before ART's preprocessing; symmetric, with zeros on the diagonal.

        Raises:
            ValueError: a network or preprocessing as in the class, or weights that are NaN or infinite.
        """
        with _plain_mode(device_of(self.model)):
            pairwise = self._when_agreed(lambda analysis: analysis.bound.pairwise)
            constants: NDArray[np.float64] = pairwise.cpu().numpy().copy()
        return constants

    def lipschitz_report(self) -> LipschitzReport:
        """Which operators make the bound what it is: each one's proven norm, and its share.

        With e_i = d ln L / d ln norm_i, which is 1 in a chain and less in parallel branches, the share is
        e_i ln norm_i over the sum of all |e_j ln norm_j|. Norms below 1 shrink the bound: their share is negative.

        Raises:
            ValueError: as `lipschitz_constants`.
        """
        with _plain_mode(device_of(self.model)):
            bound = self._when_agreed(lambda analysis: analysis.bound)
            return LipschitzReport(bound.operators, float(bound.lipschitz), float(bound.pairwise.max()))

    def _analysed(self) -> _Analysis:
        """The analysis of the network as it is now."""
        check_classifier(self)
        network, constants = bounded_network(self)
        with _plain_mode(device_of(self.model)):
            if self._analysis is None or not self._analysis.fits(self, network, constants):
                self._analysis = None  # frees the old copy first
                self._analysis = _Analysis(self, network, constants)
            else:
                self._analysis.update(network)
        return self._analysis

    def _when_agreed(self, compute: Callable[[_Analysis], _T]) -> _T:
        """What an analysis gives that agrees with the network: a kept one, or a new one where that does not agree."""
        kept = self._analysis
        try:
            return self._checked(compute)
        except DisagreementError:
            if kept is None or self._analysis is not kept:
                raise
            self._analysis = None
            return self._checked(compute)

    def _checked(self, compute: Callable[[_Analysis], _T]) -> _T:
        analysis = self._analysed()
        analysis.check(bounded_network(self)[0])
        return compute(analysis)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_analysis": None}  # graphs cannot be pickled


class _Analysis:
    """A network's copy in float64, with the preprocessing that belongs to it, its graph, and its proven bound."""

    def __init__(self, classifier: PyTorchClassifier, network: nn.Module, constants: _Constants) -> None:
        check_initialised(network)
        self._parts = [classifier.model, *preprocessing_modules(classifier)]
        self._structure = describe_structure(network)
        self._shape, self._classes, self._constants = tuple(classifier.input_shape), classifier.nb_classes, constants
        low, high = clip_range(classifier)
        ends = [torch.as_tensor(default if end is None else end) for end, default in ((low, 0.0), (high, 1.0))]
        self._probes = probes(self._shape, *(end.to("cpu", torch.float64) for end in ends))
        self._network = _in_float64(network)
        self._bound: NetworkBound | None = None
        self._precise = False
        self._check_outputs()
        check_precision(network, self._shape)
        std = None if constants is None else constants[1].abs()
        self._graph = LipschitzGraph(self._network, self._shape, std=std, dtype=torch.float64)
        others = self._graph.dtypes - {torch.float64}
        if others:
            raise ValueError(
                f"classifier: the network in float64 still computes in {min(map(str, others))}, expected one that "
                f"converts to no data type of its own."
            )

    def fits(self, classifier: PyTorchClassifier, network: nn.Module, constants: _Constants) -> bool:
        """Whether all but the values of weights and buffers is as it was, as far as it can be compared."""
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
        """Take over the network as it is now: weights, buffers, and what its forward reads."""
        twin = _in_float64(network)
        pairs = zip(tensors_of(self._network), tensors_of(twin), strict=True)
        changed = [(mine != live).any() for mine, live in pairs]
        if changed and bool(torch.stack(changed).any()):
            self._bound = None
        self._network = self._graph.network = twin

    @property
    def bound(self) -> NetworkBound:
        if self._bound is None:
            self._bound = self._graph.upper_bound()
        return self._bound

    def check(self, network: nn.Module) -> None:
        """Compare graph and network on the same few samples, and once the network with itself in its own precision.

        Raises:
            DisagreementError: they differ by more than rounding.
        """
        logits, errors = self.logits(self._probes)
        check_agreement(self._network, self._inputs(self._probes), logits, _allowance(logits, errors))
        if self._precise:
            return
        own = _copied(network).eval()
        dtype = next((part.dtype for part in tensors_of(own) if part.is_floating_point()), torch.float32)
        outputs = own(self._inputs(self._probes).to(dtype)).double()
        growth = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
        tolerance = OWN_ROUNDING * float(logits.abs().max()) + growth * float(errors.max())
        difference = float((outputs - logits).abs().max())
        if difference > tolerance:
            raise DisagreementError(
                f"classifier: the network in {dtype} computes outputs that differ by {difference:.3g} from those in "
                f"float64, expected the same but for rounding."
            )
        self._precise = True

    def certify(self, x: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """The predicted classes and the L2 radii of samples in the estimator's range.

        Raises:
            ValueError: logits that are NaN or infinite.
            DisagreementError: the network computes other logits than its graph.
        """
        bound = self.bound
        parts = [self.logits(x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        logits, errors = (torch.cat(part) for part in zip(*parts, strict=True))
        if not bool(logits.isfinite().all()):
            raise ValueError("x: the network's logits for it hold NaN or infinity, expected finite numbers.")
        allowance = _allowance(logits, errors)
        spread = torch.linspace(0, len(x) - 1, min(len(x), COMPARED)).long()
        for chosen in (torch.arange(min(len(x), batch_size)), spread):
            check_agreement(self._network, self._inputs(x[chosen]), logits[chosen], allowance[chosen])
        prediction = logits.argmax(dim=1)
        margins = (logits.gather(1, prediction[:, None]) - logits - 2 * allowance).clamp_min(0)
        # The same holds for logits that are computed elsewhere within the radius, where rounding may be larger.
        constants = bound.pairwise[prediction]
        constants = torch.where(constants > 0, constants + 4 * bound.rounding.slope, constants)
        # A difference that does not depend on the input never limits the radius, unless it is 0.
        radii = torch.where(margins > 0, margins / constants, 0.0)
        return prediction, radii.scatter(1, prediction[:, None], math.inf).amin(dim=1) * ROUND_DOWN

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The graph's logits [N, nb_classes], each sample alone, and bounds [N] of their errors by rounding."""
        rounding = self.bound.rounding
        logits, norms = self._graph.run(self._inputs(x), rounding.nodes)
        return logits, rounding.errors(norms)

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
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"classifier: the network in float64 fails on inputs (2, {', '.join(map(str, self._shape))}) "
                f"({type(error).__name__}: {reason}), expected one of this input_shape, without a data type of its own."
            ) from error
        check_outputs(
            outputs,
            self._classes,
            single=False,
            otherwise="nn.Linear(1, 2) after it, with weight [[0], [1]] and bias 0, gives the two logits of one output",
        )


def _allowance(logits: Tensor, errors: Tensor) -> Tensor:
    """[N, 1]: how far a logit may lie from that of another evaluation of the same network in float64."""
    allowance = 2 * errors + DIFFERENCE * logits.abs().amax(dim=1)
    return allowance.nan_to_num(nan=math.inf, posinf=math.inf)[:, None]


@contextmanager
def _plain_mode(device: torch.device) -> Iterator[None]:
    """No gradients, and nothing of the caller's modes: inference tensors or mixed precision."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _in_float64(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode."""
    twin = _copied(network)
    twin.zero_grad(set_to_none=True)
    return twin.double().eval()


def _copied(network: nn.Module) -> nn.Module:
    # Weights that a hook computes (weight normalisation, pruning) are results with a history, which cannot be copied.
    results = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(network, {id(value): value.detach().clone() for value in results})
    except Exception as error:  # whatever the network's attributes raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"classifier: the network cannot be copied ({type(error).__name__}: {reason}), expected one that "
            f"copy.deepcopy copies."
        ) from error
