"""The command line: ``art-robust``."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import typer.core
from art.defences.preprocessor.preprocessor import Preprocessor
from art.defences.trainer import Trainer
from rich.table import Column, Table

from .checkpoint import load_classifier
from .data import Dataset, load_data
from .escapes import printable
from .evaluation import EvaluationReport, save_comparison
from .evaluation.evaluator import STATE_FILE
from .evaluation.rendering.labels import worst_case_mark
from .evaluation.report import COMPARISON_FILES, REPORT_FILE, REPORT_FILES
from .export import SUFFIXES, Format, export_classifier
from .files import write_json
from .locks import check_output_file, check_output_folder, is_unused
from .models import MODELS
from .recipes import available_recipes, load_recipe, result_rows, run_recipe
from .record import table as markdown
from .registry import available_instruments, available_methods, method, parameters_of
from .runs import (
    BATCH_SIZE,
    CERTIFICATE_FILE,
    CERTIFICATES,
    EVALUATIONS,
    RADII_FILE,
    RUN_FILES,
    STATE,
    TrainingPlan,
    certify_run,
    evaluate_run,
    is_trainable,
    processes_here,
    train_run,
)
from .terminal import console
from .threat import ThreatModel
from .training.checkpoints import CHECKPOINT
from .training.options import TrainingOptions
from .training.processes import Processes
from .training_record import read_training_record


class _Commands(typer.core.TyperGroup):
    """Ends bad input with one sentence and exit code 2, a failed run with 1, Ctrl-C with 130; --debug shows all.

    Of several processes each says why it ended: it may be the only one that knows.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            _part()
            return result
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)
        except (FloatingPointError, ValueError, TypeError, ImportError, OSError) as error:
            if ctx.params["debug"]:
                raise
            rank = os.environ.get("RANK", "0")
            told = "\n".join(map(printable, str(error).split("\n")))
            print(f"error{'' if rank == '0' else f' in process {rank}'}: {told}", file=sys.stderr)
            sys.exit(1 if isinstance(error, FloatingPointError | ConnectionError) else 2)


app = typer.Typer(
    name="art-robust",
    cls=_Commands,
    help="Train robust classifiers with ART and PyTorch, and measure how robust they are.\n\n"
    "Begin with: art-robust demo --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEMO_COMPOSITIONS = (("local-ball", ("layerwise",)),)
"""Methods with instruments that the demo shows after the single methods."""

_WHOLE = "each process holds the whole network here"
_LAUNCHER_SETTINGS = (
    ("ACCELERATE_MIXED_PRECISION", ("no", "bf16"), "--bf16 asks for the latter here as well"),
    ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1",), "--accumulate cuts batches into parts here"),
    ("ACCELERATE_DYNAMO_BACKEND", ("no",), "--compile default goes through torch.compile here"),
    ("ACCELERATE_USE_FSDP", ("false",), _WHOLE),
    ("ACCELERATE_USE_DEEPSPEED", ("false",), _WHOLE),
    ("ACCELERATE_USE_MEGATRON_LM", ("false",), _WHOLE),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", ("false",), _WHOLE),
)
"""What ``accelerate launch`` sets, the values in lower case that train as they say, and what there is instead."""


class Optimizer(str, Enum):
    """Optimizers by name."""

    sgd = "sgd"
    adam = "adam"


class Schedule(str, Enum):
    """Learning-rate schedules by name."""

    constant = "constant"
    cosine = "cosine"
    one_cycle = "one-cycle"
    piecewise = "piecewise"


class CompileMode(str, Enum):
    """Modes of torch.compile by name; reduce-overhead has CUDA graphs."""

    no = "no"
    default = "default"
    reduce_overhead = "reduce-overhead"


class AugmentationName(str, Enum):
    """Augmentations by name."""

    none = "none"
    flip = "flip"
    crop_flip = "crop-flip"


class KernelName(str, Enum):
    """Kernels of weight maps by name."""

    smoothing = "smoothing"
    unsharp = "unsharp"
    identity = "identity"


class FormatName(str, Enum):
    """Formats of exported networks by name."""

    torch_export = "torch-export"
    onnx = "onnx"
    torchscript = "torchscript"


class NormName(str, Enum):
    """Norms by name."""

    linf = "Linf"
    l2 = "L2"
    l1 = "L1"


class BackendName(str, Enum):
    """AutoAttack's implementations by name."""

    native = "native"
    reference = "reference"


OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing.")]
SeedOption = Annotated[int, typer.Option(help="Makes the run repeatable.", min=0)]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """``debug`` is read by `_Commands`."""
    asked_for_several = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    if asked_for_several and "RANK" not in os.environ:
        print(
            "note: accelerate launch started one process, as it does on CPUs however many are asked for; "
            "torchrun --nproc-per-node starts several.",
            file=sys.stderr,
        )


@app.command()
def methods() -> None:
    """List what is installed: each method's source and parameters, and the instruments that join any of them."""
    table = Table("method", "as an ART", "source", "parameters")
    for name, kind in available_methods().items():
        table.add_row(name, _art_kind(kind), getattr(kind, "source", "") or "not stated", _parameter_list(kind))
    console.print(table)
    instruments = Table("instrument", "parameters")
    for name, kind in available_instruments().items():
        instruments.add_row(name, _parameter_list(kind))
    console.print(instruments)


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of training for each network.", min=1)] = 20,
    points: Annotated[int, typer.Option(help="Test images to attack.", min=1)] = 100,
    seed: SeedOption = 0,
) -> None:
    """Train every installed method on scikit-learn's digits, attack the networks, and compare them on one page.

    Single methods, then a composition. Each network meets the standard AutoAttack and the attacks of torchattacks at
    Linf 0.1, and is certified. About six minutes.
    """
    torch.set_num_threads(1)  # 8x8 images are too small to be shared, and threads that wait for each other are slow
    _check_output("--out", out, COMPARISON_FILES)
    data = load_data("digits")
    threat = ThreatModel("Linf", 0.1)
    trained = {name: kind for name, kind in available_methods().items() if is_trainable(kind)}
    # The baseline comes first, for the others to be compared with.
    runs = [(name, ()) for name in sorted(trained, key=lambda name: name != "standard")]
    speaks = processes_here().is_main_process
    reports = {}
    with _on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        for name, instruments in [*runs, *DEMO_COMPOSITIONS]:
            known = parameters_of(trained[name])
            required = {key for key, value in known.items() if value is inspect.Parameter.empty}
            parameters = {**getattr(trained[name], "demo", {}), **({"threat": threat} if "threat" in required else {})}
            missing = sorted(required - set(parameters))
            if missing:
                if speaks:
                    console.print(f"{name}: left out, it has no default for {', '.join(missing)}.")
                continue
            label = "+".join([name, *instruments])
            folder = out / label
            if (folder / "classifier.json").exists():
                _check_demo(folder, epochs, seed)
            else:
                if speaks:
                    console.print(f"{label}: training", style="bold")
                joined: dict[str, dict[str, Any]] = {instrument: {} for instrument in instruments}
                plan = TrainingPlan(name, parameters=parameters, instruments=joined, epochs=epochs)
                train_run(plan, data, folder, seed=seed, resume=True)
            attacks = ["standard", "torchattacks"]
            (reports[label],) = evaluate_run(
                folder, data, [threat], attacks, points=points, seed=seed, certify="if possible"
            )
    if speaks:
        _show_comparison(reports, out)


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="METHOD", help="A method's name; see art-robust methods.")],
    out: OutOption,
    data: Annotated[str, typer.Option(help="digits, mnist, cifar10, or an .npz file.")] = "digits",
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}.")] = "small-cnn",
    model_settings: Annotated[
        list[str] | None,
        typer.Option("--model-set", metavar="NAME=VALUE", help="An argument of the network, as depth=16; repeatable."),
    ] = None,
    settings: Annotated[
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
    weight_map: Annotated[
        KernelName | None, typer.Option(help="Add weight maps of this kernel to the network, whatever the method.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    optimizer: Optimizer = Optimizer.sgd,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01,
    momentum: Annotated[float | None, typer.Option(help="For sgd; 0.9 by default.")] = None,
    weight_decay: float = 5e-4,
    schedule: Annotated[Schedule, typer.Option(help="Of the learning rate, over all steps.")] = Schedule.cosine,
    warmup: Annotated[float, typer.Option(help="Epochs in which the rate grows first, for cosine.")] = 0.0,
    milestones: Annotated[
        list[float] | None,
        typer.Option("--milestone", metavar="EPOCH", help="Then the rate falls to a tenth, for piecewise; repeatable."),
    ] = None,
    norm: Annotated[
        NormName | None,
        typer.Option(help="Norm of the threat (Linf by default), for robust validation and methods that use one."),
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Radius of the threat, such as 0.1 or 8/255.")] = None,
    validation: Annotated[int, typer.Option(help="Training images held out to measure each epoch on.", min=0)] = 0,
    keep_best: Annotated[bool, typer.Option(help="End with the best epoch's weights; needs --validation.")] = False,
    bf16: Annotated[bool, typer.Option(help="Forward passes in bfloat16.")] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="The memory format in which most convolutions compute faster.")
    ] = False,
    compile_mode: Annotated[
        CompileMode, typer.Option("--compile", help="Forward passes of the training through torch.compile.")
    ] = CompileMode.no,
    fused: Annotated[bool, typer.Option("--fused", help="Steps of the optimizer in one kernel.")] = False,
    ema_decay: Annotated[
        float | None, typer.Option(help="Validate and save a moving average of the weights, with 0.999 as an example.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(metavar="PARTS", help="Parts that a batch is cut into, to save memory.")
    ] = 1,
    clip: Annotated[
        float | None, typer.Option(metavar="NORM", help="Clip the gradient of all weights to this L2 norm.")
    ] = None,
    augment: Annotated[
        AugmentationName, typer.Option(help="Random flips, or crops and flips, of the training images.")
    ] = AugmentationName.none,
    freeze_batch_norm: Annotated[
        bool, typer.Option("--freeze-batch-norm", help="Keep batch normalisation's running statistics as they are.")
    ] = False,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option(help="Continue a run that was stopped.")] = False,
) -> None:
    """Train a network with one method and save it; weight-map trains a network with weight maps plainly.

    Example: art-robust train bang --data mnist --model lenet --epochs 10 --set ratio=0.5 --out runs/bang
    """
    _check_launcher()
    if (out / "classifier.json").exists():
        raise ValueError(f"--out: {out} holds a trained network already, expected another folder.")
    kind = method(name)
    _check_trainable(name, kind, weight_map)
    known = parameters_of(kind)
    parameters, joined = _settings(settings or [], instruments or [])
    trainer = kind if issubclass(kind, Trainer) else method("standard")
    if joined and "instruments" not in inspect.signature(trainer).parameters:
        raise ValueError(f"--with: got {next(iter(joined))}, but {name!r} takes no instruments, expected none.")
    for given in ("classifier", "options", "instruments", "threat"):
        if given in parameters:
            raise ValueError(f"--set: {given} is no setting of {name!r}, expected options such as --eps for it.")
    model_arguments = dict(_setting(text, "--model-set") for text in model_settings or [])
    for given in ("name", "input_shape", "nb_classes"):
        if given in model_arguments:
            raise ValueError(f"--model-set: got {given}, which --model and --data give, expected another argument.")
    threat = _threat(name, known, norm, eps)
    if threat is not None:
        parameters["threat"] = threat
    if lr <= 0:
        raise ValueError(f"--lr: got {lr}, expected a positive number.")
    if momentum is not None and optimizer is not Optimizer.sgd:
        raise ValueError(f"--momentum: got {momentum} for {optimizer.value}, expected it for sgd only.")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    engine: dict[str, Any] = {
        "mixed_precision": "bf16" if bf16 or launched == "bf16" else "no",
        "schedule": schedule.value,
        "warmup_epochs": warmup,
        "milestones": milestones or (),
        "channels_last": channels_last,
        "compile": compile_mode.value,
        "fused_optimizer": fused,
        "ema_decay": ema_decay,
        "accumulation_steps": accumulate,
        "max_gradient_norm": clip,
        "augmentation": augment.value,
        "freeze_batch_norm": freeze_batch_norm,
    }
    TrainingOptions(**engine)  # refuses what is wrong before the data are loaded
    _check_output("--out", out, RUN_FILES)
    if resume and not (out / CHECKPOINT).exists() and not is_unused(out):
        raise ValueError(f"--resume: {out} holds no {CHECKPOINT}, expected a folder of a run that was stopped.")
    dataset = _load(data)
    _check_validation(validation, dataset, keep_best)
    plan = TrainingPlan(
        name,
        network=model,
        network_arguments=model_arguments,
        parameters=parameters,
        instruments=joined,
        weight_map=None if weight_map is None else weight_map.value,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer.value,
        lr=lr,
        momentum=0.9 if momentum is None else momentum,
        weight_decay=weight_decay,
        validation=validation,
        options={**engine, "keep_best": keep_best},
    )
    with _on_interrupt(f"to continue: art-robust {shlex.join([*_without(sys.argv[1:], '--resume'), '--resume'])}"):
        train_run(plan, dataset, out, seed=seed, resume=resume)
    if processes_here().is_main_process:
        attack, proof = f"art-robust evaluate {out} --norm Linf --eps 0.1", f"art-robust certify {out} --eps 0.1"
        console.print(f"Saved in {out}. Next: {attack}, or {proof}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that art-robust train, or save_classifier, wrote.")],
    eps: Annotated[
        list[str],
        typer.Option(help="Radius of the threat in the units of the input, such as 0.1 or 8/255; repeatable."),
    ],
    norm: NormName = NormName.linf,
    attacks: Annotated[
        list[str] | None,
        typer.Option(help="standard, plus, rand, fast, torchattacks, noise, or an attack's name; repeatable."),
    ] = None,
    transfers: Annotated[
        list[Path] | None,
        typer.Option("--transfer", help="Another run, whose network's gradients are followed as well; repeatable."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Test data; by default that of the training.")] = None,
    points: Annotated[int, typer.Option(help="How many test images, the first ones.", min=1)] = 1000,
    batch_size: Annotated[
        int, typer.Option(help="Points an attack gets at once; it fixes the randomness.")
    ] = BATCH_SIZE,
    physical_batch_size: Annotated[
        int | None, typer.Option(help="The most points in a pass; by default what a GPU's memory holds.", min=1)
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="Whose AutoAttack: this package's, or its authors' where it is installed.")
    ] = BackendName.native,
    seed: SeedOption = 0,
    certify: Annotated[bool, typer.Option("--certify", help="Add the certified radii to the report.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report; by default one inside the run's.")
    ] = None,
) -> None:
    """Attack a trained network and write a report. Stopped, the same command goes on where it was.

    With several --eps, each attacks the points that the smaller ones left; a page compares them.

    Example: art-robust evaluate runs/bang --norm Linf --eps 0.1 --attacks standard --attacks noise
    """
    threats = [ThreatModel(norm.value, radius) for radius in eps]
    _check_output("--out", out or run / EVALUATIONS, () if out is None else REPORT_FILES)
    with _on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        reports = evaluate_run(
            run,
            _test_data(run, data),
            threats,
            attacks or ["standard"],
            transfers or [],
            points=points,
            seed=seed,
            batch_size=batch_size,
            physical_batch_size=physical_batch_size,
            backend=backend.value,
            certify="always" if certify else "never",
            out=out,
        )
    if processes_here().is_main_process:
        for report in reports:
            console.print(str(report), markup=False, highlight=False)


@app.command()
def certify(
    run: Annotated[Path, typer.Argument(help="A folder that art-robust train, or save_classifier, wrote.")],
    eps: Annotated[
        list[str], typer.Option(help="Radius in the units of the input, such as 0.5 or 36/255; repeatable.")
    ],
    norm: NormName = NormName.l2,
    data: Annotated[str | None, typer.Option(help="Test data; by default that of the training.")] = None,
    points: Annotated[int | None, typer.Option(help="How many test images, the first ones; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a forward pass.", min=1)] = BATCH_SIZE,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the certificate; by default one inside the run's.")
    ] = None,
) -> None:
    """Prove within which radius each prediction of a trained network cannot change, from its Lipschitz constants.

    Writes certificate.json (accuracies, the bound of each layer) and radii.safetensors (each image's radius).

    Example: art-robust certify runs/bang --eps 0.5 --eps 1.0
    """
    _check_alone("certify")
    if points is not None and points < 1:
        raise ValueError(f"--points: got {points}, expected at least 1.")
    threats = [ThreatModel(norm.value, radius) for radius in eps]
    _check_output("--out", out or run / CERTIFICATES, () if out is None else (CERTIFICATE_FILE, RADII_FILE))
    test = _test_data(run, data)
    images = len(test.x_test[:points])
    name = "-".join([norm.value, *eps, Path(test.name).stem, str(images)]).replace("/", "_")
    folder = out or run / CERTIFICATES / name
    summary, bound = certify_run(run, test, threats, folder, points=points, batch_size=batch_size)
    console.print(str(bound), markup=False, highlight=False, soft_wrap=True)
    table = Table("radius", f"certified accuracy of {images} points")
    table.add_row("0", f"{summary['clean_accuracy']:.2%} (clean)")
    for certified in summary["certified_accuracy"]:
        table.add_row(f"{norm.value} {certified['eps']:g}", f"{certified['accuracy']:.2%}")
    console.print(table)
    if norm is NormName.linf:
        console.print("These Linf radii are L2 radii over the root of the number of features, which is loose.")
    console.print(f"Saved in {folder}.", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that art-robust train, or save_classifier, wrote.")],
    format: Annotated[
        FormatName, typer.Option(help="torch-export (.pt2), onnx, or torchscript (.pt).")
    ] = FormatName.torch_export,
    batch: Annotated[str, typer.Option(metavar="N", help="Batch size that the file takes, or dynamic.")] = "dynamic",
    data: Annotated[str | None, typer.Option(help="Test data; by default that of the training.")] = None,
    points: Annotated[int, typer.Option(help="Test images to compare the outputs on.", min=2)] = 16,
    out: Annotated[Path | None, typer.Option("--out", help="The file; by default RUN/network with its suffix.")] = None,
) -> None:
    """Write a trained network with its preprocessing to a file that needs neither this package nor ART.

    Inputs are in the estimator's range, outputs are logits. The file's outputs are compared with the estimator's.

    Example: art-robust export runs/bang --format onnx
    """
    _check_alone("export")
    if batch != "dynamic" and not batch.isdecimal():
        raise ValueError(f"--batch: got {batch!r}, expected a positive whole number or dynamic.")
    kind: Format = format.value
    path = out or run / f"network{SUFFIXES[kind]}"
    check_output_file("--out", path)
    images = _test_data(run, data).x_test[:points]
    size = None if batch == "dynamic" else int(batch)
    difference = export_classifier(load_classifier(run, device="cpu"), path, images, format=kind, batch=size)
    console.print(f"Saved {path}: logits of {len(images)} test images differ by {difference:.2g}.", soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of single reports.")],
    out: OutOption = Path("runs/comparison"),
) -> None:
    """Compare evaluated runs on one page.

    Example: art-robust report runs/*
    """
    _check_alone("report")
    check_output_folder("--out", out, COMPARISON_FILES)
    reports = {}
    for run in runs:
        # A sweep has a folder for each radius.
        inside = [f"{up}{EVALUATIONS}/{depth}" for up in ("", "*/") for depth in ("*", "*/*")]
        found = [run, *(folder for pattern in inside for folder in sorted(run.glob(pattern)) if folder.name != STATE)]
        finished = [folder for folder in found if (folder / REPORT_FILE).exists()]
        for folder in found:
            if folder not in finished and ((folder / STATE).exists() or (folder / STATE_FILE).exists()):
                console.print(f"{folder}: left out, its evaluation is not finished.", style="yellow", soft_wrap=True)
        if not finished:
            console.print(f"{run}: left out, no report is in it.", style="yellow", soft_wrap=True)
        for folder in finished:
            owner = next((above.parent for above in folder.parents if above.name == EVALUATIONS), folder)
            alone = sum(owner in (other, *other.parents) for other in finished) == 1
            label = owner.name if alone else f"{owner.name}, {folder.relative_to(owner / EVALUATIONS)}"
            reports[label if label not in reports else str(folder)] = EvaluationReport.load(folder)
    if not reports:
        raise ValueError("RUNS: got no folder with a report, expected some that art-robust evaluate wrote.")
    _show_comparison(reports, out)


@app.command()
def benchmark(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A recipe of --list, or the path of a .toml file.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="About a minute, to see that it runs: few images, one epoch, one seed.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that share the networks.", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the networks and results; runs/NAME by default.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", help="Write results.json to this file as well, for keeping.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the recipes, and run none.")] = False,
) -> None:
    """Run a recipe: train every row with every seed, attack and certify the networks, and compare them.

    Stopped, the same command goes on where it was, and what is done is not done again.

    Example: art-robust benchmark digits --quick
    """
    if listed:
        if name is not None:
            raise ValueError(f"NAME: got {name!r} with --list, expected one of the two.")
        recipes = Table("recipe", "networks", Column("what", overflow="fold"))
        for each in map(load_recipe, available_recipes()):
            recipes.add_row(each.name, str(sum(len(row.seeds) for row in each.rows)), each.description)
        console.print(recipes)
        return
    if name is None:
        raise ValueError(f"NAME: got none, expected one of {', '.join(available_recipes())}, or a .toml file.")
    if record is not None and quick:
        raise ValueError("--record: got it with --quick, whose results are no measurements, expected it without.")
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise ValueError(f"--record: got {record}, expected a file in a folder that is there.")
    if record is not None:
        check_output_file("--record", record)
    recipe = load_recipe(name, quick=quick)
    folder = out or Path("runs") / f"{recipe.name}{'-quick' if quick else ''}"
    shown = ["art-robust", "benchmark", name if Path(name).suffix != ".toml" else Path(name).name]
    shown += ["--quick"] * quick + (["--workers", str(workers)] if workers > 1 else [])
    with _on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        results = run_recipe(recipe, folder, command=shlex.join(shown), workers=workers)
    print(f"\n{markdown(result_rows(results))}\n")
    if quick:
        console.print("A quick run: these are no measurements.")
    if record is not None:
        write_json(record, results)


def main() -> None:
    """The entry point of ``art-robust`` and of ``python -m art_robust_plugins``."""
    app()


def _part() -> None:
    """Several processes end together: one that is still connected could be torn down in the middle of its exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        here = processes_here()
        Processes(here.device, moment="at the end", advice="its own message says why.").wait()
        here.destroy_process_group()


def _check_alone(command: str) -> None:
    """Refuse several processes in a command that does not share out its work: each would write the same files."""
    if processes_here().num_processes > 1:
        raise ValueError(f"{command}: got several processes, expected one; start it without a launcher.")


def _check_launcher() -> None:
    """Refuse what ``accelerate launch`` was asked for and the training would leave out."""
    for name, wanted, instead in _LAUNCHER_SETTINGS:
        value = os.environ.get(name)
        if value is not None and value.lower() not in wanted:
            raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, wanted))}; {instead}.")


def _check_output(name: str, folder: Path, files: Collection[str]) -> None:
    """Refuse, in all processes, a folder that the main one cannot write to."""
    Processes(processes_here().device).do_in_main(lambda: check_output_folder(name, folder, files))


def _check_trainable(name: str, kind: type, weight_map: KernelName | None) -> None:
    if not is_trainable(kind):
        raise ValueError(f"METHOD: {name!r} is an ART {_art_kind(kind)}, expected a Trainer.")
    if weight_map is not None and not issubclass(kind, Trainer):
        raise ValueError(f"--weight-map: got {weight_map.value} for {name!r}, expected --set kernel=... there.")


def _check_validation(validation: int, data: Dataset, keep_best: bool) -> None:
    if validation >= len(data.x_train):
        raise ValueError(f"--validation: got {validation} of {len(data.x_train)} training images, expected fewer.")
    if keep_best and validation == 0:
        raise ValueError("--keep-best: got no --validation, expected a number of images to measure epochs on.")


def _check_demo(folder: Path, epochs: int, seed: int) -> None:
    """A second demo in one folder goes on with the first one's networks: they must be those that are asked for."""
    record = read_training_record(folder)
    if (record.get("epochs"), record.get("seed")) != (epochs, seed):
        raise ValueError(
            f"--out: {folder} holds a network of {record.get('epochs')} epochs and seed {record.get('seed')}, expected "
            f"{epochs} and {seed}; take another folder."
        )


def _test_data(run: Path, name: str | None) -> Dataset:
    """The test data that are asked for, or those of the run's training."""
    trained_on: str | None = read_training_record(run).get("data")
    chosen = name or trained_on
    if chosen is None:
        raise ValueError(f"--data: {run} does not say what it was trained on, expected the name of the test data.")
    return _load(chosen)


def _load(name: str) -> Dataset:
    """The data; where several processes run, one of each machine is the first, as it may have to download them."""
    processes = Processes(processes_here().device)
    try:
        data = load_data(name) if processes.is_local_main else None
    finally:
        processes.wait()
    return data or load_data(name)


def _show_comparison(reports: dict[str, EvaluationReport], out: Path) -> None:
    page = save_comparison(reports, out)
    _print_comparison(reports)
    console.print(f"Open {page} in a browser.", soft_wrap=True)


def _print_comparison(reports: dict[str, EvaluationReport]) -> None:
    table = Table(
        Column("run", overflow="fold"),
        "clean",
        "AutoAttack",
        "worst case",
        "certified",
        Column("flags", overflow="fold"),
    )
    for name, result in reports.items():
        standard = result.autoattack_accuracy
        table.add_row(
            name,
            f"{result.clean_accuracy:.1%}",
            "not run" if standard is None else f"{standard:.1%}",
            f"{result.robust_accuracy:.1%} {worst_case_mark(result)}".rstrip(),
            "no" if result.certified_accuracy is None else f"{result.certified_accuracy:.1%}",
            ", ".join(flag.name for flag in result.flags) or "none",
        )
    console.print(table)


def _art_kind(kind: type) -> str:
    if issubclass(kind, Trainer):
        return "Trainer"
    return "Preprocessor" if issubclass(kind, Preprocessor) else "estimator"


def _setting(text: str, option: str = "--set") -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{option}: got {text!r}, expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _threat(name: str, known: dict[str, Any], norm: NormName | None, eps: str | None) -> ThreatModel | None:
    """The threat that --norm and --eps give to a method with the parameters ``known``."""
    if eps is not None:
        if "threat" not in known:
            raise ValueError(f"--eps: {name!r} takes no threat, expected none.")
        return ThreatModel("Linf" if norm is None else norm.value, eps)
    if norm is not None:
        raise ValueError(f"--norm: got {norm.value} without --eps, expected both.")
    if known.get("threat") is inspect.Parameter.empty:
        raise ValueError(f"--eps: got none, which {name!r} trains against, expected a radius such as 0.1 or 8/255.")
    return None


def _settings(texts: list[str], instruments: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What --set gives to the method, and to each instrument that --with names."""
    parameters: dict[str, Any] = {}
    joined: dict[str, dict[str, Any]] = {}
    for instrument in instruments:
        if instrument in joined:
            raise ValueError(f"--with: got {instrument} twice, expected it once.")
        joined[instrument] = {}
    for text in texts:
        name, value = _setting(text)
        owner, found, own = name.partition(".")
        if found and owner not in joined:
            known = ", ".join(available_instruments())
            raise ValueError(f"--set: got {name}, expected a name of the method, or --with {owner or known} beside it.")
        (joined[owner] if found else parameters)[own if found else name] = value
    return parameters, joined


def _parameter_list(kind: type) -> str:
    """A method's parameters with their defaults, as they are shown."""
    return ", ".join(
        key if value is inspect.Parameter.empty else f"{key}={value}" for key, value in parameters_of(kind).items()
    )


def _without(arguments: list[str], left_out: str) -> list[str]:
    return [argument for argument in arguments if argument != left_out]


@contextmanager
def _on_interrupt(advice: str) -> Iterator[None]:
    """Say how to go on when Ctrl-C stops the work inside, or SIGTERM, which a launcher sends where another one died."""

    def terminated(*_: object) -> None:
        print(f"\nended by SIGTERM; {advice}", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{advice}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
