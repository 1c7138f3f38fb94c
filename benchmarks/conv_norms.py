"""Norms of convolution layers: the proven bound, the true norm, power iteration and the circular formula.

    python benchmarks/conv_norms.py [--quick] [--random 3000] [--networks wide-resnet-16-4,preact-resnet18]

The truth is the largest singular value of the operator as torch applies it: from a dense float64 matrix where its
smaller side is at most 4096, else from Lanczos in float64 (which is at or slightly below the truth). Seconds are those
of the CPU. Weights are gaussian, as at the start of training; "peaked", with three times the best
rank-one part of the matrix [outputs, inputs x taps] added, so that few singular values stand out; or "checkered", with
the best rank-one part of the taps' sum added times (-1)^(i + j), as in kernels that look for edges. Power iteration
runs in float32, as in training. The circular formula is that of convolutions on a circle of the input's own size
(Sedghi, Gupta, Long: ICLR 2019, with aliasing for strides), which is often used for zero-padded ones. A negative gap
means that the number is no bound.

Networks are those of this package with new weights, in evaluation mode: the proven norms of all their convolutions, the
largest gap to Lanczos, and how much larger the network's bound is with the frequency grid alone (``operations=0``).
They are measured where they are named, and kept in the record otherwise; so are random operators.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from fuzzing.norms import Norms
from saving import RESULTS, save, table
from torch import Tensor
from tqdm import tqdm

from art_robust_plugins.files import read_json
from art_robust_plugins.lipschitz import Convolution, LipschitzGraph, configure_proofs, lower_estimate
from art_robust_plugins.lipschitz.norms.lanczos import largest_eigenvalue
from art_robust_plugins.models import create_model

# name, inputs, outputs, kernel, size, settings
CASES: list[tuple[str, int, int, int, int, dict[str, Any]]] = [
    ("3->64 3x3, 32x32", 3, 64, 3, 32, {"padding": 1}),
    ("16->32 4x4 stride 2, 14x14", 16, 32, 4, 14, {"padding": 1, "stride": 2}),
    ("64->64 3x3, 8x8", 64, 64, 3, 8, {"padding": 1}),
    ("64->128 3x3 stride 2, 8x8", 64, 128, 3, 8, {"padding": 1, "stride": 2}),
    ("128->128 3x3, 4x4", 128, 128, 3, 4, {"padding": 1}),
    ("64->64 3x3, 7x7", 64, 64, 3, 7, {"padding": 1}),
    ("64->64 3x3, 5x5", 64, 64, 3, 5, {"padding": 1}),
    ("32->32 3x3 dilation 2, 10x10", 32, 32, 3, 10, {"padding": 2, "dilation": 2}),
    ("64->64 5x5 groups 8, 12x12", 64, 64, 5, 12, {"padding": 2, "groups": 8}),
    ("64->128 3x3 stride 2, 32x32", 64, 128, 3, 32, {"padding": 1, "stride": 2}),
    ("256->256 3x3, 8x8", 256, 256, 3, 8, {"padding": 1}),
    ("512->512 3x3, 4x4", 512, 512, 3, 4, {"padding": 1}),
    ("64->64 3x3, 32x32", 64, 64, 3, 32, {"padding": 1}),
]
DENSE = 4096
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "wide-resnet-16-4": ("wide-resnet", {"depth": 16, "widen_factor": 4}),
    "preact-resnet18": ("preact-resnet18", {}),
    "wide-resnet-28-10": ("wide-resnet", {"depth": 28, "widen_factor": 10}),
}
IMAGE = (3, 32, 32)


def make_weight(kind: str, outputs: int, inputs: int, kernel: int) -> Tensor:
    weight = torch.randn(outputs, inputs, kernel, kernel) * math.sqrt(2 / (inputs * kernel * kernel))
    if kind == "peaked":
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        weight = weight + 3 * (s[0] * torch.outer(u[:, 0], v[0])).view_as(weight)
    if kind == "checkered":
        signs = 1.0 - 2 * (torch.arange(kernel)[:, None] + torch.arange(kernel)).remainder(2)
        u, s, v = torch.linalg.svd(weight.sum(dim=(2, 3)), full_matrices=False)
        weight = weight + s[0] * torch.outer(u[:, 0], v[0])[:, :, None, None] * signs
    return weight


def truth(operator: Convolution) -> tuple[float, str]:
    """The norm of the operator in float64, and the method that found it."""
    exact = operator.with_weight(operator.weight.double())
    if operator.groups > 1:  # they act on different channels
        parts = exact.weight.view(operator.groups, -1, *exact.weight.shape[1:])
        return max(truth(exact.with_weight(part, groups=1)) for part in parts)
    n_in, n_out = math.prod(exact.input_shape), math.prod(exact.output_shape)
    if min(n_in, n_out) > DENSE:
        return lanczos(exact), "Lanczos"
    forwards = n_in <= n_out
    shape, apply = (exact.input_shape, exact.apply) if forwards else (exact.output_shape, exact.adjoint)
    size = math.prod(shape)
    rows = [apply(part.view(-1, *shape)).flatten(1) for part in torch.eye(size, dtype=torch.float64).split(256)]
    matrix = torch.cat(rows)
    return math.sqrt(float(torch.linalg.eigvalsh(matrix @ matrix.t())[-1])), "dense"


def lanczos(operator: Convolution) -> float:
    """The norm by Lanczos on A^T A, in float64: from below."""
    exact = operator.with_weight(operator.weight.double())

    def multiply(vector: Tensor) -> Tensor:
        return exact.adjoint(exact.apply(vector.view(1, *exact.input_shape))).flatten()

    like = torch.empty(math.prod(exact.input_shape), dtype=torch.float64)
    return math.sqrt(largest_eigenvalue(multiply, like)[0])


def circular(operator: Convolution) -> float:
    """The norm of the circular convolution on the input's own size, each group separately."""
    (step, _), (height, width) = operator.stride, operator.input_shape[1:]
    gap = operator.dilation[0]
    kernel = operator.weight.double()
    spread = kernel.new_zeros(*kernel.shape[:2], *[gap * (length - 1) + 1 for length in kernel.shape[2:]])
    spread[:, :, ::gap, ::gap] = kernel
    largest = 0.0
    for part in spread.view(operator.groups, -1, *spread.shape[1:]):
        spectrum = torch.fft.fft2(part, s=(height, width)).permute(2, 3, 0, 1)
        folds = spectrum.view(step, height // step, step, width // step, *spectrum.shape[2:])
        blocks = folds.permute(1, 3, 4, 0, 2, 5).flatten(3) / step
        largest = max(largest, float(torch.linalg.matrix_norm(blocks, 2).max()))
    return largest


def time_call(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def row(name: str, kind: str, operator: Convolution) -> dict[str, Any]:
    true, how = truth(operator)
    bound, seconds = time_call(operator.upper_bound)
    power, power_seconds = time_call(lambda: float(lower_estimate(operator, steps=100)[0]))
    circle, circle_seconds = time_call(lambda: circular(operator))

    def gap(value: float) -> str:
        return f"{100 * (value / true - 1):+.2g}"

    return {
        "layer": name,
        "weights": kind,
        "true norm": f"{true:.4f}",
        "truth from": how,
        "proven bound, gap in %": gap(bound.value),
        "proof": bound.method,
        "seconds": f"{seconds:.3f}",
        "100 power steps, gap in %": gap(power),
        "seconds ": f"{power_seconds:.3f}",
        "circular formula, gap in %": gap(circle),
        "seconds  ": f"{circle_seconds:.3f}",
    }


def network_row(name: str, operations: float | None) -> dict[str, Any]:
    """All convolutions of a network: their proofs, the time of these, and the gaps to the truth."""
    kind, settings = NETWORKS[name]
    torch.manual_seed(0)
    graph = LipschitzGraph(create_model(kind, IMAGE, 10, **settings).eval(), IMAGE)
    prove, layers = Convolution.upper_bound, []

    def record(operator: Convolution) -> Any:
        bound, seconds = time_call(lambda: prove(operator))
        layers.append((operator, bound, seconds))
        shape = "x".join(map(str, operator.input_shape))
        print(f"{name}: {shape} {tuple(operator.weight.shape)} {bound} {seconds:.1f} s", flush=True)
        return bound

    with configure_proofs(operations=0):
        coarse = float(graph.upper_bound().lipschitz)
    with mock.patch.object(Convolution, "upper_bound", record), configure_proofs(operations=operations, memory=2**34):
        fine = float(graph.upper_bound().lipschitz)
    gaps = [bound.value / lanczos(operator) - 1 for operator, bound, _ in layers]
    return {
        "network": f"{name} on {'x'.join(map(str, IMAGE))}",
        "convolutions": len(layers),
        "by a factorisation": sum(bound.method == "cholesky" for _, bound, _ in layers),
        "largest gap in %": f"{100 * max(gaps):+.2g}",
        "CPU seconds": f"{sum(seconds for *_, seconds in layers):.0f}",
        "bound with the grid alone / proven": f"{coarse / fine:.3f}",
    }


def random_row(count: int) -> dict[str, Any]:
    """Random small operators (see `fuzzing.norms`), half of them cut into blocks at random, beside their dense SVD."""
    gaps, wrong, seeds = [0.0], 0, itertools.count()
    kinds: Counter[str] = Counter()
    with tqdm(total=count, desc="random operators") as bar:
        while sum(kinds.values()) < count:
            seed = next(seeds)
            outcome = Norms().check_operator(seed)
            if outcome.verdict == "refused":  # no such operator
                continue
            if outcome.verdict == "broken":
                wrong += 1
                bar.write(f"seed {seed}: {outcome.message}")
            kinds[outcome.kind] += 1
            gaps.append(outcome.gap or 0.0)
            bar.update()
    return {
        "random operators": ", ".join(f"{number:,} {kind}" for kind, number in kinds.items()),
        "below the norm of the dense SVD, or more than .01 % above": wrong,
        "largest gap in %": f"{100 * max(gaps):+.2g}",
    }


def summary(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The page's table: without the peaked weights, and without the time of methods that give no bound."""
    left_out = ("truth from", "seconds ", "seconds  ")
    shown = [row for row in results["layers"] if row["weights"] != "peaked"]
    return [{name: value for name, value in row.items() if name not in left_out} for row in shown]


def parse_names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {', '.join(NETWORKS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the small layers; not recorded")
    parser.add_argument("--networks", type=parse_names, default=[], help="networks to measure, with commas")
    parser.add_argument(
        "--operations", type=float, help="of a factorisation of a network's layer, see configure_proofs"
    )
    parser.add_argument("--random", type=int, default=0, help="number of random operators to measure")
    parser.add_argument("--layers-kept", action="store_true", help="do not measure layers anew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [] if args.layers_kept else layer_rows(args.quick)
    drawn = [random_row(args.random)] if args.random else []
    networks = []
    for name in args.networks:
        networks.append(network_row(name, args.operations))
        print(networks[-1], flush=True)
    for measured in filter(None, (rows, networks, drawn)):
        print(table(measured))
    if not args.quick:
        known = read_json(RESULTS / "conv_norms.json")["results"]
        named = {row["network"]: row for row in [*known.get("networks", []), *networks]}
        results = {
            "layers": rows or known["layers"],
            "networks": list(named.values()),
            "random": drawn or known.get("random", []),
        }
        print(save("conv_norms", results))


def layer_rows(quick: bool) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows = []
    for name, inputs, outputs, kernel, size, settings in CASES:
        if quick and min(inputs, outputs) * size * size > DENSE:
            continue
        for kind in ("gaussian", "peaked", *(["checkered"] if size % 2 else [])):
            weight = make_weight(kind, outputs, inputs // settings.get("groups", 1), kernel)
            rows.append(row(name, kind, Convolution(weight, (size, size), **settings)))
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
