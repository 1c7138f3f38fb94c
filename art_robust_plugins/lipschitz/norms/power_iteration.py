"""Power iteration: a lower bound of a norm, cheap and differentiable, for training only."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import check_count
from .bounds import LinearMap, fixed_direction


def lower_estimate(operator: LinearMap, vector: Tensor | None = None, *, steps: int = 1) -> tuple[Tensor, Tensor]:
    """A lower bound of an operator's norm by power iteration, differentiable in the weight.

    The iteration runs without gradient; then ||A v|| is computed with it, so that the gradient is that of the norm
    once v has converged. It is for training (Tsuzuku, Sato, Sugiyama: Lipschitz-margin training, arXiv 1802.04034,
    NeurIPS 2018): a certificate needs `Operator.upper_bound`.

    Args:
        operator: a `Linear` or a `Convolution`.
        vector: what the previous call returned, [*input_shape], for a warm start; None starts at random, with a seed.
        steps: number of iterations.

    Returns:
        the estimate (a scalar), and the vector [*input_shape] of norm 1 for the next call.

    Raises:
        TypeError: for a vector that is no tensor.
        ValueError: for a vector of another shape, or steps that are not a positive whole number.

    Example:
        >>> from art_robust_plugins.lipschitz import Linear
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)
        >>> norm, vector = lower_estimate(Linear(weight), steps=50)
        >>> norm
        tensor(4., grad_fn=<LinalgVectorNormBackward0>)
    """
    steps = check_count("steps", steps)
    if vector is not None and not isinstance(vector, Tensor):
        raise TypeError(f"vector: got {type(vector).__name__}, expected a tensor, or None.")
    weight = operator.weight
    with torch.no_grad():
        if vector is None:
            vector = fixed_direction(operator.input_shape).to(weight)
        elif tuple(vector.shape) != tuple(operator.input_shape):
            raise ValueError(f"vector: got shape {tuple(vector.shape)}, expected {tuple(operator.input_shape)}.")
        elif vector.is_complex():
            raise ValueError(f"vector: got {vector.dtype}, expected real numbers.")
        vector = vector.to(weight)
        smallest = torch.finfo(weight.dtype).tiny
        for _ in range(steps):
            image = operator.apply(vector[None])
            back = operator.adjoint(image / torch.linalg.vector_norm(image).clamp_min(smallest))[0]
            length = torch.linalg.vector_norm(back)
            # A zero operator has no direction: keep the old one, for when the weight moves away from zero.
            vector = torch.where(length > smallest, back / length.clamp_min(smallest), vector)
    return torch.linalg.vector_norm(operator.apply(vector[None])), vector
