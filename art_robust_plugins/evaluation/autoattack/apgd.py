"""Auto-PGD (Croce and Hein, ICML 2020, arXiv 2003.01690), and its version for L1 (Croce and Hein, arXiv 2103.01208).

Ascent on a loss L within the ball of radius eps around x and [0, 1], with momentum and a step size s of its own:

    z = P(x_k + s d_k)        x_{k+1} = P(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_{k-1}))

P brings a point into the ball and the range; d_k is the gradient's sign (Linf) or its direction (L2). At checkpoints s
is halved, and the ascent goes back to its best point, where L grew in at most 3/4 of the steps since the last one, or
where s was left as it was and the best loss has not grown. For L1, d_k is the sign of the largest coordinates of the
gradient and there is no momentum; their share follows the sparsity of the best change, and so does s.

    ce             cross-entropy
    dlr            -(z_y - max_{i != y} z_i) / (z_(1) - z_(3))
    dlr-targeted   -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)       z_(1) >= z_(2) >= ... the sorted logits

Status: exact. The random numbers are the reference's, so a point's verdict is too. A point is done when it is
misclassified for the first time; the reference continues with it. Runs towards several targets are batched. For a
randomised network with several samples, no point stops. (In L1 the reference draws on the GPU if it runs there; ours
draws on the CPU, and equals the reference on a CPU.)
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...choices import BATCH_SIZE
from ...threat import ThreatModel
from .ascent import ASCENTS, Ascent, PlannedRows, RunRows
from .batches import BatchedPasses, Streams, classify_clean, find_misclassified
from .losses import LOSSES, Loss
from .projections import correct_to_l1_ball
from .turns import PlannedTurn, Turns

# A point of the L1 ball is found by ascent in larger balls first: (radius / eps, share of the iterations).
LARGER_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
# Rows are dropped only when this many of them are done, since a new batch size costs time as well.
DONE_SHARE = 0.1
# On a GPU, reading how many rows are done synchronises with the host.
ITERATIONS_BETWEEN_COUNTS = 5


class APGD:
    """Auto-PGD on any number of points, which may be several logical batches.

    Args:
        model: images in [0, 1] -> logits.
        threat: in units of [0, 1].
        loss: see above.
        steps: iterations of each run.
        restarts: runs from other random starts, for the points that are left.
        targets: with "dlr-targeted", how many classes: the most probable ones of the clean image that follow the first.
        samples: gradients that are averaged in each iteration, for a randomised network.
        rho: the share of steps in which the loss must grow.
        larger_radii: ascent in balls of 3 and 2 eps first (L1).
        seed: of each logical batch.
        batch_size: of a logical batch.
        physical_batch_size: the most images in a pass.
        precision: look for points in this type of autocast; each one found is confirmed without it.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> attack = APGD(network, ThreatModel("Linf", 0.1), loss="dlr-targeted", targets=3)
        >>> x, y = torch.rand(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)
        >>> bool((attack(x, y) - x).abs().max() <= 0.1 + 1e-6)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        threat: ThreatModel,
        *,
        loss: Loss = "ce",
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
        samples: int = 1,
        rho: float = 0.75,
        larger_radii: bool = False,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        physical_batch_size: int = BATCH_SIZE,
        precision: torch.dtype | None = None,
    ) -> None:
        self.passes = BatchedPasses(model, physical_batch_size, precision)
        self.threat, self.loss = threat, loss
        self.steps, self.restarts, self.samples, self.rho = steps, restarts, samples, rho
        self.targets = targets if loss == "dlr-targeted" else None
        self.larger_radii = larger_radii
        self.seed, self.batch_size = seed, batch_size

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that determine the result, for a report."""
        names = ["loss", "steps", "restarts", "targets", "samples", "rho", "larger_radii"]
        values = {name: getattr(self, name) for name in names}
        precision = {} if self.passes.precision is None else {"precision": str(self.passes.precision)}
        return {name: value for name, value in values.items() if value is not None} | precision

    def __call__(self, x: Tensor, y: Tensor, spared: Tensor | None = None) -> Tensor:
        """Images [N, ...] in [0, 1] with labels [N] -> misclassified images in the ball; x where none was found.

        Points that are ``spared``, bool [N], are known to be robust: they count where random numbers are drawn, and
        take part in no pass.
        """
        x, y = x.detach().float(), y.long()
        if spared is not None and bool(spared.all()):
            return x.clone()
        streams = Streams(len(x), self.batch_size, self.seed)
        clean, correct = classify_clean(self.passes, x, y, spared)
        ranking = clean.sort(dim=1).indices
        # One pass of a randomised network does not tell which points are classified correctly.
        left, found = correct | (self.samples > 1), x.clone()
        # The most probable class is the point's own.
        ranks = [1] if self.targets is None else range(2, self.targets + 2)
        turns = Turns(streams, [rank for rank in ranks for _ in range(self.restarts)])
        while plan := turns.plan_next(
            left.cpu(), self.passes.suggest_joint_rows(x), partial(self._draw_noise, shape=x.shape[1:])
        ):
            planned = self._build_rows(plan, y, ranking)
            noise = plan[0].noise if len(plan) == 1 else torch.cat([part.noise for part in plan])
            broken, images = self._run_searched(planned, noise, x, spared)
            anywhere = ~self.passes.merge(~broken)
            valid = turns.select_valid(plan, anywhere.cpu()).to(x.device)
            found[planned.index[broken & valid]] = images[valid[broken]]
            left[planned.index[anywhere & valid]] = False
        return found

    def _build_rows(self, plan: list[PlannedTurn], y: Tensor, ranking: Tensor) -> PlannedRows:
        """The rows of a plan; ``ranking`` [N, classes] has each point's classes, the most probable one last."""
        index = torch.cat([part.points for part in plan]).to(y.device)
        counts = torch.tensor([len(part.points) for part in plan], device=y.device)
        batch, turn, rank = (
            torch.tensor([getattr(part, name) for part in plan], device=y.device).repeat_interleave(counts)
            for name in ("batch", "turn", "rank")
        )
        target = ranking[index].gather(1, ranking.shape[1] - rank[:, None])[:, 0]
        return PlannedRows(index, y[index], target, batch, turn)

    def _run_searched(
        self, planned: PlannedRows, noise: Tensor, x: Tensor, spared: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run each row once: which rows [n] were broken, and the images of these. Spared points are not broken.

        The rows of one pass run from their start to their end before those of the next one: their own tensors are
        several times as large as their images, and what does not fit into memory is halved with the pass.
        """
        everywhere = torch.arange(len(planned.index), device=x.device)
        places = everywhere if spared is None else everywhere[~spared[planned.index]]
        broken = torch.zeros(len(everywhere), dtype=torch.bool, device=x.device)
        if not len(places):
            return broken, x[:0]
        # The first turn of each logical batch that broke a point: the turns planned after it are void.
        last = torch.full((int(planned.batch.max()) + 1,), int(planned.turn.max()), device=x.device)

        def run(part: slice) -> tuple[Tensor, ...]:
            own = places[part]
            some = planned.select(own)
            hits, at = self._run(some.load(x), noise[own.to(noise.device)].to(x.device), last)
            return hits, at[hits]

        broken[places], images = self.passes.run_over(len(places), run)
        return broken, images

    def _draw_noise(self, count: int, generator: torch.Generator, shape: torch.Size) -> Tensor:
        """Draw the noise of the starts of a run of ``count`` points, [count, *shape]."""
        kind = torch.rand if self.threat.norm == "Linf" else torch.randn
        noise = kind((count, *shape), generator=generator, device="cpu")
        if self.larger_radii:
            # The reference draws a start for each radius as well, and does not use it.
            for _ in LARGER_RADII:
                kind((count, *shape), generator=generator, device="cpu")
        return noise

    def _run(self, rows: RunRows, noise: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Run each row once from its random start: which rows were broken, and their images.

        ``last`` [batches] is the last turn of each logical batch that can still count, which these rows may lower.
        """
        norm, eps, x = self.threat.norm, self.threat.eps, rows.x
        if not self.larger_radii:
            if norm == "L1":
                start = x + noise + correct_to_l1_ball(x, noise, eps)
            else:
                start = x + eps * ASCENTS[norm].normalise(2 * noise - 1 if norm == "Linf" else noise)
            return self._ascend(rows, start, eps, self.steps, last, whole=True)[1:]
        best = x + noise
        best = best + correct_to_l1_ball(x, best - x, LARGER_RADII[0][0] * eps)
        planned = [math.ceil(share * self.steps) for _, share in LARGER_RADII[:-1]]
        for (factor, _), steps in zip(LARGER_RADII, [*planned, self.steps - sum(planned)], strict=True):
            start = best + correct_to_l1_ball(x, best - x, factor * eps)
            best, broken, at = self._ascend(rows, start, factor * eps, steps, last, whole=False, stop=factor == 1)
        return broken, at

    def _ascend(
        self, rows: RunRows, start: Tensor, radius: float, steps: int, last: Tensor, *, whole: bool, stop: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ascend from ``start``: the points of largest loss, and as `_run`. With ``stop``, finished rows leave."""
        start = start.clamp(0, 1)
        logits, loss, gradient = self._compute_gradient(start, rows)
        kind = ASCENTS[self.threat.norm]
        run = kind(rows, start, loss, gradient, radius=radius, steps=steps, rho=self.rho, whole=whole)
        # Nor when a point is done: like the reference, keep the last image that was misclassified.
        again = self.samples > 1
        stop = stop and not again
        run.note(find_misclassified(logits, rows.y), again=again)
        best, broken, found = start.clone(), torch.zeros_like(run.done), start.clone()
        place = torch.arange(len(start), device=start.device)
        between = ITERATIONS_BETWEEN_COUNTS if start.device.type == "cuda" else 1

        def write() -> None:
            best[place], broken[place], found[place] = run.best, run.done, run.found

        for step in range(steps):
            if stop and step % between == 0:
                run = self._confirm(run)
                last.scatter_reduce_(0, run.rows.batch[run.done], run.rows.turn[run.done], "amin")
                over = run.done | (run.rows.turn > last[run.rows.batch])
                count = int(over.sum())
                if count >= max(DONE_SHARE * len(over), 1):
                    write()
                    if count == len(over):
                        break
                    place, run = place[~over], run.select(~over)
            run.move(first=step == 0)
            logits, loss, gradient = self._compute_gradient(run.at, run.rows)
            run.note(find_misclassified(logits, run.rows.y), again=again)
            run.learn(loss, gradient)
        run = self._confirm(run)
        write()
        return best, broken, found

    def _compute_gradient(self, at: Tensor, rows: RunRows) -> tuple[Tensor, Tensor, Tensor]:
        def objective(logits: Tensor, part: slice) -> Tensor:
            return LOSSES[self.loss](logits, rows.y[part], rows.target[part])

        logits, loss, gradient = self.passes.gradient(at, objective)
        for _ in range(self.samples - 1):
            logits, loss, more = self.passes.gradient(at, objective)
            gradient = gradient + more
        return logits, loss, gradient if self.samples == 1 else gradient / self.samples

    def _confirm(self, run: Ascent) -> Ascent:
        """After a search in low precision: rows whose image is classified correctly in full precision are not done."""
        if self.passes.precision is not None:
            found = run.done.nonzero().flatten()
            if len(found):
                run.done[found] = find_misclassified(self.passes.logits(run.found[found]), run.rows.y[found])
        return run
