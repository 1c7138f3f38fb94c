"""``art-robust train`` reads its words as method, network and threat; and reports the result at the end."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from art.defences.trainer import Trainer

from ..checks import suggest
from ..data import Dataset
from ..experiments import TrainingPlan, is_trainable
from ..experiments.training_record import read_training_record
from ..registry import available_instruments, method, parameters_of
from ..terminal import console
from ..threat import ThreatModel
from .kinds import name_kind
from .settings import OPTIONS, PLAN, VALIDATION_SHARE, parse_setting, sort_settings


def read_method(
    name: str, texts: list[str], instruments: list[str], weight_map: str | None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The parameters of the method, and those of each instrument that joins it."""
    kind = method(name, "METHOD")
    if not is_trainable(kind):
        raise ValueError(f"METHOD: {name!r} is an ART {name_kind(kind)}, expected a Trainer.")
    if weight_map is not None and not issubclass(kind, Trainer):
        raise ValueError(f"--weight-map: got {weight_map} for {name!r}, expected --set kernel=... there.")
    known = available_instruments()
    for instrument in instruments:
        if instrument not in known:
            hint = suggest(instrument, known)
            raise ValueError(f"--with: got {instrument!r}, expected one of {', '.join(map(repr, known))}{hint}")
    parameters, joined = sort_settings(texts, instruments)
    trainer = kind if issubclass(kind, Trainer) else method("standard")
    if joined and "instruments" not in inspect.signature(trainer).parameters:
        raise ValueError(f"--with: got {next(iter(joined))}, but {name!r} takes no instruments, expected none.")
    for given in ("classifier", "options", "instruments", "threat"):
        if given in parameters:
            raise ValueError(f"--set: {given} is no setting of {name!r}, expected options such as --eps for it.")
    options = {"eps": "--eps", "norm": "--norm", "seed": "--seed", "learning_rate": "--lr", "nb_epochs": "--epochs"}
    options |= {each.field: each.option or f"--{each.field.replace('_', '-')}" for each in (*PLAN, *OPTIONS)}
    for given in parameters:
        if given in options and given not in parameters_of(kind):
            option = options[given].partition("/")[0]
            raise ValueError(f"--set: got {given!r}, which {name!r} does not have, expected {option}.")
    return parameters, joined


def read_network_arguments(texts: list[str]) -> dict[str, Any]:
    """Read the arguments of the network that --model-set gives."""
    arguments: dict[str, Any] = {}
    for name, value in (parse_setting(text, "--model-set") for text in texts):
        if name in arguments:
            raise ValueError(f"--model-set: got {name} twice, expected it once.")
        arguments[name] = value
    for given in ("name", "input_shape", "nb_classes"):
        if given in arguments:
            raise ValueError(f"--model-set: got {given}, which --model and --data give, expected another argument.")
    return arguments


def make_threat(name: str, norm: str | None, eps: str | None) -> ThreatModel | None:
    """The threat that --norm and --eps give to a method."""
    known = parameters_of(method(name))
    if eps is not None:
        if "threat" not in known:
            raise ValueError(f"--eps: {name!r} takes no threat, expected none.")
        return ThreatModel("Linf" if norm is None else norm, eps)
    if norm is not None:
        raise ValueError(f"--norm: got {norm} without --eps, expected both.")
    if known.get("threat") is inspect.Parameter.empty:
        raise ValueError(f"--eps: got none, which {name!r} trains against, expected a radius such as 0.1 or 8/255.")
    return None


def check_optimizer_options(own: dict[str, Any]) -> None:
    """Refuse a learning rate that is not positive, and momentum of an optimizer without."""
    if own["lr"] <= 0:
        raise ValueError(f"--lr: got {own['lr']}, expected a positive number.")
    if own["momentum"] is not None and own["optimizer"] != "sgd":
        raise ValueError(f"--momentum: got {own['momentum']} for {own['optimizer']}, expected it for sgd only.")


def count_validation(number: int | None, share: float | None, data: Dataset, keep_best: bool) -> int:
    """Count the training images that are held out."""
    if number is not None and share is not None:
        raise ValueError(f"--validation-share: got {share} beside --validation {number}, expected one of the two.")
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"--validation-share: got {share:g}, expected a number from 0 to below 1.")
    images = len(data.x_train)
    held_out = number if number is not None else round(images * (VALIDATION_SHARE if share is None else share))
    if held_out >= images:
        raise ValueError(f"--validation: got {held_out} of {images} training images, expected fewer.")
    if keep_best and held_out == 0:
        raise ValueError("--keep-best: got no held-out images, expected --validation or --validation-share.")
    return held_out


def tell_result(out: Path, plan: TrainingPlan) -> None:
    """The accuracy of what was saved, where it lies, and what one may do with it next."""
    history = read_training_record(out)["history"]
    if plan.validation:
        robust = "validation_robust_accuracy"
        key = robust if robust in history[-1] else "validation_accuracy"
        # Epochs that a method undid are no result, as in `RunState.keep_if_best`.
        standing = [epoch for epoch in history if not epoch.get("rolled_back")]
        best = max(standing, key=lambda epoch: epoch[key]) if plan.options["keep_best"] and standing else history[-1]
        found = f"{best['validation_accuracy']:.2%} clean"
        found += f", {best[robust]:.2%} under a short attack ({plan.parameters['threat']})" if robust in best else ""
        console.print(
            f"Accuracy on {plan.validation} training images that were held out: {found}. --validation 0 trains on all.",
            soft_wrap=True,
        )
    threat = plan.parameters.get("threat")
    radius = "--norm Linf --eps 0.1" if threat is None else f"--norm {threat.norm} --eps {str(threat).split(' ')[1]}"
    attack, proof = f"art-robust evaluate {out} {radius}", f"art-robust certify {out} --eps 0.1"
    console.print(f"Saved in {out}. Next:\n  {attack}\n  {proof}", soft_wrap=True)
