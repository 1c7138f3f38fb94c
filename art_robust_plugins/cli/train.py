"""``art-robust train``: one network, by one method."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

import typer

from ..experiments.plans import TrainingPlan
from ..training.options import TrainingOptions
from .arguments import DeviceOption, OutOption, QuietOption, SeedOption, select_device
from .derived import default_of, take_settings
from .settings import OPTIONS, PLAN, VALIDATION_SHARE, take


@take_settings((*PLAN, *OPTIONS))
def train(
    name: Annotated[str, typer.Argument(metavar="METHOD", help="A method's name, as art-robust methods lists them.")],
    out: OutOption,
    data: Annotated[str, typer.Option(help="Data: digits, mnist, cifar10, or an .npz file.")] = "digits",
    model_settings: Annotated[
        list[str] | None,
        typer.Option("--model-set", metavar="NAME=VALUE", help="An argument of the network, as depth=16; repeatable."),
    ] = None,
    method_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the method or, as INSTRUMENT.NAME=VALUE, of an instrument that --with attaches; "
            "repeatable.",
        ),
    ] = None,
    instruments: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="INSTRUMENT", help="Attach an instrument, as art-robust methods lists them; repeatable."
        ),
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
    # These import torch and ART, which the help does without.
    from ..experiments.runs import RUN_FILES, train_run
    from ..locks import is_unused
    from ..saved_classifier import CLASSIFIER_FILE
    from ..terminal import console
    from ..training.engine.checkpointer import CHECKPOINT
    from .data import load_everywhere
    from .running import advise_on_interrupt, check_launcher, check_output, is_main
    from .training_inputs import (
        check_optimizer_options,
        count_validation,
        make_threat,
        read_method,
        read_network_arguments,
        tell_result,
    )

    check_launcher()
    if (out / CLASSIFIER_FILE).exists():
        raise ValueError(f"--out: {out} holds a trained network already, expected another folder.")
    own, options = take(PLAN, settings), take(OPTIONS, settings)
    parameters, joined = read_method(name, method_settings or [], instruments or [], own["weight_map"])
    arguments = read_network_arguments(model_settings or [])
    threat = make_threat(name, norm, eps)
    if threat is not None:
        parameters["threat"] = threat
    check_optimizer_options(own)
    own["momentum"] = default_of(TrainingPlan, "momentum") if own["momentum"] is None else own["momentum"]
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    options["mixed_precision"] = "bf16" if launched == "bf16" else options["mixed_precision"]
    options["milestones"] = options["milestones"] or ()
    TrainingOptions(**options)  # refuses what is wrong before the data are loaded
    check_output("--out", out, RUN_FILES)
    anew = resume and not (out / CHECKPOINT).exists()
    if anew and not is_unused(out):
        raise ValueError(f"--resume: {out} holds no {CHECKPOINT}, expected a folder of a run that was stopped.")
    if anew and is_main():
        console.print(f"{out} holds no run yet; a new one begins.", markup=False, highlight=False, soft_wrap=True)
    if not resume and (out / CHECKPOINT).exists():
        raise ValueError(f"--out: {out} holds a run that was stopped, expected --resume to continue it, or another.")
    dataset = load_everywhere(data)
    own["validation"] = count_validation(own["validation"], validation_share, dataset, options["keep_best"])
    plan = TrainingPlan(
        name, network_arguments=arguments, parameters=parameters, instruments=joined, options=options, **own
    )
    again = [*(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
    with advise_on_interrupt(f"to continue: art-robust {shlex.join(again)}"):
        train_run(plan, dataset, out, seed=seed, resume=resume, verbose=not quiet)
    if is_main():
        tell_result(out, plan)
