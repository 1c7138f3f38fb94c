"""Orthogonal layers by a Cholesky factorisation, and networks of them with a known Lipschitz constant.

With V the parameter, wide or transposed to be so,

    G = V V^T + delta I        delta = 1e-5 mean(diag(V V^T))
    G = R R^T                  (Cholesky)
    W = R^-1 V                 so that W W^T = I - delta R^-1 R^-T < I

as in CHORD (Hu, Leino, Wang, Fredrikson, arXiv 2310.02513, ICLR 2024). A layer with orthonormal rows keeps the length
of the part of its input that it passes on, and MinMax only sorts. The product of the layers' norms, on which a
certificate rests, is then close to the network's own Lipschitz constant. Status: the parametrization is the source's;
the networks are ours.

Nothing is certified by construction: `PyTorchLipschitzCertifier` proves the norm of each weight as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checks import check_count, check_number
from ..keywords import explain_keywords
from .activations import MinMax
from .building import check_image_shape, describe_recipe

_Layer = TypeVar("_Layer", bound=nn.Module)

SHIFT = 1e-5
"""delta over the mean of G's diagonal: keeps the factorisation defined in float32 where V is close to losing rank."""


def orthogonalise(v: Tensor) -> Tensor:
    """W [O, I] with orthonormal rows (columns, where O > I) up to `SHIFT`, spanning what the rows of v [O, I] span.

    Differentiable; in v's own precision, at least float32, also under autocast.

    Raises:
        torch.linalg.LinAlgError: for a v of zeros, or with NaN or infinity.

    Example:
        >>> w = orthogonalise(torch.randn(3, 5))
        >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-3)
        True
    """
    with _without_autocast(v.device.type):
        precise = v if v.dtype == torch.float64 else v.float()
        wide = precise if v.shape[0] <= v.shape[1] else precise.t()
        gram = wide @ wide.t()
        delta = SHIFT * gram.diagonal().mean()
        factor = torch.linalg.cholesky(gram + delta * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        w = torch.linalg.solve_triangular(factor, wide, upper=False)
        rows: Tensor = w if v.shape[0] <= v.shape[1] else w.t()
        return rows.to(v.dtype)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast, where the kind of device has any: ``meta`` has none."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class Orthogonal(nn.Module):
    """The parametrization that `orthogonal` gives to a layer's weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return orthogonalise(weight.flatten(1)).reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


@explain_keywords
def orthogonal(layer: _Layer) -> _Layer:
    """Make a layer's weight orthogonal from now on, in place: ``layer.weight`` is computed from a free parameter.

    The weight starts as the orthogonalised one that the layer has. An optimizer made before does not train it.

    Args:
        layer: ``nn.Linear``, or ``nn.Conv1d``, ``Conv2d`` or ``Conv3d`` with kernel size 1 and one group.

    Returns:
        the same layer.

    Raises:
        TypeError: for another layer.
        ValueError: for a convolution with a larger kernel or with groups, of which an orthogonal matrix is not an
            orthogonal operator; a weight that has a parametrization already, or is zero.

    Example:
        >>> layer = orthogonal(nn.Linear(8, 4))
        >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-3)
        True
    """
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise TypeError(f"layer: got {type(layer).__name__}, expected nn.Linear, or a convolution with kernel size 1.")
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin) and layer.has_uninitialized_params():
        raise ValueError(f"layer: got {type(layer).__name__} without weights, expected one that has met its input.")
    if not isinstance(layer, nn.Linear) and (math.prod(layer.kernel_size) != 1 or layer.groups != 1):
        raise ValueError(
            f"layer: got a convolution with kernel size {tuple(layer.kernel_size)} and {layer.groups} group(s), "
            "expected kernel size 1 and 1 group."
        )
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError("layer: got a weight that is parametrized already, expected a free one.")
    if not (layer.weight.is_meta or bool(layer.weight.isfinite().all() and layer.weight.any())):
        raise ValueError("layer: got a weight of zeros, NaN or infinity, expected one that can be orthogonalised.")
    parametrize.register_parametrization(layer, "weight", Orthogonal())
    return layer


class Scaled(nn.Module):
    """x times a fixed number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class OrthogonalMLP(nn.Module):
    """Orthogonal linear layers with MinMax between them, for certified L2 radii: ours, of CHORD's layers.

    Weights start orthogonal, biases at 0. The logits have a Lipschitz constant of at most ``scale``, and
    differences of two of at most sqrt(2) times that.

    Args:
        input_shape: (C, H, W).
        nb_classes: number of logits.
        width: outputs of each hidden layer: even, and at least ``nb_classes``.
        depth: number of hidden layers.
        scale: multiplies the input of the last layer: orthogonal layers alone cannot bring logits as far apart as the
            cross-entropy asks for.

    Raises:
        ValueError: for a shape that is not (C, H, W), and a width that is odd or too small.

    Example:
        >>> network = OrthogonalMLP((1, 8, 8), width=32, depth=2)
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        nb_classes: int = 10,
        *,
        width: int = 512,
        depth: int = 3,
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        width, depth = _check_width("width", width, nb_classes), check_count("depth", depth)
        scale = check_number("scale", scale)
        features = math.prod(check_image_shape(input_shape, "orthogonal-mlp", smallest=1))
        self.recipe = describe_recipe("orthogonal-mlp", input_shape, nb_classes, width=width, depth=depth, scale=scale)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in [features, *[width] * (depth - 1)]:
            layers += [_start_orthogonal(nn.Linear(inputs, width)), MinMax()]
        self.layers = nn.Sequential(*layers, Scaled(scale), _start_orthogonal(nn.Linear(width, nb_classes)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class Centered(nn.Module):
    """x - 1/2: an orthogonal layer cannot make the mean of an image's pixels small beside their differences."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


class Roll(nn.Module):
    """Moves an image by one pixel down and one to the right, in circles: a permutation, so it keeps every length."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll((1, 1), (2, 3))


class OrthogonalCNN(nn.Module):
    """Orthogonal layers on small windows of an image, which move from block to block, for certified L2 radii.

    The input, in [0, 1], is centred. Each patch becomes the channels of one pixel (PixelUnshuffle), and an orthogonal
    layer with kernel size 1 makes ``width`` channels of them. A block does the same with windows of 2 x 2 pixels, and
    goes back to pixels (PixelShuffle); then `Roll` moves the image, so that the next block's windows overlap those of
    this one. An orthogonal layer at the end reads the whole image. MinMax follows all of them but the head. Every layer
    is exactly orthogonal, where a larger kernel is hard to make so. Ours, of CHORD's layers. Weights start orthogonal
    (those of the blocks as the identity, so that a deep network learns as fast as a shallow one), biases at 0; the
    logits' constants are as in `OrthogonalMLP`.

    Args:
        input_shape: (C, H, W); H and W are multiples of ``2 * patch``.
        nb_classes: number of logits.
        patch: the side of a patch.
        width: channels of a pixel: even.
        blocks: layers that mix windows.
        hidden: outputs of the layer that reads the whole image: even, and at least ``nb_classes``.
        scale: as in `OrthogonalMLP`.

    Raises:
        ValueError: for a shape that is not (C, H, W) or not made of whole windows; a width or hidden that does not fit.

    Example:
        >>> network = OrthogonalCNN((1, 8, 8), patch=2, width=16, blocks=2, hidden=32)
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        nb_classes: int = 10,
        *,
        patch: int = 4,
        width: int = 64,
        blocks: int = 2,
        hidden: int = 512,
        scale: float = 4.0,
    ) -> None:
        super().__init__()
        patch, width, blocks = (check_count(*each) for each in (("patch", patch), ("width", width), ("blocks", blocks)))
        hidden, scale = _check_width("hidden", hidden, nb_classes), check_number("scale", scale)
        channels, rows, columns = check_image_shape(input_shape, "orthogonal-cnn", smallest=2 * patch)
        if rows % (2 * patch) or columns % (2 * patch):
            raise ValueError(
                f"patch: got {patch} for images of {rows} x {columns} pixels, expected a divisor of half of both."
            )
        if width % 2:
            raise ValueError(f"width: got {width}, expected an even number.")
        arguments = {"patch": patch, "width": width, "blocks": blocks, "hidden": hidden, "scale": scale}
        self.recipe = describe_recipe("orthogonal-cnn", input_shape, nb_classes, **arguments)
        first = _mix_channels(channels * patch**2, width)
        layers: list[nn.Module] = [Centered(), nn.PixelUnshuffle(patch), first, MinMax()]
        for _ in range(blocks):
            mix = nn.Conv2d(4 * width, 4 * width, 1)
            nn.init.dirac_(mix.weight)
            nn.init.zeros_(mix.bias)  # type: ignore[arg-type]
            layers += [nn.PixelUnshuffle(2), orthogonal(mix), MinMax(), nn.PixelShuffle(2), Roll()]
        features = width * (rows // patch) * (columns // patch)
        layers += [nn.Flatten(), _start_orthogonal(nn.Linear(features, hidden)), MinMax()]
        self.layers = nn.Sequential(*layers, Scaled(scale), _start_orthogonal(nn.Linear(hidden, nb_classes)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def _check_width(name: str, width: int, nb_classes: int) -> int:
    """The outputs of the layer before the last: pairs for MinMax, and one a class for orthonormal rows after it."""
    width = check_count(name, width)
    if width % 2 or width < nb_classes:
        raise ValueError(f"{name}: got {width}, expected an even number of at least {nb_classes}, one a class.")
    return width


def _mix_channels(inputs: int, outputs: int) -> nn.Conv2d:
    return _start_orthogonal(nn.Conv2d(inputs, outputs, 1))


def _start_orthogonal(layer: _Layer) -> _Layer:
    nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return orthogonal(layer)
