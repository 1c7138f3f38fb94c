"""Files that are written whole, and come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from art_robust_plugins.files import (
    load_state,
    load_tensors,
    read_json,
    save_state,
    save_tensors,
    write_atomically,
    write_json,
)

SHAPE = (1, 8, 8)

X = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_temporary_file_has_the_suffix_that_writers_look_at(tmp_path):
    write_atomically(tmp_path / "a.npz", lambda temporary: np.savez(temporary, x=X))
    assert np.array_equal(np.load(tmp_path / "a.npz")["x"], X)


def test_json_round_trip(tmp_path):
    data = {"accuracy": 0.5, "seeds": [1, 2], "name": "Günther", "none": None}
    write_json(tmp_path / "a.json", {**data, "accuracy": np.float32(0.5), "seeds": (np.int64(1), 2)})
    assert read_json(tmp_path / "a.json") == data


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {"loss": np.float32("nan")}])
def test_json_has_no_nan(tmp_path, bad):
    with pytest.raises(ValueError, match=r"a\.json: got "):
        write_json(tmp_path / "a.json", bad)
    assert not list(tmp_path.iterdir())


def test_json_takes_no_tensors(tmp_path):
    with pytest.raises(TypeError, match="data: got a Tensor,"):
        write_json(tmp_path / "a.json", {"x": torch.zeros(1)})


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    base = torch.randn(4, 6)
    parameter = nn.Parameter(torch.randn(3))
    tensors = {"a": base, "b": base, "row": base[1], "turned": base.T, "parameter": parameter, "empty": torch.zeros(0)}
    save_tensors(tmp_path / "t.safetensors", {**tensors, "none": torch.zeros(0), "bf16": base.bfloat16()}, {"by": "me"})
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded["bf16"].dtype == torch.bfloat16
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
    assert "memory" not in str(loaded["a"])
    loaded["a"][0, 0] = 7
    assert loaded["b"][0, 0] == base[0, 0]


def test_only_dense_tensors_are_saved(tmp_path):
    with pytest.raises(TypeError, match="tensors: got a ndarray at 'x',"):
        save_tensors(tmp_path / "t.safetensors", {"x": X})
    with pytest.raises(TypeError, match="tensors: got a Tensor at 'x',"):
        save_tensors(tmp_path / "t.safetensors", {"x": torch.eye(2).to_sparse()})


def test_state_round_trip(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.from_numpy(X)).sum().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "network": model.state_dict(),
        "random": torch.get_rng_state(),
        "history": [{"loss": 0.5, "epoch": 1, "robust": None, "done": False}],
        "view": torch.zeros(100_000)[:2],
        (1, "key"): ("a", b"b"),
    }
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["history"] == state["history"]
    assert loaded[(1, "key")] == ("a", b"b")
    assert torch.equal(loaded["random"], state["random"])
    assert (tmp_path / "state.pt").stat().st_size < 100_000
    torch.testing.assert_close(loaded["network"], dict(state["network"]), rtol=0, atol=0)
    fresh = torch.optim.Adam(model.parameters())
    fresh.load_state_dict(loaded["optimizer"])
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"rng": {"keys": X}}, "state['rng']['keys']: got a ndarray,"),
        ([1, nn.ReLU()], "state[1]: got a ReLU,"),
        ({"a": np.datetime64("2026")}, "state['a']: got a datetime64,"),
    ],
)
def test_state_of_other_objects_is_refused(tmp_path, state, sentence):
    with pytest.raises(TypeError) as refusal:
        save_state(tmp_path / "s.pt", state)
    assert str(refusal.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_new_files_have_the_mode_of_the_users_other_files(tmp_path):
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "a.json", [1])
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    save_state(tmp_path / "a.pt", {"a": 1})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_tensors_are_written_as_the_library_reads_them(tmp_path):
    tensors = {
        "numbers": torch.arange(5),
        "turned": torch.rand(4, 5).t(),
        "flag \u00fc": torch.tensor([True, False, True]),
        "half": torch.rand(3).half(),
        "brain": torch.tensor(3.5, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 3, dtype=torch.uint8),
        "double": torch.rand(2).double(),
        "of no stride": torch.tensor(7).expand(1),
    }
    assert tensors["of no stride"].stride() == (0,)
    save_tensors(tmp_path / "x.safetensors", tensors, {"made by": "a test"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made by": "a test"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor)
