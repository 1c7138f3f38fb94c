"""``art-robust train``: one network, by one method."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from art.defences.trainer import Trainer

from ..checks import suggest
from ..data import Dataset
from ..experiments import TrainingPlan, is_trainable, train_run
from ..experiments.runs import RUN_FILES
from ..experiments.training_record import read_training_record
from ..locks import is_unused
from ..registry import available_instruments, method, parameters_of
from ..saved_classifier import CLASSIFIER_FILE
from ..terminal import console
from ..threat import ThreatModel
from ..training import TrainingOptions
from ..training.engine.checkpointer import CHECKPOINT
from .arguments import DeviceOption, OutOption, QuietOption, SeedOption, select_device
from .data import load_everywhere
from .derived import default_of, take_settings
from .running import advise_on_interrupt, check_launcher, check_output, is_main
from .settings import OPTIONS, PLAN, parse_setting, sort_settings, take
from .showing import name_kind

VALIDATION_SHARE = 0.1


@take_settings((*PLAN, *OPTIONS))
def train(
    name: Annotated[str, typer.Argument(metavar="METHOD", help="A method's name; see art-robust methods.")],
    out: OutOption,
    data: Annotated[str, typer.Option(help="digits, mnist, cifar10, or an .npz file.")] = "digits",
    model_settings: Annotated[
        list[str] | None,
        typer.Option("--model-set", metavar="NAME=VALUE", help="An argument of the network, as depth=16; repeatable."),
    ] = None,
    method_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the method or, as INSTRUMENT.NAME=VALUE, of what --with names; repeatable.",
        ),
    ] = None,
    instruments: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="INSTRUMENT", help="Attach an instrument of art-robust methods; repeatable."),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            metavar="Linf|L2|L1",
            help="Norm of the threat (Linf by default), for robust validation and methods that use one.",
        ),
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radius of the threat, such as 0.1 or 8/255.")] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(
            help=f"Share of the training images held out to measure each epoch on; {VALIDATION_SHARE} by default, "
            "0 for none.",
        ),
    ] = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    **settings: Any,
) -> None:
    """Train a network with one method and save it; weight-map trains a network with weight maps plainly.

    A tenth of the training images is held out, and the accuracy on them is shown after each epoch and at the end.

    Example: art-robust train bang --data mnist --model lenet --epochs 10 --set ratio=0.5 --out runs/bang
    """
    select_device(device)
    check_launcher()
    if (out / CLASSIFIER_FILE).exists():
        raise ValueError(f"--out: {out} holds a trained network already, expected another folder.")
    own, options = take(PLAN, settings), take(OPTIONS, settings)
    parameters, joined = _read_method(name, method_settings or [], instruments or [], own["weight_map"])
    arguments = _read_network_arguments(model_settings or [])
    threat = _make_threat(name, norm, eps)
    if threat is not None:
        parameters["threat"] = threat
    _check_optimizer(own)
    own["momentum"] = default_of(TrainingPlan, "momentum") if own["momentum"] is None else own["momentum"]
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    options["mixed_precision"] = "bf16" if launched == "bf16" else options["mixed_precision"]
    options["milestones"] = options["milestones"] or ()
    TrainingOptions(**options)  # refuses what is wrong before the data are loaded
    check_output("--out", out, RUN_FILES)
    if resume and not (out / CHECKPOINT).exists() and not is_unused(out):
        raise ValueError(f"--resume: {out} holds no {CHECKPOINT}, expected a folder of a run that was stopped.")
    if not resume and (out / CHECKPOINT).exists():
        raise ValueError(f"--out: {out} holds a run that was stopped, expected --resume to continue it, or another.")
    dataset = load_everywhere(data)
    own["validation"] = _count_validation(own["validation"], validation_share, dataset, options["keep_best"])
    plan = TrainingPlan(
        name, network_arguments=arguments, parameters=parameters, instruments=joined, options=options, **own
    )
    again = [*(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
    with advise_on_interrupt(f"to continue: art-robust {shlex.join(again)}"):
        train_run(plan, dataset, out, seed=seed, resume=resume, verbose=not quiet)
    if is_main():
        _tell_result(out, plan)


def _read_method(
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
    for given in ("eps", "norm", "epochs", "lr", "batch_size", "seed", "momentum", "weight_decay"):
        if given in parameters and given not in parameters_of(kind):
            raise ValueError(f"--set: got {given}, which {name!r} does not have, expected --{given.replace('_', '-')}.")
    return parameters, joined


def _read_network_arguments(texts: list[str]) -> dict[str, Any]:
    """What --model-set gives to the network."""
    arguments = dict(parse_setting(text, "--model-set") for text in texts)
    for given in ("name", "input_shape", "nb_classes"):
        if given in arguments:
            raise ValueError(f"--model-set: got {given}, which --model and --data give, expected another argument.")
    return arguments


def _make_threat(name: str, norm: str | None, eps: str | None) -> ThreatModel | None:
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


def _check_optimizer(own: dict[str, Any]) -> None:
    """Refuse a learning rate that is not positive, and momentum of an optimizer without."""
    if own["lr"] <= 0:
        raise ValueError(f"--lr: got {own['lr']}, expected a positive number.")
    if own["momentum"] is not None and own["optimizer"] != "sgd":
        raise ValueError(f"--momentum: got {own['momentum']} for {own['optimizer']}, expected it for sgd only.")


def _count_validation(number: int | None, share: float | None, data: Dataset, keep_best: bool) -> int:
    """How many training images are held out."""
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


def _tell_result(out: Path, plan: TrainingPlan) -> None:
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
