"""The settings of ``art-robust train``: those of its dataclasses, and those of methods as NAME=VALUE."""

from __future__ import annotations

import json
from typing import Any

from ..choices import NETWORKS
from ..experiments.plans import SCHEDULE, TrainingPlan
from ..training.options import TrainingOptions
from .derived import FieldOption, default_of, list_options

VALIDATION_SHARE = 0.1
"""The share of the training images that is held out unless the command line says otherwise."""

PLAN = (
    FieldOption(TrainingPlan, "network", "--model", f"The network: {', '.join(NETWORKS)}."),
    FieldOption(TrainingPlan, "weight_map", help="Add weight maps of this kernel to the network, whatever the method."),
    FieldOption(TrainingPlan, "epochs", min=1),
    FieldOption(TrainingPlan, "batch_size", min=1),
    FieldOption(TrainingPlan, "optimizer", help="The optimizer of the weights."),
    FieldOption(TrainingPlan, "lr", help="Learning rate."),
    FieldOption(
        TrainingPlan,
        "momentum",
        help=f"Momentum of sgd; {default_of(TrainingPlan, 'momentum')} by default.",
        kind=float | None,
        default=None,  # so that one that is given for another optimizer is known
    ),
    FieldOption(TrainingPlan, "weight_decay"),
    FieldOption(
        TrainingPlan, "label_smoothing", help="Smooth the labels of the cross-entropy by this share, such as 0.1."
    ),
    FieldOption(
        TrainingPlan,
        "validation",
        help="Number of training images that are held out to measure each epoch on; 0 for none.",
        min=0,
        kind=int | None,
        default=None,  # so that --validation-share counts
    ),
)
OPTIONS = list_options(
    TrainingOptions,
    {
        "schedule": {"help": "Schedule of the learning rate, over all steps.", "default": SCHEDULE},
        "warmup_epochs": {"help": "Number of first epochs in which the learning rate grows, for cosine."},
        "milestones": {
            "help": "Epoch after which the learning rate falls to a tenth, for piecewise; repeatable.",
            "metavar": "EPOCH",
            "kind": list[float] | None,
            "default": None,
        },
        "augmentation": {"help": "Flip the training images at random, or crop and flip them."},
        "mixed_precision": {"help": "Compute forward passes in bfloat16."},
        "channels_last": {"help": "Use this memory format, in which most convolutions are faster."},
        "compile": {"option": "--compile", "help": "Compile the forward passes of the training by torch.compile."},
        "fused_optimizer": {"help": "Compute each step of the optimizer in one kernel."},
        "accumulation_steps": {
            "help": "Number of parts into which a batch is cut, to save memory.",
            "metavar": "PARTS",
        },
        "max_gradient_norm": {"metavar": "NORM"},
        "ema_decay": {"help": "Validate and save a moving average of the weights with this decay, such as 0.999."},
        "freeze_batch_norm": {"help": "Keep batch normalisation's running statistics as they are.", "kind": bool},
        "keep_best": {
            "option": "--keep-best/--no-keep-best",
            "help": "End with the weights of the best epoch, by the held-out images.",
        },
    },
    without=(
        *("seed", "checkpoint_dir", "resume"),  # the command has them itself
        *("shuffle", "drop_last", "scheduler_interval", "milestone_decay", "crop_padding", "validation_steps"),
    ),
)


_CONSTANTS = {"True": True, "False": False, "None": None}


def take(settings: tuple[FieldOption, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The values of these settings, among all that the command line gave."""
    return {setting.field: given[setting.field] for setting in settings}


def parse_setting(text: str, option: str = "--set") -> tuple[str, Any]:
    """NAME=VALUE as the name and the value: JSON, a constant of Python (True, False, None), or text."""
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{option}: got {text!r}, expected NAME=VALUE.")
    if value in _CONSTANTS:
        return name, _CONSTANTS[value]
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def sort_settings(texts: list[str], instruments: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Sort the values of --set: those of the method, and those of each instrument that --with names."""
    parameters: dict[str, Any] = {}
    joined: dict[str, dict[str, Any]] = {}
    for instrument in instruments:
        if instrument in joined:
            raise ValueError(f"--with: got {instrument} twice, expected it once.")
        joined[instrument] = {}
    for text in texts:
        name, value = parse_setting(text)
        owner, found, own = name.partition(".")
        if found and owner not in joined:
            from ..registry import available_instruments

            known = ", ".join(available_instruments())
            raise ValueError(f"--set: got {name}, expected a name of the method, or --with {owner or known} beside it.")
        there, key = (joined[owner], own) if found else (parameters, name)
        if key in there:
            raise ValueError(f"--set: got {name} twice, expected it once.")
        there[key] = value
    return parameters, joined
