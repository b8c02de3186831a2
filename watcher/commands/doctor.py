"""doctor: one line for each thing that must be right, and the command that mends it.

Looks only. A check that cannot be made says so as a fault of its own.
"""

import json
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from watcher.commands.desk import Desk, command
from watcher.errors import SteadyError

OK, NOTE, FAIL = "ok", "note", "fail"
_FAULT = 4  #: exit code
_PICTURE_BYTES = 1_500_000  #: of a 1024 x 1024 PNG
_FEW_WATCHES = 1024


@dataclass(frozen=True)
class Finding:
    """What a check found; ``mend`` is what to type or do about it."""

    check: str
    level: str
    message: str
    mend: str | None = None


def register(app: typer.Typer) -> None:
    """Add the command of this module to ``app``."""
    command(app)(doctor)


def doctor(desk: Desk) -> int:
    """Look at everything that must be right; each FAIL names what mends it."""
    worst = 0
    for finding in _findings(desk):
        line = f"{finding.level.upper():<4}  {finding.check:<10} {finding.message}"
        if finding.mend:
            line += f"\n      {'':<10} -> {finding.mend}"
        if finding.level == FAIL:
            worst = _FAULT
        desk.answer(asdict(finding), line, always=finding.level == FAIL)
    return worst


def _findings(desk: Desk) -> Iterator[Finding]:
    yield _python()
    try:
        config = desk.config
    except SteadyError as error:
        yield Finding("config", FAIL, error.message, error.remedy)
        return
    yield Finding("config", OK, f"{config.root / 'config.yaml'} and the environment")
    for name, check in _CHECKS.items():
        try:
            yield from check(desk)
        except SteadyError as error:
            yield Finding(name, FAIL, error.message, error.remedy)


def _python() -> Finding:
    words = f"{platform.python_version()} on {platform.system()}, {sys.prefix}"
    return Finding("python", OK, words)


def _device(desk: Desk) -> Iterator[Finding]:
    """What torch sees, asked of a child process: this one never loads torch."""
    from watcher import model

    try:
        devices = model.probe_devices()
    except SteadyError as error:
        mend = "install the package anew: pip install -c constraints.txt ."
        yield Finding("device", FAIL, f"torch does not answer. {error.message}", mend)
        return
    wanted = desk.config.devices or [desk.config.device]
    gone = [w for w in wanted if w != "auto" and w.split(":")[0] not in _kinds(devices)]
    if gone:
        yield Finding("device", FAIL, f"{gone[0]} is not there", "set `device: auto`")
    else:
        yield Finding("device", OK, "torch sees " + ", ".join(devices))


def _kinds(devices: Sequence[str]) -> set[str]:
    return {device.split(":")[0] for device in devices}


def _model(desk: Desk) -> Iterator[Finding]:
    from watcher import model

    config, told = desk.config, None
    if desk.has_record():
        with desk.record() as store:
            told = store.get("model")
    name = config.model if config.model != "auto" else (told or {}).get("name", "auto")
    if config.engine != "zimage":
        yield Finding("model", NOTE, f"the engine {config.engine} has its own")
    elif name == "auto":
        yield Finding("model", OK, "auto: chosen at the first start")
    else:
        words = f"{name} in {model.present(name, config.root)}"
        if name == model.STARTER:
            words += f"; small flat drawings: `model: {model.ZIMAGE_TURBO}` is the real one"
        yield Finding("model", OK, words)


def _folders(desk: Desk) -> Iterator[Finding]:
    import os

    for name, folder in (("inbox", desk.config.inbox), ("outputs", desk.config.outputs)):
        if not folder.exists():
            yield Finding(name, NOTE, f"{folder} is made at the first start")
        elif not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            mend = f"sudo chown -R {os.getuid()} {folder}" if hasattr(os, "getuid") else None
            yield Finding(name, FAIL, f"{folder} cannot be written", mend)
        else:
            yield Finding(name, OK, f"{folder} can be written")


def _record(desk: Desk) -> Iterator[Finding]:
    from watcher.commands.show import counts_line

    if not desk.has_record():
        yield Finding("record", NOTE, "made at the first start")
        return
    with desk.record() as store:
        store.verify()
        yield Finding("record", OK, f"whole; jobs: {counts_line(store.counts())}")
        if paused := store.get("paused"):
            reason = paused.get("reason") or "by hand"
            yield Finding("queue", NOTE, f"paused ({reason})", "steady resume")


def _watcher(desk: Desk) -> Iterator[Finding]:
    from watcher import live, lock

    path = desk.config.state / "lock"
    pulse = live.read(desk.config.state)
    start = f"steady --root {desk.root} serve"
    if not lock.held(path):
        yield Finding("watcher", NOTE, "does not run; job files wait", start)
        return
    pid = lock.holder(path).get("pid")
    if not pulse["alive"]:
        yield Finding(
            "watcher", FAIL, f"process {pid} lives but has no pulse", f"kill {pid}; {start}"
        )
        return
    yield Finding("watcher", OK, f"process {pid}, {pulse.get('state')}")
    for trouble in pulse.get("trouble", ()):
        yield Finding("watcher", FAIL, trouble["message"], trouble["remedy"])
    inbox = pulse.get("inbox", {})
    level = OK if inbox.get("watch") == "events" else NOTE
    yield Finding("events", level, f"new files are noticed by {inbox.get('watch')}")
    for words in (*inbox.get("problems", ()), *inbox.get("notices", ())):
        yield Finding("inbox", NOTE, words)


def _inotify(desk: Desk) -> Iterator[Finding]:
    for limit in ("max_user_watches", "max_user_instances"):
        try:
            number = int(Path("/proc/sys/fs/inotify", limit).read_text())
        except (OSError, ValueError):
            return  # another system than Linux
        if number < (_FEW_WATCHES if "watches" in limit else 16):
            mend = f"sudo sysctl fs.inotify.{limit}=65536"
            yield Finding("inotify", FAIL, f"{limit} is only {number}", mend)
            return
    yield Finding("inotify", OK, "limits are high enough")


def _disk(desk: Desk) -> Iterator[Finding]:
    import shutil

    folder = desk.config.outputs
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    words = f"{free / 1e9:.1f} GB free, about {free // _PICTURE_BYTES:,} pictures of 1024 x 1024"
    if free < desk.config.min_free_disk:
        yield Finding("disk", FAIL, words, "free some space, or lower `min_free_disk`")
    else:
        yield Finding("disk", OK, words)


def _door(desk: Desk) -> Iterator[Finding]:
    config = desk.config
    if config.host not in ("127.0.0.1", "::1", "localhost") and not config.token:
        mend = "set `token: auto`, or `host: 127.0.0.1`"
        yield Finding("exposure", FAIL, f"{config.host} is open to others without a token", mend)
    else:
        who = "this machine only" if not config.token else "a token is needed"
        yield Finding("exposure", OK, f"{config.host}: {who}")
    if config.port == 0:
        return
    with socket.socket() as trial:
        trial.settimeout(1)
        taken = trial.connect_ex(("127.0.0.1", config.port)) == 0
    ours = _is_ours(config.port) if taken else False
    if taken and not ours:
        mend = "set another `port`, or 0 for a free one"
        yield Finding("port", FAIL, f"{config.port} is used by another program", mend)
    else:
        yield Finding("port", OK, f"{config.port} " + ("answers" if ours else "is free"))


def _is_ours(port: int) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=3) as answer:
            return "status" in json.load(answer)
    except (OSError, ValueError):
        return False


_CHECKS: dict[str, Callable[[Desk], Iterator[Finding]]] = {
    "device": _device,
    "model": _model,
    "folders": _folders,
    "record": _record,
    "watcher": _watcher,
    "inotify": _inotify,
    "disk": _disk,
    "door": _door,
}
