"""Training methods: each an ART ``Trainer`` on one loop."""

from .bang import BANG, BANGTrainer, bang_gradients
from .instruments import Instrument
from .lipschitz_margin import LipschitzMarginTrainer
from .loop import RobustTrainer, TrainingOptions
from .standard import StandardTrainer

__all__ = [
    "BANG",
    "BANGTrainer",
    "Instrument",
    "LipschitzMarginTrainer",
    "RobustTrainer",
    "StandardTrainer",
    "TrainingOptions",
    "bang_gradients",
]
