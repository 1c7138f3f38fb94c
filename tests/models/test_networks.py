import math

import pytest
import torch
from torch import nn

from art_robust_plugins.models import (
    CNN2C2F,
    CNN6C2F,
    MODELS,
    LeNet,
    MinMax,
    PreActResNet18,
    QuickNet,
    SmallCNN,
    WideResNet,
    create_model,
)

SMALL = {"wide-resnet": {"depth": 10, "widen_factor": 1}}
SHAPES = {"lenet": (1, 28, 28), "small-cnn": (1, 8, 8)}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def list_weighted(network):
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (LeNet, 431_080),
        (QuickNet, 145_578),
        (lambda: CNN2C2F((1, 28, 28)), 166_406),
        (lambda: CNN6C2F((3, 32, 32)), 2_250_378),
        (PreActResNet18, 11_172_170),
        (lambda: PreActResNet18(final_norm=False), 11_171_146),
        (WideResNet, 36_479_194),
        (lambda: WideResNet(depth=40, widen_factor=2), 2_243_546),
        (lambda: WideResNet(depth=34), 46_160_474),
    ],
)
def test_parameter_counts_are_the_known_ones(make, count):
    with torch.device("meta"):
        assert parameters(make()) == count


@pytest.mark.parametrize("name", MODELS)
def test_a_network_gives_logits_and_can_be_made_again(name):
    network = create_model(name, SHAPES.get(name, (3, 32, 32)), 7, **SMALL.get(name, {}))
    assert isinstance(network, MODELS[name])
    twin = create_model(**network.recipe)
    twin.load_state_dict(network.state_dict())
    x = torch.rand(3, *SHAPES.get(name, (3, 32, 32)))
    logits = network.eval()(x)
    assert logits.shape == (3, 7)
    assert not torch.equal(logits[0], logits[1])
    assert torch.equal(logits, twin.eval()(x))


@pytest.mark.parametrize("size", range(8, 33))
def test_the_quick_net_fits_every_size(size):
    assert QuickNet((1, size, 40 - size))(torch.rand(1, 1, size, 40 - size)).shape == (1, 10)


@pytest.mark.parametrize("size", range(16, 33, 3))
def test_lenet_fits_every_size(size):
    assert LeNet((2, size, 16))(torch.rand(1, 2, size, 16)).shape == (1, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 5)])
def test_the_small_cnn_fits_digits_of_any_size(shape):
    network = SmallCNN(shape, 4, channels=5, hidden=6)
    assert network(torch.rand(2, *shape)).shape == (2, 4)
    assert network.layers[0].out_channels == 5


def test_lenet_starts_uniform_as_its_paper():
    for layer in list_weighted(LeNet()):
        bound = math.sqrt(3 / layer.weight[0].numel())
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)
        assert not layer.bias.any()


def test_the_quick_net_starts_gaussian_as_its_paper():
    layers = list_weighted(QuickNet())
    for layer, std in zip(layers, (1e-4, 1e-2, 1e-2, 0.1, 0.1), strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize("make", [PreActResNet18, lambda: WideResNet(depth=10, widen_factor=2)])
def test_residual_networks_start_as_he_et_al(make):
    torch.manual_seed(0)
    for layer in list_weighted(make()):
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight.numel() / layer.in_channels
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
            assert layer.bias is None


def test_a_pre_activation_block_is_its_formula():
    block = WideResNet(depth=10, widen_factor=2).stages[1][0].eval()
    x = torch.rand(2, 32, 8, 8)
    active = block.bn1(x).relu()
    expected = block.conv2(block.bn2(block.conv1(active)).relu()) + block.shortcut(active)
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 64, 4, 4)


def test_dropout_of_a_wide_resnet_stands_between_the_convolutions():
    torch.manual_seed(0)
    network = WideResNet(depth=10, widen_factor=1, dropout=0.3)
    x = torch.rand(2, 3, 8, 8)
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 3
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lennet", (1, 28, 28), 10), "name: got the model 'lennet',"),
        (("lenet", (1, 8, 8), 10), "input_shape: got (1, 8, 8),"),
        (("quick", (64,), 10), "input_shape: got (64,),"),
        (("small-cnn", (1, 8, 8), 1), "nb_classes: got 1,"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        create_model(*arguments)
    assert str(refusal.value).startswith(sentence)


def test_a_depth_that_is_no_wide_resnet_is_refused():
    with pytest.raises(ValueError, match=r"depth: got 20,"):
        create_model("wide-resnet", (3, 32, 32), 10, depth=20)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="widt"):
        create_model("small-cnn", (1, 8, 8), 10, widt=3)


def test_minmax_sorts_pairs_and_keeps_gradients_whole():
    x = torch.randn(3, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    sorted_pairs = torch.stack(x.chunk(2, dim=1)).sort(dim=0, descending=True).values
    assert torch.equal(MinMax()(x), sorted_pairs.transpose(0, 1).flatten(1, 2))
    seed = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(MinMax()(x), x, seed)
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), seed.flatten(1).norm(dim=1))
    with pytest.raises(ValueError, match="x: got 3 channels,"):
        MinMax()(torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["2c2f", "6c2f"])
def test_networks_for_certificates_take_their_options(name):
    network = create_model(name, (3, 32, 32), 10, activation="minmax", init="orthogonal")
    assert any(isinstance(module, MinMax) for module in network.modules())
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
    for layer in list_weighted(network):
        rows = layer.weight.detach().flatten(1)
        gram = rows @ rows.t() if rows.shape[0] <= rows.shape[1] else rows.t() @ rows
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
        assert not layer.bias.any()
    for wrong in ({"activation": "gelu"}, {"init": "xavier"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got '{next(iter(wrong.values()))}',"):
            create_model(name, (3, 32, 32), 10, **wrong)
    with pytest.raises(ValueError, match="at least 8 x 8"):
        create_model(name, (3, 7, 32), 10)
