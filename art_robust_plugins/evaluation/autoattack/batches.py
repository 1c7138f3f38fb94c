"""Logical and physical batches.

AutoAttack's verdicts depend on the batch: its authors' code reseeds each attack for every batch, and draws random
numbers in that batch's shape. Such a *logical* batch is part of the evaluation's definition. A *physical* batch, the
images of one pass, is not: it may be smaller, or contain points of several logical batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...bridge import to_channels_last

Found = TypeVar("Found")
Draw = Callable[..., Tensor]
"""`torch.rand` or `torch.randn`."""

# The share of the free memory that a pass may use; the attacks' own tensors need the rest.
MEMORY_SHARE = 0.5
LARGEST_BATCH = 1024
# On a CPU, a pass of more numbers in its images (27 of 3 x 224 x 224) needs more memory and gains nothing.
LARGEST_PASS = 2**22
# A CPU is fully used by a pass with this many numbers in its images.
BUSY = 2**17
_PROBE = 8


class Streams:
    """The random numbers of points in consecutive logical batches, which have separate random streams.

    All are drawn on the CPU, in the order and the shapes of the reference, so that they do not depend on the device.

    Args:
        points: the number of points.
        batch_size: the size of a logical batch.
        seed: the seed of every stream.

    Example:
        >>> one, two = Streams(6, 3, seed=0).draw(torch.rand, torch.arange(6), (2,)).split(3)
        >>> bool((one == two).all())
        True
    """

    def __init__(self, points: int, batch_size: int, seed: int) -> None:
        self.batch = torch.arange(points, device="cpu") // batch_size
        self.generators = [torch.Generator("cpu").manual_seed(seed) for _ in range(math.ceil(points / batch_size))]

    def split_by_batch(self, points: Tensor) -> Iterator[tuple[torch.Generator, slice]]:
        """Yield the stream of each logical batch that has some of these ascending indices [n], and their positions."""
        counts = torch.bincount(self.batch[points.cpu()], minlength=len(self.generators)).tolist()
        done = 0
        for generator, count in zip(self.generators, counts, strict=True):
            if count:
                yield generator, slice(done, done + count)
            done += count

    def draw(self, kind: Draw, points: Tensor, shape: Sequence[int]) -> Tensor:
        """Numbers [n, *shape] for the points with these ascending indices [n], on the CPU."""
        return torch.cat(
            [
                kind((rows.stop - rows.start, *shape), generator=generator, device="cpu")
                for generator, rows in self.split_by_batch(points)
            ]
        )


class Partners(Protocol):
    """The processes that attack the same points together. Each searches some of them, and draws the numbers of all.

    All call these methods equally often and in the same order: what they decide by must be the same in all of them.

    Attributes:
        count: the number of processes.
    """

    count: int

    def merge(self, flags: Tensor) -> Tensor:
        """The flags, bool [n], that hold in all processes."""

    def find_least(self, value: int) -> int:
        """The smallest of the processes' numbers."""


class BatchedPasses:
    """Runs a network on physical batches. A batch that does not fit into memory is halved.

    Args:
        model: images in [0, 1] -> logits; it gets copies of the images, which it may change.
        size: the largest number of images in a pass.
        precision: gradients are computed with autocast in this type; None for the network's own.

    Attributes:
        partners: the processes that attack the same points together with this one; None for this one alone.
    """

    def __init__(self, model: nn.Module, size: int, precision: torch.dtype | None = None) -> None:
        self.model, self.size, self.precision = model, size, precision
        self.partners: Partners | None = None
        self._most: float = math.inf  # the most rows of a slice that is larger than a pass

    def run_over(self, count: int, run: Callable[[slice], tuple[Tensor, ...]], rows: int = 0) -> tuple[Tensor, ...]:
        """Call ``run`` on consecutive slices of ``count`` rows, and concatenate the results.

        A slice has as many rows as a pass, or ``rows`` if that is more: for work that makes several passes of them.
        """
        parts: list[tuple[Tensor, ...]] = []
        done = 0
        while done < count:
            before = self.size
            part = slice(done, min(done + max(before, int(min(rows, self._most))), count))
            try:
                parts.append(run(part))
                done = part.stop
                continue
            except RuntimeError as error:
                if not _is_out_of_memory(error) or part.stop - part.start == 1:
                    raise
            # This is outside of the handler, where the error would keep the tensors of the pass alive.
            length = part.stop - part.start
            if length > before:  # the work around the passes may be what does not fit
                self._most, self.size = length // 2, before
            else:
                self._halve(length)
        return parts[0] if len(parts) == 1 else tuple(torch.cat(same) for same in zip(*parts, strict=True))

    def run_whole(self, work: Callable[[int], Found]) -> Found:
        """Call ``work`` with the size of a pass; if memory runs out, call it again with half the size."""
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or self.size == 1:
                    raise
            self._halve(self.size)

    def _halve(self, size: int) -> None:
        self.size = max(1, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def suggest_rows(self, x: Tensor) -> int:
        """The number of images like these [N, ...] to run at once, if an attack may choose.

        On a CPU, more images than keep it busy between operations bring nothing.
        """
        return self.size if x.device.type == "cuda" else min(self.size, max(BUSY // x[0].numel(), 1))

    def suggest_joint_rows(self, x: Tensor) -> int:
        """As `suggest_rows`, for all processes together."""
        rows = self.suggest_rows(x)
        return rows if self.partners is None else self.find_least(rows) * self.partners.count

    def find_least(self, value: int) -> int:
        """The smallest number of all processes that attack these points together."""
        return value if self.partners is None else self.partners.find_least(value)

    def merge(self, flags: Tensor) -> Tensor:
        """The flags, bool [n], that hold in all processes that attack these points together."""
        return flags if self.partners is None else self.partners.merge(flags)

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits of a copy of ``x``, in one pass."""
        logits: Tensor = self.model(x.clone())
        return logits

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The logits [N, classes] of images [N, ...]."""
        # Networks that compute gradients inside may return outputs with a graph.
        return self.run_over(len(x), lambda part: (self.forward(x[part]).detach(),))[0]

    def gradient(self, x: Tensor, objective: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, classes] of images ``x`` [N, ...], a value [N] of each, and its gradient [N, ...].

        ``objective`` gets the logits of a slice of the images, and the slice. Parameters receive no gradient.
        """

        def run(part: slice) -> tuple[Tensor, ...]:
            images = x[part].detach().requires_grad_()
            with torch.enable_grad():
                with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                    logits = self.forward(images)
                values = objective(logits.float(), part)
                (gradient,) = torch.autograd.grad(values.sum(), images)
            return logits.detach().float(), values.detach(), gradient.contiguous()

        logits, values, gradient = self.run_over(len(x), run)
        return logits, values, gradient


def classify_clean(passes: BatchedPasses, x: Tensor, y: Tensor, spared: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits [N, classes] of clean images, and which points are not misclassified, bool [N].

    Points that are ``spared``, bool [N], are certified, or another process classifies them: they need no pass, and
    their logits are given as 0.
    """
    if spared is None or not bool(spared.any()):
        logits = passes.logits(x)
        return logits, passes.merge(~find_misclassified(logits, y))
    rest = ~spared
    some = passes.logits(x[rest])
    logits, left = some.new_zeros(len(x), some.shape[1]), spared.clone()
    logits[rest], left[rest] = some, ~find_misclassified(some, y[rest])
    return logits, passes.merge(left)


def find_misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each row of ``logits`` [N, classes] is not of class ``y`` [N].

    Logits with NaN, and logits that are the same for all classes, are of no class.
    """
    return (logits.argmax(dim=1) != y) | logits.isnan().any(dim=1) | (logits == logits[:, :1]).all(dim=1)


def widen(values: Tensor, like: Tensor) -> Tensor:
    """Numbers [N] -> [N, 1, ...], which broadcast against a batch ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))


class ChannelsLast(nn.Module):
    """A model that gets its images in the memory format channels_last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(to_channels_last(x))
        return logits


def choose_layout(model: nn.Module, image: Tensor) -> nn.Module:
    """The model, wrapped in `ChannelsLast` on a CPU, where convolutions are then up to twice as fast.

    The model itself is returned if two images, made of this one [1, C, H, W], show that it does not accept this format,
    for example because its code calls ``view``.
    """
    if image.device.type != "cpu" or image.dim() != 4:
        return model
    turned = ChannelsLast(model)
    try:
        pair = torch.cat([image, 1 - image])
        logits = BatchedPasses(turned, 2).gradient(pair, lambda logits, _: logits.sum(dim=1))[0]
    except RuntimeError:
        return model
    return turned if torch.allclose(logits, BatchedPasses(model, 2).logits(pair), rtol=1e-4, atol=1e-4) else model


def limit_on_cpu(image: Tensor, size: int) -> int:
    """On a CPU, the part of ``size`` images like this one [1, ...] that a pass should have; elsewhere all of them."""
    return max(1, min(size, LARGEST_PASS // image.numel())) if image.device.type == "cpu" else size


def find_fitting_size(model: nn.Module, image: Tensor, otherwise: int) -> int:
    """The number of images like this one [1, ...] that a GPU's free memory allows in a pass; else `limit_on_cpu`."""
    device = image.device
    if device.type != "cuda":
        return limit_on_cpu(image, otherwise)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    x = image.expand(_PROBE, *image.shape[1:]).contiguous()
    BatchedPasses(model, _PROBE).gradient(x, lambda logits, _: logits.sum(dim=1))
    used = max(torch.cuda.max_memory_allocated(device) - before, 1)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + reserved
    return int(min(max(MEMORY_SHARE * free * _PROBE / used, 1), LARGEST_BATCH))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out; on a CPU the error has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
