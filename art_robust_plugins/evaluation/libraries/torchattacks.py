"""The attacks of torchattacks as attacks of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...threat import Norm
from ..results import Constraint
from .attack import Attack, NotApplicable, Perturb, Prepare, Setting
from .packages import import_package
from .requirements import check_sides

_PGD: Mapping[Norm, str] = {"Linf": "PGD", "L2": "PGDL2"}


def _prepare(
    kind: str | Mapping[Norm, str], arguments: Callable[[Setting], dict[str, Any]], *, restarts: int = 1
) -> Prepare:
    """An attack of torchattacks: its class (by norm, where there is one for each), and its arguments for a setting.

    torchattacks would switch modes, and fails to find the device of a network without weights: it is given both.
    """

    def prepare(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
        norm, shape = setting.threat.norm, setting.input_shape
        name = kind if isinstance(kind, str) else kind.get(norm)
        if name is None:
            raise NotApplicable(f"torchattacks has no {norm} version")
        if len(shape) != 3:
            raise NotApplicable(f"torchattacks takes images (C, H, W), the inputs are {shape}")
        library = import_package("torchattacks")
        given = arguments(setting)
        attack = getattr(library, name)(setting.model, **given)
        attack.set_device(setting.device)
        if restarts == 1:
            return attack, given

        def restart_attack(x: Tensor, y: Tensor) -> Tensor:
            best, left = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
            for restart in range(restarts):
                torch.manual_seed(setting.seed + restart)
                where = left.nonzero().flatten()
                found = attack(x[where], y[where])
                with torch.no_grad():
                    wrong = setting.model(found).argmax(dim=1) != y[where]
                best[where] = found
                left[where[wrong]] = False
                if not left.any():
                    break
            return best

        return restart_attack, {**given, "restarts": restarts}

    return prepare


def _eps(setting: Setting) -> dict[str, Any]:
    return {"eps": setting.threat.eps}


def _steps(steps: int, ratio: float, **more: Any) -> Callable[[Setting], dict[str, Any]]:
    """``steps`` steps of ``ratio`` times eps each."""
    return lambda setting: {"eps": setting.threat.eps, "alpha": ratio * setting.threat.eps, "steps": steps, **more}


def _give(**arguments: Any) -> Callable[[Setting], dict[str, Any]]:
    return lambda setting: dict(arguments)


def _square_arguments(setting: Setting) -> dict[str, Any]:
    check_sides(setting, "torchattacks-square")
    seeded = {"norm": setting.threat.norm, "eps": setting.threat.eps, "seed": setting.seed}
    return {**seeded, "n_queries": 5000, "n_restarts": 1, "resc_schedule": False}


def _prepare_di_fgsm(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
    shape = setting.input_shape
    if len(shape) == 3 and shape[1] != shape[2]:
        raise NotApplicable(f"it turns every image into a square one, the inputs are {shape}")
    return _prepare({"Linf": "DIFGSM"}, _steps(10, 0.25, resize_rate=0.9, diversity_prob=0.5))(setting)


def _prepare_autoattack(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
    """torchattacks' AutoAttack with the reference's 100 steps and unscaled schedule in place of its own."""
    if setting.threat.norm == "L1":
        raise NotApplicable("torchattacks has no L1 version")
    if setting.classes < 4:
        raise NotApplicable(f"the targeted DLR loss needs 4 classes, the network has {setting.classes}")
    check_sides(setting, "torchattacks-autoattack")
    threat = setting.threat
    given = {"norm": threat.norm, "eps": threat.eps, "n_classes": min(setting.classes, 10), "seed": setting.seed}
    attack = import_package("torchattacks").AutoAttack(setting.model, version="standard", **given)
    attack.set_device(setting.device)
    *gradient_based, square = attack._autoattack.attacks
    for stage in gradient_based:
        stage.steps = 100
    square.rescale_schedule = False
    return attack, {**given, "steps": 100, "rescale_schedule": False}


def _build(
    name: str,
    summary: str,
    prepare: Prepare,
    constraint: Constraint = "ball",
    gradients: bool = True,
) -> Attack:
    return Attack(name, summary, prepare, constraint, package="torchattacks", gradients=gradients)


SUITES: dict[str, tuple[Attack, ...]] = {
    "torchattacks": (
        _build("fgsm", "one step along the gradient's sign", _prepare({"Linf": "FGSM"}, _eps)),
        _build("pgd-20", "20 projected gradient steps", _prepare(_PGD, _steps(20, 2.5 / 20))),
        _build(
            "pgd-100",
            "100 projected gradient steps, 5 restarts",
            _prepare(_PGD, _steps(100, 0.025), restarts=5),
        ),
        _build("mi-fgsm", "10 steps with momentum", _prepare({"Linf": "MIFGSM"}, _steps(10, 0.1, decay=1.0))),
        _build("di-fgsm", "10 steps through randomly resized inputs", _prepare_di_fgsm),
        _build(
            "cw",
            "Carlini and Wagner: smallest L2 change",
            _prepare("CW", _give(c=1, steps=50, lr=0.01)),
            "minimal",
        ),
        _build(
            "deepfool",
            "smallest L2 change to the nearest boundary",
            _prepare("DeepFool", _give(steps=50)),
            "minimal",
        ),
        _build(
            "torchattacks-square",
            "random search over squares, all points",
            _prepare({"Linf": "Square", "L2": "Square"}, _square_arguments),
            gradients=False,
        ),
        _build(
            "pixle",
            "rearranges pixels",
            _prepare("Pixle", _give(restarts=20, max_iterations=10)),
            "none",
            gradients=False,
        ),
        _build(
            "onepixel",
            "changes one pixel",
            _prepare("OnePixel", _give(pixels=1, steps=10, popsize=10)),
            "none",
            gradients=False,
        ),
        _build("jitter", "10 steps on jittered, scaled logits", _prepare({"Linf": "Jitter"}, _steps(10, 0.25))),
    ),
    "torchattacks-autoattack": (
        _build("torchattacks-autoattack", "torchattacks AutoAttack (100 steps)", _prepare_autoattack),
    ),
}
