"""Finding the processes of a task: alone without a launcher, and told so where the others do not come."""

from __future__ import annotations

import pytest
import torch

from art_robust_plugins import processes


def test_without_a_launcher_there_is_one_process() -> None:
    found = processes.find_processes(torch.device("cpu"))
    assert (found.num_processes, found.process_index) == (1, 0)
    assert found.is_main_process
    assert found.device == torch.device("cpu")


def test_processes_that_do_not_come_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(**_: object) -> None:
        raise torch.distributed.DistStoreError("timed out")

    monkeypatch.setattr(processes, "PartialState", wait)
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(ConnectionError, match=r"^processes: .* 7 ") as refusal:
        processes.find_processes()
    assert isinstance(refusal.value.__cause__, torch.distributed.DistError)
