"""Values that an argument may be given, by its kind: what must work, what must be refused, and what may do either."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch

Expected = Literal["works", "refused", "either"]
Values = dict[str, tuple[Expected, Callable[[Any], Any]]]
"""Values by a text for each, as functions of a valid one."""


def _constant(expected: Expected, *values: Any) -> Values:
    return {_short(value): (expected, lambda valid, value=value: value) for value in values}


def _short(value: Any) -> str:
    return f"{type(value).__name__} {value!r}".replace("\n", " ")[:60]


def _scalar(expected: Expected, *kinds: Any) -> Values:
    return {f"{kind.__module__}.{kind.__name__}(valid)": (expected, lambda v, kind=kind: kind(v)) for kind in kinds}


class _Odd:
    def __repr__(self) -> str:
        return "an object"


def _quantised(x: Any) -> Any:
    return torch.quantize_per_tensor(torch.from_numpy(x), 0.1, 0, torch.quint8)


def _with(values: Any, one: Any) -> Any:
    changed = values.copy()
    changed.flat[0] = one
    return changed


def _read_only(x: Any) -> Any:
    view = x.view()
    view.flags.writeable = False
    return view


_NOTHING_SENSIBLE: Values = _constant(
    "refused", "x", "", b"x", [], {}, [[1], [2, 3]], _Odd(), 1j, math.nan, np.nan, np.array([1.0, 2.0]), np.array([])
)
_NONE: Values = _constant("refused", None)
_ANYTHING: Values = {
    name: ("either", make)
    for name, (_, make) in {
        **_NOTHING_SENSIBLE,
        **_NONE,
        **_constant("either", 0, -1, 1.5, True, math.inf, 10**400, "*", (), {"x": 1}, {"a"}, [None], ["x", 1], [""]),
        **_constant("either", int, len, torch.zeros(2), np.array(["a", None], dtype=object), [[["x"]]]),
    }.items()
}
_NO_NUMBER: Values = {
    **_NOTHING_SENSIBLE,
    **_NONE,
    **_constant("refused", True, False, np.bool_(True), -math.inf, math.inf, [0.5], torch.tensor([1.0, 2.0]), "0.5x"),
}

KINDS: dict[str, Values] = {
    "count": {
        **_NO_NUMBER,
        **_constant("refused", 0, -1, 1.5, "3", -(2**70), np.float64(1.5), Fraction(1, 2)),
        **_scalar("works", np.int64, np.int32, np.uint8),
        **_constant("either", 1.0, np.array(1), torch.tensor(1)),
    },
    "number": {
        **_NO_NUMBER,
        **_scalar("works", np.float32, np.float64),
        **_constant("either", 0, -1, 1e-320, 1e300, 10**400, -(10**400), Fraction(1, 3), Decimal("0.5"), np.array(0.5)),
        **_constant("either", np.longdouble(0.5), np.float16(0.5), torch.tensor(0.5), np.int8(1)),
    },
    "radius": {  # text such as "8/255" is one too
        **_NO_NUMBER,
        **_scalar("works", np.float32, np.float64),
        **_constant("works", "1/10", "0.1"),
        **_constant("refused", "1/0", "nan", "inf", "-1", "1e999", "8/255/2", -1, -0.5),
        **_constant("either", 1e-320, 1e300, 10**400, "1e99999999", Fraction(1, 3), Decimal("0.1"), np.array(0.1)),
    },
    "flag": {
        **_NOTHING_SENSIBLE,
        **_NONE,
        **_constant("refused", 0, 1, "True", "no", [True], np.array([True, False])),
        **_constant("either", np.bool_(True), torch.tensor(True)),
    },
    "choice": {
        **_NOTHING_SENSIBLE,
        **_NONE,
        **_constant("refused", 0, True, ["x"], ("x", "y"), {"x"}, int),
        **_scalar("either", np.str_),
    },
    "seed": {
        **_NO_NUMBER,
        **_constant("refused", -1, 1.5, "3", 2**70, -(2**70)),
        **_scalar("works", np.int64, np.uint8),
    },
    "threat": {**_NOTHING_SENSIBLE, **_NONE, **_constant("refused", "Linf", ("Linf", 0.1), 0.1, {"norm": "Linf"})},
    "classifier": {**_NOTHING_SENSIBLE, **_NONE, **_constant("refused", torch.nn.Linear(2, 2), 3, int)},
    "module": {**_NOTHING_SENSIBLE, **_NONE, **_constant("refused", torch.nn.Linear, 3, len)},
    "path": {**_NONE, **_constant("refused", 3, math.nan, _Odd(), 1j), **_constant("either", "", [], "\x00", {}, b"x")},
    "text": {**_NONE, **_constant("refused", 3, math.nan, _Odd(), 1j, [], b"x", True)},
    "options": {**_NOTHING_SENSIBLE, **_NONE, **_constant("refused", {"seed": 1}, 3, int)},
    "shape": {
        **{k: v for k, v in _NOTHING_SENSIBLE.items() if "array" not in k},
        **_NONE,
        **_constant("refused", 3, (0, 8, 8), (-1, 8, 8), (1.5, 8, 8), ("a", 8, 8), (math.nan, 8, 8), (None, 8, 8)),
        **_constant("refused", (True, 8, 8), np.array([0.5, 8, 8]), (2**70, 8, 8)),
        "as an array": ("works", np.array),
        "as a list": ("works", list),
        "as torch.Size": ("works", torch.Size),
    },
    "anything": _ANYTHING,
    "images": {
        **_NOTHING_SENSIBLE,
        **_NONE,
        **_constant("refused", 0, 0.5, True),
        "one not a number": ("refused", lambda x: _with(x, math.nan)),
        "one infinite": ("refused", lambda x: _with(x, math.inf)),
        "out of range": ("refused", lambda x: x + 7),
        "one image alone": ("refused", lambda x: x[0]),
        "an axis more": ("refused", lambda x: x[None]),
        "flat": ("refused", lambda x: x.reshape(len(x), -1)),
        "none of them": ("refused", lambda x: x[:0]),
        "fewer columns": ("refused", lambda x: x[..., :-1]),
        "complex": ("refused", lambda x: x.astype(complex)),
        "objects": ("refused", lambda x: x.astype(object)),
        "text": ("refused", lambda x: x.astype(str)),
        "a complex tensor": ("refused", lambda x: torch.from_numpy(x).to(torch.complex64)),
        "a tensor with NaN": ("refused", lambda x: torch.from_numpy(_with(x, math.nan))),
        "a list with None": ("refused", lambda x: [None] * len(x)),
        "float64": ("works", lambda x: x.astype(np.float64)),
        "a tensor": ("works", torch.from_numpy),
        "a tensor with gradient": ("works", lambda x: torch.from_numpy(x).requires_grad_()),
        "lists": ("works", lambda x: x.tolist()),
        "another order of memory": ("works", np.asfortranarray),
        "other byte order": ("works", lambda x: x.astype(">f4")),
        "reversed twice": ("works", lambda x: x[::-1][::-1]),
        "read only": ("works", _read_only),
        "float16": ("either", lambda x: x.astype(np.float16)),
        "bfloat16": ("either", lambda x: torch.from_numpy(x).bfloat16()),
        "uint8": ("either", lambda x: (x > 0.5).astype(np.uint8)),
        "bool": ("either", lambda x: x > 0.5),
        "float128": ("either", lambda x: x.astype(np.longdouble)),
        "a sparse tensor": ("either", lambda x: torch.from_numpy(x).to_sparse()),
        "a meta tensor": ("refused", lambda x: torch.from_numpy(x).to("meta")),
        "a quantised tensor": (
            "either",
            _quantised,
        ),
        "masked": ("either", lambda x: np.ma.masked_array(x, x > 0.5)),
        "a list of tensors": ("either", lambda x: list(torch.from_numpy(x))),
        "a memoryview": ("either", memoryview),
        "a generator": ("either", lambda x: (each for each in x)),
    },
    "labels": {
        **_NOTHING_SENSIBLE,
        **_NONE,
        **_constant("refused", 0, True),
        "one too many": ("refused", lambda y: np.append(y, 0)),
        "none of them": ("refused", lambda y: y[:0]),
        "a negative one": ("refused", lambda y: _with(y, -1)),
        "a class too many": ("refused", lambda y: _with(y, 99)),
        "a huge one": ("refused", lambda y: _with(y, 2**62)),
        "halves": ("refused", lambda y: y + 0.5),
        "not a number": ("refused", lambda y: _with(y.astype(float), math.nan)),
        "infinite": ("refused", lambda y: _with(y.astype(float), math.inf)),
        "objects": ("refused", lambda y: y.astype(object)),
        "text": ("refused", lambda y: y.astype(str)),
        "complex": ("refused", lambda y: y.astype(complex)),
        "a complex tensor": ("refused", lambda y: torch.from_numpy(y).to(torch.complex64)),
        "three axes": ("refused", lambda y: y[:, None, None]),
        "two hot": ("refused", lambda y: np.ones((len(y), 3))),
        "none hot": ("refused", lambda y: np.zeros((len(y), 3))),
        "hot with NaN": ("refused", lambda y: _with(np.eye(3)[y], math.nan)),
        "too few columns": ("refused", lambda y: np.eye(2)[y % 2]),
        "a list with None": ("refused", lambda y: [None] * len(y)),
        "a meta tensor": ("refused", lambda y: torch.from_numpy(y).to("meta")),
        "one-hot": ("works", lambda y: np.eye(3)[y]),
        "one-hot integers": ("works", lambda y: np.eye(3, dtype=int)[y]),
        "a column": ("works", lambda y: y[:, None]),
        "a tensor": ("works", torch.from_numpy),
        "a list": ("works", lambda y: y.tolist()),
        "uint8": ("works", lambda y: y.astype(np.uint8)),
        "int32": ("works", lambda y: y.astype(np.int32)),
        "other byte order": ("works", lambda y: y.astype(">i8")),
        "uint64": ("either", lambda y: y.astype(np.uint64)),
        "whole floats": ("either", lambda y: y.astype(np.float32)),
        "float128": ("either", lambda y: y.astype(np.longdouble)),
        "bool": ("either", lambda y: y > 0),
        "one-hot bool": ("either", lambda y: np.eye(3, dtype=bool)[y]),
        "one-hot tensor of bool": ("either", lambda y: torch.eye(3, dtype=torch.bool)[y]),
        "a sparse tensor": ("either", lambda y: torch.from_numpy(y).to_sparse()),
        "a generator": ("either", lambda y: (each for each in y)),
    },
}
