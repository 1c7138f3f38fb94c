"""Optimizers whose step is one fused kernel for all weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..memory_format import align_state

FUSED = (SGD, Adam, AdamW)


def check_fused(optimizer: Optimizer) -> None:
    """Refuse an optimizer that has no fused step.

    Raises:
        ValueError: for an optimizer other than torch's SGD, Adam and AdamW, or a differentiable one.
    """
    if type(optimizer) not in FUSED:  # a subclass may define another step
        names = ", ".join(kind.__name__ for kind in FUSED)
        raise ValueError(f"fused_optimizer: got the optimizer {type(optimizer).__name__}, expected one of {names}.")
    if any(group["differentiable"] for group in optimizer.param_groups):
        raise ValueError("fused_optimizer: got a differentiable optimizer, expected another.")


@contextmanager
def fuse_steps(optimizer: Optimizer) -> Iterator[None]:
    """A context within which the steps of ``optimizer`` are fused; refuses what `check_fused` refuses."""
    check_fused(optimizer)
    before = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
        _place_step_counts(optimizer)
        _complete_momentum(optimizer)
        align_state(optimizer)
        yield
    finally:
        for group, old in zip(optimizer.param_groups, before, strict=True):
            group.update(old)
        _place_step_counts(optimizer)


def _complete_momentum(optimizer: Optimizer) -> None:
    """Give zero momentum to weights without any: a fused step of SGD wants it for all weights or for none.

    Zeros change nothing, except with dampening, as a first step is not damped; such groups are left alone.
    """
    for group in optimizer.param_groups:
        if not isinstance(optimizer, SGD) or not group["momentum"] or group["dampening"]:
            continue
        for weight in group["params"]:
            state = optimizer.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)


def _place_step_counts(optimizer: Optimizer) -> None:
    """Move Adam's step counts, which are tensors: to the weights' device for fused steps, else to the CPU."""
    for group in optimizer.param_groups:
        beside = group["fused"] or group.get("capturable")
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(weight.device if beside else "cpu")
