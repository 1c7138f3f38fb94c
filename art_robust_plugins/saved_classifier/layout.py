"""The two files of a saved classifier, and the versions of their format."""

WEIGHTS_FILE = "weights.safetensors"
CLASSIFIER_FILE = "classifier.json"
FORMAT = "art-robust-plugins classifier 2"
UNSEALED = ("art-robust-plugins classifier 1",)
"""Formats whose record has no digest of its own."""
DEFENCE_WEIGHTS = "preprocessing_defences."
"""The prefix of the names of a preprocessing defence's weights; the defence's number follows."""
