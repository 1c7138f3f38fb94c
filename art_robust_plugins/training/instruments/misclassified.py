"""Forward passes that know which samples they misclassify."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ForwardPass:
    """The samples that one forward pass misclassifies: known when it ends, needed in its backward pass."""

    def __init__(self, labels: Tensor | None) -> None:
        if labels is None:
            raise RuntimeError("ratio: no labels are known for this forward pass, expected begin_step(y) before it.")
        self.labels = labels
        self._wrong: Tensor | None = None

    def finish(self, logits: Tensor) -> None:
        """Compare the pass's logits [m * N, C] with the labels."""
        copies, rest = divmod(len(logits), len(self.labels))
        if rest:
            raise RuntimeError(
                f"ratio: a forward pass over {len(logits)} samples does not fit the {len(self.labels)} labels that "
                f"were announced, expected as many or a multiple."
            )
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise RuntimeError(
                f"ratio: the network's output is {tuple(logits.shape)}, expected (N, classes) to see which samples are "
                f"misclassified, or ratio 1."
            )
        self._wrong = logits.detach().argmax(dim=1) != (self.labels if copies == 1 else self.labels.repeat(copies))

    @property
    def wrong(self) -> Tensor:
        """The samples that are misclassified: bool [N]."""
        if self._wrong is None:
            raise RuntimeError("ratio: a backward pass began before the network's forward pass had ended.")
        return self._wrong


class ForwardPasses:
    """Follows the forward passes of a network in training, for those that need to know what each misclassifies.

    Attributes:
        labels: int64 [N], of the next passes.
        current: the pass that is running; None outside of one, in evaluation mode and without gradients.
    """

    def __init__(self) -> None:
        self.labels: Tensor | None = None
        self.current: ForwardPass | None = None

    def follow(self, network: nn.Module) -> list[RemovableHandle]:
        """Follow the passes of ``network`` until the handles are removed."""
        return [
            network.register_forward_pre_hook(lambda module, _: self._begin(module.training)),
            network.register_forward_hook(lambda _, __, logits: self._finish(logits)),
        ]

    def _begin(self, training: bool) -> None:
        self.current = ForwardPass(self.labels) if training and torch.is_grad_enabled() else None

    def _finish(self, logits: Tensor) -> None:
        if not isinstance(logits, Tensor):
            raise RuntimeError(
                f"ratio: the network's output is a {type(logits).__name__}, expected a tensor of logits."
            )
        if self.current is not None:
            self.current.finish(logits)
            self.current = None
