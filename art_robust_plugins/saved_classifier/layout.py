"""The two files of a saved classifier, and the versions of their format."""

WEIGHTS_FILE = "weights.safetensors"
CLASSIFIER_FILE = "classifier.json"
FORMAT = "art-robust-plugins classifier 2"
UNSEALED = ("art-robust-plugins classifier 1",)
"""Formats whose record carries no digest of its own."""
DEFENCE_WEIGHTS = "preprocessing_defences."
"""How the names of weights begin that belong to a preprocessing defence; its number follows."""
