"""AutoAttack, written anew: the verdicts of the authors' code, for less work."""
