"""Which samples a forward pass misclassifies."""

from __future__ import annotations

from torch import Tensor


class ForwardPass:
    """Which samples one forward pass misclassifies: known when it ends, needed in its backward pass."""

    def __init__(self, labels: Tensor | None) -> None:
        if labels is None:
            raise RuntimeError("ratio: no labels are known for this forward pass, expected begin_step(y) before it.")
        self.labels = labels
        self._wrong: Tensor | None = None

    def finish(self, logits: Tensor) -> None:
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
        """Which samples are misclassified: bool [N]."""
        if self._wrong is None:
            raise RuntimeError("ratio: a backward pass began before the network's forward pass had ended.")
        return self._wrong
