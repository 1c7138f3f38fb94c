"""Pairing samples with stored slots of another class."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from art_robust_plugins.training.instruments.pairing import other_class_slots

from ..methods.tiny import largest_matching

CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(CLASSES, CLASSES, st.floats(0, 1))
def test_pairings_are_of_different_classes_use_no_slot_twice_and_serve_as_many_as_possible(
    present: list[int], stored: list[int], turn: float
) -> None:
    slots, counts = other_class_slots(torch.tensor(present), torch.tensor(stored), turn)
    assert slots.shape == counts.shape == (len(present),)
    assert slots.min() >= 0
    assert slots.max() < len(stored)
    pairs = [(i, j) for i, (j, c) in enumerate(zip(slots.tolist(), counts.tolist(), strict=True)) if c]
    assert all(present[i] != stored[j] for i, j in pairs)
    assert len({j for _, j in pairs}) == len(pairs)
    assert len(pairs) == largest_matching(present, stored)
