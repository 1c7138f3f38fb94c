"""What a network must put out, and what helps where it does not: one check for all who take a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

_ITS_LOSS = "a single output goes with BCEWithLogitsLoss (a logit) or BCELoss (a probability)"


def check_outputs(outputs: object, classes: int, *, single: bool, otherwise: str = _ITS_LOSS) -> None:
    """Refuse outputs for two inputs that are not logits [2, classes].

    Args:
        outputs: what the network returned.
        classes: how many classes there are.
        single: a network of two classes may have one output, [2, 1] or [2].
        otherwise: what to do about one output where it may not.

    Raises:
        ValueError: for other outputs; the sentence names a wrapper where they hold logits.
    """
    expected: tuple[int, ...] = (2, classes)
    shapes = {expected, (2, 1), (2,)} if single and classes == 2 else {expected}
    if isinstance(outputs, Tensor) and tuple(outputs.shape) in shapes:
        if not outputs.is_floating_point():
            raise ValueError(
                f"classifier: the network's outputs are {outputs.dtype}, expected logits in floating point, float32 "
                f"or what converts to it; a class that was already chosen has no logits."
            )
        return
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    advice = ""
    if isinstance(outputs, Tensor):
        if classes == 2 and tuple(outputs.shape) in {(2, 1), (2,)}:
            advice = f"; {otherwise}"
    else:
        path = next(_paths_to_logits(outputs, shapes), None)
        inside = "one tensor of logits" if path is None else f"self.network(x){path}"
        advice = f"; wrap the network in a torch module whose forward(self, x) returns {inside}"
    raise ValueError(f"classifier: the network's output for 2 inputs is {found}, expected a tensor {expected}{advice}.")


def _paths_to_logits(outputs: object, shapes: set[tuple[int, ...]], depth: int = 3) -> Iterator[str]:
    """How to reach tensors of these shapes within ``outputs``, as code."""
    if isinstance(outputs, Tensor):
        if tuple(outputs.shape) in shapes:
            yield ""
    elif depth:
        for step, value in _parts(outputs):
            yield from (step + rest for rest in _paths_to_logits(value, shapes, depth - 1))


def _parts(outputs: Any) -> Iterator[tuple[str, object]]:
    if isinstance(outputs, Mapping):
        for key, value in outputs.items():
            attribute = isinstance(key, str) and key.isidentifier() and getattr(outputs, key, None) is value
            yield (f".{key}" if attribute else f"[{key!r}]"), value
    elif isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        for name in outputs._fields:
            yield f".{name}", getattr(outputs, name)
    elif isinstance(outputs, tuple | list):
        for index, value in enumerate(outputs):
            yield f"[{index}]", value
    elif is_dataclass(outputs):
        for field in fields(outputs):
            yield f".{field.name}", getattr(outputs, field.name)
    else:
        for name, value in getattr(outputs, "__dict__", {}).items():
            yield f".{name}", value
