"""AutoAttack, written anew: the verdicts of the authors' code, for less work."""

from .apgd import APGD
from .fab import FAB
from .square import Square
from .standard import STAGES, AutoAttack, Outcome

__all__ = ["APGD", "FAB", "STAGES", "AutoAttack", "Outcome", "Square"]
