"""Running the attacks in logical batches, resumable, and distributed over several processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import PartialState
from torch import Tensor

from ..randomness import seed_everything
from ..terminal import Progress
from .autoattack.apgd import APGD
from .autoattack.fab import FAB
from .autoattack.square import Square
from .autoattack.standard import compute_joint_size
from .diagnostics import measure_difference
from .libraries import Attack, Setting, suite_of
from .options import EvaluationOptions, Samples
from .preparation import PreparedAttack
from .processes import RowPartners, gather_from_all
from .state import Change, EvaluationState, StateFolder, merge_changes
from .verdicts import Judge, Verdicts


@dataclass(frozen=True)
class AttackRunner:
    """Runs attacks, has their candidates judged, and keeps what each batch changed.

    Attributes:
        options: of the evaluation.
        samples: its points.
        setting: what the attacks were prepared for.
        judge: gives the verdicts.
        state: the state, to which each batch's changes are applied.
        folder: where the changes are saved.
        processes: the processes that evaluate together.
        spared: the points [N] bool that are certified, and that our own AutoAttack leaves out; None for none.
        steady: the network's outputs for an image depend on nothing else, so processes can share a batch's points.
    """

    options: EvaluationOptions
    samples: Samples
    setting: Setting
    judge: Judge
    state: EvaluationState
    folder: StateFolder
    processes: PartialState
    spared: Tensor | None = None
    steady: bool = False

    def run_all(self, attacks: Sequence[PreparedAttack], correct: Tensor) -> dict[str, Tensor]:
        """Run all attacks on the points in ``correct`` [N]: the points that each attack left, bool [N], by its name."""
        left: dict[str, Tensor] = {}
        standing: dict[str | None, Tensor] = {}
        for prepared in attacks:
            attack = prepared.attack
            if attack.cumulative:
                # Each suite has stages of its own: AutoAttack's number must not depend on what ran before it.
                suite = suite_of(attack)
                standing[suite] = left[attack.name] = self.run(prepared, standing.get(suite, correct))
            else:
                left[attack.name] = self.run(prepared, correct)
        return left

    def run(self, prepared: PreparedAttack, points: Tensor) -> Tensor:
        """Run one attack on the points [N] bool in batches, from where it was stopped; the points that it left."""
        name, size, processes = prepared.attack.name, self.options.batch_size, self.processes
        progress = self.state.attacks[name]
        indices = points.nonzero().flatten()
        logical = torch.split(indices, size) if len(indices) else ()
        if progress.batches and max(progress.batches) >= len(logical):
            raise ValueError(
                f"state_dir: a file in {self.folder.path} says that {name!r} finished batch {max(progress.batches)}, "
                f"expected one of its {len(logical)}, counted from 0; choose another folder for this evaluation."
            )
        finished = sum(len(logical[number]) for number in progress.batches)
        todo = [number for number in range(len(logical)) if number not in progress.batches]
        own, shared = self._share_out(prepared, logical, todo)
        # Nothing is known of the other processes' groups before the end: the bar shows this process's progress.
        work = Progress(
            finished + sum(len(logical[number]) for group in [*own, *shared] for number in group),
            name,
            initial=finished,
            shown=self.options.verbose and processes.is_main_process,
        )
        changes = []
        with work as shown:
            for place, numbers in enumerate([*own, *shared]):
                batch = torch.cat([logical[number] for number in numbers])
                if alone := place < len(own):
                    change = {"batches": numbers, **self._attack_batch(prepared, batch)}
                else:
                    change = {"batches": numbers, **self._attack_together(prepared, batch)}
                if alone or processes.is_main_process:
                    self.folder.save_change(change)
                self.state.apply(change)
                if alone and processes.num_processes > 1:
                    changes.append(self.state.release_images(change))
                shown.advance(len(batch))
                shown.note(describe_accuracy(points & ~progress.fooled))
            shown.conclude(describe_accuracy(points & ~progress.fooled))
        for change in self._gather_from_others(changes):
            self.state.apply(change)
        return points & ~progress.fooled

    def _share_out(
        self, prepared: PreparedAttack, logical: Sequence[Tensor], todo: list[int]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The groups of logical batches ``todo`` that this process attacks, and those that all attack together.

        Each process gets as many full groups as any other; all of them share the points of those that are left.
        """
        count, index = self.processes.num_processes, self.processes.process_index
        at_once = self._count_batches_at_once(prepared.attack)
        groups = [todo[i : i + at_once] for i in range(0, len(todo), at_once)]
        if not self._shares_points(prepared):
            return groups[index::count], []
        # Only the last one may be smaller.
        full = sum(
            sum(len(logical[number]) for number in group) == at_once * self.options.batch_size for group in groups
        )
        whole = full // count * count
        return groups[:whole][index::count], groups[whole:]

    def _gather_from_others(self, changes: list[Change]) -> list[Change]:
        """The changes that other processes made alone, by the order of their batches."""
        gathered = gather_from_all(self.processes, [self.state.attach_images(change) for change in changes])
        del gathered[self.processes.process_index]
        return sorted(chain.from_iterable(gathered), key=lambda change: change["batches"])

    def _count_batches_at_once(self, attack: Attack) -> int:
        """The number of logical batches at once: our own AutoAttack takes several, as it draws for each separately."""
        size = self.options.batch_size
        if self._is_native(attack) and self.judge.rule.repeats == 1:
            joint = compute_joint_size(size, self.setting.physical_batch_size) // size
            return RowPartners(self.processes).find_least(joint)  # GPUs may have different room
        return 1

    def _shares_points(self, prepared: PreparedAttack) -> bool:
        """Whether several processes can share the points of a batch and find what one finds."""
        alone = self.processes.num_processes == 1
        return not alone and self.steady and isinstance(prepared.perturb, APGD | FAB | Square)

    def _is_native(self, attack: Attack) -> bool:
        return attack.package == "autoattack" and self.options.backend == "native"

    def _attack_together(self, prepared: PreparedAttack, batch: Tensor) -> Change:
        """As `_attack_batch`, by all processes: each attacks and judges some of the points."""
        count, index = self.processes.num_processes, self.processes.process_index
        spared = torch.zeros_like(batch, dtype=torch.bool) if self.spared is None else self.spared[batch]
        if int((~spared).sum()) < count:  # each needs one to search; else the first process attacks all
            alone = [self._attack_batch(prepared, batch)] if index == 0 else []
            return merge_changes([*chain.from_iterable(gather_from_all(self.processes, alone))])
        own = torch.zeros_like(spared)
        own[torch.cat([(~spared).nonzero(), spared.nonzero()]).flatten()[index::count]] = True
        perturb = prepared.perturb
        assert isinstance(perturb, APGD | FAB | Square)
        perturb.passes.partners = RowPartners(self.processes)
        try:
            part = self._attack_batch(prepared, batch, own)
        finally:
            perturb.passes.partners = None
        return merge_changes(gather_from_all(self.processes, part))

    def _attack_batch(self, prepared: PreparedAttack, batch: Tensor, own: Tensor | None = None) -> Change:
        """Attack and judge one batch of points, or of several processes' batch this one's ``own`` points, bool [n]."""
        attack, module, counter = prepared.attack, self.judge.passes.module, self.judge.passes.counter
        x, y = self.samples.x[batch], self.samples.y[batch]
        forward, backward = counter.forward_calls, counter.backward_calls
        start = time.perf_counter()
        seed_everything(self.options.seed)
        # Attacks may write into this copy, which has the memory format that they expect.
        unit = module.from_estimator(x.to(self.setting.device)).clone(memory_format=torch.contiguous_format)
        with torch.enable_grad():
            found = self._perturb(prepared, unit, y.to(self.setting.device), batch, own)
        moved = self.judge.passes.snapshot.restore()
        if found.shape[0] != len(batch) or tuple(found.shape[1:]) != self.setting.input_shape:
            raise ValueError(
                f"attacks: {attack.name!r} returned a batch of shape {tuple(found.shape)}, expected "
                f"{(len(batch), *self.setting.input_shape)}."
            )
        found = found.cpu()  # waits for the device
        if own is not None:
            batch, found, unit = batch[own], found[own], unit[own.to(unit.device)]
        cost = {
            "seconds": time.perf_counter() - start,
            "forward": counter.forward_calls - forward,
            "backward": counter.backward_calls - backward,
        }
        verdicts = self.judge.judge(found, batch)
        broken = verdicts.wrong & verdicts.inside
        new = broken & ~self.state.broken[batch]
        turned = (found != unit.cpu()).flatten(1).any(dim=1) & verdicts.inside & ~verdicts.wrong
        # Our attacks change an image only if it was misclassified; for a randomised network this says little.
        if not (self._is_native(attack) and self.judge.rule.repeats == 1):
            turned = torch.zeros_like(turned)
        repeat_difference = self._measure_repeat_difference(verdicts.candidates[turned])
        return {
            "mark": self.state.mark,
            "attack": attack.name,
            "counts": {**cost, **_count(verdicts, turned, bounded=attack.bounded)},
            "moved": moved,
            "gradients": self.judge.passes.weights.taken,
            # The margin of an infinite output is NaN, which no rounding explains.
            "widest": verdicts.margin[turned].nan_to_num(nan=1.0).max().item() if turned.any() else 0.0,
            "repeat_difference": repeat_difference,
            "farthest": verdicts.farthest if attack.bounded else 0.0,
            "fooled": batch[verdicts.wrong if attack.constraint == "none" else broken],
            "broken": batch[new],
            "adversarial": verdicts.candidates[new],
        }

    def _perturb(self, prepared: PreparedAttack, unit: Tensor, y: Tensor, batch: Tensor, own: Tensor | None) -> Tensor:
        """The candidates of an attack for a batch of points; AutoAttack is told which of them need none here."""
        perturb = prepared.perturb
        spared = None if self.spared is None else self.spared[batch]
        if own is not None:
            spared = ~own if spared is None else spared | ~own
        if spared is not None and isinstance(perturb, APGD | FAB | Square):
            return perturb(unit, y, spared.to(unit.device))
        return perturb(unit, y)

    def _measure_repeat_difference(self, images: Tensor) -> float:
        """The difference between two passes of the same images, of which there may be none."""
        if not len(images):
            return 0.0
        return measure_difference(*(self.judge.passes.predict(images) for _ in range(2)))


def _count(verdicts: Verdicts, turned: Tensor, *, bounded: bool) -> dict[str, int]:
    """The counts of one batch without its cost, see `COUNTS`; ``turned`` are the images that a verdict overturned."""
    return {
        "not_finite": int((~verdicts.finite).sum()),
        "overturned": int(turned.sum()),
        "out_of_ball": int((~verdicts.in_ball).sum() if bounded else 0),
        "out_of_range": int((~verdicts.in_range).sum() if bounded else 0),
        "nan": int(verdicts.nan.sum()),
        "infinite": int(verdicts.infinite.sum()),
        "undecided": int(verdicts.undecided.sum()),
        "tied": int((verdicts.tied & ~verdicts.undecided).sum()),
    }


def describe_accuracy(robust: Tensor) -> str:
    """The accuracy of this run's points [N] bool: in `sweep` those that smaller radii left."""
    return f"accuracy {robust.double().mean().item():.2%} of {len(robust)} points"
