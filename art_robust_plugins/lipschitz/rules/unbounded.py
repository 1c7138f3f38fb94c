"""Why some operations have no rule: what is said when a network uses them."""

from __future__ import annotations

import torch

from .registry import UNBOUNDED

aten = torch.ops.aten

UNBOUNDED.update(
    {
        aten.native_layer_norm.default: "it divides by the input's own deviation, which may be near zero",
        aten.native_group_norm.default: "it divides by the input's own deviation, which may be near zero",
        aten._native_batch_norm_legit.no_stats: "it divides by the deviation of the batch or the input itself",
        aten._softmax.default: "softmax inside a network is attention or a probability, expected logits",
        aten.native_dropout.default: "dropout acts in evaluation mode too, so the network is random",
    }
)
