"""The preparation of an evaluation: checks of the network, and attacks prepared for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..randomness import cuda_devices, restored_random_states
from .autoattack.apgd import APGD
from .autoattack.batches import BatchedPasses, ChannelsLast, choose_layout, find_fitting_size
from .autoattack.fab import FAB
from .autoattack.square import Square
from .diagnostics import RANDOM_DIFFERENCE, find_gradient_obstacle, measure_difference
from .diagnostics.faithfulness import check_same_function, make_probes
from .estimator_passes import EstimatorPasses
from .libraries import Attack, NotApplicable, Perturb, Setting, package_versions
from .options import EvaluationOptions

# The distance by which rounding may take a mean of probabilities outside of [0, 1].
_ROUNDING = 1e-3


@dataclass(frozen=True)
class PreparedAttack:
    """An attack that is ready to run.

    Attributes:
        attack: the attack.
        perturb: attacks one batch.
        parameters: for the report.
    """

    attack: Attack
    perturb: Perturb
    parameters: dict[str, Any]

    @property
    def leaves_weights(self) -> bool:
        """Whether its passes compute a parametrized weight as every other pass does.

        Only our own attacks without autocast are known to: another may look at the network in half precision, in
        inference mode, or train one of its own.
        """
        return isinstance(self.perturb, APGD | FAB | Square) and self.perturb.passes.precision is None


@dataclass(frozen=True)
class Preparation:
    """The attacks that can run, and why others cannot.

    Attributes:
        setting: what the attacks were prepared for.
        attacks: in the order in which they run.
        not_run: a sentence for each attack that cannot run here.
        obstacle: why no attack can follow gradients, as a clause; None if they can.
        packages: name and version of each library that the attacks come from.
    """

    setting: Setting
    attacks: list[PreparedAttack]
    not_run: list[str]
    obstacle: str | None
    packages: dict[str, str]


def prepare_attacks(options: EvaluationOptions, passes: EstimatorPasses, x: Tensor) -> Preparation:
    """Check that the estimator can be evaluated on samples ``x`` [N, ...], and make its attacks ready.

    Raises:
        ValueError: a ``predict`` that computes more than network and preprocessing, a network that an attack cannot
            take, no attack that can run.
        ImportError: the library of an attack is not installed.
    """
    estimator = options.estimator
    probes = make_probes(x, options.threat, passes.range.low, passes.range.high)
    _watch_clean_passes(passes, x, probes)
    check_same_function(estimator, passes.predict, passes.predict_followed, probes)
    packages = package_versions(options.attacks, options.backend)
    few = passes.module.from_estimator(x[:2].to(passes.device))
    obstacle = find_gradient_obstacle(passes.counter, few)
    setting = _choose_setting(options, passes, few, obstacle)
    passes.restore()
    attacks: list[PreparedAttack] = []
    not_run: list[str] = []
    for attack in options.attacks:
        if obstacle is not None and attack.gradients:
            not_run.append(f"{attack.name}: it follows gradients, but {obstacle}.")
            continue
        try:
            attacks.append(PreparedAttack(attack, *attack.prepare(setting)))
        except NotApplicable as reason:
            not_run.append(f"{attack.name}: {reason}.")
    if not attacks:
        followers = obstacle is not None and all(attack.gradients for attack in options.attacks)
        without = "; 'square' follows no gradients" if followers else ""
        reasons = " ".join(not_run).removesuffix(".")
        raise ValueError(f"attacks: none can run here ({reasons}), expected at least one that can{without}.")
    return Preparation(setting, attacks, not_run, obstacle, packages)


def _watch_clean_passes(passes: EstimatorPasses, x: Tensor, probes: Tensor) -> None:
    """Freeze the network's weights, unless a pass of a clean image or of a probe computes gradients inside.

    Raises:
        ValueError: logits under a loss of probabilities.
    """
    with restored_random_states(cuda_devices()):
        passes.predict(x)
        passes.predict(probes)
    passes.weights.freeze()
    if passes.beyond > _ROUNDING:
        raise ValueError(
            f"classifier: the network's one output lies up to {passes.beyond:.3g} outside of [0, 1], and BCELoss takes "
            f"it for a probability, expected one; end the network in a sigmoid, or give the classifier "
            f"BCEWithLogitsLoss, which takes logits."
        )


def _choose_setting(options: EvaluationOptions, passes: EstimatorPasses, few: Tensor, obstacle: str | None) -> Setting:
    """Choose the setting of the attacks; ``few`` are two images as the network takes them."""
    fitting = options.physical_batch_size
    if fitting is None:
        one, another = (BatchedPasses(passes.counter, 2).logits(few) for _ in range(2))
        randomised = measure_difference(one, another) > RANDOM_DIFFERENCE
        fits = options.backend == "native" and obstacle is None and not randomised
        fitting = find_fitting_size(passes.counter, few[:1], options.batch_size) if fits else options.batch_size
    return Setting(
        model=passes.counter,
        threat=options.threat.scale(1 / passes.range.width),
        input_shape=tuple(few.shape[1:]),
        classes=options.estimator.nb_classes,
        seed=options.seed,
        device=passes.device,
        backend=options.backend,
        batch_size=options.batch_size,
        physical_batch_size=fitting,
        channels_last=isinstance(choose_layout(passes.module, few[:1]), ChannelsLast),
    )
