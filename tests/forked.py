"""Real processes in a tenth of the time: forked from one that has imported the product already.

Importing what a watcher needs takes longer than most tests. A server process does it once for
each pytest process and forks every further one: with its own pid, signals, descriptors,
environment and folder, exactly as if ``python …`` had been started.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path


class Forked:
    """A forked process with the face of ``subprocess.Popen``.

    ``command`` is what would follow ``python``: ``-m module …`` or ``script.py …``. The streams
    are paths; what is written is appended.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: Path | None = None,
        stdout: Path | None = None,
        stderr: Path | None = None,
    ) -> None:
        self.args = list(command)
        streams = [str(path) if path else None for path in (stdin, stdout, stderr)]
        self._process = server().Process(
            target=_become, args=(self.args, str(cwd), dict(env), streams), daemon=False
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    given: bytes = b"",
    timeout: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """What ``subprocess.run`` gives for ``python …`` with ``given`` as its input."""
    with tempfile.TemporaryDirectory() as folder:
        stdin, stdout, stderr = (Path(folder) / name for name in ("in", "out", "err"))
        stdin.write_bytes(given)
        process = Forked(command, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out, err = stdout.read_text(encoding="utf-8"), stderr.read_text(encoding="utf-8")
    return subprocess.CompletedProcess(process.args, code, out, err)


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


def _become(command: list[str], cwd: str, env: dict[str, str], streams: list[str | None]) -> None:
    modes = (os.O_RDONLY, *[os.O_WRONLY | os.O_APPEND | os.O_CREAT] * 2)
    for number, (path, mode) in enumerate(zip(streams, modes, strict=True)):
        if path is not None:
            opened = os.open(path, mode, 0o644)
            os.dup2(opened, number)
            os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  as at a start
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    module = command[0] == "-m"
    sys.argv = command[1:] if module else command
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        if module:
            sys.modules.pop(command[1], None)  # runpy warns of what was imported already
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
