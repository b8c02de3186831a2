"""Real processes in a tenth of the time: copies of one that has imported the product already.

Importing what a watcher or a worker needs takes longer than most tests. A server process does it
once and clones itself as often as asked, with CLONE_PARENT: what comes of that is the child of
whoever asked, with a pid, signals, descriptors, environment and folder of its own, exactly as if
``python …`` had been started. It is cloned while the server has one thread, so no lock is held.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import importlib
import io
import json
import multiprocessing
import os
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from watcher.program import Launch

_CALLS = {"x86_64": 56, "aarch64": 220}  #: number of Linux's clone, by kind of processor
#: Elsewhere every process is started as in production.
CAN_CLONE = sys.platform == "linux" and platform.machine() in _CALLS
_CLONE_PARENT = 0x8000
_MAX_ORDER = 1 << 17  #: bytes: command and environment


class Server:
    """A process that has imported ``modules`` and makes copies of itself for this one.

    With no modules it is a fork of this process, which must have one thread yet.
    """

    def __init__(self, *modules: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            if modules:
                here = Path(__file__).parent
                self._process = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno()), *modules],
                    env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"},
                    pass_fds=[theirs.fileno()],
                )
                atexit.register(self._end)
            elif os.fork() == 0:
                try:
                    _serve(theirs.fileno())
                finally:
                    os._exit(1)

    def clone(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """The pid of a copy that does what is ordered. Raises OSError when the server is gone."""
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(order).encode()], descriptors)
            answer = self._channel.recv(64)
        if not answer:
            raise OSError("the server of the tests' processes is gone")
        return int(answer)

    def _end(self) -> None:
        self._channel.close()
        self._process.wait()


class Forked(subprocess.Popen[bytes]):
    """``subprocess.Popen`` of this very interpreter, without its start."""

    def __init__(self, server: Server, command: Sequence[str], **how: Any) -> None:
        self._server = server
        super().__init__(command, **how)

    def _execute_child(  # what Popen has for every system of its own
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        *more: Any,
    ) -> None:
        assert args[0] == sys.executable
        streams = more[3:9]  # read and write end of each, as far as there are
        ours = [streams[0], streams[3], streams[5]]
        order = {
            "command": list(args[1:]),
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "passed": [number for number, fd in enumerate(ours) if fd != -1] + list(pass_fds),
            "session": more[-2],
        }
        try:
            given = [fd for fd in ours if fd != -1] + list(pass_fds)
            self.pid = self._server.clone(order, given)
            self._child_created = True
        finally:
            self._close_pipe_fds(*streams)  # type: ignore[attr-defined]


def start(command: Sequence[str], *, heavy: bool = False, **how: Any) -> "subprocess.Popen[bytes]":
    """A process of ``python command``; a ``heavy`` one has torch and diffusers imported."""
    if not CAN_CLONE:
        return subprocess.Popen([sys.executable, *command], **how)
    return Forked(_server(heavy), [sys.executable, *command], **how)


def launch(command: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
    """Start a worker for an executor of this process; ``heavy`` with the libraries of a model."""
    return start(command[1:], **how)


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    given: bytes = b"",
    timeout: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """What ``subprocess.run`` gives for ``python …`` with ``given`` as its input."""
    pipe = subprocess.PIPE
    with start(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            out, err = process.communicate(given, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out.decode(), err.decode())


def launcher() -> Launch:
    """What starts the workers of this process, which must have one thread yet: a fork of it where
    it is a clone itself, and has all imported."""
    cloned = CAN_CLONE and "imported" in sys.modules
    return functools.partial(Forked, Server()) if cloned else subprocess.Popen


@functools.cache
def _server(heavy: bool) -> Server:
    return Server(*["imported_heavy"] * heavy, "imported")


@functools.cache
def server() -> ForkServerContext:
    """What forks, for processes that are a function; one serves a whole pytest process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imported"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where it finds that
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


# -- in the server


def _serve(listen: int) -> None:
    """Clone as often as asked, until whoever asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the others
    if listen != 3:
        os.dup2(listen, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    channel = socket.socket(fileno=3)
    while True:
        order, given, _, _ = socket.recv_fds(channel, _MAX_ORDER, 16)
        if not order:
            os._exit(0)
        pid = _clone()
        if pid == 0:
            _become(given, **json.loads(order))
        for each in given:
            os.close(each)
        channel.send(str(pid).encode())


def _clone() -> int:
    """As ``os.fork``, but the new process is a child of our parent."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    call = _CALLS[platform.machine()]
    pid: int = ctypes.PyDLL(None).syscall(call, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return pid


# -- in the clone


def _become(
    given: list[int],
    command: list[str],
    cwd: str,
    env: dict[str, str],
    passed: list[int],
    session: bool,
) -> None:
    """Be ``python command`` until its end."""
    code: object = 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if session:
            os.setsid()
        above = max([2, *passed, *given]) + 1
        moved = [fcntl.fcntl(each, fcntl.F_DUPFD, above) for each in given]
        os.closerange(3, above)
        for old, new in zip(moved, passed, strict=True):
            os.dup2(old, new)
            os.close(old)
        _open_streams()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        _execute(command, env)
    except SystemExit as left:
        code = left.code
    except KeyboardInterrupt:
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        _leave(code)


def _open_streams() -> None:
    """As at a start: what they lead to may be of another kind than the server's."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    err = open(2, "wb", closefd=False)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", line_buffering=True)


def _execute(command: list[str], env: Mapping[str, str]) -> None:
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    if command[0] == "-P":
        command = command[1:]
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.modules.pop(command[1], None)  # runpy warns of what was imported already
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")


def _leave(code: object) -> None:
    """End as an interpreter does."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    for _name in sys.argv[2:]:
        importlib.import_module(_name)
    importlib.import_module("forked")._serve(int(sys.argv[1]))
