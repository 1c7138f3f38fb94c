"""A method of one's own, in a package of one's own: training on noisy images."""

import torch

from art_robust_plugins import RobustTrainer, TrainingOptions


class NoisyTrainer(RobustTrainer):
    """The classifier's loss on images with Gaussian noise of standard deviation ``sigma``."""

    source = "an example"

    def __init__(self, classifier, *, sigma=0.1, options=TrainingOptions()):
        super().__init__(classifier, options=options)
        self.sigma = sigma

    def training_loss(self, x, y):
        return self.loss(self.logits(x + self.sigma * self.draw(torch.randn_like, x)), y)
