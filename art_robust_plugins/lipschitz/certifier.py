"""`PyTorchLipschitzCertifier`: deterministic, proven L2 robustness of an ART classifier, from its Lipschitz constants.

Tsuzuku, Sato, Sugiyama: Lipschitz-Margin Training (arXiv 1802.04034, NeurIPS 2018). The formula is `certify_logits`, in
`certificate`; its constants are the proven ones of `LipschitzGraph`, for the network's whole graph: `bound_pairs`, in
`network_bound`. A `NetworkAnalysis` is kept from one call to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import nn

from ..bridge import check_classifier, check_threat, device_of, image_tensor, label_tensor
from ..checks import check_count
from ..keywords import KnownKeywords, explain_keywords
from ..threat import ThreatModel, parse_radius
from .agreement import DisagreementError
from .analysis import NetworkAnalysis, plain_mode
from .parametrized import fix_weights, is_parametrized
from .preprocessing import find_bounded_network
from .report import LipschitzReport

_T = TypeVar("_T")


class PyTorchLipschitzCertifier(PyTorchClassifier, KnownKeywords):
    """An ART classifier that certifies its predictions: deterministic, proven L2 radii.

    Lipschitz-margin certificate of Tsuzuku, Sato, Sugiyama (arXiv 1802.04034, NeurIPS 2018), exact. Otherwise it is
    ART's ``PyTorchClassifier``: train it, attack it, ``predict`` with it.

    The certificate is that of a float64 copy of the network in evaluation mode; ``predict`` runs in float32 and may
    differ where two logits are closer than its rounding. ART's mean and standard deviation are part of it, and so are
    a `WeightMapPreprocessor` and what the network does to its input itself.

    Graph and bound are kept: a second certificate costs a forward pass in float64. The network is analysed again when
    its layers, hooks, attributes or functions change, or hold values that cannot be compared (new weights alone only
    need a new bound). Before each answer the current network must agree with the kept graph; if it does not, it is
    analysed again, and refused if it still disagrees.

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
        self._analysis: NetworkAnalysis | None = None
        self._computed: NetworkAnalysis | None = None
        check_classifier(self)
        find_bounded_network(self)

    def __repr__(self) -> str:
        network = type(self.model).__name__
        return f"PyTorchLipschitzCertifier({network}, input {self.input_shape}, {self.nb_classes} classes)"

    @classmethod
    @explain_keywords
    def from_classifier(cls, classifier: PyTorchClassifier) -> PyTorchLipschitzCertifier:
        """A certifier of the same network: it shares the network, the loss, the optimizer and all settings.

        Training one of them trains both. The network stays on its device and in its mode.

        Raises:
            TypeError: for anything but an ART ``PyTorchClassifier``.
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
        certifier._analyse()
        return certifier

    @explain_keywords
    def certify(
        self, x: Any, batch_size: int = 128, *, norm: str = "L2"
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The predicted classes, and radii within which no change of the input changes them.

        Radii are in the units of ``x``, before ART's preprocessing; a tie of two logits has radius 0. They are rounded
        down, after twice the proven bound of rounding in the whole graph (`rounding`) is subtracted from each margin:
        once for the logits here, and once for those that float64 computes elsewhere within the radius. If rounding
        exceeds the margin, nothing is proven and the radius is 0. An infinite radius holds in exact arithmetic.

        The logits are those of the graph that the bound analyses. The network itself must agree with them, on a few
        samples that are always the same, on the first batch, and on 32 samples spread over all of ``x``.

        Args:
            x: inputs [N, *input_shape] in the estimator's range, an array or a tensor; taken as float32.
            batch_size: samples in a forward pass.
            norm: of the changes: ``"L2"``; ``"L1"``, whose ball lies in the L2 ball of the same radius; ``"Linf"``,
                the L2 radius over the root of the number of features, which is loose.

        Returns:
            the predictions, int64 [N], and the radii, float64 [N], at least 0, infinite where no input changes them.

        Raises:
            ValueError: inputs of another shape or range, an unknown norm, a batch size that is not a positive whole
                number, logits or weights that are NaN or infinite; a network or preprocessing as in the class,
                or a network that disagrees with its graph.
        """
        scale = self._radius_in(norm)
        batch_size = check_count("batch_size", batch_size)
        with plain_mode(device_of(self.model)):
            images = image_tensor(x, self)
            prediction, radius = self._answer(lambda analysis: analysis.certify(images, batch_size))
        return prediction.cpu().numpy(), radius.cpu().numpy() * scale

    @explain_keywords
    def certify_as_computed(
        self, x: Any, batch_size: int = 128, *, norm: str = "L2"
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """What `certify` returns, and radii within which the network as it computes itself keeps its class.

        The radii of `certify` are those of exact arithmetic and of float64. The network itself computes in its own
        data type, and where two logits are close, its rounding can change the class within such a radius. The third
        array counts this rounding: the bound of `certify` for that data type (for TF32 or bfloat16 where torch's
        settings allow these in products of float32), of the weights as parametrizations give them in that data type.
        It is 0 where this rounding is not bounded: for networks that compute weights from parameters in their forward,
        with several standardisations, with subnormal weights, or whose values come near the data type's largest number.
        As elsewhere, algorithms for products that are no sums of products, such as Winograd's, are left out.

        Args: as for `certify`. Raises: as `certify`.

        Returns:
            the predictions, int64 [N], the radii of `certify`, float64 [N], and those with the network's rounding,
            float64 [N], none larger.

        Example:
            >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
            >>> certifier = PyTorchLipschitzCertifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 2, clip_values=(0, 1))
            >>> prediction, exact, computed = certifier.certify_as_computed(np.zeros((3, 1, 2, 2)))
            >>> bool((computed <= exact).all())
            True
        """
        prediction, exact = self.certify(x, batch_size, norm=norm)
        steps = [step for step in self.preprocessing_operations if step.apply_predict]
        if len([step for step in steps if not _is_identity(step)]) > 1:
            return prediction, exact, np.zeros_like(exact)
        with plain_mode(device_of(self.model)):
            images, network = image_tensor(x, self), find_bounded_network(self)[0]
            twin = fix_weights(network)
            analysis = self._analyse_computed(twin) if is_parametrized(network) else self._analyse()
            found, radius = analysis.certify_as_computed(images, batch_size, twin)
        computed = radius.cpu().numpy() * self._radius_in(norm)
        # A class that the two data types disagree on has no margin that counts.
        return prediction, exact, np.where(found.cpu().numpy() == prediction, np.minimum(exact, computed), 0.0)

    @explain_keywords
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
        radius = parse_radius(eps, zero=True)
        images = image_tensor(x, self)
        check_threat(ThreatModel(norm, 1.0), self, value=radius, x=images)
        labels = label_tensor(y, self.nb_classes, samples=len(images)).cpu().numpy()
        prediction, certified = self.certify(images, batch_size, norm=norm)
        return float(((prediction == labels) & (certified >= radius)).mean())

    def lipschitz_constants(self) -> NDArray[np.float64]:
        """K [nb_classes, nb_classes]: proven L2 Lipschitz constants of all differences of two logits.

        Per unit of the estimator's input, before ART's preprocessing; symmetric, with zeros on the diagonal.

        Raises:
            ValueError: a network or preprocessing as in the class, or weights that are NaN or infinite.
        """
        with plain_mode(device_of(self.model)):
            pairwise = self._answer(lambda analysis: analysis.bound.pairwise)
            constants: NDArray[np.float64] = pairwise.cpu().numpy().copy()
        return constants

    def lipschitz_report(self) -> LipschitzReport:
        """The linear operators that determine the bound, each with its proven norm and its share.

        With e_i = d ln L / d ln norm_i, which is 1 in a chain and less in parallel branches, the share is
        e_i ln norm_i over the sum of all |e_j ln norm_j|. Norms below 1 shrink the bound: their share is negative.

        Raises:
            ValueError: as `lipschitz_constants`.
        """
        with plain_mode(device_of(self.model)):
            bound = self._answer(lambda analysis: analysis.bound)
            return LipschitzReport(bound.operators, float(bound.lipschitz), float(bound.pairwise.max()))

    def _radius_in(self, norm: str) -> float:
        """The radius of the largest ball of this norm in the L2 ball of radius 1."""
        return 1 / math.sqrt(math.prod(self.input_shape)) if ThreatModel(norm, 1.0).norm == "Linf" else 1.0

    def _analyse(self) -> NetworkAnalysis:
        """Analyse the current network."""
        check_classifier(self)
        network, constants = find_bounded_network(self)
        with plain_mode(device_of(self.model)):
            if self._analysis is None or not self._analysis.fits(self, network, constants):
                self._analysis = None  # frees the old copy first
                self._analysis = NetworkAnalysis(self, network, constants)
            else:
                self._analysis.update(network)
        return self._analysis

    def _analyse_computed(self, twin: nn.Module) -> NetworkAnalysis:
        """Analyse the network with the weights that its parametrizations give in its own data type."""
        constants = find_bounded_network(self)[1]
        if self._computed is None or not self._computed.fits(self, twin, constants):
            self._computed = NetworkAnalysis(self, twin, constants)
        else:
            self._computed.update(twin)
        return self._computed

    def _answer(self, compute: Callable[[NetworkAnalysis], _T]) -> _T:
        """Answer from the kept analysis if the network agrees with it, else from a new one."""
        kept = self._analysis
        try:
            return self._check_and_compute(compute)
        except DisagreementError:
            if kept is None or self._analysis is not kept:
                raise
            self._analysis = None
            return self._check_and_compute(compute)

    def _check_and_compute(self, compute: Callable[[NetworkAnalysis], _T]) -> _T:
        analysis = self._analyse()
        analysis.check(find_bounded_network(self)[0])
        return compute(analysis)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_analysis": None, "_computed": None}  # graphs cannot be pickled


def _is_identity(step: Any) -> bool:
    """Whether a standardisation is that by 0 and 1, which ART adds."""
    return bool(np.all(np.asarray(step.mean) == 0) and np.all(np.asarray(step.std) == 1))
