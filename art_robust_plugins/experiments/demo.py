"""The demo: every installed method on scikit-learn's digits, each network attacked and certified."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from ..data import load_data
from ..evaluation import EvaluationReport
from ..registry import available_methods, parameters_of
from ..saved_classifier import CLASSIFIER_FILE
from ..threat import ThreatModel
from .plans import TrainingPlan, is_trainable
from .runs import evaluate_run, train_run
from .training_record import read_training_record

COMPOSITIONS = (("local-ball", ("layerwise",)),)
"""Methods with instruments that the demo shows after the single methods."""
THREAT = ThreatModel("Linf", 0.1)
ATTACKS = ("standard", "fgsm", "pgd-20", "pgd-100", "pixle", "onepixel")
"""The standard AutoAttack; attacks of fewer steps or restarts, which show how much less they find (one restart of
pgd-100 finds a point that AutoAttack leaves); and two attacks that leave the ball."""


@dataclass(frozen=True)
class DemoNetwork:
    """One network of the demo: its name on the page, how it is trained, where it is kept."""

    label: str
    plan: TrainingPlan
    folder: Path
    seed: int

    def is_trained(self) -> bool:
        """Whether an earlier demo trained it.

        Raises:
            ValueError: it trained another network in this folder.
        """
        if not (self.folder / CLASSIFIER_FILE).exists():
            return False
        record = read_training_record(self.folder)
        if (record.get("epochs"), record.get("seed")) != (self.plan.epochs, self.seed):
            raise ValueError(
                f"out: {self.folder} holds a network of {record.get('epochs')} epochs and seed {record.get('seed')}, "
                f"expected {self.plan.epochs} and {self.seed}; take another folder."
            )
        return True


def list_networks(out: Path, *, epochs: int, seed: int) -> tuple[list[DemoNetwork], dict[str, list[str]]]:
    """The networks in the order of the page, and the methods without one, each with the parameters that it lacks."""
    trained = {name: kind for name, kind in available_methods().items() if is_trainable(kind)}
    # The baseline comes first, for the others to be compared with.
    single = [(name, ()) for name in sorted(trained, key=lambda name: name != "standard")]
    networks, left_out = [], {}
    for name, instruments in [*single, *COMPOSITIONS]:
        known = parameters_of(trained[name])
        required = {key for key, value in known.items() if value is inspect.Parameter.empty}
        parameters = {**getattr(trained[name], "demo", {}), **({"threat": THREAT} if "threat" in required else {})}
        if missing := sorted(required - set(parameters)):
            left_out[name] = missing
            continue
        label = "+".join([name, *instruments])
        joined: dict[str, dict[str, object]] = {instrument: {} for instrument in instruments}
        plan = TrainingPlan(name, parameters=parameters, instruments=joined, epochs=epochs)
        networks.append(DemoNetwork(label, plan, out / label, seed))
    return networks, left_out


def measure(network: DemoNetwork, points: int, verbose: bool = True) -> EvaluationReport:
    """Train a network, attack it on the first test images and certify it; what is done already is taken up."""
    data = load_data("digits")
    if not network.is_trained():
        train_run(network.plan, data, network.folder, seed=network.seed, resume=True, verbose=verbose)
    (report,) = evaluate_run(
        network.folder,
        data,
        [THREAT],
        ATTACKS,
        points=points,
        seed=network.seed,
        certify="if possible",
        verbose=verbose,
    )
    return report
