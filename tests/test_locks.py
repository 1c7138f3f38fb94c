"""Folders for results: tried before there is anything to write, and held by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from art_robust_plugins.files import remove_temporaries, target_of_temporary, write_atomically
from art_robust_plugins.locks import (
    FolderInUseError,
    check_output_file,
    check_output_folder,
    is_unused,
    locked_folder,
)

HOLD = """
import os, sys, time
from art_robust_plugins.locks import locked_folder
with locked_folder("out", sys.argv[1], "training"):
    child = os.fork() if len(sys.argv) > 2 else None
    if child == 0:
        print("forked", os.getpid(), flush=True)
        time.sleep(60)
    elif child is None:
        print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)


def read_words(process: subprocess.Popen[bytes]) -> list[bytes]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_folder_is_held_by_one_process_until_it_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert read_words(process) == [b"held"]
    with pytest.raises(FolderInUseError, match=rf"^out: .* process {process.pid},"):  # noqa: SIM117
        with locked_folder("out", tmp_path, "training"):
            pytest.fail("two processes hold one folder")
    with locked_folder("out", tmp_path, "report"):  # another purpose
        pass
    kill(process)
    assert is_unused(tmp_path)  # although the lock's file is still there
    assert list(tmp_path.iterdir())
    with locked_folder("out", tmp_path, "training"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_hold_the_folder_of_a_parent_that_was_killed(tmp_path: Path) -> None:
    process = holder(tmp_path, "fork")
    word, child = read_words(process)
    assert word == b"forked"
    kill(process)
    try:
        os.kill(int(child), 0)  # it lives
        with locked_folder("out", tmp_path, "training"):
            pass
    finally:
        os.kill(int(child), 9)


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    found: list[Exception] = []

    def other() -> None:
        try:
            with locked_folder("out", tmp_path, "training"):
                pass
        except FolderInUseError as error:
            found.append(error)

    with locked_folder("out", tmp_path, "training"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
    other()
    assert len(found) == 1


def test_folders_that_were_made_and_stayed_empty_are_removed(tmp_path: Path) -> None:
    with locked_folder("out", tmp_path / "a" / "b", "training"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with locked_folder("out", tmp_path / "a" / "b", "training"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    check_output_folder("out", tmp_path / "c" / "d")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/further", "a\0b", "n" * 300])
def test_a_folder_that_cannot_be_written_to_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place
    for check in (check_output_folder, lambda name, path: check_output_file(name, path / "net.pt2")):
        with pytest.raises(ValueError, match=r"^out: got"):
            check("out", folder)
    with pytest.raises(ValueError, match=r"^out: got "), locked_folder("out", folder, "training"):
        pytest.fail("locked")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_of_an_impossible_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^out: got .*File name too long"):
        check_output_file("out", tmp_path / ("n" * 300))
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(ValueError, match=r"out: got .*Permission denied"):
        check_output_folder("out", tmp_path)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(ValueError, match=r"out: got .*report\.json "):
        check_output_folder("out", tmp_path, ["report.json"])
    with pytest.raises(ValueError, match=r"out: got .*report\.json,"):
        check_output_file("out", tmp_path / "report.json")


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="has no locks"), locked_folder("out", tmp_path, "training"):
        pass


def test_temporaries_of_killed_processes_are_known_and_removed(tmp_path: Path) -> None:
    names: list[str] = []

    def die(temporary: Path) -> None:
        temporary.write_text("half")
        names.append(temporary.name)
        os.link(temporary, tmp_path / f"{temporary.name}.copy")  # as a killed process would leave it

    write_atomically(tmp_path / "training.pt", die)
    (tmp_path / f"{names[0]}.copy").rename(tmp_path / names[0])
    (tmp_path / "training.pt").unlink()
    assert target_of_temporary(names[0]) == "training.pt"
    assert is_unused(tmp_path)
    for other in (".gitignore", ".0123456.short", ".012345678.long", "01234567.plain", ".ABCDEF01.upper"):
        assert target_of_temporary(other) is None
    remove_temporaries(tmp_path, ["other.pt"])
    assert (tmp_path / names[0]).exists()
    remove_temporaries(tmp_path, ["training.pt"])
    assert not list(tmp_path.iterdir())
    remove_temporaries(tmp_path / "missing")
    (tmp_path / ".gitignore").touch()
    assert not is_unused(tmp_path)
