"""The earlier name of `saved_classifier`, which stays: saving an ART classifier and loading it again."""

from .saved_classifier import CLASSIFIER_FILE, WEIGHTS_FILE, describe_classifier, load_classifier, save_classifier

__all__ = ["CLASSIFIER_FILE", "WEIGHTS_FILE", "describe_classifier", "load_classifier", "save_classifier"]
