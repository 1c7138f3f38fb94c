"""Plain training: the baseline that every method is compared with."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..trainer import RobustTrainer


class StandardTrainer(RobustTrainer):
    """Train an ART classifier with its own loss on clean data, in the same loop as all other methods.

    The arguments are those of `RobustTrainer`; a ``threat`` only adds robust validation accuracy.

    Example:
        >>> import torch
        >>> from art.estimators.classification import PyTorchClassifier
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> x, y = torch.rand(32, 1, 4, 4), torch.randint(0, 3, (32,))
        >>> StandardTrainer(classifier).fit(x, y, nb_epochs=2, verbose=False)
    """

    source: ClassVar[str] = "plain training with the classifier's own loss (the baseline)"

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss."""
        return self.loss(self.logits(x), y)
