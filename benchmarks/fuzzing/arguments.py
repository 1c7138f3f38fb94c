"""Arguments: one argument of a public function replaced by a hostile value, all others valid.

The call must work or be refused by a sentence that names the argument. What makes no sense for its kind (not a number
where a number is expected, a boolean for a count) must be refused, and what is the same value in another type (NumPy's
integers, a tensor for an array) must work. Anything else is broken: a foreign exception, a call that takes what it
should refuse, one that refuses what it should take, or one that takes too long.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .calls import all_calls
from .cases import Outcome, TooLongError, describe, refusal
from .hostile import KINDS

# A name of an argument that a sentence may use for another: what is wrong may show in what they make together.
_ALSO = {
    "estimator": ("classifier",),
    "model": ("network", "classifier"),
    "network": ("classifier",),
    "source": ("classifier",),
}


class Arguments:
    """Calls with one hostile argument; see the module."""

    def __init__(self) -> None:
        self._own = tempfile.TemporaryDirectory()
        self.folder = Path(self._own.name)
        self.calls = all_calls(self.folder)

    def check(self, seed: int) -> Outcome:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        name, argument = rng.choice([(name, each) for name, call in self.calls.items() for each in call.kinds])
        call = self.calls[name]
        values = KINDS[call.kinds[argument]]
        text = rng.choice(list(values))
        expected, make = values[text]
        arguments = call.valid()
        value = make(arguments[argument])
        if value is None and argument in call.optional:
            expected = "works"
        kind, case = f"{name}: {argument}", f"{name}({argument}={text})"
        try:
            with warnings.catch_warnings(), _inside(self.folder):
                warnings.simplefilter("ignore")
                call.function(**{**arguments, argument: value})
        except (Exception, TooLongError) as error:
            outcome = refusal(kind, error)
            if outcome.verdict == "broken":
                return Outcome("broken", kind, f"{describe(error)}: {case}")
            if expected == "works":
                return Outcome("broken", kind, f"refused, expected to work: {error}: {case}")
            # Of a path that leads to no file, or to the wrong one, the sentence names the path.
            named = call.kinds[argument] == "path" or isinstance(error, FloatingPointError)
            if not named and not _names(error, argument):
                return Outcome("broken", kind, f"the sentence does not name the argument: {error}: {case}")
            return outcome
        if expected == "refused":
            return Outcome("broken", kind, f"taken without a word: {case}")
        return Outcome("held", kind)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder: a path that is empty or relative writes there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _names(error: BaseException, argument: str) -> bool:
    """Whether the sentence has the argument's name, or one that it stands for, as a word."""
    names = (argument, *_ALSO.get(argument, ()))
    return any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names)
