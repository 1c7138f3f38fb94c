"""Files: what the package saved, damaged, and read again.

A damaged file must give what it gave before (the damage may touch what carries no meaning), or be refused in one
sentence. Other numbers, foreign exceptions, code that runs, and refusals that leave a network changed are broken. An
archive that was written anew, with valid checksums, may hold other numbers: no checksum tells who wrote a file.
"""

from __future__ import annotations

import builtins
import hashlib
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from typer.testing import CliRunner

from art_robust_plugins import (
    EvaluationReport,
    Evaluator,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    load_classifier,
    save_classifier,
)
from art_robust_plugins.cli import app
from art_robust_plugins.data import load_data
from art_robust_plugins.evaluation import Attack, Setting, sweep
from art_robust_plugins.experiments import TrainingPlan, evaluate_run, train_run
from art_robust_plugins.models import create_model
from art_robust_plugins.saved_classifier import describe_classifier

from .cases import Outcome, PrintedError, describe, refusal
from .mutations import damage

Results = dict[str, str]
"""The value that a reader gave, as text by which two readings are compared."""

RADII = (0.05, 0.1)
_LOG = ("seconds",)


class Files:
    """Saves one of each kind of file, then damages copies of them; see the module."""

    def __init__(self, folder: Path | None = None) -> None:
        self._own = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._own.name) if self._own is not None else Path(str(folder))
        self.originals = self.folder / "originals"
        self.readers: dict[str, Callable[[Path], Results]] = {
            "classifier": _read_classifier,
            "report": _read_report,
            "checkpoint": _read_checkpoint,
            "state": _read_state,
            "sweep": _read_sweep,
            "run, report": _read_run_report,
            "run, certify": _read_run_certificate,
        }
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # six images have not all classes
            _write_all(self.originals)
            self.expected = {
                name: self.readers[name](self._copy(name)) for name in self.readers if name != "run, certify"
            }

    def check(self, seed: int) -> Outcome:
        rng = random.Random(seed)
        name = rng.choices(list(self.readers), [4, 4, 3, 2, 1, 1, 0.3])[0]
        if name not in self.expected:
            self.expected[name] = self.readers[name](self._copy(name))
        folder = self._copy(name)
        files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".safetensors", ".pt")]
        if name == "run, certify":
            files = [path for path in files if path.parent == folder and path.name != "training.pt"]
        path = rng.choice(files)
        content, what, forged = damage(rng, path.name, path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        kind, case = f"{name}: {path.name}", f"{path.relative_to(folder)}, {what}"
        vars(builtins).pop("fuzzing_ran_code", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = self.readers[name](folder)
            except Exception as error:
                outcome = refusal(kind, error)
                if outcome.verdict == "broken":
                    outcome = Outcome("broken", kind, f"{describe(error)}: {case}")
            else:
                outcome = self._compared(kind, found, self.expected[name], case, forged=forged)
        if hasattr(builtins, "fuzzing_ran_code"):
            return Outcome("broken", kind, f"code of the file ran: {case}")
        return outcome

    def _compared(self, kind: str, found: Results, expected: Results, case: str, *, forged: bool) -> Outcome:
        different = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
        if not different or forged:
            return Outcome("held", kind)
        key = different[0]
        values = " / ".join(_excerpts(expected.get(key, "nothing"), found.get(key, "nothing")))
        return Outcome(
            "broken", kind, f"read without a word, but {', '.join(different)} differ (before / now: {values}): {case}"
        )

    def _copy(self, name: str) -> Path:
        name = name.split(",", maxsplit=1)[0]
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.originals / name, target)
        return target


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    data = load_data("digits")
    return data.x_test[:6], data.y_test[:6]


def fingerprint_value(value: Any) -> str:
    """Any result as text that is equal for equal results alone."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    if isinstance(value, dict):
        return repr({str(key): fingerprint_value(entry) for key, entry in value.items() if key not in _LOG})
    if isinstance(value, list | tuple):
        return repr([fingerprint_value(entry) for entry in value])
    return repr(value)


def _excerpts(one: str, other: str) -> tuple[str, str]:
    """Two texts around the first letter in which they differ."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[max(0, at - 40) : at + 40], other[max(0, at - 40) : at + 40]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("small-cnn", (1, 8, 8), 10, channels=2, hidden=4)


def _classifier(network: nn.Module | None = None) -> PyTorchClassifier:
    network = _network() if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        (1, 8, 8),
        10,
        optimizer=optimizer,
        clip_values=(0.0, 1.0),
        preprocessing=([0.3], [0.4]),
        device_type="cpu",
    )


def _attack() -> Attack:
    """One gradient step, the cheapest attack."""

    def prepare(setting: Setting) -> Any:
        def perturb(x: Tensor, y: Tensor) -> Tensor:
            inputs = x.clone().requires_grad_()
            nn.functional.cross_entropy(setting.model(inputs), y, reduction="sum").backward()
            step = setting.threat.steepest_ascent(inputs.grad, setting.threat.eps)
            return setting.threat.project(x + step, x, 0.0, 1.0)

        return perturb, {}

    return Attack(name="one-step", summary="one gradient step", prepare=prepare, cumulative=True)


def _evaluator(folder: Path | None) -> Evaluator:
    settings: dict[str, Any] = {"attacks": [_attack()], "batch_size": 3, "state_dir": folder, "verbose": False}
    return Evaluator(_classifier(), ThreatModel("Linf", RADII[1]), **settings)


def _trainer(folder: Path, classifier: PyTorchClassifier, *, resume: bool) -> StandardTrainer:
    return StandardTrainer(classifier, options=TrainingOptions(seed=0, checkpoint_dir=folder, resume=resume))


def _write_all(folder: Path) -> None:
    x, y = _digits()
    save_classifier(_classifier(), folder / "classifier", extra={"accuracy": 0.75, "history": [{"loss": 1.5}]})
    _evaluator(folder / "state").evaluate(x, y).save(folder / "report")
    _run_sweep(folder / "sweep")
    _trainer(folder / "checkpoint", _classifier(), resume=False).fit(x, y, batch_size=3, nb_epochs=1, verbose=False)
    data = load_data("digits")
    np.savez(
        folder / "data.npz", x_train=data.x_train[:16], y_train=data.y_train[:16], x_test=x, y_test=np.arange(6) + 4
    )
    few = load_data(folder / "data.npz")
    plan = TrainingPlan("standard", network_arguments={"channels": 2, "hidden": 4}, epochs=1)
    train_run(plan, few, folder / "run", seed=0, verbose=False)
    evaluate_run(folder / "run", few, [ThreatModel("Linf", 0.1)], ["apgd-ce"], points=4, seed=0, verbose=False)


def _read_classifier(folder: Path) -> Results:
    description = describe_classifier(folder)
    classifier = load_classifier(folder, device="cpu")
    optimizer = classifier.optimizer
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    loss = classifier.loss
    return {
        "predictions": fingerprint_value(classifier.predict(_digits()[0])),
        "weights": fingerprint_value(list(classifier.model.state_dict().values())),
        "estimator": fingerprint_value(
            [type(classifier), classifier.input_shape, classifier.nb_classes, classifier.channels_first]
        ),
        "clip_values": fingerprint_value(classifier.clip_values),
        "preprocessing": fingerprint_value([classifier.preprocessing.mean, classifier.preprocessing.std]),
        "loss": fingerprint_value([type(loss), loss.label_smoothing, loss.reduction, loss.weight, loss.ignore_index]),
        "optimizer": fingerprint_value([type(optimizer), groups]),
        "description": fingerprint_value(description),
    }


def _of_report(report: EvaluationReport, *, log: bool) -> Results:
    """A report's content; without ``log``, leaving out what the clock says, and how passes were made."""
    settings = {k: v for k, v in report.settings.items() if log or k not in ("date", "diagnostics")}
    attacks = [{k: v for k, v in vars(result).items() if log or k != "seconds"} for result in report.attacks]
    plain = {k: v for k, v in vars(report).items() if k not in ("settings", "attacks", "examples", "flags")}
    return {
        **{key: fingerprint_value(value) for key, value in plain.items()},
        "settings": fingerprint_value(settings),
        "attacks": fingerprint_value(attacks),
        "seconds": fingerprint_value([result.seconds for result in report.attacks]) if log else "",
        "examples": fingerprint_value(vars(report.examples)),
        "flags": fingerprint_value([vars(flag) for flag in report.flags]),
    }


def _read_report(folder: Path) -> Results:
    report = EvaluationReport.load(folder)
    return {**_of_report(report, log=True), "text": str(report), "verdicts": report.verdicts_csv()}


def _read_state(folder: Path) -> Results:
    return _of_report(_evaluator(folder).evaluate(*_digits()), log=False)


def _run_sweep(folder: Path) -> dict[float, EvaluationReport]:
    x, y = _digits()
    settings: dict[str, Any] = {"attacks": [_attack()], "batch_size": 3, "verbose": False}
    return sweep(_classifier(), "Linf", RADII, x, y, state_dir=folder, **settings)


def _read_sweep(folder: Path) -> Results:
    reports = _run_sweep(folder)
    return {
        f"{eps} {key}": value for eps, each in reports.items() for key, value in _of_report(each, log=False).items()
    }


def _read_checkpoint(folder: Path) -> Results:
    classifier = _classifier()
    before = fingerprint_value(list(classifier.model.state_dict().values()))
    trainer = _trainer(folder, classifier, resume=True)
    try:
        trainer.fit(*_digits(), batch_size=3, nb_epochs=2, verbose=False)
    except Exception as error:
        refused = not isinstance(error, FloatingPointError)  # training began, and failed
        if refused and fingerprint_value(list(classifier.model.state_dict().values())) != before:
            raise RuntimeError(f"refused, but the network has other weights now ({describe(error)})") from error
        raise
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in trainer.history]
    optimizer = list(classifier.optimizer.state_dict()["state"].values())
    return {
        "weights": fingerprint_value(list(classifier.model.state_dict().values())),
        "history": fingerprint_value(history),
        "optimizer": fingerprint_value(optimizer),
    }


def _command(*arguments: str | Path) -> str:
    """Run a command and return what it prints; a refusal becomes the exception with its sentence."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exit_code == 0:
        return result.output
    last = result.output.strip().split("\n")[-1]
    if result.exit_code == 2 and last.startswith("error: ") and "\nTraceback" not in result.output:
        raise PrintedError(last.removeprefix("error: "))
    raise RuntimeError(f"exit code {result.exit_code}, {result.exception!r}: {result.output[-300:]}")


def _read_run_report(folder: Path) -> Results:
    out = folder.parent / "comparison"
    printed = _command("report", folder, "--out", out)
    return {"printed": printed, "page": (out / "index.md").read_text()}


def _read_run_certificate(folder: Path) -> Results:
    data = folder.parent / "originals" / "data.npz"
    out = folder.parent / "certificate"
    _command("certify", folder, "--data", data, "--eps", "0.01", "--out", out)
    return {"certificate": (out / "certificate.json").read_text()}
