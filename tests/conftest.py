"""What every test may use: waiting for a condition, a root of one's own."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

# A shell has what it starts with `&` ignore Ctrl-C, and so would every process of these tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As the worker does: math threads that spin while they wait make everything ten times slower
# on a busy machine. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Whoever runs the tests may have settings in the environment; each test brings its own. But for
# the two that say where all of them happen.
for _name in [name for name in os.environ if name.startswith("STEADY_")]:
    if _name not in ("STEADY_DATABASE", "STEADY_EXECUTOR"):  # see roots.py
        del os.environ[_name]


#: Processor seconds that nothing linear needs on a busy machine, and a bomb exceeds at once.
SECONDS = 30


def looks(timeout: float, what: object, pause: float = 0.01) -> Iterator[None]:
    """One turn for each look at what is awaited; fails the test after ``timeout`` seconds.

    ``pause``: seconds between two looks, longer where a look takes its time.
    """
    deadline = time.monotonic() + timeout
    while True:
        yield
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what}")
        time.sleep(pause)


def until(
    predicate: Callable[[], T], timeout: float = 60.0, what: str = "", pause: float = 0.01
) -> T:
    """The first truthy answer of ``predicate``; fails the test after ``timeout`` seconds."""
    return next(filter(None, (predicate() for _ in looks(timeout, what or predicate, pause))))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root folder."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The browser; started by the first test that looks at a page (eyes.py)."""
    from eyes import started

    with started() as browser:
        yield browser


@pytest.fixture
def bench(root: Path) -> Iterator[Any]:
    """The HTTP application on an empty root, and a watcher by hand (doors.py)."""
    from doors import Bench

    with Bench(root) as bench:
        yield bench


@pytest.fixture
def make_root(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Roots with the scripted engine; their processes end with the test."""
    from roots import Root

    made: list[Root] = []

    def make(name: str = "root", **settings: Any) -> Root:
        made.append(Root(tmp_path / name, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()
