"""Training methods: each an ART ``Trainer`` on one loop."""

from .engine.processes import ProcessLostError, Share
from .instruments import Instrument
from .methods.bang import BANG, BANGTrainer, bang_gradients
from .methods.layerwise import Layerwise, LayerwiseAdversarialTrainer, layerwise_perturbations
from .methods.lipschitz_margin import LipschitzMarginTrainer
from .methods.local_ball import LocalBallTrainer
from .methods.pgd import PGDTrainer
from .methods.standard import StandardTrainer
from .methods.trades import TRADESTrainer
from .options import TrainingOptions
from .trainer import RobustTrainer

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
