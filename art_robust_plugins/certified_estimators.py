"""ART's certified estimators whose answer is not their network's: what is refused of them, and the way out."""

from __future__ import annotations

from typing import Any

_ROOM = "art.estimators.certification."


def check_certified(classifier: Any) -> None:
    """Refuse an estimator of ``art.estimators.certification`` whose ``predict`` is not a pass of its network.

    Raises:
        ValueError: for such an estimator.
    """
    name = type(classifier).__name__
    rooms = {
        base.__module__.removeprefix(_ROOM).split(".")[0]
        for base in type(classifier).__mro__
        if base.__module__.startswith(_ROOM)
    }
    if "derandomized_smoothing" in rooms:
        raise ValueError(
            f"classifier: {name} counts its network's votes over ablated copies of an image, which are no logits and "
            f"a defence against patches, expected a PyTorchClassifier of that network alone, or the estimator's own "
            f"certificates, eval_and_certify(x, y, size_to_certify)."
        )
    if rooms & {"interval", "deep_z"} and getattr(classifier.model, "forward_mode", None) == "abstract":
        raise ValueError(
            f"classifier: the network of {name} is in its abstract mode, which takes sets of images, expected "
            f"its concrete mode: estimator.model.set_forward_mode('concrete')."
        )
