"""The command line as a function, and a run to work on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from art_robust_plugins import (
    cli,
)


def art_robust(
    *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The exit code and everything printed."""
    monkeypatch.setattr(sys, "argv", ["art-robust", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> tuple[int, str]:
        return art_robust(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    return call


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "bang"
    command = ["train", "bang", "--epochs", "3", "--set", "ratio=0.5", "--validation", "100", "--eps", "0.1"]
    cli.app([*command, "--out", str(out)], standalone_mode=False)
    return out
