"""Weight maps go where they should, into any kind of network, and everything that holds a network holds them."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import numpy as np
import pytest
import torch
from builders import make_linear
from torch import Tensor, nn

from art_robust_plugins import WeightMap2d, insert_weight_maps, weight_maps
from art_robust_plugins.lipschitz import LipschitzGraph
from art_robust_plugins.weight_map.insert import attach_described, describe_weight_maps

from .networks import NETWORKS, ResNet, Shared, sequential, settle

SHAPE = (1, 8, 8)
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def random_maps(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in weight_maps(network).values():
            layer.map.copy_(torch.rand(layer.map.shape, generator=generator) + 0.5)
    return network


@pytest.mark.parametrize("kind", NETWORKS)
def test_maps_follow_each_stages_first_block(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    make, places = NETWORKS[kind]
    network = settle(make())
    names = list(network.state_dict())
    expected = network(X)
    with caplog.at_level(logging.INFO):
        augmented = insert_weight_maps(network, SHAPE, kernel="identity")
    found = {name: (m.channels, m.height, m.width) for name, m in weight_maps(augmented).items()}
    assert found == places
    assert [record.message.split(":")[0] for record in caplog.records] == [f"weight map after {n}" for n in places]
    # Nothing of the given network changed, and with nothing learned the output is the same, bit for bit.
    assert weight_maps(network) == {}
    assert list(network.state_dict()) == names
    assert torch.equal(network(X), expected)
    assert torch.equal(augmented(X), expected)
    assert set(augmented.state_dict()) == {*names, *(f"{name}.weight_map.map" for name in places)}
    assert not torch.equal(insert_weight_maps(network, SHAPE)(X), expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_map_acts_on_the_output_of_its_module(kind: str) -> None:
    make, places = NETWORKS[kind]
    augmented = random_maps(insert_weight_maps(settle(make()), SHAPE, kernel="unsharp"))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in weight_maps(augmented).items():
        layer.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (x[0], y)}))
    augmented(X)
    assert list(seen) == list(places)
    for name, (before, after) in seen.items():
        torch.testing.assert_close(after, weight_maps(augmented)[name](before))


@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_load_before_or_after_the_insertion(kind: str) -> None:
    make, _ = NETWORKS[kind]
    pretrained = settle(make())
    before = insert_weight_maps(pretrained, SHAPE)
    after = insert_weight_maps(make(), SHAPE).eval()
    after.load_state_dict(pretrained.state_dict())
    assert torch.equal(before(X), after(X))
    again = insert_weight_maps(make(), SHAPE).eval()
    again.load_state_dict(random_maps(before).state_dict())
    assert torch.equal(again(X), before(X))


def test_some_of_the_maps_are_not_enough() -> None:
    augmented = insert_weight_maps(insert_weight_maps(sequential(), SHAPE), SHAPE, where="4")
    held = random_maps(copy.deepcopy(augmented)).state_dict()
    part = {name: tensor for name, tensor in held.items() if name != "6.weight_map.map"}
    for network in (augmented, copy.deepcopy(augmented), pickle.loads(pickle.dumps(augmented))):
        with pytest.raises(RuntimeError, match=r'Missing key.*"6.weight_map.map"'):
            network.load_state_dict(part)
        network.load_state_dict(held)
        within = {f"0.{name}": tensor for name, tensor in sequential().state_dict().items()}
        nn.Sequential(network).load_state_dict(within)
        assert all(torch.equal(layer.map, held[f"{n}.weight_map.map"]) for n, layer in weight_maps(network).items())


@pytest.mark.parametrize("kind", ["sequential", "resnet"])
def test_a_symbolic_trace_holds_the_maps(kind: str) -> None:
    augmented = random_maps(insert_weight_maps(settle(NETWORKS[kind][0]()), SHAPE, kernel="unsharp"))
    assert torch.equal(torch.fx.symbolic_trace(augmented)(X), augmented(X))


def test_onnx_holds_the_maps(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    augmented = random_maps(insert_weight_maps(settle(ResNet()), SHAPE, kernel="unsharp"))
    torch.onnx.export(augmented, (X,), tmp_path / "network.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), augmented(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_holds_the_network_holds_the_maps(kind: str) -> None:
    make, places = NETWORKS[kind]
    augmented = random_maps(insert_weight_maps(settle(make()), SHAPE))
    expected = augmented(X)
    whole = io.BytesIO()
    torch.save(augmented, whole)
    whole.seek(0)
    copies = [copy.deepcopy(augmented), pickle.loads(pickle.dumps(augmented)), torch.load(whole, weights_only=False)]
    described = settle(make())
    attach_described(described, describe_weight_maps(augmented))
    described.load_state_dict(augmented.state_dict())
    for other in [*copies, described]:
        assert list(weight_maps(other)) == list(places)
        assert torch.equal(other(X), expected)
    for strict in (False, True):
        exported = torch.export.export(augmented, (X,), strict=strict).module()
        torch.testing.assert_close(exported(X), expected)
    torch.testing.assert_close(torch.jit.trace(augmented, X)(X), expected)


@pytest.mark.parametrize("kind", ["sequential", "functional", "blocks", "resnet"])
def test_torchscript_holds_the_maps(kind: str) -> None:
    augmented = random_maps(insert_weight_maps(settle(NETWORKS[kind][0]()), SHAPE))
    torch.testing.assert_close(torch.jit.script(augmented)(X), augmented(X))


# The norms of the two largest take long.
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in ("6c2f", "preact-resnet18")])
@pytest.mark.parametrize("kernel", ["smoothing", "unsharp"])
def test_lipschitz_bounds_see_the_maps(kind: str, kernel: str) -> None:
    augmented = settle(insert_weight_maps(NETWORKS[kind][0](), SHAPE, kernel=kernel))
    bound = LipschitzGraph(augmented, SHAPE).upper_bound()
    doubled = copy.deepcopy(augmented)
    for layer in weight_maps(doubled).values():
        layer.map.data *= 2
    assert LipschitzGraph(doubled, SHAPE).upper_bound().lipschitz > bound.lipschitz
    network = copy.deepcopy(augmented).double()
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(20, *SHAPE, generator=generator, dtype=torch.float64)
    for size in (1e-3, 0.1, 1.0):
        y = x + size * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        slopes = (network(x) - network(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
        assert (slopes <= bound.lipschitz).all()


@pytest.mark.parametrize("kind", ["sequential", "functional", "resnet"])
@pytest.mark.parametrize("settings", [{"bias": True}, {"kernel": "unsharp", "padding_mode": "reflect"}])
def test_lipschitz_bounds_are_above_every_jacobian(kind: str, settings: dict) -> None:
    network = random_maps(settle(insert_weight_maps(NETWORKS[kind][0](), SHAPE, **settings))).double()
    constants = LipschitzGraph(network, SHAPE).upper_bound()
    generator = torch.Generator().manual_seed(4)
    for x in torch.randn(5, *SHAPE, generator=generator, dtype=torch.float64):
        jacobian = torch.func.jacrev(lambda image: network(image[None])[0])(x).flatten(1)
        assert torch.linalg.svdvals(jacobian)[0] <= constants.lipschitz
        rows = (jacobian[:, None] - jacobian[None]).norm(dim=2)
        assert (rows <= constants.pairwise).all()
        # Power iteration finds the same.
        vector = torch.ones(64, dtype=torch.float64)
        for _ in range(200):
            vector = jacobian.t() @ (jacobian @ vector)
            vector /= vector.norm()
        assert (jacobian @ vector).norm() <= constants.lipschitz


def test_the_bound_of_a_linear_network_is_the_norm_of_its_matrix() -> None:
    # One convolution, one map, one linear layer, each on its own: their norms multiply.
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(128, 5)).double()
    augmented = random_maps(insert_weight_maps(network, SHAPE, where="0", kernel="unsharp")).eval()
    bound = LipschitzGraph(augmented, SHAPE).upper_bound()
    matrix = torch.func.jacrev(lambda image: augmented(image[None])[0])(torch.zeros(SHAPE).double()).flatten(1)
    largest = float(torch.linalg.svdvals(matrix)[0])
    assert largest <= float(bound.lipschitz)
    kinds = [row.kind for row in bound.operators]
    assert kinds == ["Convolution", "Scale", "Convolution", "Linear"]
    scale = bound.operators[1]
    assert (scale.module, scale.input_shape) == ("0.weight_map", (2, 8, 8))
    assert scale.norm == pytest.approx(float(weight_maps(augmented)["0"].map.max()), rel=1e-6)
    product = torch.tensor([row.norm for row in bound.operators]).prod().item()
    assert product == pytest.approx(float(bound.lipschitz), rel=1e-5)


def test_the_trace_leaves_no_trace() -> None:
    network = sequential()
    network[0].eval()
    network[3].weight.requires_grad_(False)
    network[3].weight.grad = torch.ones_like(network[3].weight)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random_state = torch.get_rng_state()
    assert insert_weight_maps(network, SHAPE, inplace=True) is network
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for n, m in network.named_modules() if not n.endswith("weight_map")] == modes
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    assert not network[3].weight.requires_grad
    assert network[3].weight.grad.eq(1).all()
    assert all(len(m._forward_pre_hooks) == 0 for m in network.modules())
    assert sum(len(m._forward_hooks) for m in network.modules()) == 2


def test_where() -> None:
    network = ResNet()

    def places(where: object) -> list[str]:
        return list(weight_maps(insert_weight_maps(network, SHAPE, where=where)))

    assert places("conv1") == ["conv1"]
    assert places("layer?.1") == ["layer1.1", "layer2.1"]
    assert places(["relu", "layer1.*.conv1"]) == ["relu", "layer1.0.conv1", "layer1.1.conv1"]
    assert places(nn.BatchNorm2d)[:2] == ["bn1", "layer1.0.bn1"]
    assert places(lambda name, module: name.endswith("bn2")) == [f"layer{i}.{j}.bn2" for i in (1, 2) for j in (0, 1)]
    assert places("layer1") == ["layer1.1"]  # a Sequential's map is that of its last module
    assert places("avgpool") == ["avgpool"]
    nested = insert_weight_maps(nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.ReLU()), SHAPE, where="0")
    assert list(weight_maps(nested)) == ["0.0"]


def test_settings_reach_the_maps() -> None:
    augmented = insert_weight_maps(
        sequential().double(), SHAPE, kernel="unsharp", kernel_size=5, alpha=0.5, bias=True, padding_mode="circular"
    )
    layer = weight_maps(augmented)["2"]
    assert layer.settings == {
        "kernel": "unsharp",
        "kernel_size": 5,
        "alpha": 0.5,
        "bias": True,
        "padding_mode": "circular",
    }
    assert layer.map.dtype == torch.float64
    # The places do not depend on the kernel: the second stage, of 4x4 pixels, is smaller than a window of 5.
    assert list(weight_maps(augmented)) == ["2"]
    assert list(weight_maps(insert_weight_maps(sequential(), SHAPE, kernel="identity", kernel_size=5))) == ["2"]


class CallsItsChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 2, 3)])
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.layers[0].forward(x))


class Iterating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 2, 3, padding=1)
        self.two = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Ending(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self[0](x))


def test_a_sequential_with_a_forward_of_its_own_is_a_module_like_others() -> None:
    augmented = insert_weight_maps(nn.Sequential(Ending(nn.Conv2d(1, 2, 3))), SHAPE, where="0")
    assert list(weight_maps(augmented)) == ["0"]


def test_torchscript_inside_stays_as_it_is() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()))
    traced = torch.jit.trace(nn.Conv2d(3, 3, 3).eval(), torch.rand(2, 3, 8, 8))
    network = nn.Sequential(scripted, nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), traced)
    augmented = insert_weight_maps(network, SHAPE)
    assert list(weight_maps(augmented)) == ["2"]
    with pytest.raises(ValueError, match="the module '0' is TorchScript,"):
        insert_weight_maps(network, SHAPE, where="0")
    with pytest.raises(ValueError, match="model: got TorchScript,"):
        insert_weight_maps(scripted, SHAPE)


@pytest.mark.parametrize(
    ("network", "where", "sentence"),
    [
        (Shared(), "again", r"where: got 'again', but the module 'again' runs 2 times in a forward pass"),
        (ResNet(), "relu2", r"where: got 'relu2', which no module of the network fits"),
        (ResNet(), "fc", r"where: got 'fc', but the module 'fc' gives \(2, 10\),"),
        (ResNet(), nn.MaxPool2d, r"where: got MaxPool2d, which no module"),
        (ResNet(), [], r"where: got nothing"),
        (ResNet(), [3], r"where: got 3,"),
        (ResNet(), int, r"where: got <class 'int'>,"),
        (ResNet(), 5, r"where: got 5,"),
        (ResNet(), nn.ReLU(), r"where: got ReLU\(\),"),
        (ResNet(), "layer1.9", r"where: got 'layer1.9', .*'layer1.1'"),
        (make_linear(), None, r"^model: got a Sequential "),
        (nn.Conv2d(3, 2, 3), None, r"^model: .*\(1, 8, 8\)"),
        (nn.Sequential(Iterating()), "0", r"^where: .*'0' \(Iterating\) .*2"),
        (CallsItsChildren(), "layers.0", r"'layers\.0'"),
    ],
)
def test_what_cannot_have_a_map_is_refused(network: nn.Module, where: object, sentence: str) -> None:
    names = list(network.state_dict())
    with pytest.raises(ValueError, match=sentence):
        insert_weight_maps(network, SHAPE, where=where, inplace=True)
    assert list(network.state_dict()) == names
    assert weight_maps(network) == {}


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="kernel: got 'blur'"):
        insert_weight_maps(sequential(), SHAPE, kernel="blur")
    for shape in ((1, 0, 8), 8, None, (1, 8.0, 8), ()):
        with pytest.raises(ValueError, match=r"input_shape: got"):
            insert_weight_maps(sequential(), shape)
    assert list(weight_maps(insert_weight_maps(sequential(), np.array(SHAPE)))) == ["2", "6"]
    with pytest.raises(TypeError, match=r"model: got str,"):
        insert_weight_maps("abc", SHAPE)
    network = sequential()
    network.stream = (number for number in range(3))
    with pytest.raises(ValueError, match=r"model: .*\(TypeError: .*inplace=True"):
        insert_weight_maps(network, SHAPE)
    assert list(weight_maps(insert_weight_maps(network, SHAPE, inplace=True))) == ["2", "6"]
    augmented = insert_weight_maps(sequential(), SHAPE)
    with pytest.raises(ValueError, match=r"'2' .*weight map"):
        insert_weight_maps(augmented, SHAPE)
    assert list(weight_maps(insert_weight_maps(augmented, SHAPE, where="4"))) == ["2", "4", "6"]
    taken = sequential()
    taken[2].weight_map = 3
    with pytest.raises(ValueError, match=r"'2' .*'weight_map'"):
        insert_weight_maps(taken, SHAPE)
    with pytest.raises(ValueError, match="'99'"):
        attach_described(sequential(), [{"after": "99", "size": [1, 2, 2]}])


def test_a_map_of_ones_own_is_not_listed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), WeightMap2d(2, 8, 8), nn.ReLU())
    assert weight_maps(network) == {}
