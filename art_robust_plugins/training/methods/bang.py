"""BANG: Batch Adjusted Network Gradients (Rozsa, Guenther, Boult; arXiv 1612.00138; WACV 2018).

Samples that a network already classifies well contribute little to its gradient, so its decision boundaries stay close
to them. BANG raises their share. In the backward pass of a mini-batch, for every convolution and linear layer and with
g_i the gradient of the batch loss with respect to the layer's output for sample i:

    n_i = ||g_i||_2          s_i = (max_j n_j / n_i) ** (eps_i * (1 - n_i / max_j n_j))
    dW, db  are formed from  beta * s_i * g_i;  the layer's input receives the gradient of the unscaled g_i

with eps_i = epsilon for samples that this forward pass classifies correctly, and epsilon * ratio for the others.
Status: exact, as in the authors' released code. The cap on s_i, and layers other than plain convolutions and linear
ones, are ours.

BANG uses no adversarial images, and it can mask gradients: judge it with AutoAttack, never with FGSM alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ...checks import check_number, check_type, plain_number, to_float
from ...keywords import explain_keywords
from ...threat import ThreatModel
from ..instruments import (
    Instrument,
    LayerPattern,
    check_pattern,
    join_instruments,
    list_patterns,
    select_modules,
)
from ..instruments.misclassified import ForwardPass, ForwardPasses
from ..instruments.scaled_gradients import SCALABLE, check_scalable, replaced_forwards, scaled_forward
from ..options import TrainingOptions
from ..processes import Share
from ..trainer import RobustTrainer

Layers = Iterable[LayerPattern] | Mapping[LayerPattern, Mapping[str, float]]


def bang_factors(
    norms: Tensor, epsilon: float | Tensor, cap: float | None = None, largest: Tensor | None = None
) -> Tensor:
    """The factor s_i of each sample of a mini-batch.

    Args:
        norms: n_i >= 0, the norms of the samples' gradients at a layer's output, [N].
        epsilon: one exponent, or one for each sample, [N].
        cap: the largest factor allowed; None for no limit, as in the paper.
        largest: max_j n_j, a scalar, where ``norms`` are not those of the whole mini-batch.

    Returns:
        s_i >= 1, [N]; 1 where n_i = 0, since nothing is there to be scaled.

    Example:
        >>> bang_factors(torch.tensor([0.01, 0.1, 0.5, 1.0]), 0.815)
        tensor([41.0866,  5.4138,  1.3264,  1.0000])
    """
    largest = norms.max() if largest is None else largest
    factors = (largest / norms) ** (epsilon * (1 - norms / largest))
    factors = torch.where(norms > 0, factors, torch.ones_like(norms))
    return factors if cap is None else factors.clamp_max(cap)


@dataclass(frozen=True)
class BANGSetting:
    """beta, epsilon and ratio of one layer, each a non-negative number."""

    beta: float = 1.0
    epsilon: float = 0.815
    ratio: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, check_number(field.name, getattr(self, field.name), zero=True))
        check_number("epsilon * ratio", self.epsilon * self.ratio, zero=True)

    def replace(self, **values: float) -> BANGSetting:
        """A copy with some numbers replaced."""
        unknown = sorted(set(values) - {field.name for field in fields(self)})
        if unknown:
            raise ValueError(f"layers: got the setting {unknown[0]!r}, expected beta, epsilon or ratio.")
        return dataclasses.replace(self, **values)


class BANG(Instrument):
    """BANG as an instrument: attached to a network, it acts under any loss and in any trainer.

    Args:
        beta: multiplies the gradients of weights and biases (not weight decay); a layer with 0 is left alone.
        epsilon: the exponent; 0 leaves every s_i at 1.
        ratio: epsilon is multiplied by it for samples that are misclassified.
        layers: which layers are adjusted: None for every convolution (transposed ones too) and linear layer; a
            sequence of name patterns (``"features.*"``) and types (``nn.Linear``); or a mapping from these to the
            settings that differ there (``{"fc*": {"beta": 0.4}}``). The first pattern that fits counts; layers that
            none fits are trained plainly.
        cap: the largest s_i, at least 1; None for no limit, as in the paper. Without it s_i can pass 1e5 where p(y)
            rounds to 1, and the rounding of the loss gradient is amplified with it.

    Raises:
        ValueError: for a number outside its range or an unknown setting; when attached, for a pattern that no layer
            fits.

    Only modules are adjusted: weights that a network hands to ``torch.nn.functional`` itself (attention does) are
    trained plainly. A layer's samples are the entries of its input's first axis. In evaluation mode nothing changes.
    Gradients of gradients (gradient penalties) are not available through adjusted layers, and with a ``ratio`` other
    than 1 neither is activation checkpointing. Processes that train together by `RobustTrainer` find the largest norm
    of the whole batch, one number to be exchanged for each layer; in a loop of your own each has that of its own
    samples. One object serves one network at a time.
    """

    name: ClassVar[str] = "bang"

    def __init__(
        self,
        beta: float = 1.0,
        epsilon: float = 0.815,
        ratio: float = 1.0,
        *,
        layers: Layers | None = None,
        cap: float | None = None,
    ) -> None:
        self.setting = BANGSetting(beta, epsilon, ratio)
        self.layers: dict[LayerPattern, BANGSetting] | None = None
        if isinstance(layers, Mapping):
            for pattern, values in layers.items():
                check_pattern(pattern)
                if not isinstance(values, Mapping) or not all(isinstance(setting, str) for setting in values):
                    raise ValueError(f"layers: got {values!r} for {pattern!r}, expected a mapping of settings.")
            self.layers = {pattern: self.setting.replace(**values) for pattern, values in layers.items()}
            if not layers:
                raise ValueError("layers: got none, expected at least one name or type, or None for all layers.")
        elif layers is not None:
            self.layers = dict.fromkeys(list_patterns(layers) or (), self.setting)
        if cap is not None and to_float(cap) != math.inf:
            check_number("cap", cap)
        if cap is not None and not to_float(cap) >= 1:
            raise ValueError(f"cap: got {cap!r}, expected a number of at least 1, or None for no limit.")
        self.cap = plain_number(cap)
        self._passes = ForwardPasses()

    def __repr__(self) -> str:
        return f"BANG({self.setting}, layers={self.layers}, cap={self.cap})"

    def begin_step(self, y: Tensor) -> None:
        """Announce the labels of the next forward passes; they decide which samples are misclassified.

        int64 [N] or class probabilities [N, C]. A forward pass over k * N samples is read as k versions of this batch.
        """
        self._passes.labels = y.argmax(dim=1) if y.dim() == 2 else y

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[BANG]:
        """Adjust the gradients that backward passes through ``network`` give to its layers' parameters."""
        settings = self.adjusted_layers(network)
        handles = []
        if any(setting.ratio != 1 for setting in settings.values()):
            handles = self._passes.follow(network)
        forwards = {name: partial(self._forward_layer, setting) for name, setting in settings.items()}
        try:
            with replaced_forwards(network, forwards):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._passes = ForwardPasses()

    def adjusted_layers(self, network: nn.Module) -> dict[str, BANGSetting]:
        """The layers of ``network`` that are adjusted, by qualified name, with their settings."""
        check_type("network", network, nn.Module, "a torch.nn.Module")
        if self.layers is None:
            layers = {name: self.setting for name, module in network.named_modules() if isinstance(module, SCALABLE)}
            if not layers:
                raise ValueError("classifier: the network has no convolution or linear layer, expected at least one.")
        else:
            selected = select_modules(network, self.layers, SCALABLE)
            layers = {name: self.layers[pattern] for name, pattern in selected.items()}
        layers = {name: setting for name, setting in layers.items() if setting.beta != 0}
        check_scalable(network, layers)
        return layers

    def _forward_layer(
        self,
        setting: BANGSetting,
        module: nn.Module,
        plain: Callable[..., Tensor],
        input: Tensor,
        output_size: list[int] | None = None,
    ) -> Tensor:
        unadjusted = setting.epsilon == 0 and setting.beta == 1
        if unadjusted or not module.training or not torch.is_grad_enabled():
            return plain(input) if output_size is None else plain(input, output_size)
        if setting.ratio != 1 and self._passes.current is None:
            raise RuntimeError(
                "ratio: a layer was called outside a forward pass of the network (as activation checkpointing does), "
                "so its misclassified samples are unknown; expected ratio 1 there."
            )
        adjustment = _Adjustment(setting, self.cap, self._passes.current, self.share)
        return scaled_forward(module, adjustment, input, output_size)


@contextmanager
@explain_keywords
def bang_gradients(
    network: nn.Module,
    *,
    beta: float = 1.0,
    epsilon: float = 0.815,
    ratio: float = 1.0,
    layers: Layers | None = None,
    cap: float | None = None,
) -> Iterator[BANG]:
    """A context in which backward passes through ``network`` follow BANG, for a training loop of one's own.

    The arguments are those of `BANG`. With a ``ratio`` other than 1, announce each batch's labels to
    ``begin_step`` of the object that the context gives.

    Example:
        >>> from torch.nn import functional
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.rand(5, 4), torch.randint(0, 3, (5,))
        >>> with bang_gradients(network, beta=0.4, epsilon=0.855, ratio=0.5) as bang:
        ...     bang.begin_step(y)
        ...     nn.functional.cross_entropy(network(x), y).backward()
    """
    with BANG(beta, epsilon, ratio, layers=layers, cap=cap).attached(network) as bang:
        yield bang


class BANGTrainer(RobustTrainer):
    """Train an ART classifier with its own loss under BANG.

    Batch Adjusted Network Gradients (Rozsa, Guenther, Boult; arXiv 1612.00138), exact. A step costs the forward and
    the backward pass of plain training, plus the norms and the scaling of the layers' output gradients. The paper's
    settings: beta 1, epsilon 0.815, ratio 1 for LeNet on MNIST; beta 0.4, epsilon 0.855, ratio 0.5 for its CIFAR-10
    network.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer.
        beta, epsilon, ratio, layers, cap: see `BANG`.
        threat: when given, ``fit`` measures robust validation accuracy under it; it does not enter the training.
        instruments: further instruments, attached together with BANG.
        options: the training loop's settings.

    Raises:
        ValueError: for a number outside its range, or a layer pattern that fits nothing.

    Example:
        >>> from art.estimators.classification import PyTorchClassifier
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> x, y = torch.rand(32, 1, 4, 4), torch.randint(0, 3, (32,))
        >>> BANGTrainer(classifier, epsilon=0.855, ratio=0.5).fit(x, y, nb_epochs=2, verbose=False)
    """

    source: ClassVar[str] = "Rozsa, Guenther, Boult: Batch Adjusted Network Gradients, arXiv 1612.00138 (exact)"

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        beta: float = 1.0,
        epsilon: float = 0.815,
        ratio: float = 1.0,
        layers: Layers | None = None,
        cap: float | None = None,
        threat: ThreatModel | None = None,
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        bang = BANG(beta, epsilon, ratio, layers=layers, cap=cap)
        if layers is not None and not isinstance(layers, Mapping):
            layers = list(bang.layers or ())
        self.beta, self.epsilon, self.ratio = bang.setting.beta, bang.setting.epsilon, bang.setting.ratio
        self.layers, self.cap = layers, bang.cap
        super().__init__(classifier, threat=threat, instruments=join_instruments(bang, instruments), options=options)
        bang.adjusted_layers(classifier.model)

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss; BANG acts in its backward pass."""
        return self.loss(self.logits(x), y)


@dataclass(frozen=True)
class _Adjustment:
    """BANG's change of one layer's parameter gradients in one backward pass: beta * sum_i s_i * (...)_i."""

    setting: BANGSetting
    cap: float | None
    forward_pass: ForwardPass | None
    share: Share | None

    @property
    def beta(self) -> float:
        return self.setting.beta

    def factors(self, gradient: Tensor) -> Tensor:
        """s [N], in float32 at least, from the gradient of the layer's output [N, ...]."""
        precise = torch.promote_types(gradient.dtype, torch.float32)
        norms = torch.linalg.vector_norm(gradient, 2, dim=tuple(range(1, gradient.dim())), dtype=precise)
        largest = norms.max() if self.share is None else self.share.maximum(norms.max())
        epsilon, ratio = self.setting.epsilon, self.setting.ratio
        if self.forward_pass is None or ratio == 1:
            return bang_factors(norms, epsilon, self.cap, largest)
        exponents = torch.full_like(norms, epsilon).masked_fill(self.forward_pass.wrong, epsilon * ratio)
        return bang_factors(norms, exponents, self.cap, largest)
