"""Layerwise adversarial training (Sankaranarayanan, Jain, Chellappa, Lim; arXiv 1705.07819; AAAI 2018).

The activations of several layers are perturbed, each sample's along the gradient that a sample of another class had
there in the previous mini-batch. With h_l the output of layer l, and R_l = 0 before the first step:

    forward:   h~_l = h_l + eps_l * sign(R_l[pairing])        in training mode only; R_l is a constant
    backward:  R_l <- dLoss / dh_l of this mini-batch

Status: abstract and introduction of the paper were read: activations are perturbed with gradients of the previous
mini-batch, taken from samples of a different class, without adversarial images and at no significant extra cost. The
sign, and one forward and one backward pass per step, are recalled. Ours are: the pairing, which assigns gradients of
another class to as many samples as possible, and no gradient twice; eps_l = eps * (running mean of |h_l|); the default
layers; the handling of batches of another size and of several passes in one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ...checks import check_flag, check_number, check_type, plain_number
from ...keywords import explain_keywords
from ...threat import ThreatModel
from ..instruments import Instrument, LayerPattern, join_instruments, list_patterns, select_modules
from ..instruments.blocks import CONVOLUTIONS, NORMALISATIONS, ConvolutionBlocks
from ..instruments.gradient_store import GradientStore
from ..instruments.signs import PackedSigns
from ..memory_format import layout_of
from ..options import TrainingOptions
from ..trainer import RobustTrainer

MOMENTUM = 0.5
"""Weight of the newest value in the running mean of |h_l|; the first value starts it."""

MEASURED_EVERY = 10
"""Steps between two updates of the running mean: measuring costs as much as perturbing."""

_SAVE_NO_OUTPUT = {*CONVOLUTIONS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm}
"""Types of modules whose backward pass does not need their output, so that it may be changed in place."""


def perturb(h: Tensor, gradients: PackedSigns, pairing: Tensor, weights: Tensor, eps: float) -> None:
    """h~_l = h_l + eps_l * sign(R_l[pairing]), in place.

    Args:
        h: the layer's output, [N, ...].
        gradients: the signs of R_l, of M samples.
        pairing: the sample of R_l that each sample of h is paired with, int64 [N].
        weights: eps_l / eps for each sample, [N]; 0 for a sample without a partner.
        eps: a non-negative number.
    """
    signs = gradients.unpack(pairing).to(h.dtype)
    h.addcmul_(signs, weights.view(-1, *[1] * (h.dim() - 1)), value=eps)


class Layerwise(Instrument):
    """Layerwise adversarial perturbation as an instrument: it acts under any loss and in any trainer.

    Args:
        eps: length of the perturbation, non-negative: a multiple of the running mean of |h_l| over a layer's whole
            output, or an absolute number. 0 leaves training as it is, to the last bit.
        layers: whose outputs are perturbed: name patterns (``"features.*"``) and types of modules (``nn.ReLU``). None
            for the convolutional blocks: each convolution's output, or where a normalisation (of batches, groups,
            instances or layers) takes that output directly, the normalisation's, as seen in the first step.
        relative: whether eps is a multiple of the running mean, which is updated with weight 0.5 in every tenth step.

    Raises:
        ValueError: for a setting outside its range; when attached, for a pattern that no module fits, or for no
            convolution in the network and no ``layers``; in a forward pass, for a layer whose output is not a
            floating-point tensor.
        RuntimeError: in a forward pass, when no labels are known, for a number of samples that does not fit them, for
            outputs of another shape than before, and in activation checkpointing.

    Samples are the entries of the first axis of a layer's output; a pass over m * N samples, where N labels were
    announced, is read as m copies of the batch. All passes of one step carry the same perturbations, so that a loss
    that compares passes (as TRADES does) compares inputs; R_l is of the first pass that the loss depends on. The
    k-th call of a layer in a pass uses the gradient of its k-th call. Calls in evaluation mode and without
    gradients are neither perturbed nor counted, nor are layers whose output needs no gradient, such as frozen ones.
    A small batch replaces the store like any other: in the next batch only as many samples are perturbed as it has
    gradients for; slots are assigned as in `other_class_slots`. A step without a backward pass keeps the store.

    Of a gradient only the sign is kept, in two bits a number; `state_dict` holds it too, in a byte. Processes that
    train together by `RobustTrainer` exchange the signs before each batch, and each keeps those of the whole batch. One
    object serves one network at a time, and forgets everything when its context ends.
    """

    name: ClassVar[str] = "layerwise"

    def __init__(
        self, eps: float = 0.3, *, layers: LayerPattern | Iterable[LayerPattern] | None = None, relative: bool = True
    ) -> None:
        check_number("eps", eps, zero=True)
        check_flag("relative", relative)
        self.eps, self.relative = float(eps), relative
        self.layers = list_patterns(layers)
        self.current: GradientStore | None = None
        self.previous: GradientStore | None = None
        self._means: dict[str, Tensor] = {}
        self._chosen: set[str] | None = None  # the default layers, once they are known
        self._blocks = ConvolutionBlocks()

    def __repr__(self) -> str:
        return f"Layerwise(eps={self.eps}, layers={self.layers}, relative={self.relative})"

    def begin_step(self, y: Tensor) -> None:
        """Announce the labels of the next passes: int64 [N], or class probabilities [N, C], whose largest counts."""
        if y.dim() not in (1, 2) or (y.dim() == 2 and y.shape[1] < 2):
            raise ValueError(f"y: got labels of shape {tuple(y.shape)}, expected (N,) or (N, C) with C > 1.")
        self._settle_layers()
        if self.current is not None and self.current.signs:
            self.current.gather()
            self.previous = self.current
        labels = (y.argmax(dim=1) if y.dim() == 2 else y).detach().to(torch.int64, copy=True)
        if self.share is not None:
            labels = self.share.gather(labels)
        number = 0 if self.previous is None else self.previous.number + 1
        self.current = GradientStore(labels, number, share=self.share)

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[Layerwise]:
        """Perturb the layers of ``network`` in its forward passes, and record gradients in its backward passes."""
        handles = []
        try:
            candidates = self.candidate_layers(network)
            stored = {name for name, _ in self.previous.signs} if self.previous is not None else set()
            strange = sorted((stored | set(self._means)) - set(candidates))
            if strange:
                raise ValueError(f"state: got the layer {strange[0]!r}, expected those that {self} perturbs here.")
            if self.eps > 0:
                for name, module in candidates.items():
                    handles.append(module.register_forward_hook(partial(self._after_layer, network, name)))
                handles.append(network.register_forward_pre_hook(lambda root, _: self._begin_pass(root.training)))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._forget()

    def candidate_layers(self, network: nn.Module) -> dict[str, nn.Module]:
        """The layers of ``network`` that ``layers`` names; for None all convolutions and normalisations."""
        check_type("network", network, nn.Module, "a torch.nn.Module")
        modules = dict(network.named_modules())
        if self.layers is not None:
            return {name: modules[name] for name in select_modules(network, self.layers, (nn.Module,))}
        if not any(isinstance(module, CONVOLUTIONS) for module in modules.values()):
            raise ValueError("layers: got None for a network without convolutions, expected names or types of layers.")
        kinds = (*CONVOLUTIONS, *NORMALISATIONS)
        return {name: module for name, module in modules.items() if isinstance(module, kinds)}

    def state_dict(self) -> dict[str, Tensor]:
        """The state that the next step uses.

        ``labels`` of the slots, int64 [N]; ``sign:k:name``, the signs of their gradients at call k of a layer, int8
        [m * N, ...]; ``layer:name``, a layer's running mean of |h_l| (NaN for none); ``number`` of the step.
        """
        self._settle_layers()
        state = {f"layer:{name}": torch.tensor(torch.nan) for name in self._chosen or ()}
        state |= {f"layer:{name}": mean.clone() for name, mean in self._means.items()}
        last = self.current if self.current is not None and self.current.signs else self.previous
        if last is not None:
            last.gather()
            state |= last.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an earlier run, as `state_dict` returned it."""
        self._forget()
        layers = {key.removeprefix("layer:"): mean for key, mean in state.items() if key.startswith("layer:")}
        previous = GradientStore.from_state({key: value for key, value in state.items() if key[:6] != "layer:"})
        self._means = {name: mean.clone() for name, mean in layers.items() if self.relative and not mean.isnan()}
        self._chosen = set(layers) if layers and self.layers is None else None
        self.previous = previous if previous.signs else None

    def _forget(self) -> None:
        self.current = self.previous = self._chosen = None
        self._means, self._blocks = {}, ConvolutionBlocks()

    def _settle_layers(self) -> None:
        """After the first step, when the default layers are known, drop what was recorded of other layers."""
        if self.layers is None and self._chosen is None and self._blocks.ends and self.current is not None:
            chosen = self._chosen = set(self._blocks.ends.values())
            self._means = {name: mean for name, mean in self._means.items() if name in chosen}
            for key in [key for key in self.current.signs if key[0] not in chosen]:
                del self.current.signs[key]
            self._blocks = ConvolutionBlocks()

    def _begin_pass(self, training: bool) -> None:
        if self.current is not None and training and torch.is_grad_enabled():
            self.current.passes += 1
            self.current.calls.clear()

    def _after_layer(
        self, network: nn.Module, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any
    ) -> Tensor | None:
        """The forward hook of a layer, which returns h~ in place of h."""
        # A frozen batch normalisation is in evaluation mode while the network trains.
        if not (module.training or network.training) or not torch.is_grad_enabled():
            return None
        if self.layers is None and self._chosen is None:
            if not self._blocks.may_end(name, module, inputs, output):
                return None
        elif self._chosen is not None and name not in self._chosen:
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"layers: the output of the {type(module).__name__} {name!r} is a {kind}, expected layers with a "
                f"floating-point tensor."
            )
        if not output.requires_grad:
            return None
        step, previous = self._current_step(name, output), self.previous
        call = (name, step.calls[name])
        step.calls[name] += 1
        signs = None if previous is None else previous.signs.get(call)
        h: Tensor = output
        mean = self._running_mean(name, h, step) if self.relative else None
        if previous is not None and signs is not None:
            signs.check_shape(name, h)
            slots, weights = step.pairing(previous, len(signs), h)
            weights = weights if mean is None else weights * mean
            if type(module) not in _SAVE_NO_OUTPUT or h._is_view():
                h = h.clone()
            with torch.no_grad():  # as h~ - h is a constant, the gradient of h~ is that of h
                perturb(h, signs, slots, weights, self.eps)
        # Processes that exchange signs need the same layout, and an output's may depend on the size of a share.
        layout = torch.contiguous_format if step.share is not None else layout_of(h)
        h.register_hook(partial(step.record, call, step.passes, layout))  # type: ignore[no-untyped-call]
        return h

    def _current_step(self, name: str, output: Tensor) -> GradientStore:
        step = self.current
        if step is None:
            raise RuntimeError("y: no labels are known for this forward pass, expected begin_step(y) before it.")
        if output.dim() == 0 or len(output) == 0 or step.samples == 0 or len(output) % step.samples:
            raise RuntimeError(
                f"y: got {step.samples} labels, and in {name!r} an output of shape {tuple(output.shape)}, expected "
                f"as many samples or a multiple."
            )
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"layers: {name!r} was called during a backward pass, as activation checkpointing does, expected "
                f"forward passes that are not repeated."
            )
        return step

    def _running_mean(self, name: str, output: Tensor, step: GradientStore) -> Tensor:
        """The running mean of |h_l| at the layer's first call in a step; on the device, in float32 at least."""
        known = self._means.get(name)
        if known is None or (step.number % MEASURED_EVERY == 0 and name not in step.measured):
            step.measured.add(name)
            mean = output.detach().abs().mean(dtype=torch.promote_types(output.dtype, torch.float32))
            mean = mean if step.share is None else step.share.mean(mean)
            self._means[name] = mean if known is None else torch.lerp(known.to(mean), mean, MOMENTUM)
        return self._means[name].to(output.device)


@contextmanager
@explain_keywords
def layerwise_perturbations(
    network: nn.Module,
    *,
    eps: float = 0.3,
    layers: LayerPattern | Iterable[LayerPattern] | None = None,
    relative: bool = True,
) -> Iterator[Layerwise]:
    """Within this context, forward passes of ``network`` in training mode carry layerwise perturbations.

    The arguments are those of `Layerwise`. Announce each batch's labels to ``begin_step`` of the object that the
    context gives, before the batch's first forward pass.

    Example:
        >>> from torch.nn import functional
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        >>> x, y = torch.rand(5, 1, 4, 4), torch.randint(0, 3, (5,))
        >>> with layerwise_perturbations(network, eps=0.1) as layerwise:
        ...     for _ in range(2):
        ...         layerwise.begin_step(y)
        ...         nn.functional.cross_entropy(network(x), y).backward()
    """
    with Layerwise(eps, layers=layers, relative=relative).attached(network) as layerwise:
        yield layerwise


class LayerwiseAdversarialTrainer(RobustTrainer):
    """Train an ART classifier with its own loss under layerwise adversarial perturbations.

    Sankaranarayanan, Jain, Chellappa, Lim (arXiv 1705.07819), reconstructed: what is ours stands at the head of this
    module. A step costs one forward and one backward pass, as plain training does.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer.
        eps, layers, relative: see `Layerwise`.
        threat: when given, ``fit`` measures robust validation accuracy under it; it does not enter the training.
        instruments: further instruments, attached together with this one.
        options: the training loop's settings.

    Raises:
        ValueError: for a number outside its range, a layer pattern that fits nothing, or a network without
            convolutions when ``layers`` is None.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> x, y = torch.rand(32, 1, 4, 4), torch.randint(0, 3, (32,))
        >>> LayerwiseAdversarialTrainer(classifier, eps=0.1).fit(x, y, nb_epochs=2, verbose=False)
    """

    source: ClassVar[str] = (
        "Sankaranarayanan, Jain, Chellappa, Lim, arXiv 1705.07819, AAAI 2018: reconstructed from abstract and "
        "introduction; pairing, relative eps and default layers are ours"
    )

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        eps: float = 0.3,
        layers: LayerPattern | Iterable[LayerPattern] | None = None,
        relative: bool = True,
        threat: ThreatModel | None = None,
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        layerwise = Layerwise(eps, layers=layers, relative=relative)
        self.eps, self.layers, self.relative = plain_number(eps), layerwise.layers, relative
        super().__init__(
            classifier, threat=threat, instruments=join_instruments(layerwise, instruments), options=options
        )
        layerwise.candidate_layers(classifier.model)

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss; the perturbations act in its forward pass."""
        return self.loss(self.logits(x), y)
