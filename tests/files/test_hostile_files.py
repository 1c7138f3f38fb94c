"""Intact files with content that no writer of ours gives: one sentence, and no more memory than the file."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from art_robust_plugins.data import load_data
from art_robust_plugins.escapes import csv_cell, escape_markdown, printable
from art_robust_plugins.experiments.recipes import load_recipe
from art_robust_plugins.files import load_state, load_tensors, read_json, save_state
from art_robust_plugins.terminal import PlainConsole


def check_refusal(read: Callable[[Path], Any], path: Path, named: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read(path)
    assert named in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 100 deep"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b'{"a": NaN}', "with NaN"),
        (b'{"a": -Infinity}', "with -Infinity"),
        (b'{"a": 1e999}', "the number 1e999"),
        (b'{"a": ' + b"9" * 1000 + b"}", "1000 digits"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": "\xed\xa0\x80"}', "a file of another kind"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", "more than 1000000 lists"),
        (b'["' + b"a" * (64 * 2**20) + b'"]', "more than 64 MB"),
    ],
)
def test_json(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    check_refusal(read_json, path, named)


def test_json_within_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 100 + b"]" * 100)
    read_json(path)
    path.write_text(json.dumps({"letter": "😀", "large": 10**200}))
    assert read_json(path) == {"letter": "😀", "large": 10**200}


@pytest.mark.parametrize("read", [read_json, load_tensors, load_state, load_data, load_recipe])
def test_pipes_and_folders_are_not_waited_for(read: Callable[[Path], Any], tmp_path: Path) -> None:
    suffix = {load_data: ".npz", load_recipe: ".toml"}.get(read, "")
    path = tmp_path / f"file{suffix}"
    os.mkfifo(path)
    check_refusal(read, path, "got a named pipe")
    path.unlink()
    path.mkdir()
    check_refusal(read, path, "got a folder")
    path.rmdir()
    path.symlink_to("/dev/zero")
    check_refusal(read, path, "got a device")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(FileNotFoundError, match="file"):
        read(path)


def repack(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write an archive anew, with its checksums, its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def replace_pickle(content: bytes) -> Callable[[str, bytes], bytes]:
    return lambda name, before: content if name.endswith("data.pkl") else before


class Global:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def nest_pickle(times: int) -> bytes:
    """A list that holds a list twice, which holds ...: as many of them as a tree of 2**times leaves."""
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return pickle.dumps(value, protocol=2)


def test_states(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"a": torch.zeros(100_000)})
    repack(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    check_refusal(load_state, path, "compressed members")

    for content, named in (
        (pickle.dumps({"a": Global(bytearray, 10**12)}, protocol=2), "objects other than tensors"),
        (pickle.dumps({"a": Global(torch.Tensor, 10**12)}, protocol=2), "objects other than tensors"),
        (pickle.dumps(Global(pickle.codecs.encode, b"\0" * 10, "hex"), protocol=2), "objects other than tensors"),
        (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested more than 100 deep"),
        (nest_pickle(90)[:-1] + b"q\xff.", ""),
        (b"\x80\x02}q\x00.garbage", ""),
        (b"", ""),
    ):
        save_state(path, {"a": 1})
        repack(path, replace_pickle(content))
        if named:
            check_refusal(load_state, path, named)
        else:
            try:
                load_state(path)
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017

    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    check_refusal(load_state, path, "larger than its memory")
    torch.save({"a": torch.eye(2).to_sparse()}, path)
    check_refusal(load_state, path, "training state")


def test_tensors_of_sizes_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for shape, offsets in (([2**40, 2**20], [0, 4]), ([2**62, 2**62, 0], [0, 0]), ([-1], [0, 4]), ([1], [0, 2**60])):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
        try:
            found = load_tensors(path)["a"]
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert found.numel() == 0


def test_npz_files_that_declare_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    good = {"x_train": np.zeros((2, 1, 8, 8), np.uint8), "y_train": np.zeros(2, int)}
    np.savez(path, **good, x_test=good["x_train"], y_test=good["y_train"])
    load_data(path)

    def giant(name: str, content: bytes) -> bytes:
        return content.replace(b"(2, 1, 8, 8), }" + b" " * 13, b"(2" + b"0" * 13 + b", 1, 8, 8), }")

    repack(path, giant)
    check_refusal(load_data, path, "x_train is not as large as its shape (20000000000000, 1, 8, 8) says")

    # Half a terabyte of zeros in as good as no bytes would take minutes to write: the size is that of the header's.
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x_train.npy", b"")
    check_refusal(load_data, path, "x_train twice")


def test_npz_files_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    x, y = np.zeros((2000, 1, 16, 16), np.uint8), np.zeros(2000, int)
    np.savez_compressed(path, x_train=x, y_train=y, x_test=x, y_test=y)
    assert path.stat().st_size < 20_000
    load_data(path)
    monkeypatch.setattr("art_robust_plugins.files.npz.physical_memory", lambda: 2**22)
    check_refusal(load_data, path, "more than half of the memory")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "TOML"),
        ("a = " + "[" * 150 + "]" * 150, "nested more than 100 deep"),
        ("seeds = [" + "9" * 5000 + "]", "TOML"),
        ("#" * 2**21, "more than 1 MB"),
    ],
)
def test_recipes(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    check_refusal(load_recipe, path, named)


HOSTILE = "<script>alert(1)</script> | [a](http://b) `c`\n\x1b[31m\u202e $x_{$ =1+1 [red] :smile: \ud800"


def test_texts_are_shown_as_they_are() -> None:
    for escape in (printable, escape_markdown):
        shown = escape(HOSTILE)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        shown.encode()
    cell = escape_markdown(HOSTILE)
    for begins in ("<script", "</script", " | ", " [a]", " `c", "\n", "://"):
        assert begins not in cell
    assert [csv_cell(text) for text in ("=1", "+1", "-1", "@a", "\ta", "\r=1", " =1", "a=1")] == [
        *("'=1", "'+1", "'-1", "'@a", "'\ta", "'\r=1", "' =1"),
        "a=1",
    ]


def test_the_console_takes_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("[blue]head")
    table.add_row("[red]cell[/red] :smile: \x1b[31m")
    console = PlainConsole(width=80)
    console.print(table)
    console.print("[/nothing] \x1b]0;title\x07")
    shown = capsys.readouterr().out
    for text in ("[blue]head", "[red]cell[/red] :smile: \\x1b[31m", "[/nothing] \\x1b]0;title\\x07"):
        assert text in shown
    assert "\x1b" not in shown
