"""Digests: equal for equal content in every process, different for whatever differs."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_linear
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from art_robust_plugins import fingerprints
from art_robust_plugins.fingerprints import describe_module, describe_value, digest, excerpts_at_difference

VALUES: list[Any] = [
    *(None, 0, 0.0, False, "0", "", b"0", 0j, np.float32(0), np.int64(0), torch.float32),
    *([], (), {}, set(), [0], (0,), [[0]], [0, 0], {0: 0}, {0}, {"a": 1, "b": 2}, {"b": 1, "a": 2}),
    *(np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, ">f8")),
    *(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, -0.0])),
    *(torch.zeros(2).to_sparse(), ["ab", "c"], ["a", "bc"], object()),
]


def test_what_differs_has_another_digest() -> None:
    for one, other in combinations(VALUES, 2):
        assert digest(*describe_value(one)) != digest(*describe_value(other)), (one, other)


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_texts_do_not_run_into_each_other(one: list[str], other: list[str]) -> None:
    one, other = ([text.replace("\0", "") for text in texts] for texts in (one, other))
    assert (digest(*one) == digest(*other)) == (one == other)


def test_only_the_values_of_a_tensor_count() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert digest(x) == digest(x.t().contiguous().t()) == digest(x.clone().requires_grad_())
    assert digest(x) != digest(x.t())


def test_a_set_has_the_same_digest_in_every_process() -> None:
    code = "from art_robust_plugins.fingerprints import *; print(digest(*describe_value({'a', 'b', 'c', 'd'})))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {digest(*describe_value({"d", "c", "b", "a"}))}


def test_modules_differ_by_their_text_their_names_and_one_weight() -> None:
    torch.manual_seed(0)
    network = make_linear(4, 3)
    own = digest(*describe_module(network))
    same = make_linear(4, 3)
    assert digest(*describe_module(same)) != own
    same.load_state_dict(network.state_dict())
    assert digest(*describe_module(same)) == own
    named = nn.Sequential(network[0], nn.Sequential(network[1]))
    assert digest(*describe_module(named)) != own
    with torch.no_grad():
        same[1].weight[2, 3] = torch.nextafter(same[1].weight[2, 3], torch.tensor(9.0))
    assert digest(*describe_module(same)) != own


@pytest.mark.parametrize("at", [0, 5, 50, 99])
def test_excerpts_show_the_first_difference(at: int) -> None:
    one = "".join(chr(ord("a") + index % 26) for index in range(100))
    other = f"{one[:at]}!{one[at + 1 :]}"
    shown = excerpts_at_difference(one, other, width=20)
    assert "!" not in shown[0]
    assert "!" in shown[1]
    assert all(text.strip(".") in full and len(text) <= 26 for text, full in zip(shown, (one, other), strict=True))
    assert excerpts_at_difference("same", "same") == ("same", "same")


@pytest.mark.parametrize("shape", [(0,), (3,), (5, 7)])
def test_a_tensor_counts_as_another_type_in_parts(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    x = torch.randint(256, shape, dtype=torch.uint8)
    expected = digest(x.float())
    monkeypatch.setattr(fingerprints, "_AT_ONCE", 2)
    assert digest(x, dtype=torch.float32) == expected == digest(x.float())
    assert digest(x) != expected
