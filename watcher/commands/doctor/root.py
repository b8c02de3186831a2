"""The folders, the record, the watcher, and whether it hears of new files."""

import os
from collections.abc import Iterator
from pathlib import Path

from watcher.commands.doctor.look import FAIL, NOTE, OK, Finding, Look
from watcher.errors import SteadyError


def layout(look: Look) -> Iterator[Finding]:
    """What a start refuses: folders inside each other, the record on a network disk."""
    from watcher.moved import left_behind
    from watcher.root import check_layout

    check_layout(look.config)
    for words in left_behind(look.config):
        yield Finding("layout", NOTE, words)
    yield Finding("layout", OK, "inbox, outputs and record are apart, the record on a local disk")


def inbox(look: Look) -> Iterator[Finding]:
    """Can job files be claimed?"""
    yield _writable("inbox", look.config.inbox)


def outputs(look: Look) -> Iterator[Finding]:
    """Can pictures be put away?"""
    yield _writable("outputs", look.config.outputs)


def _writable(name: str, folder: Path) -> Finding:
    from watcher.folder import is_read_only

    if not folder.exists():
        return Finding(name, NOTE, f"{folder} is made at the first start")
    if not folder.is_dir():
        return Finding(name, FAIL, f"{folder} is not a folder", f"mv {folder} {folder}.aside")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK) or is_read_only(folder):
        mend = f"sudo chown -R {os.getuid()} {folder} (or mount it for writing)"
        return Finding(name, FAIL, f"{folder} cannot be written", mend)
    return Finding(name, OK, f"{folder} can be written")


def presets(look: Look) -> Iterator[Finding]:
    """Can jobs be made with every preset?"""
    from watcher.jobfile.presets import read_preset
    from watcher.models.cards import limits_known

    config = look.config
    files = sorted(config.presets.glob("*.yaml"))
    limits = limits_known(config, None)
    for file in files:
        try:
            read_preset(file.read_bytes(), limits)
        except SteadyError as error:
            yield Finding("presets", FAIL, f"{file}: {error.message}", error.remedy)
        else:
            yield Finding(
                "presets", OK, f"{file.name} makes {config.inbox / file.stem} a hot folder"
            )


def disks(look: Look) -> Iterator[Finding]:
    """A file is taken and published by renaming, which stays on one file system."""
    config = look.config
    for home in (config.inbox, config.outputs):
        for room in (".tmp", ".claimed", "done", "refused", ".thumbs"):
            place = home / room
            if place.is_dir() and place.stat().st_dev != home.stat().st_dev:
                words = f"{place} lies on another file system than {home}"
                yield Finding("disks", FAIL, words, f"move it back: a real folder below {home}")
                return
    yield Finding("disks", OK, "what is renamed stays on one file system")


# -- the record and the watcher


def record(look: Look) -> Iterator[Finding]:
    """Is the record whole? Reads all of it: seconds per GB."""
    from watcher.commands.show import counts_line

    if not look.desk.has_record():
        yield Finding("record", NOTE, "made at the first start")
        return
    with look.desk.record() as store:
        store.verify()
        yield Finding("record", OK, f"whole; jobs: {counts_line(store.counts())}")
        if paused := store.get("paused"):
            reason = paused.get("reason") or "by hand"
            yield Finding("queue", NOTE, f"paused ({reason})", "steady resume")


def watcher(look: Look) -> Iterator[Finding]:
    """Does a watcher run here, and does it live?"""
    from watcher import live, root

    start = f"steady --root {look.desk.root} serve"
    if not look.watched:
        yield Finding("watcher", NOTE, "does not run; job files wait", start)
        return
    pid = root.holder(look.config.state / "lock").get("pid")
    pulse = live.read_pulse(look.config.state)
    if not pulse["alive"]:
        words = f"process {pid} runs but has not answered for a while"
        yield Finding("watcher", FAIL, words, f"kill {pid}; {start}")
        return
    yield Finding("watcher", OK, f"process {pid}, {pulse.get('state')}")
    for trouble in pulse.get("trouble", ()):
        yield Finding("watcher", FAIL, trouble["message"], trouble["remedy"])
    for trouble in pulse.get("warnings", ()):
        yield Finding("watcher", NOTE, trouble["message"], trouble["remedy"])


def events(look: Look) -> Iterator[Finding]:
    """Are new files noticed at once, or by looking every few seconds?"""
    from watcher import live
    from watcher.folder import is_read_only
    from watcher.inbox.watch import deaf

    every = f"new files are noticed by a look every {look.config.rescan_seconds:g} s"
    if look.watched:
        seen = live.read_pulse(look.config.state).get("inbox", {})
        for words in (*seen.get("problems", ()), *seen.get("notices", ())):
            yield Finding("events", NOTE, words)
        if seen.get("watch") == "events":
            yield Finding("events", OK, "new files are noticed at once")
        return
    folder = look.config.inbox
    if not folder.is_dir() or not os.access(folder, os.W_OK) or is_read_only(folder):
        return
    if trouble := deaf(folder):
        yield Finding("events", NOTE, f"{trouble} So {every}.")
    else:
        yield Finding("events", OK, "new files are noticed at once")
