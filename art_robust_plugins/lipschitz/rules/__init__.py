"""One rule for each ATen operation: from bounds of its inputs to a bound of its output.

A rule is a function of the `Call` and of the operation's own arguments, in ATen's order. Tensors that depend on the
network's input come as a `Value`; all others (weights, buffers, constants) as tensors with their current values. It
returns a `Value`, a tensor that does not depend on the input, or a tuple of these where the operation has several
outputs. An operation without a rule has no bound: there is no default.
"""

# Each module registers its rules when it is imported.
from . import (
    arithmetic,
    elementwise,
    linear,
    movement,
    normalization,
    pooling,
    softmax,
    unbounded,
    upsampling,
    writing,
)
from .registry import RULES, UNBOUNDED, NoLipschitzRuleError, Rule, lipschitz_rule
from .values import (
    SMALLEST,
    Call,
    Copy,
    Evaluation,
    Magnitude,
    Number,
    Scale,
    Value,
    same,
    scale_inputs,
    scale_outputs,
    scaled_inputs,
    scaled_outputs,
)

__all__ = [
    "RULES",
    "SMALLEST",
    "UNBOUNDED",
    "Call",
    "Copy",
    "Evaluation",
    "Magnitude",
    "NoLipschitzRuleError",
    "Number",
    "Rule",
    "Scale",
    "Value",
    "arithmetic",
    "elementwise",
    "linear",
    "lipschitz_rule",
    "movement",
    "normalization",
    "pooling",
    "same",
    "scale_inputs",
    "scale_outputs",
    "scaled_inputs",
    "scaled_outputs",
    "softmax",
    "unbounded",
    "upsampling",
    "writing",
]
