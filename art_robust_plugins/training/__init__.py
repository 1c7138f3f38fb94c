"""Training methods: each an ART ``Trainer`` on one loop."""

from .bang import BANG, BANGTrainer, bang_gradients
from .instruments import Instrument
from .layerwise import Layerwise, LayerwiseAdversarialTrainer, layerwise_perturbations
from .lipschitz_margin import LipschitzMarginTrainer
from .local_ball import LocalBallTrainer, PGDTrainer, TRADESTrainer
from .loop import RobustTrainer
from .options import TrainingOptions
from .processes import ProcessLostError, Share
from .standard import StandardTrainer

__all__ = [
    "BANG",
    "BANGTrainer",
    "Instrument",
    "Layerwise",
    "LayerwiseAdversarialTrainer",
    "LipschitzMarginTrainer",
    "LocalBallTrainer",
    "PGDTrainer",
    "ProcessLostError",
    "RobustTrainer",
    "Share",
    "StandardTrainer",
    "TRADESTrainer",
    "TrainingOptions",
    "bang_gradients",
    "layerwise_perturbations",
]
