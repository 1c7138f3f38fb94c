"""The browser in which pages are tried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .browser import Browser, start_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
