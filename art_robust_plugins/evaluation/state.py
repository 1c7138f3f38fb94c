"""The state of an evaluation, kept in a folder from which a stopped evaluation continues.

The folder has one file with the fingerprint and the clean findings, and a small one for each batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files import load_state, remove_temporaries, save_state
from ..locks import check_output_folder, locked_folder
from .estimator_passes import EstimatorPasses
from .options import Samples
from .progress import COUNTS, AttackProgress, CleanFindings
from .settings import VERSION_ENTRIES, join_names
from .state_record import check_change, check_opened, read_fingerprint

STATE_FILE = "evaluation.pt"
BATCHES_FOLDER = "batches"
_FORMAT = "art-robust-plugins evaluation 8"
_EARLIER = tuple(f"art-robust-plugins evaluation {number}" for number in range(1, 8))
# A ratio of the largest output; rounding on other devices and in other sizes of a pass is far smaller.
_CHANGED_OUTPUTS = 1e-2

Change = dict[str, Any]
"""The changes by one batch: an entry of the saved state."""


@dataclass(eq=False)
class EvaluationState:
    """The state of an evaluation.

    Attributes:
        mark: distinguishes the batches of this state from those of an earlier one in the same folder.
        fingerprint: identifies the evaluation.
        clean: what the clean passes found; None before them.
        spared: the points that a certificate spares the attacks, bool [N].
        broken: the points that any attack broke within eps, bool [N].
        adversarial: like x: the first image that broke a point, else the point itself.
        breakers: the place in ``attacks`` of the attack whose image that is, int64 [N]; -1 for points not broken.
        attacks: the progress of each attack, by its name, in the order in which they run.
    """

    mark: str
    fingerprint: dict[str, str]
    clean: CleanFindings | None
    spared: Tensor
    broken: Tensor
    adversarial: Tensor
    breakers: Tensor
    attacks: dict[str, AttackProgress]

    def apply(self, change: Change) -> None:
        """Apply the changes by one batch."""
        progress = self.attacks[change["attack"]]
        progress.counts = {name: count + change["counts"][name] for name, count in progress.counts.items()}
        progress.farthest = max(progress.farthest, change["farthest"])
        progress.widest = max(progress.widest, change["widest"])
        progress.repeat_difference = max(progress.repeat_difference, change["repeat_difference"])
        progress.gradients = progress.gradients or change["gradients"]
        progress.moved.update(change["moved"])
        progress.batches.update(change["batches"])
        progress.fooled[change["fooled"]] = True
        self.broken[change["broken"]] = True
        self.adversarial[change["broken"]] = change["adversarial"]
        self.breakers[change["broken"]] = list(self.attacks).index(change["attack"])

    @staticmethod
    def release_images(change: Change) -> Change:
        """An applied change without the images that the state holds now; see `attach_images`."""
        return {name: value for name, value in change.items() if name != "adversarial"}

    def attach_images(self, change: Change) -> Change:
        """The inverse of `release_images`, as long as no other change breaks the same points."""
        return {**change, "adversarial": self.adversarial[change["broken"]]}


def merge_changes(parts: Sequence[Change]) -> Change:
    """The changes by one batch whose points several processes attacked, each some of them."""
    largest = ("widest", "repeat_difference", "farthest")
    broken = torch.cat([part["broken"] for part in parts])
    return {
        **parts[0],
        "counts": {name: sum(part["counts"][name] for part in parts) for name in parts[0]["counts"]},
        "moved": sorted({name for part in parts for name in part["moved"]}),
        "gradients": any(part["gradients"] for part in parts),
        **{name: max(part[name] for part in parts) for name in largest},
        "fooled": torch.cat([part["fooled"] for part in parts]).sort().values,
        "broken": broken.sort().values,
        "adversarial": torch.cat([part["adversarial"] for part in parts])[broken.argsort()],
    }


class OpenedState(NamedTuple):
    """The contents of a folder: the parts of `EvaluationState`, and the changes by its batches in their order."""

    mark: str
    fingerprint: dict[str, str]
    clean: CleanFindings | None
    spared: Tensor
    changes: list[Change]

    def build_state(self, x: Tensor, attacks: Collection[str]) -> EvaluationState:
        """The state of an evaluation of samples ``x`` [N, ...] by the attacks of these names."""
        state = EvaluationState(
            mark=self.mark,
            fingerprint=self.fingerprint,
            clean=self.clean,
            spared=self.spared,
            broken=torch.zeros(len(x), dtype=torch.bool, device="cpu"),
            adversarial=x.clone(),
            breakers=torch.full((len(x),), -1, device="cpu"),
            attacks={name: AttackProgress.begin(len(x)) for name in attacks},
        )
        for change in self.changes:
            state.apply(change)
        return state


class StateFolder:
    """The folder in which the state of an evaluation is kept.

    Args:
        path: the folder; None: the state is kept nowhere.
        attacks: the names of the attacks, in the order in which they run.
    """

    def __init__(self, path: Path | None, attacks: Collection[str]) -> None:
        self.path, self.attacks = path, list(attacks)

    def open(
        self,
        fingerprint: dict[str, str],
        samples: Samples,
        passes: EstimatorPasses,
        locks: ExitStack,
        spared: Tensor | None,
    ) -> OpenedState:
        """The state that the folder holds, or a new one; the folder stays locked until ``locks`` is closed.

        The points ``spared``, bool [N], are those of a new one: which a certificate spares may depend on rounding. With
        None all must be attacked.

        Raises:
            ValueError: a file that is no state, one of another evaluation, a folder in use (the sentence says which).
        """
        if self.path is not None:
            check_output_folder("state_dir", self.path, [STATE_FILE])
            locks.enter_context(locked_folder("state_dir", self.path, "evaluation"))
            remove_temporaries(self.path, [STATE_FILE])
            remove_temporaries(self.path / BATCHES_FOLDER)
        if self.path is None or not (self.path / STATE_FILE).exists():
            nowhere = torch.zeros(len(samples.x), dtype=torch.bool, device="cpu")
            return OpenedState(secrets.token_hex(8), fingerprint, None, nowhere if spared is None else spared, [])
        stored = self._load_state(self.path / STATE_FILE, fingerprint, samples, passes)
        if spared is None and bool(stored["spared"].any()):
            raise ValueError(
                f"state_dir: the state in {self.path} is of an evaluation that left out certified points, expected one "
                f"that attacks all; choose another folder for this evaluation."
            )
        clean = None if stored["clean"] is None else CleanFindings.from_record(stored)
        changes = self._load_changes(stored["mark"], samples.x)
        return OpenedState(stored["mark"], fingerprint, clean, stored["spared"], changes)

    def save_clean(self, state: EvaluationState, clean: CleanFindings) -> None:
        """Write the fingerprint and the clean findings."""
        if self.path is not None:
            known = {"mark": state.mark, "fingerprint": state.fingerprint, "spared": state.spared}
            record = {"format": _FORMAT, **known, **clean.to_record()}
            save_state(self.path / STATE_FILE, record)

    def save_change(self, change: Change) -> None:
        """Write the changes by one batch."""
        if self.path is not None:
            position = self.attacks.index(change["attack"])
            save_state(self.path / BATCHES_FOLDER / f"{position:02}-{change['batches'][0]:06}.pt", change)

    def _load_state(
        self, path: Path, fingerprint: dict[str, str], samples: Samples, passes: EstimatorPasses
    ) -> dict[str, Any]:
        stored = load_state(path)
        if not isinstance(stored, dict) or stored.get("format") not in (_FORMAT, *_EARLIER):
            raise ValueError(f"state_dir: {path} is not the state of an evaluation.")
        if stored["format"] != _FORMAT:
            raise ValueError(
                f"state_dir: the state in {self.path} is of an evaluation by an earlier version of art-robust-plugins, "
                f"expected this one; choose another folder for this evaluation."
            )
        self._check_fingerprint(read_fingerprint(stored, path), fingerprint)
        check_opened(stored, path, points=len(samples.x), classes=passes.estimator.nb_classes)
        if stored["passes"] == 1 and _have_changed(stored["outputs"], samples.x, passes):
            raise ValueError(
                f"state_dir: the state in {self.path} is of a network with other outputs for the same images, expected "
                f"the same code and constants; choose another folder for this evaluation."
            )
        return stored

    def _check_fingerprint(self, stored: dict[str, str], fingerprint: dict[str, str]) -> None:
        different = [
            f"{key} ({stored.get(key)}, now {value})" if key in VERSION_ENTRIES else key
            for key, value in fingerprint.items()
            if stored.get(key) != value
        ]
        if different:
            raise ValueError(
                f"state_dir: the state in {self.path} is of an evaluation with another {join_names(different)}, "
                f"expected the same; choose another folder for this evaluation."
            )

    def _load_changes(self, mark: str, x: Tensor) -> list[Change]:
        """Load the changes in the order of the attacks: the first to break a point gives its adversarial image."""
        assert self.path is not None
        changes = []
        for path in sorted((self.path / BATCHES_FOLDER).glob("[0-9]*.pt")):
            change = load_state(path)
            if isinstance(change, dict) and change.get("mark") == mark:
                changes.append(check_change(change, path, attacks=self.attacks, counts=COUNTS, x=x))
        return changes


def _have_changed(outputs: Tensor, x: Tensor, passes: EstimatorPasses) -> bool:
    """Whether the network's outputs have changed, which its weights and its text need not show."""
    scale = outputs[outputs.isfinite()].abs().max().item() if outputs.isfinite().any() else 1.0
    now = passes.predict(x[: len(outputs)])
    return not torch.allclose(now, outputs, rtol=0.0, atol=_CHANGED_OUTPUTS * scale, equal_nan=True)
