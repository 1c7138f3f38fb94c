"""FAB, the fast adaptive boundary attack (Croce and Hein, ICML 2020, arXiv 1907.02044): small changes of an image.

Each iteration takes the boundary to a class as the hyperplane that the gradient gives at x_k, and projects both x_k
and the clean image x on it, within [0, 1]:

    x_{k+1} = (1 - a) (x_k + eta d_k) + a (x + eta d)        a = min(|d_k| / (|d_k| + |d|), alpha_max)

d_k, d: the changes to the hyperplane from x_k and from x. A misclassified x_{k+1} then goes back towards x by the
factor beta. The class is the one that is nearest by this linear view (untargeted), or one of the most probable ones of
the clean image (targeted, FAB-T).

Status: exact. Targeted runs draw no random numbers and do not depend on each other, so all targets of a point run
together, and it is done when one of them finds an image within eps. The reference runs each to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...choices import BATCH_SIZE
from ...threat import Norm, ThreatModel
from .batches import BatchedPasses, Streams, classify_clean, find_misclassified, widen
from .projections import project_onto_hyperplane

# As in Auto-PGD: rows are dropped when this many are done, which is read from a GPU only now and then.
DONE_SHARE = 0.1
ITERATIONS_BETWEEN_COUNTS = 5
# The rows of this many passes are held at once: a row has several images, and a point has a row for each target.
PASSES_AT_ONCE = 4


class FAB:
    """FAB on any number of points, which may be several logical batches.

    Args:
        model: images in [0, 1] -> logits.
        threat: in units of [0, 1]; larger changes do not count.
        targets: how many classes each point is driven to, the most probable ones that follow the first; None for the
            untargeted attack, which needs the gradients of all logits in each iteration.
        steps: iterations of each run.
        restarts: runs for the points that are left (untargeted); all but the first begin at random.
        alpha_max: the largest weight of the clean image.
        eta: overshoot beyond the hyperplane.
        beta: factor of the step back towards the clean image.
        seed: of each logical batch.
        batch_size: of a logical batch.
        physical_batch_size: the most images in a pass.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> attack = FAB(network, ThreatModel("L2", 0.1), targets=3, steps=5)
        >>> attack(torch.rand(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)).shape
        torch.Size([5, 3, 2, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        threat: ThreatModel,
        *,
        targets: int | None = 9,
        steps: int = 100,
        restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        physical_batch_size: int = BATCH_SIZE,
    ) -> None:
        if targets is not None and restarts != 1:
            raise ValueError(f"restarts: got {restarts} with targets, expected 1.")
        self.passes = BatchedPasses(model, physical_batch_size)
        self.threat, self.targets, self.steps, self.restarts = threat, targets, steps, restarts
        self.alpha_max, self.eta, self.beta = alpha_max, eta, beta
        self.seed, self.batch_size = seed, batch_size

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that determine the result, for a report."""
        names = ["targets", "steps", "restarts", "alpha_max", "eta", "beta"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, spared: Tensor | None = None) -> Tensor:
        """Images [N, ...] in [0, 1] with labels [N] -> misclassified images in the ball; x where none was found.

        Points that are ``spared``, bool [N], are known to be robust: they count where random numbers are drawn, and
        take part in no pass.
        """
        x, y, found = x.detach().float(), y.long(), x.detach().float().clone()
        if spared is not None and bool(spared.all()):
            return found
        streams = Streams(len(x), self.batch_size, self.seed)
        clean, left = classify_clean(self.passes, x, y, spared)
        for restart in range(self.restarts):
            points = self.passes.merge(left).nonzero().flatten()
            searched = torch.ones_like(points, dtype=torch.bool) if spared is None else ~spared[points]
            if not bool(searched.any()):
                continue
            parts: Iterable[SearchRows]
            if self.targets is None:
                start = None if restart == 0 else self._random_start(x[points], points, streams)[searched]
                parts = self._split(x, y, points[searched], start)
            else:
                points = points[searched]
                ranked = clean.sort(dim=1).indices.flip(1)[:, 1 : self.targets + 1]
                parts = self._split_by_target(x, y, ranked, points)
            for rows in parts:
                for where, images in self.run(rows):
                    found[where] = images
                    left[where] = False
        return found

    def _split(self, x: Tensor, y: Tensor, points: Tensor, start: Tensor | None) -> Iterator[SearchRows]:
        """Yield the rows of these points, as many at once as fill the passes; ``start`` holds the first iterates."""
        at_once = max(1, PASSES_AT_ONCE * self.passes.size)
        for place in range(0, len(points), at_once):
            some = points[place : place + at_once]
            at = x[some] if start is None else start[place : place + at_once]
            yield SearchRows(some, x[some], y[some], None, at)

    def _split_by_target(self, x: Tensor, y: Tensor, ranked: Tensor, points: Tensor) -> Iterator[SearchRows]:
        """Yield the rows of these points for each of their targets [N, targets], as many at once as fill the passes."""
        for some in torch.split(points, max(1, PASSES_AT_ONCE * self.passes.size // ranked.shape[1])):
            each = some.repeat_interleave(ranked.shape[1])
            yield SearchRows(each, x[each], y[each], ranked[some].flatten(), x[each])

    def _random_start(self, x: Tensor, points: Tensor, streams: Streams) -> Tensor:
        kind = torch.rand if self.threat.norm == "Linf" else torch.randn
        noise = streams.draw(kind, points, x.shape[1:]).to(x.device)
        if self.threat.norm == "Linf":
            noise = 2 * noise - 1
        length = widen(_measure_length(self.threat.norm, noise), noise)
        return (x + self.threat.eps * noise / length * 0.5).clamp(0, 1)

    def run(self, rows: SearchRows) -> list[tuple[Tensor, Tensor]]:
        """Search from these rows: the points that were broken, with an image for each."""
        broken: list[tuple[Tensor, Tensor]] = []
        between = ITERATIONS_BETWEEN_COUNTS if rows.x.device.type == "cuda" else 1
        done = torch.zeros(len(rows.index), dtype=torch.bool, device=rows.x.device)
        found = rows.x
        for step in range(self.steps):
            at = rows.at

            def iterate(part: slice, rows: SearchRows = rows) -> tuple[Tensor, ...]:
                return self._iterate(rows, part)

            rows.at, new, wrong = self.passes.run_over(len(at), iterate)
            success = wrong & (_measure_length(self.threat.norm, new - rows.x) <= self.threat.eps) & ~done
            found = torch.where(widen(success, new), new, found)
            done = done | success
            if step % between == between - 1 or step == self.steps - 1:
                if not bool(done.any()):
                    continue
                # The other targets of a broken point need not be searched.
                over = torch.isin(rows.index, rows.index[done])
                if int(over.sum()) < DONE_SHARE * len(over) and step < self.steps - 1:
                    continue
                hits = done.nonzero().flatten()
                hits = hits[find_first_of_each(rows.index[hits])]
                broken.append((rows.index[hits], found[hits]))
                if bool(over.all()):
                    break
                rows, found, done = rows.select(~over), found[~over], done[~over]
        return broken

    def _iterate(self, rows: SearchRows, part: slice) -> tuple[Tensor, ...]:
        """The next iterate of some rows, the image on the way to it, and whether that one is misclassified."""
        norm, x, at, y = self.threat.norm, rows.x[part], rows.at[part], rows.y[part]
        difference, gradient = self._linearise_boundary(at, y, None if rows.target is None else rows.target[part])
        normal = gradient.flatten(1)
        offset = (normal * at.flatten(1)).sum(dim=1) - difference
        both = torch.cat([at.flatten(1), x.flatten(1)])
        change = project_onto_hyperplane(both, normal.repeat(2, 1), offset.repeat(2), norm)
        length = widen(_measure_length(norm, change).clamp_min(1e-8), at)
        from_here, from_clean = change.view(2, *at.shape)
        here, clean = length[: len(at)], length[len(at) :]
        weight = (here / (here + clean)).clamp(0, self.alpha_max)
        new = (at + self.eta * from_here) * (1 - weight) + (x + from_clean * self.eta) * weight
        new = new.clamp(0, 1)
        wrong = find_misclassified(self.passes.forward(new), y)
        return torch.where(widen(wrong, new), x + (new - x) * self.beta, new), new, wrong

    def _linearise_boundary(self, at: Tensor, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """z_t - z_y and its gradient, for the target class t or for the one whose boundary is the nearest."""
        images = at.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.passes.forward(images)
            own = logits.gather(1, y[:, None])
            if target is not None:
                difference = -(own - logits.gather(1, target[:, None]))[:, 0]
                return difference.detach(), torch.autograd.grad(difference.sum(), images)[0].contiguous()
            last = logits.shape[1] - 1
            gradients = torch.stack(
                [
                    torch.autograd.grad(logits[:, k].sum(), images, retain_graph=k < last)[0]
                    for k in range(logits.shape[1])
                ],
                dim=1,
            )
        row = torch.arange(len(at), device=at.device)
        differences, gradients = (logits - own).detach(), gradients - gradients[row, y][:, None]
        differences[row, y] = 1e10
        dual = {"Linf": "L1", "L2": "L2", "L1": "Linf"}[self.threat.norm]
        slopes = _measure_length(dual, gradients.flatten(0, 1)).view(differences.shape)
        nearest = (differences.abs() / (1e-12 + slopes)).argmin(dim=1)
        return differences[row, nearest], gradients[row, nearest]


def find_first_of_each(values: Tensor) -> Tensor:
    """The position of the first occurrence of each number in ``values`` [n]: two targets may break a point at once."""
    ordered, order = values.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


@dataclass
class SearchRows:
    """The rows of a search: index of the point, clean image, label, target class, iterate."""

    index: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None
    at: Tensor

    def select(self, rows: Tensor) -> SearchRows:
        """Only these rows, given as bool [n]."""
        target = None if self.target is None else self.target[rows]
        return SearchRows(self.index[rows], self.x[rows], self.y[rows], target, self.at[rows])


def _measure_length(norm: Norm | str, delta: Tensor) -> Tensor:
    """The length of each row [N]."""
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(dim=1)
    return (flat**2).sum(dim=1).sqrt() if norm == "L2" else flat.abs().sum(dim=1)
