"""Training methods: each an ART ``Trainer`` on one loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..on_demand import import_on_demand

if TYPE_CHECKING:
    from .instruments import Instrument
    from .methods.bang import BANG, BANGTrainer, bang_gradients
    from .methods.layerwise import Layerwise, LayerwiseAdversarialTrainer, layerwise_perturbations
    from .methods.lipschitz_margin import LipschitzMarginTrainer
    from .methods.local_ball import LocalBallTrainer
    from .methods.pgd import PGDTrainer
    from .methods.standard import StandardTrainer
    from .methods.trades import TRADESTrainer
    from .options import TrainingOptions
    from .processes import ProcessLostError, Share
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

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        "instruments": ("Instrument",),
        "methods.bang": ("BANG", "BANGTrainer", "bang_gradients"),
        "methods.layerwise": ("Layerwise", "LayerwiseAdversarialTrainer", "layerwise_perturbations"),
        "methods.lipschitz_margin": ("LipschitzMarginTrainer",),
        "methods.local_ball": ("LocalBallTrainer",),
        "methods.pgd": ("PGDTrainer",),
        "methods.standard": ("StandardTrainer",),
        "methods.trades": ("TRADESTrainer",),
        "options": ("TrainingOptions",),
        "processes": ("ProcessLostError", "Share"),
        "trainer": ("RobustTrainer",),
    },
)
