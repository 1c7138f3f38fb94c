"""The stages of AutoAttack as attacks of an evaluation: this package's own, or those of the authors' package."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ..autoattack.batches import ChannelsLast
from ..autoattack.standard import STAGES, Stage, Version, find_obstacle, stage_attack
from .attack import Attack, NotApplicable, Perturb, Prepare, Setting
from .packages import reference_package
from .requirements import check_sides

_SUMMARIES: dict[Stage, str] = {
    "apgd-ce": "Auto-PGD on the cross-entropy",
    "apgd-dlr": "Auto-PGD on the DLR loss",
    "apgd-t": "targeted Auto-PGD on the DLR loss",
    "fab": "fast adaptive boundary attack",
    "fab-t": "targeted fast adaptive boundary attack",
    "square": "random search over squares, without gradients",
}


def _prepare_stage(stage: Stage, version: Version) -> Prepare:
    """A stage of AutoAttack, from the backend that the setting names."""

    def prepare(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
        reason = find_obstacle(stage, setting.classes)
        if reason is not None:
            raise NotApplicable(reason)
        if setting.backend == "reference":
            return _prepare_reference(stage, version, setting)
        attack = stage_attack(
            stage,
            version,
            ChannelsLast(setting.model) if setting.channels_last else setting.model,
            setting.threat,
            classes=setting.classes,
            seed=setting.seed,
            batch_size=setting.batch_size,
            physical_batch_size=setting.physical_batch_size,
        )
        return attack, attack.parameters

    return prepare


def _prepare_reference(stage: Stage, version: Version, setting: Setting) -> tuple[Perturb, dict[str, Any]]:
    if version == "fast":
        raise NotApplicable("the reference has no fast level")
    if stage == "square":
        check_sides(setting, "square")
    package, _ = reference_package()
    threat = setting.threat
    # The authors' package prints by default; the repackaged one has no such keyword.
    quiet = {"verbose": False} if "verbose" in inspect.signature(package.AutoAttack).parameters else {}
    ensemble = package.AutoAttack(
        setting.model,
        norm=threat.norm,
        eps=threat.eps,
        version=version,
        seed=setting.seed,
        device=str(setting.device),
        **quiet,
    )
    ensemble.apgd.logger = ensemble.apgd_targeted.logger = _SilentLogger()
    kind, keys = _REFERENCE_ATTACKS[stage]
    attack = getattr(ensemble, kind)
    if stage in ("apgd-ce", "apgd-dlr"):
        attack.loss = stage.removeprefix("apgd-")
    if kind == "fab":
        attack.targeted = stage == "fab-t"
        attack.n_restarts = 1 if attack.targeted else attack.n_restarts
    if stage in ("apgd-t", "fab-t"):
        attack.n_target_classes = min(attack.n_target_classes, setting.classes - 1)
    return torch.no_grad()(attack.perturb), {key: getattr(attack, key) for key in keys}


_APGD = ("loss", "n_iter", "n_restarts", "eot_iter", "thr_decr", "use_largereps")
_FAB = ("n_iter", "n_restarts", "alpha_max", "eta", "beta")
# Each stage's attack in the reference's ensemble, and the parameters that it has.
_REFERENCE_ATTACKS: dict[Stage, tuple[str, tuple[str, ...]]] = {
    "apgd-ce": ("apgd", _APGD),
    "apgd-dlr": ("apgd", _APGD),
    "apgd-t": ("apgd_targeted", (*_APGD, "n_target_classes")),
    "fab": ("fab", _FAB),
    "fab-t": ("fab", (*_FAB, "n_target_classes")),
    "square": ("square", ("n_queries", "n_restarts", "p_init", "loss", "rescale_schedule")),
}


class _SilentLogger:
    """Swallows the reference's warnings of zero gradients in every batch: our own diagnostics count them once."""

    def warning(self, message: object) -> None:
        pass

    log = warning


def _build_stage(stage: Stage, version: Version, *, cumulative: bool = True) -> Attack:
    prefix = "" if version == "standard" else f"{version}-"
    note = {"rand": ", 20 gradient samples a step", "fast": " (fast level, NOT standard)"}.get(version, "")
    summary = f"{_SUMMARIES[stage]}{note}"
    prepare = _prepare_stage(stage, version)
    gradients = stage != "square"
    return Attack(
        f"{prefix}{stage}", summary, prepare, cumulative=cumulative, package="autoattack", gradients=gradients
    )


SUITES: dict[str, tuple[Attack, ...]] = {
    version: tuple(_build_stage(stage, version) for stage in STAGES[version])
    for version in ("standard", "plus", "rand", "fast")
}

# AutoAttack's other stages, with the parameters of its standard version: on all points, not as stages of a suite.
SINGLE_STAGES = tuple(_build_stage(stage, "standard", cumulative=False) for stage in ("apgd-dlr", "fab"))
