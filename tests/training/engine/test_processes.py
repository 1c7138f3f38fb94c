"""Shares of a batch, and what processes say to each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch

from art_robust_plugins.training.processes import Processes, ProcessLostError, Share

from .process_cases import refusal


class One:
    """A process of several, as `Share` sees it, without the others."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count


@pytest.mark.parametrize(("whole", "count"), [(8, 2), (7, 2), (1, 2), (10, 4), (3, 4)])
def test_shares_are_a_partition_as_even_as_possible(whole: int, count: int) -> None:
    shares = [Share(One(index, count), whole) for index in range(count)]  # type: ignore[arg-type]
    counted = [range(whole)[share.rows] for share in shares if share.size]
    assert list(chain.from_iterable(counted)) == list(range(whole))
    assert max(share.size for share in shares) - min(share.size for share in shares) <= 1
    # A mean over processes of the weighted means over shares is the mean over the samples.
    values = torch.arange(whole, dtype=torch.float64) ** 2
    means = [values[share.rows].mean() * share.weight for share in shares]
    assert float(sum(means)) / count == pytest.approx(float(values.mean()))
    copies = torch.cat([values, -values])
    for share in shares:
        assert torch.equal(share.select(copies), torch.cat([values[share.rows], -values[share.rows]]))


class Pair(Processes):
    """This process as the first of two, of which the other one is not there."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), moment="at noon", advice="wait.")
        self.count = 2


def test_what_ends_a_wait_is_said_unless_it_is_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def all_reduce(*_: object) -> None:
            raise error

        return all_reduce

    monkeypatch.setattr(torch.distributed, "all_reduce", failing(RuntimeError("Connection closed\nby peer")))
    sentence = r"^another process .* at noon.*Connection closed.*wait\.$"
    with pytest.raises(ProcessLostError, match=sentence):
        Pair().wait()
    monkeypatch.setattr(torch.distributed, "all_reduce", failing(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        Pair().sum(torch.zeros(1))


def test_settings_of_several_processes_are_compared_in_full_and_shown_where_they_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compare(one: dict[str, str], other: dict[str, str]) -> str:
        def gather(everyone: list[Any], _: object) -> None:
            everyone[:] = [one, other]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        return refusal(lambda: Pair().check_same_settings(one))

    long = "a" * 500
    assert compare({"x": long, "y": "1"}, {"x": long, "y": "2"}).startswith("ValueError: y: got 1 in process 0 and 2")
    assert compare({"x": "1"}, {}).startswith("ValueError: x: got 1 in process 0 and none in process 1,")
    said = compare({"x": f"{long}0{long}"}, {"x": f"{long}1{long}"})
    shown = [f"...{'a' * 30}{digit}{'a' * 29}..." for digit in "01"]
    assert said.startswith(f"ValueError: x: got {shown[0]} in process 0 and {shown[1]} in process 1,")


def test_earlier_names_of_a_share_still_work_and_warn() -> None:
    share, values = Share(One(1, 2), 7), torch.arange(7.0)  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match="select"):
        assert torch.equal(share.of_copies(values), values[share.rows])
