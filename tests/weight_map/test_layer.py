"""The layer against a float64 oracle that sums windows place by place, and its exports."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import WeightMap2d
from art_robust_plugins.lipschitz import LipschitzGraph
from art_robust_plugins.weight_map import layer as layer_module
from art_robust_plugins.weight_map.layer import KERNEL_SIZES, KERNELS, PADDING_MODES

SETTINGS = [
    (kernel, size, mode)
    for kernel in KERNELS
    for size in (KERNEL_SIZES if kernel != "identity" else (3,))
    for mode in (PADDING_MODES if kernel != "identity" else ("zeros",))
]


def neighbour(place: int, length: int, mode: str) -> int | None:
    """The place that a window finds at a place that may lie outside the image; None for 0."""
    if 0 <= place < length:
        return place
    if mode == "zeros":
        return None
    if mode == "circular":
        return place % length
    if mode == "replicate":
        return min(max(place, 0), length - 1)
    return -place if place < 0 else 2 * (length - 1) - place


def oracle(x: Tensor, layer: WeightMap2d) -> Tensor:
    """The definition in float64."""
    m = x.double() * layer.map.detach().double()
    if layer.bias is not None:
        m = m + layer.bias.detach().double()
    if layer.kernel == "identity":
        return m
    mean = torch.zeros_like(m)
    reach, (height, width) = layer.kernel_size // 2, m.shape[2:]
    for i in range(height):
        for j in range(width):
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    row = neighbour(i + di, height, layer.padding_mode)
                    column = neighbour(j + dj, width, layer.padding_mode)
                    if row is not None and column is not None:
                        mean[:, :, i, j] += m[:, :, row, column] / layer.kernel_size**2
    return mean if layer.kernel == "smoothing" else m + layer.alpha * (m - mean)


def make(kernel: str, size: int, mode: str, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> WeightMap2d:
    torch.manual_seed(0)
    layer = WeightMap2d(2, 4, 5, kernel=kernel, kernel_size=size, alpha=0.7, bias=bias, padding_mode=mode, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize(("kernel", "size", "mode"), SETTINGS)
def test_the_output_is_that_of_the_definition(kernel: str, size: int, mode: str) -> None:
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    for bias in (False, True):
        layer = make(kernel, size, mode, bias=bias)
        torch.testing.assert_close(layer(x), oracle(x, layer), rtol=0, atol=1e-14)
        single = copy.deepcopy(layer).float()
        torch.testing.assert_close(single(x.float()).double(), oracle(x, layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "size", "mode"), SETTINGS)
def test_gradients_are_those_of_the_definition(kernel: str, size: int, mode: str) -> None:
    layer = make(kernel, size, mode)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    gradients = torch.autograd.grad((layer(x) * direction).sum(), [x, *layer.parameters()])
    # The layer is linear in each of x, M and B: unit steps give the slopes.
    with torch.no_grad():
        for variable, gradient in zip([x, *layer.parameters()], gradients, strict=True):
            flat, slopes = variable.data.view(-1), gradient.flatten()
            before = (oracle(x, layer) * direction).sum()
            for place in range(0, len(flat), 7):
                flat[place] += 1
                assert (oracle(x, layer) * direction).sum() - before == pytest.approx(slopes[place].item(), abs=1e-12)
                flat[place] -= 1


def test_at_first_it_is_the_plain_kernel_with_the_borders_of_the_docstring() -> None:
    ones = torch.ones(1, 1, 5, 5)
    smooth = WeightMap2d(1, 5, 5)(ones)[0, 0]
    assert smooth[2, 2].item() == pytest.approx(1)
    assert (smooth[0, 2].item(), smooth[0, 0].item()) == (pytest.approx(2 / 3), pytest.approx(4 / 9))
    sharp = WeightMap2d(1, 5, 5, kernel="unsharp", alpha=0.5)(ones)[0, 0]
    assert sharp[2, 2].item() == pytest.approx(1)
    assert (sharp[0, 2].item(), sharp[0, 0].item()) == (pytest.approx(1 + 0.5 / 3), pytest.approx(1 + 0.5 * 5 / 9))
    for mode in ("reflect", "replicate", "circular"):
        for kernel in ("smoothing", "unsharp"):
            torch.testing.assert_close(WeightMap2d(1, 5, 5, kernel=kernel, padding_mode=mode)(ones), ones)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(WeightMap2d(3, 6, 6, kernel="identity")(x), x)


@pytest.mark.parametrize(("kernel", "size", "mode"), SETTINGS)
def test_type_and_memory_format_of_the_input_are_kept(kernel: str, size: int, mode: str) -> None:
    layer = make(kernel, size, mode, dtype=torch.float32)
    x = torch.rand(3, 2, 4, 5)
    expected = layer(x)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    for dtype in (torch.float64, torch.bfloat16):
        output = layer(x.to(dtype))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)


def test_a_large_batch_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make("unsharp", 3, "zeros")
    x = torch.randn(9, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    whole = layer(x)
    expected = torch.autograd.grad(whole.square().sum(), [x, *layer.parameters()])
    monkeypatch.setattr(layer_module, "_PART", 85)  # two samples at a time
    parts = layer(x)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    for gradient, other in zip(
        torch.autograd.grad(parts.square().sum(), [x, *layer.parameters()]), expected, strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("kernel", "size", "mode"), SETTINGS)
def test_exports_give_the_same(kernel: str, size: int, mode: str) -> None:
    layer = make(kernel, size, mode, bias=mode == "zeros", dtype=torch.float32)
    x = torch.rand(3, 2, 4, 5)
    expected = layer(x)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for other in (
        exported,
        torch.jit.script(layer),
        torch.jit.trace(layer, x),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    ):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(exported(x[:2]), expected[:2], rtol=0, atol=1e-7)


def test_torchscript_in_float64_is_as_precise() -> None:
    layer, x = make("unsharp", 3, "zeros"), torch.rand(3, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("kernel", "mode"), [("identity", "zeros"), ("unsharp", "zeros"), ("smoothing", "reflect")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_vmap_gives_the_same(kernel: str, mode: str, channels_last: bool) -> None:
    layer, x = make(kernel, 3, mode), torch.rand(6, 2, 4, 5, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    mapped = torch.vmap(layer)(x.unflatten(0, (3, 2)))
    torch.testing.assert_close(mapped.flatten(0, 1), layer(x), rtol=0, atol=1e-14)


def test_onnx_gives_the_same(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer, x = make("unsharp", 3, "reflect", dtype=torch.float32), torch.rand(3, 2, 4, 5)
    torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "layer.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), layer(x), rtol=0, atol=1e-6)


def test_state_dicts() -> None:
    layer = make("smoothing", 3, "zeros")
    assert list(layer.state_dict()) == ["map", "bias"]
    before = layer.map.detach().clone()
    with pytest.raises(RuntimeError, match="bias"):
        layer.load_state_dict({"map": before})
    layer.reset_parameters()
    assert layer.map.eq(1).all()
    assert layer.bias.eq(0).all()


def test_another_size_is_an_error_that_names_both() -> None:
    layer = WeightMap2d(2, 4, 5)
    for shape in [(1, 2, 5, 5), (1, 1, 4, 5), (2, 4, 5)]:
        with pytest.raises(ValueError, match=r"^x: got shape .*,") as error:
            layer(torch.rand(shape))
        assert str(list(shape)) in str(error.value)
    with pytest.raises(ValueError, match="floating point"):
        layer(torch.ones(1, 2, 4, 5, dtype=torch.int64))
    with pytest.raises(Exception, match="size"):
        torch.jit.script(layer)(torch.rand(1, 2, 5, 5))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kernel": "gaussian"}, "kernel: got 'gaussian',"),
        ({"kernel_size": 4}, "kernel_size: got 4,"),
        ({"kernel_size": True}, "kernel_size: got True"),
        ({"kernel_size": 3.0}, "kernel_size: got 3.0,"),
        ({"kernel": np.array(["smoothing", "unsharp"])}, r"kernel: got array\(.*,"),
        ({"alpha": -1}, "alpha: got -1,"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"bias": 1}, "bias: got 1,"),
        ({"padding_mode": "same"}, "padding_mode: got 'same',"),
        ({"padding_mode": "reflect", "kernel_size": 5, "height": 2}, r"5.* 2x4.* 3x3"),
        ({"channels": 0}, "channels: got 0,"),
        ({"width": 2.0}, "width: got 2.0"),
    ],
)
def test_bad_settings(settings: dict, sentence: str) -> None:
    size = {name: settings.pop(name, 4) for name in ("channels", "height", "width")}
    with pytest.raises(ValueError, match=sentence):
        WeightMap2d(*size.values(), **settings)


def test_whole_numbers_of_numpy_are_numbers() -> None:
    layer = WeightMap2d(np.int64(2), np.int64(4), np.int32(5), kernel_size=np.int64(3))
    assert type(layer.channels) is type(layer.kernel_size) is int
    torch.testing.assert_close(torch.jit.script(layer)(torch.ones(1, 2, 4, 5)), layer(torch.ones(1, 2, 4, 5)))


@pytest.mark.parametrize(("kernel", "size", "mode"), SETTINGS)
@pytest.mark.parametrize("bias", [False, True])
def test_its_lipschitz_bound_is_the_largest_weight_times_the_kernels_norm(
    kernel: str, size: int, mode: str, bias: bool
) -> None:
    layer = make(kernel, size, mode, bias=bias)
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 40, bias=False, dtype=torch.float64)).eval()
    nn.init.eye_(network[2].weight)
    bound = float(LipschitzGraph(network, (2, 4, 5)).upper_bound().lipschitz)

    def norm_of(function: nn.Module) -> float:
        """The dense operator's largest singular value, and that of power iteration, which must agree."""
        zero = function(torch.zeros(1, 2, 4, 5, dtype=torch.float64))
        basis = torch.eye(40, dtype=torch.float64).view(40, 2, 4, 5)
        matrix = (function(basis) - zero).flatten(1).t().detach()
        vector = torch.ones(40, dtype=torch.float64) + torch.arange(40) * 0.01
        for _ in range(3000):
            vector = matrix.t() @ (matrix @ vector)
            vector /= vector.norm()
        largest = float(torch.linalg.svdvals(matrix)[0])
        assert float((matrix @ vector).norm()) == pytest.approx(largest, rel=1e-6)
        return largest

    assert norm_of(layer) <= bound
    plain = copy.deepcopy(layer)
    plain.reset_parameters()
    exact = norm_of(plain) * float(layer.map.detach().abs().max())
    assert exact <= bound <= exact * (1 + 1e-6)
    if mode == "zeros":
        assert norm_of(plain) <= {"smoothing": 1, "unsharp": 1 + 2 * 0.7, "identity": 1}[kernel] + 1e-12
