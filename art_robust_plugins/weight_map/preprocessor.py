"""`WeightMapPreprocessor`: a weight map on the input of any ART PyTorch estimator.

Amer, Maul: Weight Map Layer for Noise and Adversarial Attack Robustness (arXiv 1905.00568). Status: reconstructed, the
constants are ours; see `WeightMap2d`. Applying it to the input rather than to a feature map is ours.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..bridge import EstimatorModule, check_classifier, device_of, image_tensor, label_tensor, loss_of, preserve
from ..checks import check_count, check_flag, check_share, check_sizes, to_float
from ..choices import Kernel
from ..keywords import KnownKeywords
from .classifier import join_optimizer
from .layer import PaddingMode, WeightMap2d


def _setting(name: str) -> property:
    def value(self: WeightMapPreprocessor) -> Any:
        return self.layer.settings[name]

    return property(value, doc=f"The layer's {name}.")


class WeightMapPreprocessor(PreprocessorPyTorch, KnownKeywords):
    """A learned map over the pixels of the input, then a fixed kernel, as an ART preprocessing defence.

    Weight map of Amer, Maul (arXiv 1905.00568), reconstructed; see `WeightMap2d`. As initialised it is the plain
    kernel. Put it into ``preprocessing_defences``: the estimator then trains, predicts and is attacked with it.
    Gradients are those of the map itself and are not estimated.

    The map learns in one of two ways:

    - `fit` learns it by a classifier's loss, its network frozen (or with ``joint=True`` both).
    - `join` gives it to the classifier's optimizer: from then on the trainers of this package train both, with their
      checkpoints and best epochs. ART's own ``fit`` preprocesses all data once, before its loop, and does not train
      the map.

    ART's ``clone_for_refitting`` shares this preprocessor, weights included, with the clone, whose new optimizer does
    not have the map: call `join` again, with a new preprocessor if the clone shall start from new weights.

    Args:
        input_shape: (C, H, W) of one image, or (H, W, C) with ``channels_first=False``.
        kernel: as for `WeightMap2d`, and so are the next four.
        kernel_size: 3 or 5.
        alpha: of the unsharp kernel.
        bias: learn a bias for each pixel too.
        padding_mode: of the kernel, at the border of the image.
        clip_values: (low, high), to which the output is clamped; gradients are 0 beyond. None: no clamping.
        channels_first: the order of axes of the estimator's images.
        apply_fit: act in training.
        apply_predict: act in prediction.

    Attributes:
        layer: the `WeightMap2d`. Its parameters take no gradient, in training or under attack, until `join`.
        kernel, kernel_size, alpha, bias, padding_mode: the layer's.

    Raises:
        ValueError: for settings outside their range, or changed by ``set_params``; in ``forward`` for images of
            another size (both are named).

    Example:
        >>> preprocessor = WeightMapPreprocessor((1, 8, 8), clip_values=(0, 1))
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> loss = nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 8, 8), 10, preprocessing_defences=preprocessor)
        >>> x, y = torch.rand(20, 1, 8, 8), torch.randint(10, (20,))
        >>> preprocessor.fit(x, y, classifier=classifier, nb_epochs=2)
        >>> classifier.predict(x.numpy()).shape
        (20, 10)
    """

    source: ClassVar[str] = "Amer, Maul: Weight Map Layer, arXiv 1905.00568 (reconstructed, on the input: ours)"

    params: ClassVar[list[str]] = [
        "input_shape",
        "kernel",
        "kernel_size",
        "alpha",
        "bias",
        "padding_mode",
        "clip_values",
        "channels_first",
        "weights_digest",
    ]

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        kernel: Kernel = "smoothing",
        kernel_size: int = 3,
        alpha: float = 1.0,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
        clip_values: tuple[float, float] | None = None,
        channels_first: bool = True,
        apply_fit: bool = True,
        apply_predict: bool = True,
    ) -> None:
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.input_shape = check_sizes("input_shape", input_shape)
        if len(self.input_shape) != 3:
            raise ValueError(f"input_shape: got {self.input_shape}, expected three numbers, those of one image.")
        self.clip_values = None if clip_values is None else _check_range(clip_values)
        check_flag("channels_first", channels_first)
        self.channels_first = channels_first
        size = self.input_shape if channels_first else (self.input_shape[2], *self.input_shape[:2])
        self.layer = WeightMap2d(
            *size, kernel=kernel, kernel_size=kernel_size, alpha=alpha, bias=bias, padding_mode=padding_mode
        )
        self.layer.requires_grad_(False)

    kernel = _setting("kernel")
    kernel_size = _setting("kernel_size")
    alpha = _setting("alpha")
    bias = _setting("bias")
    padding_mode = _setting("padding_mode")

    def set_params(self, **kwargs: Any) -> None:
        """Refuses every change: the map belongs to its settings."""
        for name, value in kwargs.items():
            raise ValueError(f"{name}: got {value!r}, but a map keeps its settings; make another preprocessor.")

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON data."""
        clip_values = None if self.clip_values is None else list(self.clip_values)
        own = {"clip_values": clip_values, "channels_first": self.channels_first}
        acts = {"apply_fit": self.apply_fit, "apply_predict": self.apply_predict}
        return {"input_shape": list(self.input_shape), **self.layer.settings, **own, **acts}

    @property
    def weights_digest(self) -> str:
        """A short text that differs between maps with different weights, for reports and states of evaluations."""
        total = hashlib.sha256()
        for tensor in self.layer.state_dict().values():
            total.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """The device of the map."""
        return self.layer.map.device

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Images [N, *input_shape] -> images of the same shape; ``y`` is not changed. The map moves to their device."""
        if self.layer.map.device != x.device:
            self.layer.to(x.device)
        images = x if x.is_floating_point() else x.float()
        # A trace would record the compared numbers as data.
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not tracing and tuple(x.shape[1:]) != self.input_shape:
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (N, {expected}), to which the map belongs.")
        images = self.layer(images) if self.channels_first else self.layer(images.movedim(-1, 1)).movedim(1, -1)
        return images if self.clip_values is None else images.clamp(*self.clip_values), y

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        classifier: PyTorchClassifier | None = None,
        joint: bool = False,
        nb_epochs: int = 10,
        batch_size: int = 128,
        learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        """Learn the map by a classifier's own loss on these data.

        With the network frozen: in evaluation mode, its weights, statistics and gradients stay what they are, and Adam
        moves the map alone. Jointly: in training mode, the classifier's optimizer moves both (see `join`).

        Args:
            x: inputs [N, *input_shape] in the classifier's range, an array or a tensor.
            y: labels, as class indices [N] or one-hot rows.
            classifier: the classifier with this preprocessor among its ``preprocessing_defences``, active in training.
            joint: train the network as well.
            nb_epochs: passes over the data, at least 1.
            batch_size: samples in a batch, at least 1.
            learning_rate: of the map, for a frozen network: about the change of each weight in one step of Adam, above
                0 and at most 1; None for 0.01. Joint training has that of the classifier's optimizer.
            seed: of the order of the samples. A network that draws random numbers, in joint training, takes them from
                torch's global stream.

        Raises:
            TypeError: no classifier, or another kind.
            ValueError: data that do not fit the classifier; a classifier without this preprocessor, or, for joint
                training, without an optimizer; a setting outside its range.
            FloatingPointError: the loss or the weights are no longer finite; the map, and in joint training the network
                and its optimizer, are then restored to the end of the epoch before.
        """
        if y is None:
            raise ValueError("y: got None, expected labels.")
        self._check_classifier(classifier)
        assert classifier is not None
        nb_epochs, batch_size = check_count("nb_epochs", nb_epochs), check_count("batch_size", batch_size)
        if joint and learning_rate is not None:
            raise ValueError(
                f"learning_rate: got {learning_rate!r} with joint=True, expected the optimizer's own, None."
            )
        rate = 0.01 if learning_rate is None else check_share("learning_rate", learning_rate, whole=True)
        network: nn.Module = classifier.model
        device = device_of(network)
        images = image_tensor(x, classifier).to(device)
        labels = label_tensor(y, classifier.nb_classes, samples=len(images)).to(device)
        self.layer.to(device)
        module = EstimatorModule(classifier, unit_range=False, fit=True, probabilities=True)
        if joint:
            self.join(classifier)
            network.train()
            self._descend(module, classifier, images, labels, classifier.optimizer, nb_epochs, batch_size, seed)
            return
        adam = torch.optim.Adam(self.layer.parameters(), float(rate))
        with preserve(network), preserve(self.layer):
            network.eval().requires_grad_(False)
            self.layer.requires_grad_()
            self._descend(module, classifier, images, labels, adam, nb_epochs, batch_size, seed)

    def join(self, classifier: PyTorchClassifier) -> None:
        """Give the map to the classifier's optimizer, into its first group; it is trained with the network then.

        It may be called before or after a learning-rate scheduler is made; a second call has no effect.

        Raises:
            TypeError: for another kind of classifier.
            ValueError: for a classifier without optimizer, or without this preprocessor active in training.
        """
        self._check_classifier(classifier)
        if classifier.optimizer is None:
            raise ValueError("classifier: it has no optimizer, expected PyTorchClassifier(..., optimizer=...).")
        self.layer.to(device_of(classifier.model)).requires_grad_()
        join_optimizer(classifier.optimizer, {"input": self.layer})

    def _check_classifier(self, classifier: PyTorchClassifier | None) -> None:
        check_classifier(classifier)
        assert classifier is not None
        if not any(operation is self for operation in classifier.preprocessing_operations) or not self.apply_fit:
            raise ValueError(
                "classifier: this preprocessor is not among its preprocessing_defences that act in training, expected "
                "PyTorchClassifier(..., preprocessing_defences=preprocessor)."
            )

    def _descend(
        self,
        module: EstimatorModule,
        classifier: PyTorchClassifier,
        x: Tensor,
        y: Tensor,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        """Epochs of plain descent on the loss; leaves the network in evaluation mode."""
        network, training = classifier.model, classifier.model.training
        frozen = optimizer is not classifier.optimizer
        learning: tuple[Any, ...] = (self.layer,) if frozen else (self.layer, network, optimizer)
        order = torch.Generator().manual_seed(seed)

        def compute_loss(rows: Tensor, epoch: int) -> Tensor:
            loss = loss_of(classifier, module(x[rows]), y[rows])
            if not bool(loss.isfinite()):
                raise FloatingPointError(
                    f"the loss became {loss.item()} in epoch {epoch + 1}; try a lower learning rate."
                )
            return loss

        with torch.enable_grad():
            for epoch in range(epochs):
                good = [copy.deepcopy(each.state_dict()) for each in learning]
                network.train(training)
                try:
                    for rows in torch.split(torch.randperm(len(x), generator=order).to(x.device), batch_size):
                        optimizer.zero_grad(set_to_none=True)
                        compute_loss(rows, epoch).backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                    network.eval()
                    compute_loss(rows, epoch)
                    # A loss can be finite where a weight is not.
                    moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                    if not all(bool(parameter.isfinite().all()) for parameter in moved):
                        raise FloatingPointError(
                            f"the weights became NaN or infinite in epoch {epoch + 1}; try a lower learning rate."
                        )
                except FloatingPointError:
                    for each, state in zip(learning, good, strict=True):
                        each.load_state_dict(state)
                    network.eval()
                    raise


def _check_range(values: Any) -> tuple[float, float]:
    try:
        low, high = map(to_float, values)
    except (TypeError, ValueError):  # not two of them
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"clip_values: got {values!r}, expected two numbers (low, high), or None.")
    return low, high
