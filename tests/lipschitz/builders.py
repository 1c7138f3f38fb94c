"""Networks, classifiers and certifiers that the tests of this folder share."""

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins import PyTorchLipschitzCertifier
from art_robust_plugins.lipschitz import LipschitzGraph

COLOURS = (3, 6, 6)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Network(nn.Module):
    """A network given by a function of the input and of its modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def head(inputs, classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def bound_before_last(function, *modules, shape=(3, 8, 8)):
    """The bound of a function of the input, before a flat sum of its outputs."""
    network = Network(function, *modules).eval()
    x = torch.zeros(1, *shape)
    size = network(x).numel()
    network = Network(lambda x, inner, last: last(inner(x).flatten(1)), network, nn.Linear(size, 2)).eval()
    return LipschitzGraph(network, shape).upper_bound().before_last.item()


def settings(network, shape=COLOURS, classes=4, **given):
    optimizer = torch.optim.SGD(network.parameters(), 0.1) if list(network.parameters()) else None
    defaults = {"clip_values": (0, 1), "optimizer": optimizer, "device_type": "cpu"}
    return {"model": network, "loss": nn.CrossEntropyLoss(), "input_shape": shape, "nb_classes": classes} | {
        **defaults,
        **given,
    }


def make_classifier(network, *arguments, **given):
    return PyTorchClassifier(**settings(network, *arguments, **given))


def make_certifier(network, *arguments, **given):
    return PyTorchLipschitzCertifier.from_classifier(make_classifier(network, *arguments, **given))


def conv(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(32, 4))
    nn.init.uniform_(network[1].running_var, 0.5, 2.0)
    nn.init.normal_(network[1].running_mean)
    return network.eval()


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    layer.weight.data = torch.as_tensor(weight, dtype=torch.float32)
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias, dtype=torch.float32)
    return layer


def draw_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


X = draw_images(40, *COLOURS)


def divide_margins(logits, constants):
    """min over j != t of (f_t - f_j) / K_tj."""
    t = logits.argmax(axis=1)
    rows = np.arange(len(t))
    ratios = (logits[rows, t][:, None] - logits) / np.where(constants[t] == 0, np.nan, constants[t])
    ratios[rows, t] = np.inf
    return t, ratios.min(axis=1)


def row_distances(weight):
    return np.linalg.norm(weight[:, None] - weight[None], axis=2)


def make_normalising(network, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network
            self.register_buffer("mean", mean)
            self.std = std  # a plain tensor, of float32

        def forward(self, x):
            return self.inner((x - self.mean) / self.std)

    return Normalising().eval()
