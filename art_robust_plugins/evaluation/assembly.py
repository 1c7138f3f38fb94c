"""The report of an evaluation whose attacks have all run: diagnostics, certificate, settings, examples."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..fingerprints import digest
from ..lipschitz import PyTorchLipschitzCertifier
from ..randomness import seed_everything
from .certificates import CertifiedRadii
from .diagnostics import Certificate, Findings, ShortAttackPlan, ShortAttacks, run_diagnostics, run_short_attacks
from .libraries import SUITES
from .options import EvaluationOptions, Samples
from .preparation import Preparation, PreparedAttack
from .progress import CleanFindings
from .report import EvaluationReport
from .results import AttackResult, Examples, PointDetails
from .settings import describe_attacks, describe_inputs, describe_network, describe_versions, list_not_run
from .state import EvaluationState
from .verdicts import Judge

EXAMPLES = 8


@dataclass(frozen=True)
class FinishedEvaluation:
    """An evaluation whose attacks have all run.

    Attributes:
        options: its settings.
        samples: its points.
        prepared: its attacks.
        judge: gives the verdicts.
        clean: what the clean passes found.
        certified: the certified radii, of an estimator that certifies.
        state: what the attacks found.
        left: the points that each attack left, bool [N] by its name.
        processes: the number of processes that evaluated together.
    """

    options: EvaluationOptions
    samples: Samples
    prepared: Preparation
    judge: Judge
    clean: CleanFindings
    certified: CertifiedRadii | None
    state: EvaluationState
    left: dict[str, Tensor]
    processes: int

    @property
    def correct(self) -> Tensor:
        """The points that are classified correctly, bool [N]."""
        return self.clean.clean == self.samples.y

    @property
    def robust(self) -> Tensor:
        """The points that are classified correctly, and that no attack broke, bool [N]."""
        return self.correct & ~self.state.broken


class Outputs(NamedTuple):
    """The estimator's outputs [N, classes] for the clean images, and for those that attacks left in their place."""

    clean: Tensor
    attacked: Tensor


def assemble_report(finished: FinishedEvaluation, certificate: Certificate | None) -> EvaluationReport:
    """The report without the images of all points, which stay with the state and the samples."""
    correct, robust, passes = finished.correct, finished.robust, finished.judge.passes
    results = [_build_result(finished, prepared) for prepared in finished.prepared.attacks]
    short = passes.batched.run_whole(lambda size: _attack_shortly(finished, size))
    certified = finished.certified
    clean_accuracy = float(correct.double().mean())
    outputs = _collect_outputs(finished)
    findings = Findings(
        points=len(correct),
        clean_accuracy=clean_accuracy,
        clean=finished.clean,
        progress=finished.state.attacks,
        results=results,
        short_attacks=short,
        input_range=passes.range,
        straight_through=passes.module.straight_through,
        loss=passes.estimator.loss,
        single_output=passes.module.single,
        certificate=certificate,
    )
    return EvaluationReport(
        clean_accuracy=clean_accuracy,
        robust_accuracy=float(robust.double().mean()),
        robust=robust.numpy(),
        correct=correct.numpy(),
        labels=finished.samples.y.numpy(),
        adversarial=np.empty(0, dtype=np.float32),
        attacks=results,
        flags=run_diagnostics(findings),
        settings=_describe(finished, short, certified),
        curve=short.curve,
        examples=_pick_examples(finished, outputs.attacked),
        radii=None if certified is None else certified.radii,
        details=PointDetails(
            clean=np.empty(0, dtype=np.float32),
            outputs=outputs.clean.numpy(),
            attacked_outputs=outputs.attacked.numpy(),
            breakers=finished.state.breakers.numpy(),
        ),
    )


def _build_result(finished: FinishedEvaluation, prepared: PreparedAttack) -> AttackResult:
    attack = prepared.attack
    counts, left = finished.state.attacks[attack.name].counts, finished.left[attack.name]
    return AttackResult(
        name=attack.name,
        summary=attack.summary,
        robust_accuracy=float(left.double().mean()),
        robust=left.numpy(),
        seconds=counts["seconds"],
        forward_calls=counts["forward"],
        backward_calls=counts["backward"],
        bounded=attack.bounded,
        cumulative=attack.cumulative,
        parameters=prepared.parameters,
        constraint=attack.constraint,
    )


def _attack_shortly(finished: FinishedEvaluation, batch_size: int) -> ShortAttacks:
    options, prepared, passes = finished.options, finished.prepared, finished.judge.passes
    seed_everything(options.seed)
    plan = ShortAttackPlan(
        model=passes.counter,
        judge=finished.judge.judge_briefly,
        obstacle=prepared.obstacle,
        threat=prepared.setting.threat,
        scale=passes.range.width,
        to_unit=passes.module.from_estimator,
        x=finished.samples.x,
        y=finished.samples.y,
        correct=finished.correct,
        robust=finished.robust,
        randomised=finished.clean.passes > 1,
        seed=options.seed,
        standard={attack.name for attack in SUITES["standard"]} <= set(finished.left),
        verbose=options.verbose,
    )
    return run_short_attacks(plan, batch_size)


def examine_certificate(finished: FinishedEvaluation) -> Certificate | None:
    """What the attacks found within the certified radii; the images that they broke there are classified in float64."""
    certified = finished.certified
    if certified is None:
        return None
    attacked = (finished.correct & ~finished.robust).numpy()
    eps = finished.options.threat.eps + finished.judge.tolerance.typical
    exact, estimator = np.zeros_like(attacked), finished.options.estimator
    (points,) = (attacked & (certified.radii >= eps)).nonzero()
    if len(points) and isinstance(estimator, PyTorchLipschitzCertifier):
        images, labels = finished.state.adversarial[points], finished.samples.y[points].numpy()
        exact[points] = (
            finished.judge.passes.batched.run_whole(lambda size: estimator.certify(images, size)[0]) != labels
        )
    return Certificate(certified.radii, certified.computed, exact, attacked, eps)


def _describe(finished: FinishedEvaluation, short: ShortAttacks, certified: CertifiedRadii | None) -> dict[str, Any]:
    """The report's settings."""
    options, prepared, passes = finished.options, finished.prepared, finished.judge.passes
    return {
        **describe_attacks(options, passes, prepared),
        **describe_inputs(finished.samples, passes),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "physical_batch_size": prepared.setting.physical_batch_size,
        "processes": finished.processes,
        "verdict_passes": finished.clean.passes,
        "tolerance": finished.judge.tolerance.typical,
        **describe_network(passes),
        "network_sha256": finished.state.fingerprint["network"],
        "points_sha256": digest(*(finished.state.fingerprint[name] for name in ("x", "y"))),
        "outputs": "probabilities" if finished.clean.probabilities or finished.clean.passes > 1 else "logits",
        "versions": describe_versions(),
        "diagnostics": short.cost,
        "could_not_run": prepared.not_run,
        "not_run": list_not_run(options, prepared),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "certificate": None if certified is None else certified.describe(finished.state.spared),
    }


def _collect_outputs(finished: FinishedEvaluation) -> Outputs:
    judge, broken = finished.judge, finished.correct & ~finished.robust
    clean = judge.rule.average(judge.rule.predict(judge.passes.predict, finished.samples.x)).float()
    attacked = clean.clone()
    if broken.any():
        found = judge.rule.predict(judge.passes.predict, finished.state.adversarial[broken])
        attacked[broken] = judge.rule.average(found).float()
    return Outputs(clean, attacked)


def _pick_examples(finished: FinishedEvaluation, outputs: Tensor) -> Examples:
    """The first points that an attack broke, as images in [0, 1]; ``outputs`` are those of the attacked images."""
    samples, judge = finished.samples, finished.judge
    where = (finished.correct & ~finished.robust).nonzero().flatten()[:EXAMPLES]
    adversarial = finished.state.adversarial[where]
    return Examples(
        indices=where.numpy(),
        clean=judge.passes.module.from_estimator(samples.x[where]).numpy(),
        adversarial=judge.passes.module.from_estimator(adversarial).numpy(),
        labels=samples.y[where].numpy(),
        predictions=judge.rule.classify([outputs[where]]).numpy(),
    )
