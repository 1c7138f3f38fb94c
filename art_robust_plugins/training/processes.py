"""Several processes that train together: each computes its share of every batch, and the result is that of one.

All processes choose and augment the same whole batch, and draw the random numbers of `RobustTrainer.draw` for it; then
each continues with its own samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from ..checks import quote_error
from ..files import remove_temporaries
from ..fingerprints import excerpts_at_difference
from ..locks import check_output_folder, locked_folder
from ..processes import find_processes
from ..randomness import seed_torch
from .memory_format import layout_of


class ProcessLostError(ConnectionError):
    """Another process that trains together with this one ended, or did not answer."""


class Processes:
    """This process among those that train together; with one process, nothing here costs anything.

    Attributes:
        count, index: the number of processes, and this one's rank.
        is_local_main: whether this is the first process on its machine.
        device: the device of this process.
        moment, advice: the point in the training, and advice to the user, for the error about a lost process.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        moment: str = "before the first epoch",
        advice: str = "start all of them again.",
    ) -> None:
        state = find_processes(device)
        self.count, self.index = int(state.num_processes), int(state.process_index)
        self.is_local_main = bool(state.is_local_main_process)
        self.device: torch.device = state.device
        self.moment, self.advice = moment, advice
        self._own_noise: list[Tensor] = []

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.index == 0

    def share_of(self, samples: int) -> Share | None:
        """This process's share of a batch; None with one process, which has the whole batch."""
        return None if self.count == 1 else Share(self, samples)

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.count > 1:
            with self._together():
                here = torch.zeros(1, device=self.device)
                distributed.all_reduce(here)
                here.item()  # on a GPU the reduction is only queued; reading the result waits for it

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        if self.count > 1:
            with self._together():
                distributed.all_reduce(tensor)

    def maximum(self, tensor: Tensor) -> None:
        """Replace a tensor by its largest values over the processes."""
        if self.count > 1:
            with self._together():
                distributed.all_reduce(tensor, distributed.ReduceOp.MAX)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which must have the same shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._together():
            distributed.all_gather(parts, tensor)
        return parts

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the main process."""
        if self.count == 1:
            return
        for tensor in tensors:
            sent = tensor.detach().to(self.device).contiguous()
            with self._together():
                distributed.broadcast(sent, 0)
            tensor.detach().copy_(sent)

    def check_same(self, numbers: Mapping[str, int]) -> None:
        """Raise, in all processes, if a number differs between them.

        Raises:
            ValueError: names the first one that does.
        """
        if self.count == 1:
            return
        gathered = self.gather(torch.tensor(list(numbers.values()), device=self.device))
        for name, values in zip(numbers, torch.stack(gathered, dim=1).tolist(), strict=True):
            _check_equal(name, [str(value) for value in values])

    def check_same_settings(self, settings: Mapping[str, str]) -> None:
        """Raise, in all processes, if a setting differs between them, or only some of them have it.

        Raises:
            ValueError: names the first one that does.
        """
        if self.count == 1:
            return
        gathered: list[dict[str, str]] = [{} for _ in range(self.count)]
        with self._together():
            distributed.all_gather_object(gathered, dict(settings))
        for name in dict.fromkeys(name for each in gathered for name in each):
            _check_equal(name, [each.get(name, "none") for each in gathered])

    def raise_together(self, error: Exception | None) -> None:
        """Raise this process's ``error``, or in the others an error that says so; do nothing if no process has one.

        All processes must call it, so that none waits for a process that has failed.
        """
        if self.count > 1:
            found: list[str | None] = [None] * self.count
            with self._together():
                distributed.all_gather_object(found, None if error is None else str(error))
            said = next((each for each in found if each is not None), None)
            if error is None and said is not None:
                raise ValueError(said)
        if error is not None:
            raise error

    def do_in_main(self, work: Callable[[], object]) -> None:
        """Do something in the main process; an error is raised in all processes.

        Only ``OSError`` and ``ValueError`` are passed on.
        """
        error: Exception | None = None
        if self.is_main:
            try:
                work()
            except (OSError, ValueError) as raised:
                error = raised
        self.raise_together(error)

    @contextmanager
    def hold_folder(self, name: str, folder: str | Path, purpose: str, files: Collection[str]) -> Iterator[None]:
        """A context in which only these processes write ``files`` in a folder; see `locked_folder`.

        Temporary files that killed processes left are removed.
        """
        with ExitStack() as stack:

            def hold() -> None:
                check_output_folder(name, folder, files)
                stack.enter_context(locked_folder(name, folder, purpose))
                remove_temporaries(folder, files)

            self.do_in_main(hold)
            yield

    def seed_own_noise(self, seed: int) -> None:
        """Seed the random numbers of `use_own_noise`."""
        if self.count > 1:
            with torch.random.fork_rng(self._cuda_devices()):
                seed_torch(seed, self.device)
                self._own_noise = self._noise()

    @contextmanager
    def use_own_noise(self) -> Iterator[None]:
        """A context in which torch draws this process's own random numbers; nested, those common to all."""
        if self.count == 1:
            yield
            return
        self._exchange_noise()
        try:
            yield
        finally:
            self._exchange_noise()

    def _exchange_noise(self) -> None:
        current = self._noise()
        torch.set_rng_state(self._own_noise[0])
        if len(self._own_noise) > 1:
            torch.cuda.set_rng_state(self._own_noise[1], self.device)
        self._own_noise = current

    def _noise(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:  # the error of this process
            raise
        except RuntimeError as error:
            reason = quote_error(error)
            raise ProcessLostError(
                f"another process ended {self.moment}, or did not answer in time ({reason}); {self.advice}"
            ) from error


def _check_equal(name: str, values: Sequence[str]) -> None:
    """Refuse values, one for each process, that differ from the first process's."""
    first = values[0]
    for index, value in enumerate(values):
        if value != first:
            here, there = excerpts_at_difference(first, value)
            raise ValueError(
                f"{name}: got {here} in process 0 and {there} in process {index}, expected the same in all processes."
            )


@dataclass(frozen=True)
class Share:
    """One process's share of a batch, for methods and instruments that need the whole batch.

    The shares are consecutive and as equal as possible. A process without samples computes the first sample with weight
    0: all processes must run the same passes, or one would wait for the others for ever.

    Args:
        processes: the processes that share the batch.
        whole: the batch's number of samples.
    """

    processes: Processes
    whole: int

    @property
    def sizes(self) -> list[int]:
        """The number of samples that count in each process."""
        least, rest = divmod(self.whole, self.processes.count)
        return [least + (index < rest) for index in range(self.processes.count)]

    @property
    def size(self) -> int:
        """The number of samples that count in this process; it may be 0."""
        return self.sizes[self.processes.index]

    @property
    def rows(self) -> slice:
        """The samples that this process computes, at least one."""
        start = sum(self.sizes[: self.processes.index]) if self.size else 0
        return slice(start, start + max(self.size, 1))

    @property
    def weight(self) -> float:
        """The weight of this process's mean over samples: the mean of weighted means over processes is the batch's."""
        return self.size * self.processes.count / self.whole

    def draw(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """This process's rows of the random numbers of the whole batch; see `RobustTrainer.draw`."""
        own = self.rows.stop - self.rows.start
        copies, rest = divmod(len(like), own)
        if rest:
            raise ValueError(f"like: got {len(like)} samples, expected the {own} of this process or a multiple.")
        whole = like.new_empty((copies * self.whole, *like.shape[1:]))
        whole = whole.contiguous(memory_format=layout_of(like))  # random numbers are drawn in the order of memory
        with self.processes.use_own_noise():
            return self.select(draw(whole))

    def select(self, whole: Tensor) -> Tensor:
        """The rows of this process from m copies of the batch: [m * N, ...] -> [m * n, ...]."""
        return whole.view(-1, self.whole, *whole.shape[1:])[:, self.rows].flatten(0, 1)

    def mean(self, own_mean: Tensor) -> Tensor:
        """The mean over the samples of the batch, from each process's mean over its own."""
        total = own_mean * (self.size / self.whole)
        self.processes.sum(total)
        return total

    def maximum(self, own: Tensor) -> Tensor:
        """The largest value over the processes."""
        largest = own.clone()
        self.processes.maximum(largest)
        return largest

    def gather(self, own: Tensor, at_most: int | None = None) -> Tensor:
        """The whole batch in its order, from each process's rows: [m * n, ...] -> [m * N, ...].

        With ``at_most``, each process passes and contributes at most this number of its first rows.
        """
        sizes = [size if at_most is None else min(size, at_most) for size in self.sizes]
        computed = max(sizes[self.processes.index], 1)
        copies = own.reshape(-1, computed, *own.shape[1:])
        padded = copies.new_zeros((len(copies), max(sizes), *own.shape[1:]))
        padded[:, :computed] = copies
        parts = [part[:, :size] for part, size in zip(self.processes.gather(padded), sizes, strict=True)]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def drawn(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Deprecated: the earlier name of `draw`."""
        _warn_of_name("Share.drawn", "draw")
        return self.draw(draw, like)

    def of_copies(self, whole: Tensor) -> Tensor:
        """Deprecated: the earlier name of `select`."""
        _warn_of_name("Share.of_copies", "select")
        return self.select(whole)

    def gathered(self, own: Tensor, at_most: int | None = None) -> Tensor:
        """Deprecated: the earlier name of `gather`."""
        _warn_of_name("Share.gathered", "gather")
        return self.gather(own, at_most)


def _warn_of_name(name: str, new: str) -> None:
    warnings.warn(f"{name} is deprecated, expected {new} instead.", DeprecationWarning, stacklevel=3)
