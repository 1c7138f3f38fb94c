"""Files that are not what they should be."""

from __future__ import annotations

import pickle

import pytest
import torch

from art_robust_plugins.files import (
    load_state,
    load_tensors,
    read_json,
    save_state,
    save_tensors,
    write_json,
)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


READERS = [(read_json, "JSON"), (load_tensors, "safetensors"), (load_state, "training state")]
"""Each with the kind of file that its refusals name."""


@pytest.mark.parametrize(("read", "expected"), READERS)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (pickle.dumps(Bomb()), "a pickle"),
        (pickle.dumps({"weights": 1}, protocol=2), "a pickle"),
        (b"PK\x03\x04cut short", "a zip archive cut short or damaged"),
        (b"\x00\xff" * 20, "a file of another kind"),
    ],
)
def test_files_that_are_something_else(tmp_path, read, expected, content, found):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read(path)
    assert str(refusal.value).startswith(f"{path}: got {found}")
    assert expected in str(refusal.value)


@pytest.mark.parametrize(("read", "expected"), READERS)
def test_files_that_are_not_there(tmp_path, read, expected):
    with pytest.raises(FileNotFoundError) as refusal:
        read(tmp_path / "file")
    assert str(refusal.value).startswith(f"{tmp_path / 'file'}: no such file")
    assert expected in str(refusal.value)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read(tmp_path)
    assert str(refusal.value).startswith(f"{tmp_path}: got a folder")
    assert expected in str(refusal.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(("read", "expected"), READERS)
def test_files_cut_short(tmp_path, read, expected, share):
    path = tmp_path / "file"
    writers = {
        read_json: lambda: write_json(path, {"a": list(range(100))}),
        load_tensors: lambda: save_tensors(path, {"a": torch.randn(300)}),
        load_state: lambda: save_state(path, {"a": torch.randn(300)}),
    }
    writers[read]()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    if read is read_json and share == 0.999:
        path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=rf"file: got .*{expected}"):
        read(path)


def test_the_three_kinds_are_told_apart(tmp_path):
    write_json(tmp_path / "j", [1])
    save_tensors(tmp_path / "t", {"a": torch.zeros(1)})
    save_state(tmp_path / "s", {"a": 1})
    found = {"j": "text", "t": "a safetensors file", "s": "a zip archive"}
    for read, expected in READERS:
        for name, kind in found.items():
            if name != {read_json: "j", load_tensors: "t", load_state: "s"}[read]:
                with pytest.raises(ValueError, match=f"/{name}: got {kind}.*{expected}"):
                    read(tmp_path / name)


def test_an_archive_with_code_is_not_run(tmp_path):
    torch.save({"a": Bomb()}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match=r"s\.pt: got a pickle "):
        load_state(tmp_path / "s.pt")


def test_a_changed_byte_in_a_state_is_noticed(tmp_path):
    save_state(tmp_path / "state.pt", {"weights": torch.arange(1000.0)})
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.pt: "):
        load_state(tmp_path / "state.pt")
