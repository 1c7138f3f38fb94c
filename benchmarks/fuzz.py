"""Fuzzers: random operators, networks, damaged files and hostile arguments, for as long as asked.

    python benchmarks/fuzz.py --minutes 60 [--seed 0] [--only norms,networks,files,arguments]
    python benchmarks/fuzz.py --only files --case 123

Each of the four has the same share of the time and a stream of seeds of its own. A case is held (what the package
promises is so), refused (in a documented sentence) or broken; see `fuzzing`. Counts are printed every minute and at the
end, also after Ctrl-C, and every broken case with the seed that makes it again: ``--case`` does that for one. The exit
code is 1 when anything broke. A case may take 30 seconds and 4 GiB more than the fuzzers themselves.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
import warnings
from collections.abc import Iterator

import torch
from fuzzing.arguments import Arguments
from fuzzing.cases import Fuzzer, Tally, run_in_turns
from fuzzing.files import Files
from fuzzing.networks import Networks
from fuzzing.norms import Norms
from saving import save, table
from tqdm import tqdm

FUZZERS: dict[str, type[Fuzzer]] = {"norms": Norms, "networks": Networks, "files": Files, "arguments": Arguments}
STREAM = 10**9  # seeds of one --seed


def fuzz(names: list[str], minutes: float, seed: int) -> dict[str, Tally]:
    """Run fuzzers in turns, and print what breaks at once, counts every minute."""
    fuzzers = {name: FUZZERS[name]() for name in names}
    tallies = {name: Tally() for name in names}

    def seeds() -> Iterator[int]:
        return itertools.count(seed * STREAM)

    start = shown = time.monotonic()
    bar = tqdm(total=round(60 * minutes), unit="s", desc="fuzzing")
    try:
        with bar:
            for name in run_in_turns(fuzzers, seeds, minutes, tallies):
                tally, now = tallies[name], time.monotonic()
                for case in tally.take_new():
                    bar.write(f"BROKEN {name} --case {case['seed']}: {case['kind']}: {case['message']}")
                bar.update(min(round(now - start), bar.total) - bar.n)
                bar.set_postfix({name: sum(tally.counts.values()) for name, tally in tallies.items()})
                if now - shown >= 60:
                    shown = now
                    bar.write(format_counts(tallies))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return tallies


def format_counts(tallies: dict[str, Tally]) -> str:
    return table([tally.row(name) for name, tally in tallies.items()])


def parse_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FUZZERS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {', '.join(FUZZERS)}")
    return list(dict.fromkeys(names))


def parse_minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=parse_minutes, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="other seeds make other cases")
    parser.add_argument("--only", type=parse_names, default=list(FUZZERS), help="some of the fuzzers, with commas")
    parser.add_argument("--case", type=int, help="make one case of a single fuzzer again, and record nothing")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.case is not None and len(args.only) != 1:
        parser.error("--case: got several fuzzers, expected --only with one")
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.case is not None:
        outcome = FUZZERS[args.only[0]]().check(args.case)
        print(f"{outcome.verdict}: {outcome.kind}: {outcome.message}")
        sys.exit(outcome.verdict == "broken")
    tallies = fuzz(args.only, args.minutes, args.seed)
    print(format_counts(tallies))
    for name, tally in tallies.items():
        if tally.gaps:
            print(f"{name}, gap above the truth: {tally.quantiles()}")
    rows = [tally.row(name) for name, tally in tallies.items()]
    print(save("fuzz", rows, seed=args.seed, cases={name: tally.record() for name, tally in tallies.items()}))
    sys.exit(any(tally.counts["broken"] for tally in tallies.values()))


if __name__ == "__main__":
    main()
