"""This program itself: its version, how its own processes are started and end, where it listens."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from watcher.errors import SteadyError

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


def listening(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens there, on a free port for 0; the system keeps ``backlog`` connections.

    Raises SteadyError bad_config in words a person can act on.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, proto))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(backlog)
            undo.pop_all()
            return listener
    except OSError as error:
        raise SteadyError(
            "bad_config",
            f"Cannot listen on {host}, port {port}: {error.strerror or error}.",
            remedy="Choose another --port (0 takes a free one), or stop the program that has it.",
        ) from None


def ending(code: int) -> str:
    """How a process ended, from its exit code: ``SIGKILL``, ``exit code 3``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"
    return f"exit code {code}"


def extra_missing(what: str, package: str, extra: str) -> SteadyError:
    """Say that ``what`` needs a package which is not installed, and what to type."""
    words = f"{what} needs {package}, which is not installed."
    remedy = f"Run `pip install 'steadydiffusion[{extra}]'`."
    return SteadyError("extra_missing", words, remedy=remedy)
