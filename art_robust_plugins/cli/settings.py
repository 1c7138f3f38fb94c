"""The settings of ``art-robust train``: those of its dataclasses, and those of methods as NAME=VALUE."""

from __future__ import annotations

import json
from typing import Any

from ..choices import NETWORKS
from ..experiments.plans import SCHEDULE, TrainingPlan
from ..training.options import TrainingOptions
from .derived import FieldOption, default_of, list_options

VALIDATION_SHARE = 0.1
"""Of the training images, where the command line names none."""

PLAN = (
    FieldOption(TrainingPlan, "network", "--model", f"{', '.join(NETWORKS)}."),
    FieldOption(TrainingPlan, "weight_map", help="Add weight maps of this kernel to the network, whatever the method."),
    FieldOption(TrainingPlan, "epochs", min=1),
    FieldOption(TrainingPlan, "batch_size", min=1),
    FieldOption(TrainingPlan, "optimizer", help="The optimizer of the weights."),
    FieldOption(TrainingPlan, "lr", help="Learning rate."),
    FieldOption(
        TrainingPlan,
        "momentum",
        help=f"For sgd; {default_of(TrainingPlan, 'momentum')} by default.",
        kind=float | None,
        default=None,  # so that one that is given for another optimizer is known
    ),
    FieldOption(TrainingPlan, "weight_decay"),
    FieldOption(TrainingPlan, "label_smoothing", help="Of the cross-entropy, such as 0.1."),
    FieldOption(
        TrainingPlan,
        "validation",
        help="Training images held out to measure each epoch on, by number; 0 for none.",
        min=0,
        kind=int | None,
        default=None,  # so that --validation-share counts
    ),
)
OPTIONS = list_options(
    TrainingOptions,
    {
        "schedule": {"help": "Of the learning rate, over all steps.", "default": SCHEDULE},
        "warmup_epochs": {"help": "Epochs in which the rate grows first, for cosine."},
        "milestones": {
            "help": "Then the rate falls to a tenth, for piecewise; repeatable.",
            "metavar": "EPOCH",
            "kind": list[float] | None,
            "default": None,
        },
        "augmentation": {"help": "Random flips, or crops and flips, of the training images."},
        "mixed_precision": {"help": "Forward passes in bfloat16."},
        "channels_last": {"help": "The memory format in which most convolutions compute faster."},
        "compile": {"option": "--compile", "help": "Forward passes of the training through torch.compile."},
        "fused_optimizer": {"help": "Steps of the optimizer in one kernel."},
        "accumulation_steps": {"help": "Parts that a batch is cut into, to save memory.", "metavar": "PARTS"},
        "max_gradient_norm": {"metavar": "NORM"},
        "ema_decay": {"help": "Validate and save a moving average of the weights, with 0.999 as an example."},
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


def take(settings: tuple[FieldOption, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The values of these settings, among all that the command line gave."""
    return {setting.field: given[setting.field] for setting in settings}


def parse_setting(text: str, option: str = "--set") -> tuple[str, Any]:
    """NAME=VALUE as the name and the value, which is JSON or text."""
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{option}: got {text!r}, expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def sort_settings(texts: list[str], instruments: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What --set gives to the method, and to each instrument that --with names."""
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
        (joined[owner] if found else parameters)[own if found else name] = value
    return parameters, joined
