"""Parts that all fuzzers share: the outcome of a case, what counts as a refusal, the limits of a case, and the counts.

A fuzzer makes a case of a seed and says what came of it:

- held: what was promised is so;
- refused: the package raised a documented exception with a sentence ``name: got ..., expected ...``;
- broken: anything else. The seed makes the same case again.
"""

from __future__ import annotations

import random
import re
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from art_robust_plugins.lipschitz import NoLipschitzRuleError

Verdict = Literal["held", "refused", "broken"]

REFUSALS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""The exceptions that the package documents; the command line makes a sentence and an exit code of them."""

_SENTENCE = re.compile(r"[^\n:]{1,300}: [^\n]+[.?]")
_STATM = Path("/proc/self/statm")  # the memory of this process, in pages
_KEPT = 200  # broken cases whose messages are kept
_GAPS = 20_000  # gaps of which the quantiles are taken


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case; ``kind`` says what sort of case it was, ``gap`` how far a bound is above the truth."""

    verdict: Verdict
    kind: str
    message: str = ""
    gap: float | None = None


class Fuzzer(Protocol):
    """Makes a case of each seed, the same one each time."""

    def check(self, seed: int) -> Outcome:
        """Run the case with this seed, and return its outcome."""
        ...


class TooLongError(BaseException):
    """A case took longer than its limit. (No Exception, which the code under test might take for one of its own.)"""


class PrintedError(ValueError):
    """The sentence that a command printed as its refusal."""


def is_sentence(error: BaseException) -> bool:
    """Whether an exception is one that the package documents, raised by its own code with a sentence of its form."""
    if isinstance(error, NoLipschitzRuleError):  # its sentence names the operation, its node and its module
        return True
    frames = traceback.extract_tb(error.__traceback__)
    own = isinstance(error, PrintedError) or not frames or "art_robust_plugins" in frames[-1].filename
    if own and isinstance(error, FloatingPointError):  # the loss became nan: it says where
        return True
    return own and isinstance(error, REFUSALS) and _SENTENCE.fullmatch(str(error)) is not None


def refusal(kind: str, error: Exception) -> Outcome:
    """The outcome of a case that ended with an exception: refused by a sentence, or broken by anything else."""
    if is_sentence(error):
        return Outcome("refused", kind, str(error))
    return Outcome("broken", kind, describe(error))


def describe(error: BaseException) -> str:
    """An exception with the place in the package that it came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "art_robust_plugins" in frame.filename] or frames[-1:]
    place = f" [{Path(own[-1].filename).name}:{own[-1].lineno}]" if own else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500] + place


@contextmanager
def limits(seconds: float, gibibytes: float) -> Iterator[None]:
    """End what runs inside with an exception when it takes too long or (on Linux) asks for too much memory.

    Raises:
        TooLongError: after ``seconds``. Only the main thread can be interrupted, and only between two steps of Python.
    """

    def interrupt(*_: Any) -> None:
        raise TooLongError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    if _STATM.exists():
        allowed = int(_STATM.read_text().split()[0]) * resource.getpagesize() + int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (allowed if memory[1] < 0 else min(allowed, memory[1]), memory[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, memory)


def run_case(fuzzer: Fuzzer, seed: int, *, seconds: float = 30, gibibytes: float = 4) -> Outcome:
    """Run the case within limits of time and memory, and return its outcome."""
    try:
        with limits(seconds, gibibytes):
            return fuzzer.check(seed)
    except (Exception, TooLongError) as error:
        return Outcome("broken", "not foreseen by the fuzzer", describe(error))


@dataclass
class Tally:
    """Counts of outcomes, and the first broken cases of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0
    _taken: int = 0

    def add(self, seed: int, outcome: Outcome, seconds: float) -> None:
        """Count a case."""
        self.counts[outcome.verdict] += 1
        self.kinds.setdefault(outcome.kind, Counter())[outcome.verdict] += 1
        self.seconds += seconds
        if outcome.verdict == "broken" and len(self.broken) < _KEPT:
            self.broken.append({"seed": seed, "kind": outcome.kind, "message": outcome.message})
        if outcome.gap is not None:
            self._keep(outcome.gap)

    def take_new(self) -> list[dict[str, Any]]:
        """The broken cases since the last call."""
        new = self.broken[self._taken :]
        self._taken = len(self.broken)
        return new

    def _keep(self, gap: float) -> None:
        """Keep a fair sample of all gaps, of bounded size."""
        seen = sum(self.counts.values())
        if len(self.gaps) < _GAPS:
            self.gaps.append(gap)
        elif (place := random.Random(seen).randrange(seen)) < _GAPS:
            self.gaps[place] = gap

    def row(self, name: str) -> dict[str, Any]:
        """The counts as a row of a table."""
        tried = sum(self.counts.values())
        return {"fuzzer": name, "tried": tried, **{verdict: self.counts[verdict] for verdict in _VERDICTS}}

    def quantiles(self) -> dict[str, float]:
        """Summarise the gaps, by which bounds are above the truth: bound / truth - 1."""
        ordered = sorted(self.gaps)
        shares = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}
        return {name: ordered[round(share * (len(ordered) - 1))] for name, share in shares.items()} if ordered else {}

    def record(self) -> dict[str, Any]:
        """Everything as JSON data."""
        return {
            "seconds": round(self.seconds, 1),
            "gap above the truth": self.quantiles(),
            "kinds": {kind: dict(counts) for kind, counts in sorted(self.kinds.items())},
            "broken": self.broken,
        }


_VERDICTS: tuple[Verdict, ...] = ("held", "refused", "broken")


def run_in_turns(
    fuzzers: Mapping[str, Fuzzer], seeds: Callable[[], Iterable[int]], minutes: float, tallies: Mapping[str, Tally]
) -> Iterator[str]:
    """Run each fuzzer on its own ``seeds`` for the same share of the time; gives its name after each case."""
    streams = {name: iter(seeds()) for name in fuzzers}
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        name = min(fuzzers, key=lambda name: tallies[name].seconds)
        seed, start = next(streams[name]), time.monotonic()
        outcome = run_case(fuzzers[name], seed)
        tallies[name].add(seed, outcome, time.monotonic() - start)
        yield name
