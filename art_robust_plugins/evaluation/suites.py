"""The attacks that an evaluation may run, and the named suites of them.

Each attack is an `Attack`: a name, what its candidates are bound to, and a function that prepares it for one network.
To add one's own, make an `Attack` and hand it to the `Evaluator` among the names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..threat import Norm, ThreatModel
from .autoattack.batches import ChannelsLast
from .autoattack.standard import STAGES, Stage, Version, obstacle, stage_attack

Backend = Literal["native", "reference"]
"""Whose AutoAttack: this package's own, or that of the authors' package."""

Perturb = Callable[[Tensor, Tensor], Tensor]
"""Images x [N, C, H, W] (or [N, F]) in [0, 1] and labels y [N] int64 -> candidates like x."""

Constraint = Literal["ball", "minimal", "none"]
"""What an attack's candidates are bound to: the threat's ball ("ball"); nothing, but it looks for the smallest change,
so that candidates within the ball count ("minimal"); nothing, and it succeeds by its own measure ("none")."""

# The reference divides each side of the image into five for the square attack's first stripes.
SMALLEST_SIDE = 5
# Rows that every report has.
_RESERVED = ("clean", "worst case", "AutoAttack (standard)")


@dataclass(frozen=True)
class Setting:
    """What an attack is prepared for.

    Attributes:
        model: images in [0, 1] -> logits; its forward and backward passes are counted.
        threat: the threat model in units of [0, 1].
        input_shape: one image as ``model`` takes it, (C, H, W) or (F,).
        classes: the number of classes.
        seed: the seed of every call of an attack.
        device: where the network is.
        backend: whose AutoAttack runs.
        batch_size: of a logical batch: what an attack's random numbers are drawn for.
        physical_batch_size: the most images in a pass.
        channels_last: AutoAttack's own backend hands ``model`` its images in this layout, for speed.
    """

    model: nn.Module
    threat: ThreatModel
    input_shape: tuple[int, ...]
    classes: int
    seed: int
    device: torch.device
    backend: Backend = "native"
    batch_size: int = 250
    physical_batch_size: int = 250
    channels_last: bool = False


class NotApplicable(Exception):  # noqa: N818 - not an error: the report says what was left out, and why
    """An attack that does not exist for this threat or this network; the text is the reason."""


@dataclass(frozen=True)
class Attack:
    """An attack by name.

    Attributes:
        name: the name in the report.
        summary: what it does, in a few words.
        prepare: gets the `Setting`, returns the function that attacks one batch and the parameters for the report. It
            raises `NotApplicable` with the reason where there is no such attack, and ``ValueError`` for a network that
            it cannot take. The random generators of Python, NumPy and torch are seeded before every batch.
        constraint: what the candidates are bound to, see `Constraint`.
        cumulative: a stage: it acts on the points that the stages before it left, those of its own suite (or, for
            attacks of one's own, of these), always from the clean image. Otherwise the attack acts on all points that
            are classified correctly.
        package: the library that it comes from: "autoattack" (this package's own or the reference, as the backend
            says), "torchattacks", or None.
        gradients: whether it follows the network's gradients: such an attack is left out, and the report says so,
            where no gradient of the logits reaches the input.

    Example:
        >>> def prepare(setting):
        ...     return (lambda x, y: x + setting.threat.eps), {}
        >>> Attack("brighter", "every pixel brighter by eps", prepare).constraint
        'ball'
    """

    name: str
    summary: str
    prepare: Callable[[Setting], tuple[Perturb, dict[str, Any]]]
    constraint: Constraint = "ball"
    cumulative: bool = False
    package: str | None = None
    gradients: bool = True

    @property
    def bounded(self) -> bool:
        """Whether its candidates are constrained to the threat's ball."""
        return self.constraint == "ball"


def resolve(attacks: str | Attack | Sequence[str | Attack]) -> list[Attack]:
    """The attacks of a suite, of a name, or of a sequence of both; each once, in the order given.

    Raises:
        ValueError: an unknown name (with the nearest known one), no attacks, two different attacks of one name, an
            attack of one's own with the name of a built-in one.
    """
    chosen: dict[str, Attack] = {}
    for item in [attacks] if isinstance(attacks, (str, Attack)) else list(attacks):
        for attack in [item] if isinstance(item, Attack) else _named(item):
            # A number under a known name must be that attack's.
            if attack.name in _RESERVED or ATTACKS.get(attack.name, attack) is not attack:
                raise ValueError(
                    f"attacks: got an attack of one's own with the built-in name {attack.name!r}, expected another."
                )
            if chosen.setdefault(attack.name, attack) is not attack:
                raise ValueError(f"attacks: got two different attacks named {attack.name!r}, expected one.")
    if not chosen:
        raise ValueError("attacks: got none, expected the name of a suite or of an attack.")
    return list(chosen.values())


def suite_of(attack: Attack) -> str | None:
    """The name of the suite that this very attack belongs to; None for an attack of one's own."""
    return next((name for name, suite in SUITES.items() if any(attack is member for member in suite)), None)


def _named(name: object) -> Sequence[Attack]:
    if not isinstance(name, str):
        raise ValueError(f"attacks: got {name!r}, expected names of suites or attacks, or Attack objects.")
    if name in SUITES:
        return SUITES[name]
    if name in ATTACKS:
        return [ATTACKS[name]]
    nearest = get_close_matches(name.lower(), [*SUITES, *ATTACKS], n=1, cutoff=0.0)[0]
    suites = ", ".join(repr(suite) for suite in SUITES)
    raise ValueError(f"attacks: got {name!r}, expected a suite ({suites}) or an attack; did you mean {nearest!r}?")


# ------------------------------------------------------------------------------------------- AutoAttack's own package


def reference_package() -> tuple[ModuleType, str]:
    """The reference AutoAttack, and its name and version: the authors' ``autoattack``, else ``pyautoattack``.

    Raises:
        ImportError: neither is installed.
    """
    for name in ("autoattack", "pyautoattack"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name), f"{name} {_version(name)}"
    raise _missing("the reference AutoAttack (autoattack or pyautoattack)")


def package_versions(attacks: Sequence[Attack], backend: Backend = "native") -> dict[str, str]:
    """Name and version of each library that ``attacks`` come from.

    Raises:
        ImportError: one of them is not installed.
    """
    versions = {}
    for package in dict.fromkeys(attack.package for attack in attacks):
        if package == "autoattack":
            own = f"art-robust-plugins {_version('art-robust-plugins')}"
            name, version = (own if backend == "native" else reference_package()[1]).split(" ", 1)
            versions[name] = version
        elif package is not None:
            versions[package] = _imported(package) and _version(package)
    return versions


def _imported(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise _missing(package)
    return importlib.import_module(package)


def _missing(what: str) -> ImportError:
    return ImportError(f'{what} is not installed, expected it through: pip install "art-robust-plugins[attacks]".')


def _version(package: str) -> str:
    """The installed version; of a package from git also the commit, as its version does not move."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        # Importable from a folder, without an installation.
        return "unknown version"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"{distribution.version} ({commit[:12]})" if commit else distribution.version


class _Silent:
    """Takes the reference's warnings of zero gradients, one a batch: our own diagnostics count them once."""

    def warning(self, message: object) -> None:
        pass

    log = warning


def _autoattack(stage: Stage, version: Version) -> Callable[[Setting], tuple[Perturb, dict[str, Any]]]:
    """A stage of AutoAttack, from the backend that the setting names."""

    def prepare(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
        reason = obstacle(stage, setting.classes)
        if reason is not None:
            raise NotApplicable(reason)
        if setting.backend == "reference":
            return _reference(stage, version, setting)
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


def _reference(stage: Stage, version: Version, setting: Setting) -> tuple[Perturb, dict[str, Any]]:
    if version == "fast":
        raise NotApplicable("the reference has no fast level")
    if stage == "square":
        _check_square(setting, "square")
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
    ensemble.apgd.logger = ensemble.apgd_targeted.logger = _Silent()
    kind, keys = _REFERENCE[stage]
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
# Each stage's attack in the reference's ensemble, and what it tells of its parameters.
_REFERENCE: dict[Stage, tuple[str, tuple[str, ...]]] = {
    "apgd-ce": ("apgd", _APGD),
    "apgd-dlr": ("apgd", _APGD),
    "apgd-t": ("apgd_targeted", (*_APGD, "n_target_classes")),
    "fab": ("fab", _FAB),
    "fab-t": ("fab", (*_FAB, "n_target_classes")),
    "square": ("square", ("n_queries", "n_restarts", "p_init", "loss", "rescale_schedule")),
}


def _check_square(setting: Setting, name: str) -> None:
    shape = setting.input_shape
    if len(shape) != 3 or min(shape[1:]) < SMALLEST_SIDE:
        raise ValueError(
            f"attacks: {name!r} needs images with both sides of at least {SMALLEST_SIDE} pixels, got inputs of shape "
            f"{shape}; expected the other attacks by name, such as ['apgd-ce', 'apgd-t', 'fab-t']."
        )


# ------------------------------------------------------------------------------------------------------- torchattacks


def _torchattacks(
    kind: str | Mapping[Norm, str], arguments: Callable[[Setting], dict[str, Any]], *, restarts: int = 1
) -> Callable[[Setting], tuple[Perturb, dict[str, Any]]]:
    """An attack of torchattacks: its class (by norm, where there is one for each), and its arguments for a setting.

    torchattacks switches modes and may not find the device of a network without weights; both are taken from it.
    """

    def prepare(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
        norm, shape = setting.threat.norm, setting.input_shape
        name = kind if isinstance(kind, str) else kind.get(norm)
        if name is None:
            raise NotApplicable(f"torchattacks has no {norm} version")
        if len(shape) != 3:
            raise NotApplicable(f"torchattacks takes images (C, H, W), the inputs are {shape}")
        library = _imported("torchattacks")
        given = arguments(setting)
        attack = getattr(library, name)(setting.model, **given)
        attack.set_device(setting.device)
        if restarts == 1:
            return attack, given

        def restarted(x: Tensor, y: Tensor) -> Tensor:
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

        return restarted, {**given, "restarts": restarts}

    return prepare


def _eps(setting: Setting) -> dict[str, Any]:
    return {"eps": setting.threat.eps}


def _steps(steps: int, ratio: float, **more: Any) -> Callable[[Setting], dict[str, Any]]:
    """``steps`` steps of ``ratio`` times eps each."""
    return lambda setting: {"eps": setting.threat.eps, "alpha": ratio * setting.threat.eps, "steps": steps, **more}


def _fixed(**arguments: Any) -> Callable[[Setting], dict[str, Any]]:
    return lambda setting: dict(arguments)


def _square_arguments(setting: Setting) -> dict[str, Any]:
    _check_square(setting, "torchattacks-square")
    seeded = {"norm": setting.threat.norm, "eps": setting.threat.eps, "seed": setting.seed}
    return {**seeded, "n_queries": 5000, "n_restarts": 1, "resc_schedule": False}


def _diverse(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
    shape = setting.input_shape
    if len(shape) == 3 and shape[1] != shape[2]:
        raise NotApplicable(f"it turns every image into a square one, the inputs are {shape}")
    return _torchattacks({"Linf": "DIFGSM"}, _steps(10, 0.25, resize_rate=0.9, diversity_prob=0.5))(setting)


def _long_autoattack(setting: Setting) -> tuple[Perturb, dict[str, Any]]:
    """torchattacks' AutoAttack with the reference's 100 steps and unscaled schedule in place of its own."""
    if setting.threat.norm == "L1":
        raise NotApplicable("torchattacks has no L1 version")
    if setting.classes < 4:
        raise NotApplicable(f"the targeted DLR loss needs 4 classes, the network has {setting.classes}")
    _check_square(setting, "torchattacks-autoattack")
    threat = setting.threat
    given = {"norm": threat.norm, "eps": threat.eps, "n_classes": min(setting.classes, 10), "seed": setting.seed}
    attack = _imported("torchattacks").AutoAttack(setting.model, version="standard", **given)
    attack.set_device(setting.device)
    *gradient_based, square = attack._autoattack.attacks
    for stage in gradient_based:
        stage.steps = 100
    square.rescale_schedule = False
    return attack, {**given, "steps": 100, "rescale_schedule": False}


# -------------------------------------------------------------------------------------------------------------- noise


def _gaussian(deviation: float) -> Callable[[Setting], tuple[Perturb, dict[str, Any]]]:
    return lambda setting: (lambda x, y: (x + deviation * torch.randn_like(x)).clamp(0, 1), {"deviation": deviation})


def _uniform(width: float) -> Callable[[Setting], tuple[Perturb, dict[str, Any]]]:
    return lambda setting: (lambda x, y: (x + width * (2 * torch.rand_like(x) - 1)).clamp(0, 1), {"half_width": width})


def _salt_and_pepper(share: float) -> Callable[[Setting], tuple[Perturb, dict[str, Any]]]:
    def perturb(x: Tensor, y: Tensor) -> Tensor:
        where, value = torch.rand_like(x) < share, (torch.rand_like(x) < 0.5).to(x.dtype)
        return torch.where(where, value, x)

    return lambda setting: (perturb, {"share": share})


# ------------------------------------------------------------------------------------------------------------- suites


def _stage(stage: Stage, version: Version, *, cumulative: bool = True) -> Attack:
    prefix = "" if version == "standard" else f"{version}-"
    note = {"rand": ", 20 gradient samples a step", "fast": " (fast level, NOT standard)"}.get(version, "")
    summary = f"{_SUMMARIES[stage]}{note}"
    prepare = _autoattack(stage, version)
    gradients = stage != "square"
    return Attack(
        f"{prefix}{stage}", summary, prepare, cumulative=cumulative, package="autoattack", gradients=gradients
    )


def _noise(name: str, summary: str, prepare: Callable[[Setting], tuple[Perturb, dict[str, Any]]]) -> Attack:
    return Attack(name, summary, prepare, "none", gradients=False)


def _library(
    name: str,
    summary: str,
    prepare: Callable[[Setting], tuple[Perturb, dict[str, Any]]],
    constraint: Constraint = "ball",
    gradients: bool = True,
) -> Attack:
    return Attack(name, summary, prepare, constraint, package="torchattacks", gradients=gradients)


_SUMMARIES: dict[Stage, str] = {
    "apgd-ce": "Auto-PGD on the cross-entropy",
    "apgd-dlr": "Auto-PGD on the DLR loss",
    "apgd-t": "targeted Auto-PGD on the DLR loss",
    "fab": "fast adaptive boundary attack",
    "fab-t": "targeted fast adaptive boundary attack",
    "square": "random search over squares, without gradients",
}
_PGD: Mapping[Norm, str] = {"Linf": "PGD", "L2": "PGDL2"}

SUITES: dict[str, tuple[Attack, ...]] = {
    **{
        version: tuple(_stage(stage, version) for stage in STAGES[version])
        for version in ("standard", "plus", "rand", "fast")
    },
    "torchattacks": (
        _library("fgsm", "one step along the gradient's sign", _torchattacks({"Linf": "FGSM"}, _eps)),
        _library("pgd-20", "20 projected gradient steps", _torchattacks(_PGD, _steps(20, 2.5 / 20))),
        _library(
            "pgd-100", "100 projected gradient steps, 5 restarts", _torchattacks(_PGD, _steps(100, 0.025), restarts=5)
        ),
        _library("mi-fgsm", "10 steps with momentum", _torchattacks({"Linf": "MIFGSM"}, _steps(10, 0.1, decay=1.0))),
        _library("di-fgsm", "10 steps through randomly resized inputs", _diverse),
        _library(
            "cw",
            "Carlini and Wagner: smallest L2 change",
            _torchattacks("CW", _fixed(c=1, steps=50, lr=0.01)),
            "minimal",
        ),
        _library(
            "deepfool",
            "smallest L2 change to the nearest boundary",
            _torchattacks("DeepFool", _fixed(steps=50)),
            "minimal",
        ),
        _library(
            "torchattacks-square",
            "random search over squares, all points",
            _torchattacks({"Linf": "Square", "L2": "Square"}, _square_arguments),
            gradients=False,
        ),
        _library(
            "pixle",
            "rearranges pixels",
            _torchattacks("Pixle", _fixed(restarts=20, max_iterations=10)),
            "none",
            gradients=False,
        ),
        _library(
            "onepixel",
            "changes one pixel",
            _torchattacks("OnePixel", _fixed(pixels=1, steps=10, popsize=10)),
            "none",
            gradients=False,
        ),
        _library("jitter", "10 steps on jittered, scaled logits", _torchattacks({"Linf": "Jitter"}, _steps(10, 0.25))),
    ),
    "torchattacks-autoattack": (
        _library("torchattacks-autoattack", "torchattacks AutoAttack (100 steps)", _long_autoattack),
    ),
    "noise": (
        *(_noise(f"gaussian-{s}", "Gaussian noise", _gaussian(s)) for s in (0.05, 0.1, 0.15, 0.2, 0.3)),
        *(_noise(f"uniform-{s}", "uniform noise", _uniform(s)) for s in (0.05, 0.1, 0.2, 0.3, 0.4)),
        *(
            _noise(f"salt-and-pepper-{s}", "values set to 0 or 1", _salt_and_pepper(s))
            for s in (0.01, 0.02, 0.05, 0.1, 0.2)
        ),
    ),
}
"""The named suites. Noise is measured in units of [0, 1]."""

# AutoAttack's other stages, with the parameters of its standard version: on all points, not as stages of a suite.
_SINGLE = tuple(_stage(stage, "standard", cumulative=False) for stage in ("apgd-dlr", "fab"))

ATTACKS: dict[str, Attack] = {attack.name: attack for suite in (*SUITES.values(), _SINGLE) for attack in suite}
"""Every attack by its name."""
