"""Checks of the kind of an ART classifier: unsupported ones, and ones that compute more than their network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

_ROOM = "art.estimators.certification."


def check_classifier(classifier: object) -> None:
    """Refuse what is not an ART `PyTorchClassifier`, and postprocessing, which hides the logits."""
    if not isinstance(classifier, PyTorchClassifier):
        made = ", such as PyTorchClassifier(network, loss, input_shape, nb_classes, optimizer, clip_values=(0, 1))"
        way = made if isinstance(classifier, nn.Module) else ""
        raise TypeError(f"classifier: got {type(classifier).__name__}, expected an ART PyTorchClassifier{way}.")
    if classifier.postprocessing_defences:
        names = ", ".join(type(defence).__name__ for defence in classifier.postprocessing_defences)
        raise ValueError(
            f"classifier: postprocessing_defences ({names}) change the outputs after the network, expected none."
        )


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


def overrides_predict(classifier: PyTorchClassifier) -> bool:
    """Whether ``predict``, or a part of it, is the classifier's own, and may compute more than ART's.

    This package's own classes do not count: what they compute there belongs to the network.
    """
    kind = type(classifier)
    above = kind.__mro__[: kind.__mro__.index(PyTorchClassifier)]
    own = [vars(base) for base in above if base.__module__.split(".")[0] != __name__.split(".")[0]]
    parts = ("predict", "_apply_preprocessing", "_apply_postprocessing")
    return any(part in held for held in (vars(classifier), *own) for part in parts)


def warn_of_own_predict(classifier: PyTorchClassifier) -> None:
    """Warn where ``predict`` may compute more than the network that is trained."""
    if overrides_predict(classifier):
        warnings.warn(
            f"classifier: {type(classifier).__name__} has a predict of its own, whose additions to the network are not "
            f"trained; the accuracies of the training are those of the network alone.",
            stacklevel=3,
        )


def find_own_forward(classifier: PyTorchClassifier) -> Callable[[Tensor], Any] | None:
    """The network's wrapper that ``predict`` runs, if it may compute more than the network; else None.

    ART's own wrapper runs the parts of a ``Sequential`` one by one, and so skips the ``forward`` of a subclass of
    ``Sequential``. Wrappers of other classifiers may hold a processor. (ART skips hooks on a ``Sequential`` too; since
    these mostly observe only, they are called here.)
    """
    network, wrapper = classifier.model, classifier._model
    kind = PyTorchClassifier._make_model_wrapper
    plain = (
        type(wrapper).__qualname__ == f"{kind.__qualname__}.<locals>.ModelWrapper"
        and type(wrapper).__module__ == kind.__module__
        and not _is_patched(wrapper)
        and (
            not isinstance(network, nn.Sequential)
            or (type(network).forward is nn.Sequential.forward and "forward" not in vars(network))
        )
    )
    return None if plain else partial(_run_wrapper, wrapper)


def _run_wrapper(wrapper: nn.Module, x: Tensor) -> Any:
    return wrapper(x)[-1]


def _is_patched(module: nn.Module) -> bool:
    """Whether a call of this module object does more than its class's ``forward``."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)
