"""Orthogonal layers: W W^T = I - delta R^-1 R^-T, by any layer that takes them; certified without trust."""

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from art_robust_plugins import LipschitzMarginTrainer, PyTorchLipschitzCertifier
from art_robust_plugins.models import create_model, orthogonal
from art_robust_plugins.models.orthogonal import SHIFT, Roll, orthogonalise


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_rows_or_columns_are_orthonormal_as_the_formula_says(rows, columns, scale, seed):
    v = scale * torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    w = orthogonalise(v)
    wide, kept = (v, w) if rows <= columns else (v.t(), w.t())
    gram = wide @ wide.t()
    delta = SHIFT * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    inverse = torch.linalg.inv(torch.linalg.cholesky(gram + delta))
    torch.testing.assert_close(kept @ kept.t(), torch.eye(len(gram), dtype=v.dtype) - inverse @ delta @ inverse.t())
    assert float(torch.linalg.matrix_norm(w, 2)) <= 1 + 1e-12
    # It spans what v's rows span, and does not depend on v's scale.
    torch.testing.assert_close(orthogonalise(7 * v), w)


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    for shape in ((3, 5), (5, 3)):
        assert torch.autograd.gradcheck(orthogonalise, torch.randn(*shape, dtype=torch.float64, requires_grad=True))


def test_half_precision_is_factorised_in_single():
    v = torch.randn(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w = orthogonalise(v)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w @ w.t(), torch.eye(16), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(6, 4), (6,)),
        (lambda: nn.Linear(4, 6, bias=False), (4,)),
        (lambda: nn.Conv1d(6, 4, 1), (6, 5)),
        (lambda: nn.Conv2d(4, 6, 1), (4, 3, 3)),
        (lambda: nn.Conv3d(4, 4, 1), (4, 2, 2, 2)),
    ],
)
def test_layers_become_orthogonal_operators(make, shape):
    layer = make()
    before = layer.weight.detach().clone()
    assert orthogonal(layer) is layer
    torch.testing.assert_close(layer.weight, orthogonalise(before.flatten(1)).reshape(before.shape))
    x = torch.randn(3, *shape, dtype=torch.float64)
    layer.double()
    moved = layer(x) - layer(torch.zeros_like(x))
    longest = moved.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert bool((longest <= 1 + 1e-9).all())
    if layer.weight.shape[0] >= layer.weight.shape[1]:  # orthonormal columns keep every length
        torch.testing.assert_close(longest, torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("layer", "error", "sentence"),
    [
        (nn.Conv2d(4, 4, 3), ValueError, r"kernel size \(3, 3\)"),
        (nn.Conv2d(4, 4, 1, groups=2), ValueError, "2 group"),
        (nn.ConvTranspose2d(4, 4, 1), TypeError, "ConvTranspose2d"),
        (nn.ReLU(), TypeError, "ReLU"),
        (nn.LazyLinear(3), ValueError, "LazyLinear"),
        (parametrizations.spectral_norm(nn.Linear(3, 3)), ValueError, "parametrized already"),
        (orthogonal(nn.Linear(3, 3)), ValueError, "parametrized already"),
        (nn.init.zeros_(nn.Linear(3, 3).weight), TypeError, "Parameter"),
    ],
)
def test_other_layers_are_refused(layer, error, sentence):
    with pytest.raises(error, match=f"layer: got.*{sentence}"):
        orthogonal(layer)


def test_a_weight_of_zeros_is_refused():
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    with pytest.raises(ValueError, match="layer: got a weight of zeros"):
        orthogonal(layer)


@pytest.mark.parametrize(
    ("width", "scale", "sentence"), [(13, 2, "width: got 13"), (8, 2, "width: got 8"), (16, 0, "scale")]
)
def test_sizes_that_cannot_be_are_refused(width, scale, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model("orthogonal-mlp", (1, 4, 4), 10, width=width, scale=scale)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"patch": 3}, "patch: got 3 for images of 8 x 8"),
        ({"patch": 8}, r"input_shape: got \(1, 8, 8\)"),
        ({"width": 13}, "width: got 13"),
        ({"hidden": 8}, "hidden: got 8"),
        ({"blocks": 0}, "blocks: got 0"),
        ({"scale": 0}, "scale: got 0"),
    ],
)
def test_sizes_of_the_convolutional_network_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model("orthogonal-cnn", (1, 8, 8), 10, **arguments)


def test_a_roll_moves_pixels_in_circles():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert Roll()(x).tolist() == [[[[5.0, 3.0, 4.0], [2.0, 0.0, 1.0]]]]


def test_the_windows_of_one_block_overlap_those_of_the_next():
    """After one block a pixel has met its window of 2 x 2; after two, the windows that touch it."""
    torch.manual_seed(0)
    network = create_model("orthogonal-cnn", (1, 8, 8), 2, patch=1, width=2, blocks=2, hidden=4)
    layers = list(network.layers)
    for mix in (layer for layer in layers if isinstance(layer, nn.Conv2d)):
        nn.init.orthogonal_(mix.parametrizations.weight.original)  # the blocks begin as the identity
    ends = [place for place, layer in enumerate(layers) if isinstance(layer, Roll)]
    for end, reached in zip(ends, (4, 16), strict=True):
        x = torch.rand(1, 1, 8, 8, requires_grad=True)
        met = nn.Sequential(*layers[: end + 1])(x)
        (gradient,) = torch.autograd.grad(met[0, :, 4, 4].sum(), x)
        assert int((gradient != 0).sum()) == reached


def certifier(network, shape=(1, 4, 4), classes=4):
    loss = nn.CrossEntropyLoss()
    return PyTorchLipschitzCertifier(network, loss, shape, classes, clip_values=(0, 1))


def test_the_network_s_proven_constants_are_its_scale():
    torch.manual_seed(0)
    network = create_model("orthogonal-mlp", (1, 4, 4), 4, width=8, depth=2, scale=3.0)
    constants = certifier(network).lipschitz_constants()
    apart = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(
        torch.as_tensor(constants)[apart], torch.full((12,), 3 * 2**0.5, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_windows_and_patches_cost_the_convolutional_network_s_constants_nothing():
    torch.manual_seed(0)
    network = create_model("orthogonal-cnn", (2, 6, 12), 3, patch=3, width=24, blocks=3, hidden=12, scale=2.0)
    constants = torch.as_tensor(certifier(network, (2, 6, 12), 3).lipschitz_constants())
    apart = ~torch.eye(3, dtype=torch.bool)
    expected = torch.full((6,), 2 * 2**0.5, dtype=torch.float64)
    torch.testing.assert_close(constants[apart], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("own", ["ours", "torch's orthogonal", "a Cholesky of their own"])
def test_orthogonal_networks_of_any_make_train_and_certify(own):
    class Cholesky(nn.Module):
        def forward(self, v):
            return torch.linalg.solve_triangular(torch.linalg.cholesky(v @ v.T), v, upper=False)

    shape = (1, 4, 4)
    torch.manual_seed(0)
    make = {
        "ours": orthogonal,
        "torch's orthogonal": parametrizations.orthogonal,
        "a Cholesky of their own": lambda layer: torch.nn.utils.parametrize.register_parametrization(
            layer, "weight", Cholesky()
        ),
    }[own]
    network = nn.Sequential(nn.Flatten(), make(nn.Linear(16, 8)), nn.ReLU(), make(nn.Linear(8, 4)))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    loss = nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(network, loss, shape, 4, optimizer, clip_values=(0, 1))
    y = torch.arange(32) % 4
    x = 0.05 * torch.rand(32, *shape)
    x[torch.arange(32), 0, y, y] += 0.9
    LipschitzMarginTrainer(classifier, c=0.2).fit(x.numpy(), y.numpy(), nb_epochs=30, batch_size=16, verbose=False)
    certified = PyTorchLipschitzCertifier.from_classifier(classifier)
    assert certified.certified_accuracy(x.numpy(), y.numpy(), 0.1) > 0.9
