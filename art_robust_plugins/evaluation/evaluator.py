"""The `Evaluator`: attacks an ART classifier, judges every candidate itself, and reports.

`_evaluate` is the outline of an evaluation: clean images, attacks, verdicts, report. ``verdicts.py`` gives verdicts,
``running.py`` runs the attacks, ``state.py`` keeps the state from which a stopped evaluation continues, and
``assembly.py`` assembles the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ..bridge import (
    EstimatorModule,
    as_estimator,
    check_certified,
    check_no_conventions,
    check_threat,
    input_range,
    is_plain,
    rename_model,
)
from ..checks import check_choice, check_count, check_flag, check_path, check_seed, describe_error
from ..choices import BATCH_SIZE
from ..keywords import KnownKeywords, explain_keywords
from ..memory import return_large_blocks
from ..processes import find_processes
from ..snapshot import Snapshot
from ..threat import ThreatModel
from .assembly import FinishedEvaluation, assemble_report, examine_certificate
from .autoattack.batches import limit_on_cpu
from .certificates import certify_points, choose_spared
from .clean import inspect_clean
from .diagnostics import RANDOM_DIFFERENCE
from .diagnostics.faithfulness import check_single_network
from .estimator_passes import EstimatorPasses, list_modules, preserve_network
from .libraries import Attack, Backend, resolve
from .options import EvaluationOptions, Samples
from .preparation import prepare_attacks
from .processes import share_from_main
from .progress import CleanFindings
from .report import EvaluationReport
from .running import AttackRunner
from .samples import collect_samples, read_samples
from .settings import compute_fingerprint, describe_preprocessing
from .state import STATE_FILE, StateFolder
from .verdicts import DecisionRule, Judge, compute_tolerance
from .weights import FrozenWeights

__all__ = ["STATE_FILE", "Evaluator", "preprocessing"]

preprocessing = describe_preprocessing
"""The name under which `describe_preprocessing` was first published."""


class Evaluator(KnownKeywords):
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

    On a CPU with glibc, an evaluation of large images has freed blocks of 1 MiB and more returned to the system from
    then on.

    Args:
        estimator: an ART ``PyTorchClassifier`` with ``clip_values`` that returns logits, or a plain ``nn.Module``,
            whose input shape and classes are read when the data are there (`as_estimator`). A
            `PyTorchLipschitzCertifier` is attacked like any other, and its certified radii join the report.
        threat: the threat model; its ``eps`` is in the units of the estimator's input.
        attacks: a suite (``"standard"``, ``"plus"``, ``"rand"``, ``"fast"``, ``"torchattacks"``,
            ``"torchattacks-autoattack"``, ``"noise"``), the name of one attack (``"apgd-t"``, ``"fab"``,
            ``"pgd-20"``), an `Attack` of one's own, or a sequence of these. ``"fast"`` is not the standard evaluation.
        backend: whose AutoAttack: ``"native"`` for this package's own, ``"reference"`` for that of the package
            ``autoattack``, or of its repackaging ``pyautoattack``. The verdicts are the same.
        batch_size: the points of a logical batch. It fixes the random numbers, and with them the verdicts.
        physical_batch_size: the most points in a pass; it changes no verdict, except of a randomised network, which
            draws its own numbers in each pass. None: what a GPU's free memory holds (of a randomised network, and
            elsewhere, ``batch_size``, or on a CPU fewer of large images). A pass that runs out of memory is halved.
            Attacks of the reference backend and of other libraries run ``batch_size`` points at once, and are not.
        seed: the seed of every call of an attack.
        state_dir: a folder that keeps the state, a small file for every batch; the same evaluation started again with
            it goes on where it was stopped. Another network (its weights, preprocessing, or outputs), other data or
            settings are refused; an `Attack` of one's own is known by its name and parameters alone. Several
            processes must all see it; another evaluation at the same time is refused.
        skip_certified: of a `PyTorchLipschitzCertifier`, points whose certified radius reaches eps, with the rounding
            of the network itself (`certify_as_computed`), take part in no pass of this package's own AutoAttack, except
            for those with the smallest radii, the witnesses of the certificate. No other verdict changes: they count
            where random numbers are drawn.
        verbose: show progress bars.
        bounds: of a plain network, the range of its images: two numbers, or two arrays; None for (0, 1).
        mean: of a plain network, what is subtracted from images first, a number or one for each channel.
        std: of a plain network, what they are divided by then.
        nb_classes: of a plain network, how many outputs it must have; None for as many as it has.

    Started as several processes (``torchrun``), each attacks batches of its own or, where there are fewer batches than
    processes, some points of each; all return the same report, and its verdicts are those of one process.

    Raises:
        TypeError: an estimator that is neither a ``PyTorchClassifier`` nor a network, a threat that is not a
            `ThreatModel`.
        ValueError: an unknown attack or backend, a size that is not a positive whole number, an eps whose ball holds
            every image, ``bounds`` and the like beside an estimator.

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
        estimator: PyTorchClassifier | nn.Module,
        threat: ThreatModel,
        *,
        attacks: str | Attack | Sequence[str | Attack] = "standard",
        backend: Backend = "native",
        batch_size: int = BATCH_SIZE,
        physical_batch_size: int | None = None,
        seed: int = 0,
        state_dir: str | Path | None = None,
        skip_certified: bool = True,
        verbose: bool = True,
        bounds: Any = None,
        mean: Any = None,
        std: Any = None,
        nb_classes: int | None = None,
    ) -> None:
        self.conventions = {"bounds": bounds, "mean": mean, "std": std, "nb_classes": nb_classes}
        with rename_model("estimator"):
            plain = is_plain(estimator)
        if not plain:
            check_no_conventions(estimator, **self.conventions)
            _check_estimator(estimator)
        if not isinstance(threat, ThreatModel):
            raise TypeError(
                f"threat: got {type(threat).__name__}, expected a ThreatModel, such as ThreatModel('Linf', '8/255')."
            )
        if not plain:
            check_threat(threat, estimator)
        check_choice("backend", backend, get_args(Backend))
        self.estimator = estimator
        self.threat = threat
        self.attacks = resolve(attacks)
        self.backend = backend
        self.batch_size = check_count("batch_size", batch_size)
        self.physical_batch_size = (
            None if physical_batch_size is None else check_count("physical_batch_size", physical_batch_size)
        )
        self.seed = check_seed("seed", seed)
        self.state_dir = None if state_dir is None else check_path("state_dir", state_dir)
        check_flag("skip_certified", skip_certified)
        self.skip_certified = skip_certified
        self.verbose = verbose

    def __repr__(self) -> str:
        names = ", ".join(attack.name for attack in self.attacks)
        network = self.estimator if isinstance(self.estimator, nn.Module) else self.estimator.model
        return f"Evaluator({type(network).__name__}, {self.threat}, attacks: {names}, seed {self.seed})"

    @explain_keywords
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
        estimator = self.estimator
        named = rename_model("estimator") if isinstance(estimator, nn.Module) else nullcontext()
        # The caller may be in inference mode; gradients of its tensors do not exist, those of copies do.
        with named, torch.inference_mode(False):
            _check_state(estimator if isinstance(estimator, nn.Module) else estimator.model)
            if isinstance(estimator, nn.Module):
                x, y = collect_samples(x, y)
                estimator = as_estimator(estimator, x, **self.conventions)
                input_range(estimator)
                check_threat(self.threat, estimator)
            samples = Samples(*read_samples(x, y, estimator))
            settings = {field.name: getattr(self, field.name) for field in fields(EvaluationOptions)}
            options = EvaluationOptions(**{**settings, "estimator": estimator})
            with preserve_network(estimator) as snapshot:
                estimator.model.eval()
                return _evaluate(options, samples, snapshot)


def _check_state(network: nn.Module) -> None:
    """Refuse a network without gradients, or whose state cannot be read."""
    values = chain(network.parameters(), network.buffers())
    if any(value.is_inference() for value in values if not is_lazy(value)):
        raise ValueError("classifier: the network was made in torch.inference_mode(), expected one with gradients.")
    try:
        network.state_dict()
    except Exception as error:  # whatever a get_extra_state raises
        raise ValueError(
            f"classifier: the state of the network cannot be read ({describe_error(error)}), expected one "
            f"whose state_dict() works, by which a report knows the network again."
        ) from error


def _check_estimator(estimator: PyTorchClassifier) -> None:
    check_certified(estimator)
    check_single_network(estimator)
    input_range(estimator)


def _evaluate(options: EvaluationOptions, samples: Samples, snapshot: Snapshot) -> EvaluationReport:
    """Evaluate a network whose state is that of ``snapshot``."""
    module = EstimatorModule(options.estimator, probabilities=True, straight_through=True)
    fitting = limit_on_cpu(samples.x[:1].to(module.device), options.batch_size)
    passes = EstimatorPasses(
        options.estimator,
        module,
        snapshot,
        FrozenWeights(list_modules(options.estimator)),
        options.physical_batch_size or fitting,
    )
    if fitting < options.batch_size:
        # glibc keeps the freed blocks of large passes; they add up to gigabytes.
        return_large_blocks()
    prepared = prepare_attacks(options, passes, samples.x)
    processes = find_processes(passes.device)
    folder = StateFolder(options.state_dir, [each.attack.name for each in prepared.attacks])
    # One process proves norms and certifies; a network without a certificate is refused here.
    reach = options.threat.eps + compute_tolerance(options.threat, passes.range, samples.x[0].numel()).worst
    certified = share_from_main(processes, lambda: certify_points(options, samples, passes, reach))

    with ExitStack() as locks:
        # Keep one copy of the images: the state builds its own from samples.x.
        state = share_from_main(
            processes,
            lambda: folder.open(
                compute_fingerprint(options, samples, passes, prepared),
                samples,
                passes,
                locks,
                choose_spared(options, certified),
            ),
        ).build_state(samples.x, folder.attacks)

        # Clean images: their classes, and measurements of the network.
        def inspect() -> CleanFindings:
            findings = inspect_clean(options, samples, passes)
            folder.save_clean(state, findings)
            return findings

        clean = share_from_main(processes, inspect) if state.clean is None else state.clean
        correct = clean.clean == samples.y

        # Attacks: fresh passes give a verdict for each candidate.
        judge = Judge(passes, samples, options.threat, DecisionRule(clean.passes, clean.probabilities, options.seed))
        # No attack need try certified points; a misclassified clean image is never spared, whatever its certificate.
        spared = state.spared & correct if bool(state.spared.any()) else None
        # Processes share a batch's points only where an image's outputs do not depend on what else passes.
        steady = (
            clean.passes == 1 and not clean.moved and max(clean.memory, clean.batch_difference) <= RANDOM_DIFFERENCE
        )
        runner = AttackRunner(
            options=options,
            samples=samples,
            setting=prepared.setting,
            judge=judge,
            state=state,
            folder=folder,
            processes=processes,
            spared=spared,
            steady=steady,
        )
        # Parametrized weights are computed once for all passes, where each pass would compute the same: where no pass
        # changes weights or computes gradients inside, and all attacks are our own.
        ours = all(each.leaves_weights for each in prepared.attacks)
        fixed = steady and ours and not (passes.changed or passes.weights.taken)
        keep = parametrize.cached if fixed else nullcontext
        with keep():
            # The points that each attack left, from which the report computes the accuracy after each.
            left = runner.run_all(prepared.attacks, correct)
        finished = FinishedEvaluation(
            options, samples, prepared, judge, clean, certified, state, left, processes.num_processes
        )

        # Report: the main process assembles it; each process has the images itself.
        def report_findings() -> EvaluationReport:
            certificate = examine_certificate(finished)  # in float64, whose weights are not those that are kept
            with keep():
                return assemble_report(finished, certificate)

        report = share_from_main(processes, report_findings)
        assert report.details is not None
        details = replace(report.details, clean=samples.x[state.broken & correct].numpy())
        return replace(report, adversarial=state.adversarial.numpy(), details=details)
