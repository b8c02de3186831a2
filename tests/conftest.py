"""What every test may use: waiting for a condition, a root of one's own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def until(predicate: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """The first truthy answer of ``predicate``; fails the test after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what or predicate}")
        time.sleep(0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root folder."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder
