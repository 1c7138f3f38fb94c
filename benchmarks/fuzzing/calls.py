"""The public functions that `arguments` calls, each with valid arguments on a tiny problem and the kinds of them.

The file is long because it is one table: a row a function. To add a function, add its row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import art_robust_plugins as package
from art_robust_plugins import EvaluationReport, Evaluator, ThreatModel, TrainingOptions
from art_robust_plugins.data import load_data
from art_robust_plugins.evaluation import compare, save_comparison, sweep, transfer
from art_robust_plugins.export import export_classifier
from art_robust_plugins.lipschitz import (
    Convolution,
    Linear,
    LipschitzGraph,
    NormBound,
    batch_variances,
    configure_proofs,
    lower_estimate,
    operator_of,
)
from art_robust_plugins.models import create_model
from art_robust_plugins.training import BANG, Layerwise, bang_gradients, layerwise_perturbations

SHAPE = (1, 8, 8)
CLASSES = 3


@dataclass(frozen=True)
class Call:
    """A public function, with valid arguments and the kinds of those that are replaced.

    Attributes:
        function: takes the arguments by name.
        valid: makes them anew, as some are changed in use.
        kinds: the kind of each argument in `hostile.KINDS`.
        optional: those that may be None.
    """

    function: Callable[..., Any]
    valid: Callable[[], dict[str, Any]]
    kinds: dict[str, str]
    optional: frozenset[str] = field(default_factory=frozenset)


def _data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return generator.random((6, *SHAPE), dtype=np.float32), np.arange(6) % CLASSES


def _prove_within(**settings: Any) -> NormBound:
    with configure_proofs(**settings):
        return Convolution(torch.ones(1, 1, 3, 3), (4, 4)).upper_bound()


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)
    return nn.Sequential(*layers).eval()


def _classifier() -> PyTorchClassifier:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    return PyTorchClassifier(
        network, nn.CrossEntropyLoss(), SHAPE, CLASSES, optimizer, clip_values=(0, 1), device_type="cpu"
    )


def _threat() -> ThreatModel:
    return ThreatModel("Linf", 0.1)


def _options(**settings: Any) -> TrainingOptions:
    return TrainingOptions(seed=0, **settings)


def _fitting(make: Callable[..., Any]) -> Callable[..., None]:
    """Make a trainer and train with it: what its constructor let pass shows there."""

    def function(**arguments: Any) -> None:
        x, y = _data()
        make(**arguments).fit(x, y, batch_size=3, nb_epochs=1, verbose=False)

    return function


_EPOCH = {"batch_size": 3, "nb_epochs": 1, "verbose": False}
_MAP = {"kernel": "choice", "kernel_size": "count", "alpha": "number", "bias": "flag", "padding_mode": "choice"}
_MAP_VALID = {"kernel": "unsharp", "kernel_size": 3, "alpha": 1.0, "bias": False, "padding_mode": "reflect"}
_TRAINER = {"classifier": "classifier", "options": "options", "instruments": "anything", "threat": "threat"}

# The methods' own parameters: valid values and kinds. Small whole numbers, so that other types of them are the same.
_METHODS: dict[str, dict[str, tuple[Any, str]]] = {
    "StandardTrainer": {},
    "BANGTrainer": {
        "beta": (1.0, "number"),
        "epsilon": (0.5, "number"),
        "ratio": (0.5, "number"),
        "layers": (None, "anything"),
        "cap": (None, "anything"),
    },
    "LayerwiseAdversarialTrainer": {
        "eps": (0.5, "number"),
        "layers": (None, "anything"),
        "relative": (True, "flag"),
    },
    "LipschitzMarginTrainer": {
        "c": (0.5, "number"),
        "c_warmup_epochs": (1.0, "number"),
        "c_start": (0.5, "number"),
        "margin": ("sample", "choice"),
    },
    "LocalBallTrainer": {
        "steps": (1, "count"),
        "step_size": (None, "number"),
        "global_loss": ("ce", "choice"),
        "global_weight": (None, "number"),
        "local_weight": (1.0, "number"),
        "radius": (0.5, "number"),
        "clean_weight": (None, "number"),
        "within_threat": (True, "flag"),
        "start": ("uniform", "choice"),
        "eps_warmup_epochs": (1.0, "number"),
        "overfitting": ("warn", "choice"),
    },
    "PGDTrainer": {
        "steps": (1, "count"),
        "step_size": (0.5, "number"),
        "clean_weight": (0.5, "number"),
        "start": ("uniform", "choice"),
        "eps_warmup_epochs": (1.0, "number"),
        "overfitting": ("warn", "choice"),
    },
    "TRADESTrainer": {
        "beta": (0.5, "number"),
        "steps": (1, "count"),
        "step_size": (0.5, "number"),
        "start": ("uniform", "choice"),
        "eps_warmup_epochs": (1.0, "number"),
        "overfitting": ("warn", "choice"),
    },
}
_OPTIONS: dict[str, tuple[Any, str]] = {
    "seed": (1, "seed"),
    "shuffle": (True, "flag"),
    "drop_last": (False, "flag"),
    "scheduler_interval": ("epoch", "choice"),
    "schedule": ("constant", "choice"),
    "warmup_epochs": (0, "anything"),
    "milestones": ((), "anything"),
    "milestone_decay": (0.5, "number"),
    "augmentation": ("crop-flip", "choice"),
    "crop_padding": (2, "count"),
    "mixed_precision": ("no", "choice"),
    "channels_last": (True, "flag"),
    "compile": ("no", "choice"),
    "fused_optimizer": (False, "flag"),
    "accumulation_steps": (2, "count"),
    "max_gradient_norm": (None, "number"),
    "ema_decay": (None, "number"),
    "validation_steps": (1, "count"),
    "keep_best": (False, "flag"),
    "checkpoint_dir": (None, "path"),
    "resume": (False, "flag"),
}


def _by_name(table: dict[str, tuple[Any, str]]) -> tuple[dict[str, Any], dict[str, str], frozenset[str]]:
    """Valid values, kinds, and which are None where nothing else is said."""
    valid = {name: value for name, (value, _) in table.items()}
    # A valid value that can be written in another type.
    numbers = {"number": 0.5, "path": "runs"}
    filled = {name: numbers.get(kind) if valid[name] is None else valid[name] for name, (_, kind) in table.items()}
    optional = frozenset(name for name, value in valid.items() if value is None)
    return filled, {name: kind for name, (_, kind) in table.items()}, optional


def _trainer_calls() -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for name, table in _METHODS.items():
        own, kinds, _ = _by_name(table)

        def valid(own: dict[str, Any] = own) -> dict[str, Any]:
            made = {"classifier": _classifier(), "options": _options(), "instruments": (), "threat": _threat()}
            return {**own, **made}

        kind: Any = getattr(package, name)
        parameters = inspect.signature(kind).parameters.values()
        may_be_none = frozenset(parameter.name for parameter in parameters if parameter.default is None)
        calls[name] = Call(_fitting(kind), valid, {**kinds, **_TRAINER}, may_be_none)
    own, kinds, optional = _by_name(_OPTIONS)

    def with_options(**settings: Any) -> None:
        x, y = _data()
        options = TrainingOptions(**{**settings, "checkpoint_dir": None} if settings["resume"] is False else settings)
        package.StandardTrainer(_classifier(), options=options).fit(x, y, **_EPOCH)

    without = {name: kind for name, kind in kinds.items() if name != "checkpoint_dir"}
    calls["TrainingOptions"] = Call(
        with_options, lambda: {**own, "max_gradient_norm": 0.5, "ema_decay": 0.5}, without, optional | {"seed"}
    )
    calls["TrainingOptions, paths"] = Call(
        TrainingOptions, lambda: {"checkpoint_dir": "runs"}, {"checkpoint_dir": "path"}, frozenset({"checkpoint_dir"})
    )

    def fit(**arguments: Any) -> None:
        package.PGDTrainer(_classifier(), threat=_threat(), steps=1).fit(**arguments)

    x, y = _data()
    calls["fit"] = Call(
        fit,
        lambda: {"x": x, "y": y, "validation_data": (x, y), "scheduler": None, **_EPOCH},
        {
            "x": "images",
            "y": "labels",
            "validation_data": "anything",
            "batch_size": "count",
            "nb_epochs": "count",
            "scheduler": "anything",
        },
    )
    calls["fit_loader"] = Call(
        lambda **arguments: package.StandardTrainer(_classifier()).fit_loader(**arguments),
        lambda: {"loader": [(x, y)], "nb_epochs": 1, "verbose": False},
        {"loader": "anything", "nb_epochs": "count"},
    )

    def adjust(**arguments: Any) -> None:
        with bang_gradients(**arguments):
            pass

    def perturb(**arguments: Any) -> None:
        with layerwise_perturbations(**arguments):
            pass

    numbers = {"beta": 0.5, "epsilon": 0.5, "ratio": 0.5}
    calls["bang_gradients"] = Call(
        adjust,
        lambda: {"network": _network(), "layers": "*", "cap": 2.0, **numbers},
        {"network": "module", "layers": "anything", "cap": "anything", **dict.fromkeys(numbers, "number")},
        frozenset({"layers"}),
    )
    calls["layerwise_perturbations"] = Call(
        perturb,
        lambda: {"network": _network(), "layers": "*", "eps": 0.5, "relative": True},
        {"network": "module", "layers": "anything", "eps": "number", "relative": "flag"},
        frozenset({"layers"}),
    )
    calls["BANG"] = Call(BANG, lambda: {"beta": 0.5, "layers": "*"}, {"beta": "number", "layers": "anything"})
    calls["Layerwise"] = Call(Layerwise, lambda: {"eps": 0.5, "layers": "*"}, {"eps": "number", "layers": "anything"})
    return calls


def _lipschitz_calls() -> dict[str, Call]:
    def measure(network: Any) -> None:
        with batch_variances(network):
            pass

    x, y = _data()
    certifier = package.PyTorchLipschitzCertifier.from_classifier(_classifier())
    conv = torch.randn(2, 1, 3, 3)
    return {
        "from_classifier": Call(
            package.PyTorchLipschitzCertifier.from_classifier,
            lambda: {"classifier": _classifier()},
            {"classifier": "classifier"},
        ),
        "certify": Call(
            certifier.certify,
            lambda: {"x": x, "batch_size": 3, "norm": "L2"},
            {"x": "images", "batch_size": "count", "norm": "choice"},
        ),
        "certified_accuracy": Call(
            certifier.certified_accuracy,
            lambda: {"x": x, "y": y, "eps": 0.1, "batch_size": 3, "norm": "L2"},
            {"x": "images", "y": "labels", "eps": "radius", "batch_size": "count", "norm": "choice"},
        ),
        "Convolution": Call(
            lambda **arguments: Convolution(**arguments).upper_bound(),
            lambda: {
                "weight": conv,
                "input_size": (4, 4),
                "stride": 1,
                "padding": 1,
                "dilation": 1,
                "groups": 1,
                "padding_mode": "zeros",
                "output_padding": 0,
                "cholesky_limit": None,
            },
            {
                "weight": "anything",
                "input_size": "anything",
                "stride": "anything",
                "padding": "anything",
                "dilation": "anything",
                "groups": "count",
                "padding_mode": "choice",
                "output_padding": "anything",
                "cholesky_limit": "anything",
            },
        ),
        "Linear": Call(
            lambda weight: Linear(weight).upper_bound(), lambda: {"weight": torch.eye(2)}, {"weight": "anything"}
        ),
        "configure_proofs": Call(
            _prove_within,
            lambda: {"operations": 1e9, "memory": 1e9, "cache_dir": "norms", "verbose": False},
            {"operations": "number", "memory": "number", "cache_dir": "path", "verbose": "flag"},
            frozenset({"operations", "memory", "cache_dir"}),
        ),
        "lower_estimate": Call(
            lower_estimate,
            lambda: {"operator": Linear(torch.eye(2)), "vector": None, "steps": 1},
            {"vector": "anything", "steps": "count"},
        ),
        "batch_variances": Call(measure, lambda: {"network": _network()}, {"network": "module"}),
        "operator_of": Call(
            operator_of,
            lambda: {"module": nn.Conv2d(1, 2, 3), "input_shape": SHAPE},
            {"module": "module", "input_shape": "shape"},
        ),
        "LipschitzGraph": Call(
            lambda **arguments: LipschitzGraph(**arguments).upper_bound(),
            lambda: {"network": _network(), "input_shape": SHAPE, "std": 0.5},
            {"network": "module", "input_shape": "shape", "std": "anything"},
        ),
    }


def _map_calls() -> dict[str, Call]:
    def layer(**settings: Any) -> None:
        package.WeightMap2d(**settings)(torch.rand(2, 1, 8, 8))

    def augmented(**settings: Any) -> None:
        package.insert_weight_maps(**settings)(torch.rand(2, *SHAPE))

    def own_maps(model: Any) -> None:
        package.weight_maps(model)

    sizes = {"channels": "count", "height": "count", "width": "count"}
    return {
        "WeightMap2d": Call(layer, lambda: {"channels": 1, "height": 8, "width": 8, **_MAP_VALID}, {**sizes, **_MAP}),
        "weight_maps": Call(own_maps, lambda: {"model": _network()}, {"model": "module"}),
        "insert_weight_maps": Call(
            augmented,
            lambda: {"model": _network(), "input_shape": SHAPE, "where": "0", "inplace": False, **_MAP_VALID},
            {"model": "module", "input_shape": "shape", "where": "anything", **_MAP},
        ),
        "PyTorchWeightMapClassifier": Call(
            package.PyTorchWeightMapClassifier.from_classifier,
            lambda: {"classifier": _classifier(), "where": "0", **_MAP_VALID},
            {"classifier": "classifier", "where": "anything", **_MAP},
            frozenset(_MAP),
        ),
        "WeightMapPreprocessor": Call(
            package.WeightMapPreprocessor,
            lambda: {"input_shape": SHAPE, "clip_values": (0, 1), **_MAP_VALID},
            {"input_shape": "shape", "clip_values": "anything", **_MAP},
        ),
    }


def _evaluation_calls(folder: Path) -> dict[str, Call]:
    x, y = _data()
    settings: dict[str, Any] = {"attacks": "pgd-20", "batch_size": 3, "seed": 0, "verbose": False}

    def evaluate(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in ("x", "y")}
        Evaluator(**arguments).evaluate(**given)

    report = Evaluator(_classifier(), _threat(), **settings).evaluate(x, y)
    report.save(folder / "report")
    certified = replace(report, radii=np.ones(len(x)))
    kinds = {"batch_size": "count", "seed": "seed", "attacks": "anything", "x": "images", "y": "labels"}
    robustbench = {
        "folder": folder / "robustbench",
        "name": "A name",
        "authors": "Authors",
        "dataset": "cifar10",
        "architecture": "small",
        "model_id": "Some2020One",
        "link": "https://example.org",
        "venue": "Unpublished",
        "additional_data": False,
        "number_forward_passes": 1,
        "reported": 50.0,
        "footnote": "A footnote.",
    }
    return {
        "ThreatModel": Call(ThreatModel, lambda: {"norm": "Linf", "eps": 0.1}, {"norm": "choice", "eps": "radius"}),
        "Evaluator": Call(
            evaluate,
            lambda: {
                "estimator": _classifier(),
                "threat": _threat(),
                "backend": "native",
                "physical_batch_size": 2,
                "state_dir": None,
                "x": x,
                "y": y,
                **settings,
            },
            {
                **kinds,
                "estimator": "classifier",
                "threat": "threat",
                "backend": "choice",
                "physical_batch_size": "count",
            },
            frozenset({"physical_batch_size"}),
        ),
        "Evaluator, paths": Call(
            Evaluator,
            lambda: {"estimator": _classifier(), "threat": _threat(), "state_dir": "runs"},
            {"state_dir": "path"},
            frozenset({"state_dir"}),
        ),
        "sweep": Call(
            sweep,
            lambda: {
                "estimator": _classifier(),
                "norm": "Linf",
                "eps": [0.1],
                "x": x,
                "y": y,
                **settings,
                "attacks": "apgd-ce",
            },
            {"estimator": "classifier", "norm": "choice", "eps": "anything", **kinds},
        ),
        "transfer": Call(transfer, lambda: {"source": _classifier(), "name": "x"}, {"source": "classifier"}),
        "certified_at": Call(
            certified.certified_at,
            lambda: {"eps": 0.1},
            {"eps": "number"},
        ),
        "load": Call(EvaluationReport.load, lambda: {"folder": folder / "report"}, {"folder": "path"}),
        "compare": Call(compare, lambda: {"reports": {"one": report}}, {"reports": "anything"}),
        "save_comparison": Call(
            save_comparison,
            lambda: {"reports": {"one": report}, "folder": folder / "comparison"},
            {"reports": "anything", "folder": "path"},
        ),
        "save": Call(report.save, lambda: {"folder": folder / "saved"}, {"folder": "path"}),
        "to_robustbench": Call(
            _of_cifar10(report).to_robustbench,
            lambda: dict(robustbench),
            {
                "folder": "path",
                "name": "text",
                "authors": "text",
                "dataset": "choice",
                "architecture": "text",
                "model_id": "text",
                "link": "text",
                "venue": "text",
                "additional_data": "flag",
                "number_forward_passes": "count",
                "reported": "number",
                "footnote": "text",
            },
            frozenset({"model_id", "reported", "footnote"}),
        ),
    }


def _of_cifar10(report: EvaluationReport) -> EvaluationReport:
    """The report as if standard AutoAttack had been run on images of CIFAR-10's kind."""
    settings = {**report.settings, "autoattack": True, "classes": 10, "input_shape": [3, 8, 8]}
    attacks = [replace(result, name="square") for result in report.attacks]
    images = np.repeat(report.adversarial, 3, axis=1)
    robust = attacks[0].robust
    return replace(
        report,
        settings=settings,
        attacks=attacks,
        adversarial=images,
        robust=robust,
        robust_accuracy=attacks[0].robust_accuracy,
    )


def _other_calls(folder: Path) -> dict[str, Call]:
    x, _ = _data()
    package.save_classifier(_classifier(), folder / "classifier")
    return {
        "create": Call(
            package.create,
            lambda: {"name": "bang", "classifier": _classifier(), "beta": 0.5},
            {"name": "choice", "classifier": "classifier", "beta": "number"},
        ),
        "create_model": Call(
            create_model,
            lambda: {"name": "small-cnn", "input_shape": SHAPE, "nb_classes": 3, "channels": 2, "hidden": 2},
            {"name": "choice", "input_shape": "shape", "nb_classes": "count", "channels": "count", "hidden": "count"},
        ),
        "load_data": Call(load_data, lambda: {"name": "digits"}, {"name": "choice"}),
        "save_classifier": Call(
            package.save_classifier,
            lambda: {"classifier": _classifier(), "folder": folder / "other", "model": None, "extra": {"a": 1}},
            {"classifier": "classifier", "model": "anything", "extra": "anything"},
        ),
        "load_classifier": Call(
            package.load_classifier,
            lambda: {
                "folder": folder / "classifier",
                "model": _network(),
                "device": "cpu",
                "loss": None,
                "preprocessing_defences": None,
            },
            {
                "folder": "path",
                "model": "module",
                "device": "choice",
                "loss": "anything",
                "preprocessing_defences": "anything",
            },
            frozenset({"device"}),
        ),
        "export_classifier": Call(
            export_classifier,
            lambda: {
                "classifier": _classifier(),
                "path": folder / "net.pt",
                "x": x,
                "format": "torchscript",
                "batch": None,
            },
            {"classifier": "classifier", "x": "images", "format": "choice", "batch": "anything"},
        ),
    }


def all_calls(folder: Path) -> dict[str, Call]:
    """Every function by its name; ``folder`` holds the files that they read and write."""
    return {
        **_trainer_calls(),
        **_lipschitz_calls(),
        **_map_calls(),
        **_evaluation_calls(folder),
        **_other_calls(folder),
    }
