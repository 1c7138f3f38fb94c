"""Networks of many kinds of layers, for images of 3x8x8, with statistics as after training."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from art_robust_plugins.models import create_model

from .builders import Network, head

IMAGE = (3, 8, 8)


def with_statistics(network):
    """Batch norms with weights and statistics as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return network


def functional_relu():
    def forward(x, first, second, last):
        return last(functional.relu(second(functional.relu(first(x)))))

    return Network(forward, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2), head(72))


def in_place():
    def forward(x, first, last):
        x = first(x)
        x += 0.5 * torch.tanh(x)
        x.mul_(2.0)
        x[:, 0] = 0
        return last(x.relu_())

    return Network(forward, nn.Conv2d(3, 4, 3), head(144))


def reused_module():
    def forward(x, first, shared, last):
        x = torch.relu(first(x))
        for _ in range(3):
            x = torch.relu(shared(x))
        return last(x)

    return Network(forward, nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), head(216))


def residual():
    def forward(x, first, norm, second, third, last):
        x = first(x)
        x = x + third(torch.relu(norm(second(x))))
        return last(functional.adaptive_avg_pool2d(torch.relu(x), 1))

    parts = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1))
    return Network(forward, *parts, head(6))


def linear_residual():
    def forward(x, first, second, norm, last):
        x = torch.relu(first(x))
        return last(torch.relu(x - 0.5 * second(x)) + norm(second(x)))

    parts = (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6))
    return Network(forward, *parts, head(216))


def dense_concat():
    def forward(x, first, second, last):
        x = torch.cat([x, torch.relu(first(x))], 1)
        x = torch.cat([x, torch.relu(second(x)), x[:, :2], torch.zeros_like(x)], 1)
        return last(functional.avg_pool2d(x, 2))

    return Network(forward, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1), head(20 * 16))


def pools():
    def forward(x, first, last):
        x = first(x)
        a = functional.max_pool2d(x, 3, 2, 1)
        b = functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)[..., :4, :4]
        c = functional.adaptive_max_pool2d(x, 3)
        d = functional.adaptive_avg_pool2d(x, 3)
        e = functional.max_pool2d(x, 2, 1, dilation=2).amax((2, 3))
        f = functional.avg_pool2d(x, 3, 1, 1, divisor_override=5).mean((2, 3))
        g = functional.max_pool1d(x.flatten(2), 3, 2).sum(2) / 10 + x.logsumexp((2, 3))
        return last(torch.cat([value.flatten(1) for value in (a, b, c, d, e, f, g)], 1))

    return Network(forward, nn.Conv2d(3, 4, 3, padding=1), head(4 * (16 + 16 + 9 + 9 + 3)))


def shape_arithmetic():
    def forward(x, first, last):
        batch, channels, height, _ = x.shape
        x = x.reshape(batch, channels * 4, height // 2, -1).permute(0, 1, 3, 2)
        x = functional.pixel_shuffle(functional.gelu(first(x)), 2).flip(2).roll(1, 3)
        left, right = x.chunk(2, dim=3)
        x = functional.silu(left) - right.transpose(2, 3).transpose(2, 3) / 3
        return last(x[:, :, 1:-1, ::2].contiguous().view(x.size(0), -1))

    return Network(forward, nn.Conv2d(12, 8, 3, padding=1), nn.Linear(2 * 6 * 2, 4))


class Normalised(nn.Module):
    """Constants of the network's own: a buffer, a plain tensor, numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.deviation = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), head(384)

    def forward(self, x):
        return self.last(functional.leaky_relu(self.first((x - self.mean) / self.deviation), 0.2)) * 0.7 + 1


def make_parametrised():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
        nn.PReLU(6),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(216, 16)),
        nn.ELU(1.5),
        nn.utils.spectral_norm(nn.Linear(16, 16)),
        nn.Softplus(),
        parametrizations.weight_norm(nn.Linear(16, 4)),
    )


def min_max():
    def forward(x, first, second, last):
        for layer in (first, second):
            a, b = layer(x).chunk(2, dim=1)
            x = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)
        x = x.view(len(x), 4, 2, 8, 8).sort(2).values.flatten(1, 2)
        return last(x)

    return Network(forward, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), head(512))


def paddings():
    def forward(x, circular, reflect, replicate, same, last):
        x = torch.relu(functional.pad(circular(x), (1, 0, 2, 1)))
        x = torch.relu(reflect(functional.pad(x, (0, 1))))
        return last(torch.relu(same(torch.relu(replicate(x)))))

    modes = [
        nn.Conv2d(i, 4, 3, padding=1, padding_mode=m) for i, m in ((3, "circular"), (4, "reflect"), (4, "replicate"))
    ]
    return Network(forward, *modes, nn.Conv2d(4, 4, 2, padding="same"), head(4 * 11 * 10))


def make_transposed():
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, 2, groups=2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4), nn.Hardswish(), nn.Dropout(), head(4 * 49), nn.BatchNorm1d(4))


def functional_matrices():
    def forward(x, first, last):
        x = x.flatten(1) @ first.weight.t() + first.bias
        x = torch.sigmoid(x.view(-1, 4, 4))
        x = torch.matmul(first.weight[:4, :4], x) - torch.einsum("nij,jk->nik", x, first.weight[:4, :4])
        return last(functional.mish(x))

    return Network(forward, nn.Linear(192, 16), head(16))


def no_linear_end():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def three_dimensions():
    def forward(x, first, second, last):
        x = functional.max_pool3d(torch.relu(first(x[:, None])), (1, 2, 2))
        x = functional.avg_pool3d(functional.interpolate(x, scale_factor=2), 3, 2, 1)
        return last(second(x.flatten(2)))

    return Network(forward, nn.Conv3d(1, 4, 3, padding=1), nn.Conv1d(4, 3, 3, padding=1), head(144))


ARCHITECTURES = {
    function.__name__: function
    for function in (
        functional_relu,
        in_place,
        reused_module,
        residual,
        linear_residual,
        dense_concat,
        pools,
        shape_arithmetic,
        Normalised,
        make_parametrised,
        min_max,
        paddings,
        make_transposed,
        functional_matrices,
        no_linear_end,
        three_dimensions,
    )
}
ARCHITECTURES |= {
    "small-cnn": lambda: create_model("small-cnn", IMAGE, 4, channels=4, hidden=16),
    "quick": lambda: create_model("quick", IMAGE, 4),
    "wide-resnet": lambda: create_model("wide-resnet", IMAGE, 4, depth=10, widen_factor=1),
}


def make_network(name):
    torch.manual_seed(0)
    return with_statistics(ARCHITECTURES[name]()).eval()
