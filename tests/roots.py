"""A root folder and the real processes on it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cluster
from conftest import until
from forked import run, start
from history import no_record_yet, rows
from postgres import fresh_record

from watcher import live

#: Where the record of every root lies: on this server (`make postgres`), or in a file each.
SERVER = os.environ.get("STEADY_DATABASE", "")
TESTS = Path(__file__).parent
Started = subprocess.Popen[bytes]
SETTINGS = {
    "engine": "engines:Scripted",
    "model": "scripted",
    "settle_seconds": 0.05,
    "rescan_seconds": 0.5,
    "default_width": 64,
    "default_height": 64,
    "default_steps": 8,
}
#: STEADY_EXECUTOR=ray: every watcher joins the cluster of this run (cluster.shared starts it).
ON_RAY = os.environ.get("STEADY_EXECUTOR") == "ray"


class Root:
    """A root with the scripted engine; starts watchers on it and looks at what they do.

    ``settings`` are keys of config.yaml. Its workers are there at once (forked.py) unless it is not
    ``cloned``: then they are started as in production. Every process started is killed by ``close``.
    """

    #: Processes are copies of one that has imported all (forked.py), or what `python` starts.
    copied = not ON_RAY

    def __init__(self, folder: Path, *, cloned: bool = True, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "engine.log"
        self.said = folder / "watcher.log"
        self.processes: list[Started] = []
        self.extra: dict[str, str] = {}  #: environment of processes started from now on
        self._ends = contextlib.ExitStack()
        if SERVER and "database" not in settings:
            settings["database"] = self._ends.enter_context(fresh_record(SERVER))
        chosen = SETTINGS | {"engine_options": {"log": str(self.log)}} | settings
        if ON_RAY:
            chosen |= cluster.shared().settings | {"ray_slots": 1}
            self.extra |= cluster.shared().environment
        self._heavy = chosen["engine"] in ("zimage", "diffusers")
        self._cloned = cloned
        (folder / "config.yaml").write_text(json.dumps(chosen))
        self.inbox.mkdir(exist_ok=True)

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    def configure(self, **settings: Any) -> None:
        """Change keys of config.yaml; processes read it when they start."""
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STEADY_")}
        return kept | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"} | self.extra

    def drop(self, name: str, content: str | bytes) -> Path:
        """Put a file into the inbox whole, as ``mv`` does; ``hot/x.yaml`` into a hot folder."""
        data = content.encode() if isinstance(content, str) else content
        draft = self.folder / f"draft-{Path(name).name}"
        draft.write_bytes(data)
        return draft.rename(self.inbox / name)

    def preset(self, name: str, text: str) -> None:
        """Write a preset, and make its hot folder."""
        (self.folder / "presets").mkdir(exist_ok=True)
        (self.inbox / name).mkdir(exist_ok=True)
        (self.folder / "presets" / f"{name}.yaml").write_text(text)

    def spawn(self, *command: str, wrapper: Sequence[str] = ()) -> Started:
        """A process in this root's environment; what it says is added to watcher.log."""
        own = wrapper or not self.copied or self.extra.keys() & {"PYTHONPATH", "LD_PRELOAD"}
        with self.said.open("ab") as said:
            how: dict[str, Any] = {"cwd": self.folder, "env": self.environment(), "stderr": said}
            self.processes.append(
                subprocess.Popen([*wrapper, sys.executable, *command], **how)
                if own
                else start(command, heavy=self._heavy, **how)
            )
        return self.processes[-1]

    def watch(
        self,
        *,
        point: str | None = None,
        nth: int = 1,
        once: bool = False,
        standby: bool = False,
        fault: str | None = None,
        probe: str | None = None,
        stutter: bool = False,
        silence: float | None = None,
        broken: bool = False,
        clock: Path | None = None,
        pace: float | None = None,
        wrapper: Sequence[str] = (),
    ) -> Started:
        """A watcher, killed the ``nth`` time step ``point`` was done.

        ``broken``: the step raises instead. ``clock``: a file with the seconds by which the
        wall clock is wrong. ``pace`` scales the schedule of telling others. ``wrapper``: a command that runs it. ``stutter`` and ``silence``:
        see crashing.py.
        """
        command = [str(TESTS / "crashing.py"), str(self.folder)]
        command += ["--point", point, "--nth", str(nth)] if point else []
        command += ["--cloned"] if self._cloned else []
        command += ["--standby"] if standby else []
        command += ["--fault", fault] if fault else []
        command += ["--probe", probe] if probe else []
        command += ["--stutter"] if stutter else []
        command += ["--silence", str(silence)] if silence else []
        command += ["--broken"] if broken else []
        command += ["--clock", str(clock)] if clock else []
        command += ["--pace", str(pace)] if pace else []
        return self.spawn(*command, *(["--once"] if once else []), wrapper=wrapper)

    def finish(self, timeout: float = 120) -> None:
        """Let an undisturbed watcher do all that is left; fails when it cannot."""
        code = self.watch(once=True).wait(timeout)
        assert code == 0, self.said.read_text()[-3000:]

    def steady(
        self, *words: str, env: dict[str, str] | None = None, given: bytes = b""
    ) -> "subprocess.CompletedProcess[str]":
        """The command ``steady`` on this root, with ``given`` as its input.

        With an ``env`` of its own it is an interpreter of its own: that reads it when it starts.
        """
        command = ["-m", "watcher.cli", "--root", str(self.folder), *words]
        if env is not None:
            done = subprocess.run(
                [sys.executable, *command], cwd=self.folder, env=env, input=given,
                capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            out, err = done.stdout.decode(), done.stderr.decode()
            return subprocess.CompletedProcess(done.args, done.returncode, out, err)
        return run(
            command,
            cwd=self.folder,
            env=self.environment(),
            given=given,
        )

    def jobs(self) -> list[dict[str, Any]]:
        try:
            return [dict(r) for r in rows(self.folder, "SELECT * FROM jobs ORDER BY seq")]
        except Exception as error:  # the file is not there yet
            if no_record_yet(error):
                return []
            raise

    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs()]

    def wait_for(self, *states: str, timeout: float = 60) -> list[dict[str, Any]]:
        """The jobs, once their states are exactly ``states`` in order of arrival."""
        until(lambda: self.states() == list(states), timeout, f"{states}; {self.said}")
        return self.jobs()

    def pulse(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / ".steady" / "live.json").read_bytes()))
        except (OSError, ValueError):
            return {}

    def troubles(self) -> set[str]:
        """The codes of what is wrong just now, as the pulse tells it."""
        pulse = live.read_pulse(self.folder / ".steady")
        return {t["code"] for t in pulse.get("trouble", ())} if pulse["alive"] else set()

    def inbox_words(self) -> str:
        """What the pulse says of the inbox, in words."""
        return " ".join(self.pulse().get("inbox", {}).get("problems", ()))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        self._ends.close()
