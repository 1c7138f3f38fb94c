"""The table of rules, one for each ATen operation, and the decorator that registers a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch._ops import OpOverload

Rule = Callable[..., Any]
_R = TypeVar("_R", bound=Rule)

RULES: dict[OpOverload, Rule] = {}
"""The registered rules. The exported graph keeps these operations whole and decomposes all others."""


class NoLipschitzRuleError(ValueError):
    """An operation of the network has no Lipschitz bound; the message names it, its node and its module."""


def lipschitz_rule(*operations: OpOverload) -> Callable[[_R], _R]:
    """Register the decorated function as the rule of one or more ATen operations; it replaces an earlier rule.

    A rule must hold for all inputs: whoever registers one vouches for every certificate of a network that uses it.

    Raises:
        TypeError: for anything but an overload of an operation, such as ``torch.sin`` or ``torch.ops.aten.sin``.

    Example:
        >>> import torch
        >>> @lipschitz_rule(torch.ops.aten.sin.default)
        ... def _sin(call, x):
        ...     return call.function(x, 1.0)  # |sin'| <= 1
    """
    for operation in operations:
        if not isinstance(operation, OpOverload):
            raise TypeError(
                f"operations: got {operation!r}, expected an overload of an operation, as torch.ops.aten.sin.default."
            )

    def register(rule: _R) -> _R:
        for operation in operations:
            RULES[operation] = rule
        return rule

    return register


UNBOUNDED: dict[OpOverload, str] = {}
"""Operations without a rule, each with the reason."""
