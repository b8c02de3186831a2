"""serve, watch, api, mcp, open: the processes of the service, and its page.

`serve` starts the watcher and the api as children and keeps both alive. It does no work of
its own, so there is nothing in it to lose: killed hard, its children are told to stop by the
kernel (Linux), or go on and say so at the next start.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from watcher.commands.desk import Desk, command
from watcher.errors import SteadyError
from watcher.program import ending, environment, listening, module

STOP_SECONDS = 10.0  #: from SIGTERM to the end of every child
_BACKOFF = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)  #: seconds before the n-th restart in a row
_STEADY_SECONDS = 60.0  #: a child that lived so long starts at the first back-off again
_NOT_READY = 4  #: a child's exit code when only a person can help
_PR_SET_PDEATHSIG = 1

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
Standby = Annotated[
    bool, typer.Option("--standby", help="While another watcher works here, wait for its place.")
]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on; 0 takes a free one.")]


@command()
def serve(desk: Desk, host: Host = None, port: Port = None, standby: Standby = False) -> int:
    """Run the service here, watcher and api, until SIGTERM or Ctrl-C."""
    from watcher import live

    desk.overrides = {"host": host, "port": port}
    config = desk.config
    runs = not standby and live.read_pulse(config.state)["alive"]
    if runs and (there := live.page_address(config.state)):
        raise SteadyError("already_running", f"The service runs here already: {there}")
    address = (config.host, free_port(config.host, config.port))
    where = ["--root", str(config.root)]
    children = [
        ServiceProcess("watcher", module("watcher", *where, *(["--standby"] if standby else []))),
        ServiceProcess(
            "api", module("api", *where, "--host", address[0], "--port", str(address[1]))
        ),
    ]
    return Supervisor(desk, children, f"http://{for_url(address[0])}:{address[1]}/").run()


@command()
def watch(
    desk: Desk,
    once: Annotated[
        bool, typer.Option("--once", help="Do all that is there, then exit (for cron).")
    ] = False,
    standby: Standby = False,
) -> int:
    """Run the watcher alone: take files, make pictures."""
    from watcher import log, service

    if desk.quiet:
        desk.overrides = {"log_level": "warning"}
    config = desk.config
    log.configure(config.log_level)
    return service.run(config, once=once, standby=standby)


@command()
def api(desk: Desk, host: Host = None, port: Port = None) -> None:
    """Run the api alone: it takes requests and answers, also while no watcher runs."""
    desk.overrides = {"host": host, "port": port}
    config = desk.config
    options = ["--root", str(config.root), "--host", config.host, "--port", str(config.port)]
    _become(module("api", *options))


@command()
def mcp(desk: Desk) -> None:
    """Be a server of the Model Context Protocol on stdin and stdout, for an agent that starts it."""
    _become(module("api.compat.agents", "--root", str(desk.config.root)))


@command("open")
def open_page(desk: Desk) -> None:
    """Open the page of the service that runs here in a browser."""
    import webbrowser

    from watcher import live

    page = live.page_address(desk.config.state)
    if page is None:
        start = f"Start it: steady --root {desk.root} serve"
        raise SteadyError("not_ready", "The service does not run here.", remedy=start)
    webbrowser.open(page)
    desk.answer({"page": page}, page)


def _become(arguments: list[str]) -> None:
    os.execve(arguments[0], arguments, environment())  # noqa: S606 (it becomes this process)


@dataclass
class ServiceProcess:
    """A process that is kept alive."""

    name: str
    arguments: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    fresh: bool = True  #: never yet up
    failures: int = 0  #: exits in a row, soon after the start
    due: float = 0.0  #: when it may be started (again)


class Supervisor:
    """Keeps the children alive until a signal comes, then stops them all within 10 s."""

    def __init__(self, desk: Desk, children: Sequence[ServiceProcess], address: str) -> None:
        self._desk = desk
        self._children = children
        self._address = address
        self._stop = threading.Event()
        self._signalled = 0
        self._told = ""  #: how it stood when we last said so

    def run(self) -> int:
        """Returns 0 after a signal, 4 when a child cannot start for a reason it has said."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        ready = False
        code = 0
        try:
            while not self._stop.is_set():
                for child in self._children:
                    if (given_up := self._look_after(child)) is not None:
                        code = given_up
                        self._stop.set()
                ready = ready or (self._up() and self._ready())
                self._stop.wait(0.1)
        finally:
            self._end()
        return code

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._signalled += 1
        self._stop.set()

    def _look_after(self, child: ServiceProcess) -> int | None:
        """Start ``child`` when due. Its exit code when it ended and no restart can help."""
        now = time.monotonic()
        if child.process is None:
            if now >= child.due:
                child.process = _start(child.arguments)
                child.started = now
            return None
        ended = child.process.poll()
        if ended is None:
            if now - child.started >= _STEADY_SECONDS:
                child.fresh, child.failures = False, 0
            return None
        child.process = None
        if child.fresh and ended == _NOT_READY:
            return _NOT_READY
        wait = _BACKOFF[min(child.failures, len(_BACKOFF) - 1)]
        child.failures += 1
        child.due = now + wait
        self._desk.talk(f"The {child.name} ended ({ending(ended)}); starting it again.")
        return None

    def _up(self) -> bool:
        """Once both are up: one block that says where everything is. False when too early."""
        from watcher import live

        watcher, door = self._children
        if self._told:
            return True
        config = self._desk.config
        pulse = live.read_pulse(config.state)
        if not (pulse["alive"] and watcher.process and pulse.get("pid") == watcher.process.pid):
            return False
        live.tell_address(config.state, self._address)
        if live.page_address(config.state) is None:
            return False
        for child in (watcher, door):
            child.fresh = False
        model = pulse.get("model", {})
        name = model.get("name", "?")
        if model.get("starter"):
            name += (
                " (the small built-in model: flat drawings; see `steady doctor` for the real one)"
            )
        self._told = "up"
        self._desk.answer(
            {"url": self._address, "inbox": str(config.inbox), "model": model.get("name")},
            f"SteadyDiffusion runs; Ctrl-C stops it, and waiting jobs are kept.\n"
            f"  page and API  {self._address}\n"
            f"  inbox         {config.inbox}\n"
            f"  pictures      {config.outputs}\n"
            f"  model         {name}",
        )
        return True

    def _ready(self) -> bool:
        """Whether pictures can be made, said as it changes: that the model loads, why it cannot, ready."""
        from watcher import live

        pulse = live.read_pulse(self._desk.config.state)
        reason = next(live.unready(pulse), None)
        code = reason.code if reason else live.READY
        if code != self._told and pulse["alive"]:
            self._told = code
            words = live.standing(pulse)
            self._desk.talk(words if reason else "Ready: drop a file, or open the page.")
        return reason is None

    def _end(self) -> None:
        alive = [child.process for child in self._children if child.process]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        asked = self._signalled
        for process in alive:
            while process.poll() is None:
                # A second Ctrl-C means: at once. Nothing is lost by it.
                if time.monotonic() > deadline or self._signalled > max(asked, 1):
                    process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)


def _start(arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    """A child in a process group of its own, so that Ctrl-C reaches only us."""
    own: dict[str, Any] = {"process_group": 0}
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        # The kernel ends the child when we are killed. (One thread here, so this is safe.)
        own["preexec_fn"] = lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return subprocess.Popen(list(arguments), stdin=subprocess.DEVNULL, env=environment(), **own)


def free_port(host: str, port: int) -> int:
    """``port`` if it can be had, or a free one for 0. Raises SteadyError bad_config."""
    with listening(host, port, 1) as trial:
        return int(trial.getsockname()[1])


def for_url(host: str) -> str:
    """How a browser of this machine calls the address that is listened on."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 (we listen where the person said)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
