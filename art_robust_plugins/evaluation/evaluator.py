"""The `Evaluator`: runs attacks on an ART classifier, judges every candidate itself, and can be stopped and resumed."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ..bridge import (
    EstimatorModule,
    check_classifier,
    class_logits,
    device_of,
    input_range,
    outputs_are_probabilities,
    predict_outputs,
    preprocessing_modules,
    preserved,
    processes_of,
)
from ..certified_estimators import check_certified
from ..checks import check_count, check_seed
from ..files import load_state, remove_temporaries, save_state
from ..fingerprints import describe_module, digest
from ..input_range import InputRange
from ..lipschitz import PyTorchLipschitzCertifier
from ..locks import check_output_folder, locked_folder
from ..randomness import cuda_devices, restored_random_states, seed_everything
from ..snapshot import Snapshot, restored_state
from ..threat import ThreatModel, check_radius
from . import diagnostics, faithfulness
from .autoattack.batches import ChannelsLast, Passes, fitting_size, laid_out
from .autoattack.standard import joint_size
from .offers import of_estimator, of_single_output
from .report import EvaluationReport
from .results import AttackResult, Examples
from .samples import read_samples
from .state_record import check_change, check_opened, read_fingerprint
from .suites import (
    SUITES,
    Attack,
    Backend,
    NotApplicable,
    Setting,
    package_versions,
    resolve,
    suite_of,
)

STATE_FILE = "evaluation.pt"
BATCHES_FOLDER = "batches"
_Found = TypeVar("_Found")
# A randomised network is judged by its mean class probabilities over this many passes.
RANDOM_PASSES = 10
FAST = (
    "The fast level is NOT the standard evaluation: of AutoAttack's four stages it leaves out fab-t and square, and on "
    "a GPU it searches in bfloat16, with each image that it finds confirmed in float32."
)
_FORMAT = "art-robust-plugins evaluation 6"
_EARLIER = tuple(f"art-robust-plugins evaluation {number}" for number in (1, 2, 3, 4, 5))
# Of the largest output; other devices and sizes of a pass round by far less.
_CHANGED_OUTPUTS = 1e-2
# What the clean passes find out.
_CLEAN = (
    *("clean", "difference", "passes", "probabilities", "nan", "infinite", "undecided", "tied"),
    *("gradients", "memory", "seeded_difference", "batch_difference", "moved"),
)
_VERSIONS = ("version of art-robust-plugins", "version of torch")


class Evaluator:
    """Evaluates the robustness of a classifier with named attacks, and says how far the numbers can be trusted.

    The ``standard`` suite is AutoAttack's standard version. With the same seed and ``batch_size`` its verdicts are
    those of ``AutoAttack(...).run_standard_evaluation`` (up to the rounding of one forward pass): a point is robust
    when it is classified correctly and no candidate of any attack, within the threat's ball and in ``clip_values``,
    is misclassified by a fresh pass through the untouched estimator. Distances are computed in float64; 1e-6 of eps
    and the rounding of float32 are tolerated (the report says how much). A randomised network is judged by its mean
    class probabilities over ten passes. Logits that are NaN, or the same for all classes, count as misclassified.

    What attacks follow, the network after the preprocessing, is compared with ``predict`` first, on clean and on
    changed images. The network may change its input, or itself, while it predicts: it gets copies, and its weights and
    buffers are put back before each verdict and at the end (the flag ``dynamic`` says that they changed).

    Args:
        estimator: an ART ``PyTorchClassifier`` with ``clip_values`` that returns logits. A `PyTorchLipschitzCertifier`
            is attacked like any other, and its certified radii join the report.
        threat: the threat model; its ``eps`` is in the units of the estimator's input.
        attacks: a suite (``"standard"``, ``"plus"``, ``"rand"``, ``"fast"``, ``"torchattacks"``,
            ``"torchattacks-autoattack"``, ``"noise"``), the name of one attack (``"apgd-t"``, ``"fab"``,
            ``"pgd-20"``), an `Attack` of one's own, or a sequence of these. ``"fast"`` is not the standard evaluation.
        backend: whose AutoAttack: ``"native"`` for this package's own, ``"reference"`` for that of the package
            ``autoattack``, or of its repackaging ``pyautoattack``. The verdicts are the same.
        batch_size: the points of a logical batch. It fixes the random numbers, and with them the verdicts.
        physical_batch_size: the most points in a pass; it changes no verdict, except of a randomised network, which
            draws its own numbers in each pass. None: what a GPU's free memory holds (of a randomised network, and
            elsewhere, ``batch_size``). A pass that runs out of memory is halved. Attacks of the reference backend and
            of other libraries run ``batch_size`` points at once, and are not.
        seed: the seed of every call of an attack.
        state_dir: a folder that keeps the state, a small file for every batch; the same evaluation started again with
            it goes on where it was stopped. Another network (its weights, preprocessing, or outputs), other data or
            settings are refused; an `Attack` of one's own is known by its name and parameters alone. Several
            processes must all see it; another evaluation at the same time is refused.
        verbose: show progress bars.

    Started as several processes (``accelerate launch``), each attacks batches of its own, and all return the same
    report: its verdicts are those of one process.

    Raises:
        TypeError: an estimator that is not a ``PyTorchClassifier``, a threat that is not a `ThreatModel`.
        ValueError: an unknown attack or backend, a size that is not a positive whole number, an eps whose ball holds
            every image.

    Example:
        >>> from art.estimators.classification import PyTorchClassifier
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
        >>> evaluator = Evaluator(classifier, ThreatModel("Linf", "8/255"), attacks="apgd-ce", verbose=False)
        >>> report = evaluator.evaluate(torch.rand(20, 1, 8, 8), torch.randint(10, (20,)))
        >>> report.robust_accuracy <= report.clean_accuracy
        True
    """

    def __init__(
        self,
        estimator: PyTorchClassifier,
        threat: ThreatModel,
        *,
        attacks: str | Attack | Sequence[str | Attack] = "standard",
        backend: Backend = "native",
        batch_size: int = 250,
        physical_batch_size: int | None = None,
        seed: int = 0,
        state_dir: str | Path | None = None,
        verbose: bool = True,
    ) -> None:
        check_classifier(estimator)
        check_certified(estimator)
        faithfulness.check_single_network(estimator)
        box = input_range(estimator)
        if not isinstance(threat, ThreatModel):
            raise TypeError(f"threat: got {type(threat).__name__}, expected a ThreatModel.")
        check_radius(threat, box.low, box.high, math.prod(estimator.input_shape))
        if backend not in get_args(Backend):
            raise ValueError(f"backend: got {backend!r}, expected 'native' or 'reference'.")
        self.estimator = estimator
        self.threat = threat
        self.attacks = resolve(attacks)
        self.backend = backend
        self.batch_size = check_count("batch_size", batch_size)
        self.physical_batch_size = (
            None if physical_batch_size is None else check_count("physical_batch_size", physical_batch_size)
        )
        self.seed = check_seed("seed", seed)
        self.state_dir = None if state_dir is None else Path(state_dir)
        self.verbose = verbose

    def evaluate(self, x: Any, y: Any = None) -> EvaluationReport:
        """Attack every sample, and report.

        Args:
            x: samples [N, *input_shape] in the estimator's range, an array or a tensor; or, without y, a ``Dataset``,
                a ``DataLoader`` or any other iterable of batches (x, y), which is read once, in its order.
            y: labels, as class indices [N] or one-hot rows [N, classes].

        Raises:
            ValueError: data, a network or an attack that does not fit (the sentence says which), a ``predict`` that
                computes more than network and preprocessing, a state of another evaluation in ``state_dir``.
            ImportError: the library of an attack is not installed.
        """
        network = self.estimator.model
        # Quantised networks have state that is no tensor.
        held = network.state_dict(keep_vars=True).values()
        if any(isinstance(value, Tensor) and value.is_inference() for value in held):
            raise ValueError("classifier: the network was made in torch.inference_mode(), expected one with gradients.")
        # The caller may be in inference mode; gradients of its tensors do not exist, those of copies do.
        with torch.inference_mode(False):
            samples, labels = read_samples(x, y, self.estimator)
            modules = nn.ModuleList([network, *preprocessing_modules(self.estimator)])
            # A caller's autocast would round the verdicts.
            exact = torch.autocast(device_of(network).type, enabled=False)
            with (
                preserved(modules),
                restored_state(modules) as snapshot,
                restored_random_states(cuda_devices()),
                exact,
                ExitStack() as locks,
            ):
                network.eval()
                module = EstimatorModule(self.estimator, probabilities=True, straight_through=True)
                few = samples[:2].clone()
                gradients = faithfulness.takes_gradients(lambda: predict_outputs(self.estimator, few))
                for parameter in modules.parameters():
                    # Only gradients of the input are needed, and the user's own must not be filled. (Copies of
                    # TorchScript have parameters that are no leaves.) A network that adapts itself needs its own.
                    if parameter.is_leaf and not gradients:
                        parameter.requires_grad_(False)
                return _Run(self, samples, labels, module, snapshot, gradients, locks).report()


class _Verdicts(NamedTuple):
    """What the candidates of some points are: images in the estimator's range [n, ...], the rest bool [n].

    The margin [n] is how far the label's output lies above the others', as a share of the outputs' length.
    """

    candidates: Tensor
    wrong: Tensor
    in_ball: Tensor
    in_range: Tensor
    finite: Tensor
    nan: Tensor
    infinite: Tensor
    undecided: Tensor
    tied: Tensor
    margin: Tensor
    farthest: float

    @property
    def inside(self) -> Tensor:
        return self.in_ball & self.in_range


class _Run:
    """One evaluation in progress."""

    def __init__(
        self,
        evaluator: Evaluator,
        x: Tensor,
        y: Tensor,
        module: EstimatorModule,
        snapshot: Snapshot,
        gradients: bool,
        locks: ExitStack,
    ) -> None:
        self.evaluator, self.x, self.y, self.locks = evaluator, x, y, locks
        self.snapshot, self.gradients = snapshot, gradients
        estimator = evaluator.estimator
        self.range = input_range(estimator)
        self.module = module
        self.counter = CallCounter(self.module)
        # What clean passes have changed: that of the module's own checks, and of `faithfulness.takes_gradients`.
        self.moved: set[str] = set()
        self.restore()
        # The estimator's own passes, and the diagnostics'.
        self.passes = Passes(self.module, evaluator.physical_batch_size or evaluator.batch_size)
        images = faithfulness.probes(x, evaluator.threat, self.range.low, self.range.high)
        faithfulness.check_same_function(estimator, self.logits, self.followed, images)
        if isinstance(estimator, PyTorchLipschitzCertifier):
            estimator.lipschitz_constants()  # what has no certificate is told before the attacks, not after them
        self.packages = package_versions(evaluator.attacks, evaluator.backend)
        few = self.module.from_estimator(x[:2].to(self.module.device))
        self.obstacle = diagnostics.gradient_obstacle(self.counter, few)
        fitting = evaluator.physical_batch_size
        if fitting is None:
            one, another = (Passes(self.counter, 2).logits(few) for _ in range(2))
            randomised = diagnostics.difference(one, another) > diagnostics.RANDOM_DIFFERENCE
            fits = evaluator.backend == "native" and self.obstacle is None and not randomised
            fitting = fitting_size(self.counter, few[:1], evaluator.batch_size) if fits else evaluator.batch_size
        self.setting = Setting(
            model=self.counter,
            threat=evaluator.threat.scaled(1 / self.range.width),
            input_shape=tuple(few.shape[1:]),
            classes=estimator.nb_classes,
            seed=evaluator.seed,
            device=self.module.device,
            backend=evaluator.backend,
            batch_size=evaluator.batch_size,
            physical_batch_size=fitting,
            channels_last=isinstance(laid_out(self.module, few[:1]), ChannelsLast),
        )
        self.restore()
        self.attacks: list[Attack] = []
        self.parameters: dict[str, dict[str, Any]] = {}
        self.not_run: list[str] = []
        self._perturb: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        for attack in evaluator.attacks:
            if self.obstacle is not None and attack.gradients:
                self.not_run.append(f"{attack.name}: it follows gradients, but {self.obstacle}.")
                continue
            try:
                self._perturb[attack.name], self.parameters[attack.name] = attack.prepare(self.setting)
                self.attacks.append(attack)
            except NotApplicable as reason:
                self.not_run.append(f"{attack.name}: {reason}.")
        if not self.attacks:
            raise ValueError(f"attacks: none can run here ({' '.join(self.not_run)}), expected at least one that can.")
        size = x[0].numel()
        # Half a unit in the last place, four times: candidates go through some sums and products in float32.
        rounding = torch.finfo(torch.float32).eps * max(*map(abs, self.range.hull), self.range.width)
        norm, eps = evaluator.threat.norm, evaluator.threat.eps
        # Errors that are independent of the change add up to this; in the worst case to the other.
        self.tolerance = 1e-6 * eps + rounding * {"Linf": 1.0, "L2": 2.0, "L1": 2 * math.sqrt(size)}[norm]
        self.worst_rounding = 1e-6 * eps + rounding * {"Linf": 1.0, "L2": math.sqrt(size), "L1": float(size)}[norm]
        self.robust: dict[str, Tensor] = {}
        self.processes = processes_of(self.module.device)
        opened, changes = self._from_main(self._opened_state)
        n = len(x)
        self.state = {
            **opened,
            "broken": torch.zeros(n, dtype=torch.bool, device="cpu"),
            "adversarial": x.clone(),
            "attacks": {attack.name: _new_progress(n) for attack in self.attacks},
        }
        for change in changes:
            _apply(self.state, change)

    # ---------------------------------------------------------------------------------------------------- verdicts

    def restore(self) -> None:
        """Put back what passes changed in the network; once there is something, also before each pass of an attack."""
        self.moved |= set(self.snapshot.restore())
        if self.moved:
            self.counter.before = self.snapshot.restore

    def logits(self, x: Tensor, at_once: int | None = None) -> Tensor:
        """Samples [N, ...] in the estimator's range -> the untouched estimator's outputs [N, classes], on the CPU."""

        def run(part: slice) -> tuple[Tensor, ...]:
            outputs = self._predict(x[part])
            self.restore()
            return (outputs,)

        passes = self.passes if at_once is None else Passes(self.module, at_once)
        return passes.over(len(x), run)[0]

    def unrestored(self, x: Tensor) -> Tensor:
        """`logits`, but the network's state is as each pass leaves it."""
        return self.passes.over(len(x), lambda part: (self._predict(x[part]),))[0]

    def _predict(self, x: Tensor) -> Tensor:
        # A copy, which the network may change.
        estimator = self.evaluator.estimator
        return class_logits(estimator, predict_outputs(estimator, x.clone()))

    @torch.no_grad()
    def followed(self, x: Tensor) -> Tensor:
        """As `logits`, the outputs of what attacks follow: the network after the preprocessing."""
        estimator = self.evaluator.estimator
        followed = EstimatorModule(estimator, unit_range=False, probabilities=True, straight_through=True)
        self.restore()

        def run(part: slice) -> tuple[Tensor, ...]:
            outputs = class_logits(estimator, followed(x[part].to(self.module.device))).detach().cpu()
            self.restore()
            return (outputs,)

        return self.passes.over(len(x), run)[0]

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The estimator's outputs for samples [N, ...], as often as a verdict takes."""
        if self.state["passes"] == 1:
            return [self.logits(x)]
        # Fresh randomness that depends on the seed alone, so that a resumed evaluation judges alike.
        seed_everything((self.evaluator.seed + 0x9E3779B9) % 2**32)
        return [self.logits(x) for _ in range(self.state["passes"])]

    def classes(self, outputs: Sequence[Tensor]) -> Tensor:
        """The class of each sample [N], or -1 where an output is NaN or all are the same."""
        total = self.total(outputs)
        return torch.where(total.isnan().any(dim=1) | faithfulness.undecided(total), -1, total.argmax(dim=1))

    def total(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs [N, classes] of one pass, or over several passes the mean probabilities."""
        if len(outputs) == 1:
            return outputs[0]
        known = self.state["probabilities"]
        return torch.stack([output if known else output.softmax(dim=1) for output in outputs]).mean(dim=0)

    def judge(self, found: Tensor, points: Tensor) -> _Verdicts:
        """Judge candidates [n, ...], in the attacks' units, for the points of these indices [n]."""
        x, threat = self.x[points], self.evaluator.threat
        candidates = self.module.to_estimator(found.detach().cpu()).float()
        finite = candidates.flatten(1).isfinite().all(dim=1)
        candidates[~finite] = x[~finite]
        distance = threat.distance(candidates.double(), x.double())
        # An image that float32 alone may have put outside is drawn back, and judged there.
        near = (distance > threat.eps + self.tolerance) & (distance <= threat.eps + self.worst_rounding)
        if near.any():
            drawn = threat.project(candidates[near].double(), x[near].double()).float()
            candidates[near] = drawn
            distance[near] = threat.distance(drawn.double(), x[near].double())
        in_range = self.range.holds(candidates)
        if not self.range.even:  # what attacks search is more, and was clipped
            in_range &= InputRange(0.0, 1.0).holds(found.detach().cpu()) | ~finite
        candidates = self.range.clip(candidates)
        outputs = self.outputs(candidates)
        total, labels = self.total(outputs), self.y[points]
        others = total.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        margin = (total.gather(1, labels[:, None])[:, 0] - others) / total.norm(dim=1).clamp_min(1e-10)
        return _Verdicts(
            candidates=candidates,
            wrong=self.classes(outputs) != labels,
            in_ball=distance <= threat.eps + self.tolerance,
            in_range=in_range,
            finite=finite,
            nan=_rows(outputs, torch.isnan),
            infinite=_rows(outputs, torch.isinf),
            undecided=faithfulness.undecided(total),
            tied=faithfulness.tied(total, labels),
            margin=margin,
            farthest=distance.max().item(),
        )

    def _judged_for_diagnostics(self, found: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        verdicts = self.judge(found, points)
        return verdicts.wrong, verdicts.inside

    # ------------------------------------------------------------------------------------------------------- state

    def _opened_state(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What stays of this evaluation's state, as ``state_dir`` holds it or new, and what its batches changed.

        On disk it is one file of what stays, and one for each batch.
        """
        folder = self.evaluator.state_dir
        fingerprint = self._fingerprint()
        if folder is not None:
            check_output_folder("state_dir", folder, [STATE_FILE])
            self.locks.enter_context(locked_folder("state_dir", folder, "evaluation"))
            remove_temporaries(folder, [STATE_FILE])
            remove_temporaries(folder / BATCHES_FOLDER)
        if folder is None or not (folder / STATE_FILE).exists():
            # The mark tells the batches of this state from those of an earlier one in the same folder.
            mark = secrets.token_hex(8)
            return {"format": _FORMAT, "mark": mark, "fingerprint": fingerprint, "clean": None}, []
        stored = load_state(folder / STATE_FILE)
        if not isinstance(stored, dict) or stored.get("format") not in (_FORMAT, *_EARLIER):
            raise ValueError(f"state_dir: {folder / STATE_FILE} is not the state of an evaluation.")
        if stored["format"] != _FORMAT:
            raise ValueError(
                f"state_dir: the state in {folder} is of an evaluation by an earlier version of art-robust-plugins, "
                f"expected this one; choose another folder for this evaluation."
            )
        was = read_fingerprint(stored, folder / STATE_FILE)
        different = [
            f"{key} ({was.get(key)}, now {value})" if key in _VERSIONS else key
            for key, value in fingerprint.items()
            if was.get(key) != value
        ]
        if different:
            raise ValueError(
                f"state_dir: the state in {folder} is of an evaluation with another {_listed(different)}, expected "
                f"the same; choose another folder for this evaluation."
            )
        check_opened(stored, folder / STATE_FILE, points=len(self.x), classes=self.evaluator.estimator.nb_classes)
        if stored["passes"] == 1 and self._outputs_changed(stored["outputs"]):
            raise ValueError(
                f"state_dir: the state in {folder} is of a network with other outputs for the same images, expected "
                f"the same code and constants; choose another folder for this evaluation."
            )
        # In the order in which the attacks ran: who broke a point first gives its adversarial image.
        progress = _new_progress(len(self.x))
        changes = []
        for path in sorted((folder / BATCHES_FOLDER).glob("[0-9]*.pt")):
            change = load_state(path)
            if isinstance(change, dict) and change.get("mark") == stored["mark"]:
                known = {attack.name for attack in self.attacks}
                changes.append(check_change(change, path, attacks=known, counts=progress["counts"], x=self.x))
        return stored, changes

    def _outputs_changed(self, outputs: Tensor) -> bool:
        """Whether the network computes something else, which its weights and its text need not show."""
        scale = outputs[outputs.isfinite()].abs().max().item() if outputs.isfinite().any() else 1.0
        now = self.logits(self.x[: len(outputs)])
        return not torch.allclose(now, outputs, rtol=0.0, atol=_CHANGED_OUTPUTS * scale, equal_nan=True)

    def _save(self, change: dict[str, Any]) -> None:
        folder = self.evaluator.state_dir
        if folder is not None:
            position = list(self.state["attacks"]).index(change["attack"])
            save_state(folder / BATCHES_FOLDER / f"{position:02}-{change['batches'][0]:06}.pt", change)

    def _from_main(self, work: Callable[[], _Found]) -> _Found:
        """What ``work`` gives in the main process, for all of them; its exception is raised by all."""
        if self.processes.num_processes == 1:
            return work()
        outcome: list[Any] = [None]
        if self.processes.is_main_process:
            try:
                outcome = [work()]
            except Exception as error:
                outcome = [error]
        torch.distributed.broadcast_object_list(outcome, group=_patient_group())
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        found: _Found = outcome[0]
        return found

    def _fingerprint(self) -> dict[str, str]:
        evaluator, network = self.evaluator, self.evaluator.estimator.model
        learned = [part for module in preprocessing_modules(evaluator.estimator) for part in describe_module(module)]
        limits = evaluator.estimator.clip_values
        # NumPy leaves out the middle of large arrays.
        plain = [str(limits if self.range.uniform else limits.tolist()), *preprocessing(evaluator.estimator)]
        return {
            "network": digest(*describe_module(network)),
            "preprocessing": digest(*plain, *learned),
            "x": digest(self.x),
            "y": digest(self.y),
            "threat": f"{evaluator.threat.norm} {evaluator.threat.eps!r}",
            "choice of attacks": digest(*(f"{name} {values}" for name, values in self.parameters.items())),
            "attack library": str(self.packages),
            "backend": evaluator.backend,
            "batch_size": str(evaluator.batch_size),
            "seed": str(evaluator.seed),
            "version of art-robust-plugins": version("art-robust-plugins"),
            "version of torch": str(torch.__version__),
        }

    # --------------------------------------------------------------------------------------------------------- run

    def report(self) -> EvaluationReport:
        if self.state["clean"] is None:
            self.state.update(self._from_main(self._clean))
        correct = self.state["clean"] == self.y
        standing: dict[str | None, Tensor] = {}
        for attack in self.attacks:
            if attack.cumulative:
                # Each suite has stages of its own: AutoAttack's number must not depend on what ran before it.
                suite = suite_of(attack)
                standing[suite] = self._attack(attack, standing.get(suite, correct))
            else:
                self._attack(attack, correct)
        report = self._from_main(lambda: self._concluded(correct))
        return replace(report, adversarial=self.state["adversarial"].numpy())

    def _concluded(self, correct: Tensor) -> EvaluationReport:
        """The report, when all attacks have run: the main process's work. (Each has the adversarial images itself.)"""
        robust = correct & ~self.state["broken"]
        results = [self._result(attack) for attack in self.attacks]
        examined = self.passes.whole(lambda size: self._examined(correct, robust, size))
        flags = diagnostics.of_outputs(self.state, len(self.x), results) + examined.flags
        flags += of_estimator(self.range, self.module.straight_through)
        if self.module.single:
            flags += of_single_output(self.evaluator.estimator, self.state["outputs"][:, 1])
        flags += faithfulness.flags_of(self.state, len(self.x))
        flags += diagnostics.of_results(results, float(correct.double().mean()))
        radii, certificate = self._certificate()
        if radii is not None:
            eps = self.evaluator.threat.eps + self.tolerance
            flags += diagnostics.of_certificate(radii, (correct & ~robust).numpy(), eps)
        return EvaluationReport(
            clean_accuracy=float(correct.double().mean()),
            robust_accuracy=float(robust.double().mean()),
            robust=robust.numpy(),
            correct=correct.numpy(),
            labels=self.y.numpy(),
            adversarial=np.empty(0, dtype=np.float32),
            attacks=results,
            flags=diagnostics.merged(flags),
            settings={**self._settings(examined), "certificate": certificate},
            curve=examined.curve,
            examples=self._examples(robust, correct),
            radii=radii,
        )

    def _examined(self, correct: Tensor, robust: Tensor, size: int) -> diagnostics.Examination:
        seed_everything(self.evaluator.seed)
        return diagnostics.examine(
            self.counter,
            self.setting.threat,
            judge=self._judged_for_diagnostics,
            obstacle=self.obstacle,
            unit=self.module.from_estimator,
            x=self.x,
            y=self.y,
            correct=correct,
            robust=robust,
            randomised=self.state["passes"] > 1,
            batch_size=size,
            seed=self.evaluator.seed,
            scale=self.range.width,
            standard={attack.name for attack in SUITES["standard"]} <= {attack.name for attack in self.attacks},
            verbose=self.evaluator.verbose,
        )

    def _certificate(self) -> tuple[NDArray[np.float64] | None, dict[str, Any] | None]:
        """The certified radius of each point, if the estimator gives any, and what it comes from."""
        estimator, norm = self.evaluator.estimator, self.evaluator.threat.norm
        if not isinstance(estimator, PyTorchLipschitzCertifier):
            return None, None
        start = time.perf_counter()
        prediction, radius = self.passes.whole(lambda size: estimator.certify(self.x, size, norm=norm))
        constant = float(estimator.lipschitz_constants().max())
        described = {
            "method": "Lipschitz bound, proven",
            "largest constant of a difference of logits (L2)": constant,
            "seconds": time.perf_counter() - start,
        }
        return np.where(prediction == self.y.numpy(), radius, -1.0), described

    def _clean(self) -> dict[str, Any]:
        """Clean predictions, and what they say of the network: randomised, probabilities, not finite."""
        outputs = self.logits(self.x)
        again = self.logits(self.x[: self.evaluator.batch_size])
        self.state["outputs"] = again
        difference, memory, company = diagnostics.difference(outputs[: len(again)], again), 0.0, 0.0
        if difference <= diagnostics.RANDOM_DIFFERENCE:  # of a randomised network any two passes differ
            memory = faithfulness.memory_difference(self.unrestored, self.x, self.range.low, self.range.high)
            self.restore()
            company = faithfulness.batch_difference(self.logits, self.x, outputs, self.range.low, self.range.high)
            if max(memory, company) > diagnostics.RANDOM_DIFFERENCE:
                difference = max(difference, faithfulness.repeat_difference(self.logits, self.x))
        randomised = difference > diagnostics.RANDOM_DIFFERENCE
        self.state["difference"], self.state["passes"] = difference, RANDOM_PASSES if randomised else 1
        self.state["seeded_difference"] = 0.0
        if randomised:
            seeded = faithfulness.seeded_difference(self.logits, self.x, self.evaluator.seed)
            self.state["seeded_difference"] = seeded
        self.state["memory"], self.state["batch_difference"] = (0.0, 0.0) if randomised else (memory, company)
        self.state["probabilities"] = outputs_are_probabilities(outputs)
        self.state["nan"] = int(outputs.isnan().any(dim=1).sum())
        self.state["infinite"] = int(outputs.isinf().any(dim=1).sum())
        judged = [outputs] if self.state["passes"] == 1 else self.outputs(self.x)
        self.state["clean"] = self.classes(judged)
        total = self.total(judged)
        self.state["undecided"] = int(faithfulness.undecided(total).sum())
        self.state["tied"] = int((faithfulness.tied(total, self.y) & ~faithfulness.undecided(total)).sum())
        self.state["gradients"] = self.gradients
        self.state["moved"] = sorted(self.moved)
        if self.evaluator.state_dir is not None:
            kept = {key: value for key, value in self.state.items() if key not in ("broken", "adversarial", "attacks")}
            save_state(self.evaluator.state_dir / STATE_FILE, kept)
        return {key: self.state[key] for key in _CLEAN}

    def _attack(self, attack: Attack, points: Tensor) -> Tensor:
        """Run one attack on the points [N] bool, in batches, from where it was stopped; those that it left."""
        progress, processes = self.state["attacks"][attack.name], self.processes
        indices = points.nonzero().flatten()
        size = self.evaluator.batch_size
        logical = torch.split(indices, size) if len(indices) else ()
        done = sum(len(logical[number]) for number in progress["batches"])
        todo = [number for number in range(len(logical)) if number not in progress["batches"]]
        # Of the other processes nothing is known before the end: the bar shows what this one does.
        own = todo[processes.process_index :: processes.num_processes]
        at_once = 1
        if self._is_ours(attack) and self.state["passes"] == 1:
            # Its random numbers keep to the logical batches, of which it may get several.
            at_once = joint_size(size, self.setting.physical_batch_size) // size
        bar = tqdm(
            total=done + sum(len(logical[number]) for number in own),
            initial=done,
            desc=attack.name,
            unit="pt",
            disable=not (self.evaluator.verbose and processes.is_main_process),
        )
        changes = []
        with bar:
            for numbers in (own[i : i + at_once] for i in range(0, len(own), at_once)):
                change = {"batches": numbers, **self._batch(attack, torch.cat([logical[each] for each in numbers]))}
                self._save(change)
                changes.append(change)
                _apply(self.state, change)
                bar.update(sum(len(logical[number]) for number in numbers))
                bar.set_postfix_str(f"accuracy {(points & ~progress['fooled']).double().mean().item():.2%}")
        if processes.num_processes > 1:
            shares: list[Any] = [None] * processes.num_processes
            torch.distributed.all_gather_object(shares, changes, group=_patient_group())
            del shares[processes.process_index]
            for change in sorted(chain.from_iterable(shares), key=lambda change: change["batches"]):
                _apply(self.state, change)
        self.robust[attack.name] = points & ~progress["fooled"]
        return self.robust[attack.name]

    def _is_ours(self, attack: Attack) -> bool:
        return attack.package == "autoattack" and self.evaluator.backend == "native"

    def _batch(self, attack: Attack, batch: Tensor) -> dict[str, Any]:
        """Attack and judge one batch of points; what it changes in the state, for `_apply`."""
        x, device = self.x[batch], self.setting.device
        forward, backward = self.counter.forward_calls, self.counter.backward_calls
        start = time.perf_counter()
        seed_everything(self.evaluator.seed)
        # A copy, which attacks may write into; and in the memory layout that they expect.
        unit = self.module.from_estimator(x.to(device)).clone(memory_format=torch.contiguous_format)
        with torch.enable_grad():
            found = self._perturb[attack.name](unit, self.y[batch].to(device))
        moved = self.snapshot.restore()
        if found.shape[0] != len(batch) or tuple(found.shape[1:]) != self.setting.input_shape:
            raise ValueError(
                f"attacks: {attack.name!r} returned a batch of shape {tuple(found.shape)}, expected "
                f"{(len(batch), *self.setting.input_shape)}."
            )
        found = found.cpu()  # waits for the device
        seconds = time.perf_counter() - start
        forward, backward = self.counter.forward_calls - forward, self.counter.backward_calls - backward
        verdicts = self.judge(found, batch)
        bounded, broken = attack.bounded, verdicts.wrong & verdicts.inside
        new = broken & ~self.state["broken"][batch]
        # Ours returns another image only where it was misclassified; of a randomised network that says little.
        claims = self._is_ours(attack) and self.state["passes"] == 1
        turned = (found != unit.cpu()).flatten(1).any(dim=1) & verdicts.inside & ~verdicts.wrong
        return {
            "mark": self.state["mark"],
            "attack": attack.name,
            "counts": {
                "seconds": seconds,
                "forward": forward,
                "backward": backward,
                "not_finite": int((~verdicts.finite).sum()),
                "overturned": int(turned.sum()) if claims else 0,
                "out_of_ball": int((~verdicts.in_ball).sum() if bounded else 0),
                "out_of_range": int((~verdicts.in_range).sum() if bounded else 0),
                "nan": int(verdicts.nan.sum()),
                "infinite": int(verdicts.infinite.sum()),
                "undecided": int(verdicts.undecided.sum()),
                "tied": int((verdicts.tied & ~verdicts.undecided).sum()),
            },
            "moved": moved,
            "widest": verdicts.margin[turned].max().item() if claims and turned.any() else 0.0,
            "farthest": verdicts.farthest if bounded else 0.0,
            "fooled": batch[verdicts.wrong if attack.constraint == "none" else broken],
            "broken": batch[new],
            "adversarial": verdicts.candidates[new],
        }

    # ------------------------------------------------------------------------------------------------------ report

    def _result(self, attack: Attack) -> AttackResult:
        counts, robust = self.state["attacks"][attack.name]["counts"], self.robust[attack.name]
        return AttackResult(
            name=attack.name,
            summary=attack.summary,
            robust_accuracy=float(robust.double().mean()),
            robust=robust.numpy(),
            seconds=counts["seconds"],
            forward_calls=counts["forward"],
            backward_calls=counts["backward"],
            bounded=attack.bounded,
            cumulative=attack.cumulative,
            parameters=self.parameters[attack.name],
            constraint=attack.constraint,
        )

    def _settings(self, examined: diagnostics.Examination) -> dict[str, Any]:
        evaluator, estimator = self.evaluator, self.evaluator.estimator
        stages = [attack.name for attack in self.attacks if suite_of(attack) == "standard"]
        fast = [attack.name for attack in self.attacks if suite_of(attack) == "fast"]
        standard = [attack.name for attack in SUITES["standard"]]
        parameter = next(iter(estimator.model.parameters()), None)
        return {
            "threat": describe_threat(evaluator.threat, *self.range.hull),
            "attacks": [attack.name for attack in self.attacks],
            "autoattack": stages == standard,
            "fast": bool(fast),
            "backend": evaluator.backend,
            "attack_library": self.packages,
            "points": len(self.x),
            "classes": estimator.nb_classes,
            "input_shape": list(estimator.input_shape),
            "channels_first": bool(estimator.channels_first),
            "clip_values": list(self.range.hull),
            "clip_values_by_feature": None if self.range.uniform else str(self.range),
            "preprocessing": preprocessing(estimator),
            "straight_through": self.module.straight_through,
            "seed": evaluator.seed,
            "batch_size": evaluator.batch_size,
            "physical_batch_size": self.setting.physical_batch_size,
            "processes": self.processes.num_processes,
            "verdict_passes": self.state["passes"],
            "tolerance": self.tolerance,
            "device": _device_name(self.setting.device),
            "dtype": "torch.float32" if parameter is None else str(parameter.dtype),
            "network": type(estimator.model).__name__,
            "network_sha256": self.state["fingerprint"]["network"],
            "versions": {
                "art-robust-plugins": version("art-robust-plugins"),
                "adversarial-robustness-toolbox": version("adversarial-robustness-toolbox"),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "diagnostics": examined.cost,
            "could_not_run": self.not_run,
            "not_run": [*self.not_run, *([FAST] if fast else []), *self._left_out()],
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _left_out(self) -> Iterator[str]:
        """What the suites hold that was not asked for."""
        asked = {attack.name for attack in self.evaluator.attacks}
        for name, suite in SUITES.items():
            missing = [attack.name for attack in suite if attack.name not in asked]
            if len(missing) == len(suite):
                yield f"The suite {name!r}."
            elif missing:
                yield f"Of the suite {name!r}: {_listed(missing)}."

    def _examples(self, robust: Tensor, correct: Tensor, count: int = 8) -> Examples:
        """The first points that an attack broke, as images in [0, 1]."""
        where = (correct & ~robust).nonzero().flatten()[:count]
        adversarial = self.state["adversarial"][where]
        found = self.classes(self.outputs(adversarial)) if len(where) else where
        return Examples(
            indices=where.numpy(),
            clean=self.module.from_estimator(self.x[where]).numpy(),
            adversarial=self.module.from_estimator(adversarial).numpy(),
            labels=self.y[where].numpy(),
            predictions=found.numpy(),
        )


class CallCounter(nn.Module):
    """A module that counts the images that pass it forward, and backward, and is otherwise the one it holds.

    ``before``, where it is set, is called before each forward pass.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.before: Callable[[], object] | None = None
        self.forward_calls = 0
        self.backward_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            self.before()
        outputs: Tensor = self.module(x)
        self.forward_calls += len(x)
        if outputs.requires_grad:
            outputs.register_hook(self._backward)  # type: ignore[no-untyped-call]
        return outputs

    def _backward(self, gradient: Tensor) -> None:
        self.backward_calls += len(gradient)


def preprocessing(estimator: PyTorchClassifier) -> list[str]:
    """Each step of ART's preprocessing with its parameters, without the standardisation by 0 and 1 that ART adds."""
    steps = []
    for operation in estimator.preprocessing_operations:
        named = {name: getattr(operation, name, None) for name in getattr(operation, "params", [])}
        # Other parameters, such as a network, have no text that stays the same from run to run.
        plain = (bool, int, float, str, tuple, list, np.ndarray, np.generic)
        values = {name: np.asarray(value).tolist() for name, value in named.items() if isinstance(value, plain)}
        if (values.get("mean"), values.get("std")) != (0.0, 1.0):
            steps.append(f"{type(operation).__name__}({', '.join(f'{k}={v!r}' for k, v in values.items())})")
    return steps


def describe_threat(threat: ThreatModel, low: float, high: float) -> dict[str, Any]:
    """The threat as JSON data, with a text for people: of images in [0, 1] in levels of 255."""
    levels = threat.norm == "Linf" and (low, high) == (0, 1)
    text = str(threat) if levels else f"{threat.norm} {threat.eps:g}"
    return {"norm": threat.norm, "eps": threat.eps, "text": text}


def _new_progress(n: int) -> dict[str, Any]:
    whole = (
        *("forward", "backward", "not_finite", "overturned", "out_of_ball", "out_of_range", "nan", "infinite"),
        *("undecided", "tied"),
    )
    counts = {**dict.fromkeys(whole, 0), "seconds": 0.0}
    return {
        "counts": counts,
        "farthest": 0.0,
        "widest": 0.0,
        "moved": set(),
        "fooled": torch.zeros(n, dtype=torch.bool, device="cpu"),
        "batches": set(),
    }


def _apply(state: dict[str, Any], change: dict[str, Any]) -> None:
    """Bring into the state what one batch changed."""
    progress = state["attacks"][change["attack"]]
    progress["counts"] = {name: count + change["counts"][name] for name, count in progress["counts"].items()}
    progress["farthest"] = max(progress["farthest"], change["farthest"])
    progress["widest"] = max(progress["widest"], change["widest"])
    progress["moved"].update(change["moved"])
    progress["batches"].update(change["batches"])
    progress["fooled"][change["fooled"]] = True
    state["broken"][change["broken"]] = True
    state["adversarial"][change["broken"]] = change["adversarial"]


@cache
def _patient_group() -> Any:
    """All processes; here one may wait for another for as long as an attack takes. Launchers notice one that dies."""
    return torch.distributed.new_group(timeout=timedelta(days=7))


def _rows(outputs: Sequence[Tensor], test: Callable[[Tensor], Tensor]) -> Tensor:
    """For which samples any output of any pass passes the test, bool [N]."""
    return torch.stack([test(output).any(dim=1) for output in outputs]).any(dim=0)


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
