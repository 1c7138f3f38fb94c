"""Norms of convolution layers: the proven bound, the true norm, power iteration and the circular formula.

    python benchmarks/conv_norms.py [--quick] [--threads 2]

The truth is the largest singular value of the operator as torch applies it: from a dense float64 matrix where its
smaller side is at most 4096, else from power iteration in float64 until it is stationary (which is slightly below the
truth). Weights are gaussian, as at the start of training; "peaked", with three times the best
rank-one part of the matrix [outputs, inputs x taps] added, so that few singular values stand out; or "checkered", with
the best rank-one part of the taps' sum added times (-1)^(i + j), as in kernels that look for edges. Power iteration
runs in float32, as in training. The circular formula is that of convolutions on a circle of the input's own size
(Sedghi, Gupta, Long: ICLR 2019, with aliasing for strides), which is often used for zero-padded ones. A negative gap
means that the number is no bound.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from saving import save, table
from torch import Tensor

from art_robust_plugins.lipschitz import Convolution, lower_estimate

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
]
DENSE = 4096


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
        value, vector, steps = 0.0, None, 0
        while steps < 20_000:
            estimate, vector = lower_estimate(exact, vector, steps=250)
            steps += 250
            if float(estimate) <= value * (1 + 1e-9):
                break
            value = float(estimate)
        return float(estimate), f"{steps} power steps"
    forwards = n_in <= n_out
    shape, apply = (exact.input_shape, exact.apply) if forwards else (exact.output_shape, exact.adjoint)
    size = math.prod(shape)
    rows = [apply(part.view(-1, *shape)).flatten(1) for part in torch.eye(size, dtype=torch.float64).split(256)]
    matrix = torch.cat(rows)
    return math.sqrt(float(torch.linalg.eigvalsh(matrix @ matrix.t())[-1])), "dense"


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
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


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


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The README's table: without the peaked weights, and without the time of methods that give no bound."""
    left_out = ("truth from", "seconds ", "seconds  ")
    shown = [row for row in rows if row["weights"] != "peaked"]
    return [{name: value for name, value in row.items() if name not in left_out} for row in shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the small layers; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for name, inputs, outputs, kernel, size, settings in CASES:
        small = min(inputs, outputs) * size * size <= DENSE
        if args.quick and not small:
            continue
        for kind in ("gaussian", "peaked", *(["checkered"] if size % 2 else [])):
            weight = make_weight(kind, outputs, inputs // settings.get("groups", 1), kernel)
            rows.append(row(name, kind, Convolution(weight, (size, size), **settings)))
            print(rows[-1], flush=True)
    print(table(rows))
    if not args.quick:
        print(save("conv_norms", rows))


if __name__ == "__main__":
    main()
