"""Unknown keywords: refused before any work, with the name of the argument that was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from types import FunctionType
from typing import Any, TypeVar

from .checks import find_nearest

Function = TypeVar("Function", bound=Callable[..., Any])

_EXPLAINED = "explained_function"
_NEAR = 0.8
"""The similarity from which an argument is suggested: ``margin`` is not for ``mean``."""

Meant = tuple[tuple[str, str], ...]


def _in_training(how: str) -> Meant:
    """The arguments that are meant by keywords of a trainer, of its options, of ``fit`` or of ``fit_loader``."""
    return tuple((argument, how) for argument in ("classifier", "nb_epochs", "checkpoint_dir"))


def _in_classifier(setting: str) -> Meant:
    return _in_training(f"it in PyTorchClassifier(..., {setting})")


_OF_ATTACK = "an attack by name, as attacks='pgd-20'; see art-robust attacks"
_EPOCHS = (("nb_epochs", "nb_epochs"), *_in_training("fit(..., nb_epochs=...)"))
_THREAT = (("threat", "threat=ThreatModel('Linf', '8/255')"),)
_MOVED = "the network where it shall compute, by network.to(...)"
_DATA = (("loader", "loader"), ("generator", "generator"), ("x", "x"))
_CLASSIFIER = (("classifier", "classifier"), ("estimator", "estimator"), ("model", "model"))
_EXAMPLES = {"threat": "ThreatModel('Linf', '8/255')", "norm": "'Linf'", "eps": "'8/255'"}
_OF_BATCHES = {"y": "the labels of x; a DataLoader, or batches (x, y), are given to fit_loader(loader)"}
_OPTIMIZER = _in_training("it in the optimizer of PyTorchClassifier(..., optimizer=...)")
MEANT: Mapping[str, Meant] = {
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "max_epochs", "epoch"), _EPOCHS),
    **dict.fromkeys(("eps", "epsilon"), (("epsilon", "epsilon"), ("eps", "eps"), *_THREAT)),
    "radius": (("epsilon", "epsilon"), ("eps", "eps"), *_THREAT),
    "norm": _THREAT,
    "metric": (("norm", "norm"), *_THREAT),
    **dict.fromkeys(("lr", "learning_rate", "momentum", "weight_decay", "optimizer"), _OPTIMIZER),
    **dict.fromkeys(("attack", "version", "attacks_to_run"), (("attacks", "attacks"),)),
    "threat": (("eps", "norm and eps"),),
    **dict.fromkeys(("n_classes", "num_classes", "classes"), (("nb_classes", "nb_classes"),)),
    **dict.fromkeys(
        ("clip_values", "bounds", "range"),
        (("bounds", "bounds"), ("clip_values", "clip_values"), *_in_classifier("clip_values=...")),
    ),
    **dict.fromkeys(
        ("mean", "std", "preprocessing", "normalize"),
        (
            ("mean", "mean and std"),
            ("preprocessing", "preprocessing=(mean, std)"),
            *_in_classifier("preprocessing=..."),
        ),
    ),
    **dict.fromkeys(("loss", "criterion", "loss_fn"), _in_classifier("loss=...")),
    **dict.fromkeys(("val_data", "val_loader"), (("validation_data", "validation_data"),)),
    **dict.fromkeys(("bs", "batch"), (("batch_size", "batch_size"),)),
    **dict.fromkeys(("classifier", "estimator", "model", "net", "network"), _CLASSIFIER),
    **dict.fromkeys(("train_loader", "dataloader", "loader", "data", "dataset", "images", "x_test", "inputs"), _DATA),
    **dict.fromkeys(("labels", "targets", "y_test"), (("y", "y"),)),
    **dict.fromkeys(
        (
            "steps",
            "n_steps",
            "num_steps",
            "nb_steps",
            "max_iter",
            "iterations",
            "n_iter",
            "nb_iter",
            "num_iter",
            "nb_iters",
        ),
        (("steps", "steps"), ("attacks", _OF_ATTACK)),
    ),
    **dict.fromkeys(
        ("eps_step", "step", "eps_iter", "alpha", "step_size", "rel_stepsize"),
        (("step_size", "step_size"), ("attacks", _OF_ATTACK)),
    ),
    **dict.fromkeys(
        ("lambda_", "lam", "lamda", "lambda", "lmbda"),
        (("ratio", "one of beta, epsilon, ratio"), ("local_weight", "local_weight"), ("beta", "beta")),
    ),
    **dict.fromkeys(
        ("points", "n_points", "n", "n_examples", "n_ex", "num_examples", "nb_samples", "num_samples"),
        (("x", "fewer images, as x[:1000] with their labels"),),
    ),
    **dict.fromkeys(("n_restarts", "num_random_init", "restarts", "random_start"), (("attacks", _OF_ATTACK),)),
    **dict.fromkeys(
        ("epsilons", "eps_list", "radii"), (("eps", "one eps, or sweep(model, norm, eps, x, y)"), *_THREAT)
    ),
    "device": (
        ("device", "device"),
        ("device_type", "device_type"),
        *_in_classifier("device_type=..."),
        ("estimator", _MOVED),
    ),
}
"""A word of other libraries -> what is meant by it here: for functions with an argument, how to give it."""


class _ConstructorSignature:
    """The signature of a class's ``__init__``: Python 3.10 would give that of `KnownKeywords.__new__` where
    the constructor is inherited."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class KnownKeywords:
    """A base of classes whose constructor refuses unknown keywords by `check_keywords`, and names what is missing.

    It stands last among the bases: the signature is that of the constructor.
    """

    __signature__ = _ConstructorSignature()

    def __new__(cls, *given: Any, **keywords: Any) -> Any:
        methods = (getattr(cls, name, None) for name in ("fit", "evaluate", "certify", "certified_accuracy"))
        check_keywords(cls.__init__, keywords, {each.__name__: each for each in methods if each is not None})
        _check_positions(cls.__init__, cls.__name__, given)
        if given or keywords:  # a copy is made of nothing
            _check_required(cls.__init__, given, keywords, {})
        return super().__new__(cls)


def explain_keywords(function: Function, meant: Mapping[str, str] | None = None) -> Function:
    """Let a function or method refuse unknown keywords by `check_keywords`, and arguments that need their name.

    Args:
        function: what is called.
        meant: what is expected for a keyword that means something else to this function than `MEANT` says.
    """
    is_method = "self" in inspect.signature(function).parameters

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if keywords:
            for keyword, how in (meant or {}).items():
                if keyword in keywords:
                    raise TypeError(f"{keyword}: got an unknown keyword, expected {how}.")
            owner = type(arguments[0]) if is_method and arguments else None
            check_keywords(function, keywords, {} if owner is None else {owner.__name__: owner.__init__})
        _check_positions(function, function.__name__, arguments[is_method:])
        of_batches = is_method and hasattr(type(arguments[0]) if arguments else None, "fit_loader")
        _check_required(function, arguments[is_method:], keywords, _OF_BATCHES if of_batches else {})
        return function(*arguments, **keywords)

    vars(call)[_EXPLAINED] = function
    return call  # type: ignore[return-value]  # it has the same signature


def find_explained(function: FunctionType) -> FunctionType:
    """The function that `explain_keywords` was given where it made this one, else the function itself."""
    explained: FunctionType = vars(function).get(_EXPLAINED, function)
    return explained


def check_keywords(
    function: Callable[..., Any], keywords: Iterable[str], others: Mapping[str, Callable[..., Any]] | None = None
) -> None:
    """Refuse the first keyword that a function does not have.

    Args:
        function: what is called.
        keywords: what it is given.
        others: functions by name that may be meant where ``function`` has no such argument.

    Raises:
        TypeError: names the keyword and what is meant by it.

    Example:
        >>> def fit(x, nb_epochs=20): ...
        >>> check_keywords(fit, ["epochs"])
        Traceback (most recent call last):
        TypeError: epochs: got an unknown keyword, expected nb_epochs.
    """
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for keyword in keywords:
        if keyword in parameters:
            continue
        found = find_meant(keyword, parameters)
        for name, other in (others or {}).items():
            if found is None:
                own = inspect.signature(other).parameters
                meant = f"{keyword}=..." if keyword in own else find_meant(keyword, own)
                if meant is None or not meant.partition("=")[0].isidentifier():  # nothing, or prose
                    found = meant
                else:
                    found = f"{name}(..., {meant if '=' in meant else f'{meant}=...'})"
        known = ", ".join(name for name in parameters if name not in ("self", "cls"))
        found = found or find_nearest(keyword, parameters, _NEAR) or (f"one of {known}" if known else "none")
        raise TypeError(f"{keyword}: got an unknown keyword, expected {found}.")


def _check_positions(function: Callable[..., Any], name: str, given: Sequence[Any]) -> None:
    """Refuse arguments without a name beyond those that a function takes, ``self`` apart."""
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return
    taken = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(given) > len(taken):
        named = [f"{each.name}=" for each in parameters if each.kind is each.KEYWORD_ONLY]
        others = f", and others by name ({', '.join(named)})" if named else ""
        raise TypeError(
            f"{name}: got {len(given)} arguments without a name, expected {', '.join(taken) or 'none'}{others}."
        )


def _check_required(
    function: Callable[..., Any], given: Sequence[Any], keywords: Mapping[str, Any], hints: Mapping[str, str]
) -> None:
    """Refuse a call that leaves out an argument without default; ``given`` are those without a name, but ``self``."""
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
    for number, each in enumerate(parameters):
        by_position = each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and number < len(given)
        required = each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if required and not by_position and each.name not in keywords:
            how = f", such as {_EXAMPLES[each.name]}" if each.name in _EXAMPLES else ""
            raise TypeError(f"{each.name}: got none, expected {hints.get(each.name, f'one{how}')}.")


def find_meant(keyword: str, parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """Find what an unknown keyword means: an argument, or how to give it; None for a word that `MEANT` lacks."""
    options = parameters["options"].default if "options" in parameters else None
    if is_dataclass(options) and keyword in (field.name for field in fields(options)):
        return f"options={type(options).__name__}({keyword}=...)"
    meant = MEANT.get(keyword.lower(), ())
    return next((how for argument, how in meant if argument in parameters), None)
