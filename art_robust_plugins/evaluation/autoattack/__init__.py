"""AutoAttack, reimplemented: the verdicts of the authors' code, with fewer passes."""

from .apgd import APGD
from .fab import FAB
from .square import Square
from .standard import STAGES, AutoAttack, Outcome

__all__ = ["APGD", "FAB", "STAGES", "AutoAttack", "Outcome", "Square"]
