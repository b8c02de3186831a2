"""This program itself: its version, and how its own processes are started and end."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

#: Starts a process, as ``subprocess.Popen`` does.
Launch = Callable[..., "subprocess.Popen[bytes]"]

HOME = Path(__file__).resolve().parents[1]  #: where the packages lie


@functools.cache
def installed_version() -> str | None:
    """The installed version; None in a tree that was never installed."""
    from importlib import metadata  # slow, and wanted here alone

    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("steadydiffusion")
    return None


def module(name: str, *options: str) -> list[str]:
    """The command line of one of our modules, whatever lies in the current folder."""
    return [sys.executable, "-P", "-m", name, *options]


def environment() -> dict[str, str]:
    """Ours, in which a child of ours finds our packages also where they are not installed."""
    known = dict(os.environ)
    if HOME.name not in ("site-packages", "dist-packages"):
        path = [str(HOME), known.get("PYTHONPATH")]
        known["PYTHONPATH"] = os.pathsep.join(each for each in path if each)
    return known


def ending(code: int) -> str:
    """How a process ended, from its exit code: ``SIGKILL``, ``exit code 3``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"
    return f"exit code {code}"
