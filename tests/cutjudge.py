"""After a power cut: the watcher on what is left, and what must hold once it is done.

``drain`` is the real watcher, ``service.run(once=True)``, in a process forked from this one,
which has everything imported; only the worker is played, since it holds nothing.
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
import queue
import shutil
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imported  # noqa: F401  before anything forks
from cuttrace import Tree
from engines import expected
from history import untold
from receivers import SECRET
from standardwebhooks import Webhook

from watcher import executor as ex, log, notify, service
from watcher.config import Config
from watcher.jobs import Job
from watcher.notify.hooks import Webhooks
from watcher.pictures.recipe import read_recipe
from watcher.webhooks import Reply

_SECONDS = 60  #: for a watcher to be done


class Player:
    """An executor with one slot that makes each picture at once, in this process."""

    def __init__(self, *_given: Any) -> None:
        self._events: queue.SimpleQueue[ex.Event | None] = queue.SimpleQueue()
        self._info = {
            "model": "scripted",
            "revision": "1",
            "device": "cpu",
            "dtype": "float32",
            "accepts": ["image"],
        }
        self._lock = threading.Lock()

    def start(self) -> None:
        self._events.put(ex.Ready(0, self._info))

    def events(self, timeout: float) -> list[ex.Event]:
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=timeout or 0.0001))
            while True:
                found.append(self._events.get_nowait())
        return [event for event in found if event is not None]

    def wake(self) -> None:
        self._events.put(None)

    def wants(self) -> list[int]:
        return [0] if self._events.empty() else []

    def unfit(self, slot: int) -> frozenset[str]:
        return frozenset()

    def send(self, slot: int, job: Job, files: Any = None) -> None:
        request, job_id, attempt = job.request, job.id, job.attempt
        image = expected(request.prompt, request.seed or 0, request.width or 0, request.height or 0)
        self._events.put(ex.Started(slot, job_id, attempt))
        self._events.put(
            ex.Picture(slot, job_id, attempt, image.size, image.tobytes(), {}, self._info)
        )

    def cancel(self, job_id: str) -> None:
        """Nothing is ever in work."""

    def stop(self, grace: float) -> list[tuple[str, int]]:
        return []

    def status(self) -> list[dict[str, Any]]:
        return []


def lay_out(root: Path, tree: Tree) -> None:
    """The folders and files of a state."""
    for path, content in tree.items():
        place = root / path
        if content is None:
            place.mkdir(parents=True)
        elif isinstance(content, str):
            os.link(root / content, place)
        else:
            place.write_bytes(content)


class Ear:
    """Somebody who is told, without a network: notes each event in a file before answering."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._check = Webhook(SECRET)

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, inside: bool) -> Reply:
        self._check.verify(body, dict(headers))
        event = json.loads(body)
        about = event["data"].get("id") or event["data"]["ticket"]
        with self._place.open("a") as heard:
            heard.write(json.dumps([event["type"], about, headers["webhook-id"]]) + "\n")
        return Reply(204)

    def close(self) -> None:
        """Nothing is ever on its way."""


def drain(root: Path, work: Path) -> int:
    """Run the watcher on ``root`` until nothing is left; its exit code, minus a signal's number.

    ``work``: a folder outside, where its words go to ``said`` and what it told to ``told``.
    """
    child = os.fork()
    if child == 0:
        code = 70
        for name in [name for name in os.environ if name.startswith("STEADY_")]:
            del os.environ[name]  # the root's own settings hold
        try:
            handle = os.open(work / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            signal.alarm(_SECONDS)
            log.configure("info")
            service.build = Player  # type: ignore[assignment]
            ear: Any = Ear(work / "told")
            notify.Webhooks = functools.partial(Webhooks, poster=ear)  # type: ignore[misc, assignment]
            code = service.run(Config.load(root), once=True)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def faults(
    root: Path, said: Sequence[Mapping[str, Any]], told: list[Any], *, full: bool
) -> list[str]:
    """Broken promises of a root that was drained after a cut; what was ``said`` before it, and the
    events that were ``told`` after it.

    ``full``: commits are flushed, so what was answered holds; else it may have been forgotten.
    """
    with contextlib.closing(sqlite3.connect(root / "steady.db")) as record:
        record.row_factory = sqlite3.Row
        whole = record.execute("PRAGMA integrity_check").fetchone()[0]
        if whole != "ok":
            return [f"the record: {whole}"]
        jobs = [dict(row) for row in record.execute("SELECT * FROM jobs")]
        open_ = record.execute(
            "SELECT name FROM batches WHERE archived = 0 AND (recorded_at IS NOT NULL"
            " OR claim IS NOT NULL)"
        ).fetchall()
        inputs = {row["sha256"] for row in record.execute("SELECT sha256 FROM inputs")}
    found = [f"not put away: {row['name']}" for row in open_]
    found += _job_faults(root, jobs, said, full) + _folder_faults(root, said)
    found += _input_faults(root, inputs | {e["sha256"] for e in said if e.get("did") == "send"})
    return found + _event_faults(root, jobs, said, told, full)


def _asked(said: Sequence[Mapping[str, Any]], step: str, what: str) -> set[str]:
    return {each["prompt"] for each in said if each.get(step) == what}


def _job_faults(
    root: Path,
    jobs: Sequence[dict[str, Any]],
    said: Sequence[Mapping[str, Any]],
    full: bool,
) -> list[str]:
    found = []
    by_prompt = collections.defaultdict(list)
    for job in jobs:
        by_prompt[job["prompt"]].append(job)
    found += [f"doubled: {p}" for p, same in by_prompt.items() if len(same) > 1]
    pruned = _asked(said, "begin", "prune")
    for each in said:
        if each.get("did") in ("file", "post"):
            for prompt in each.get("prompts", [each.get("prompt")]):
                if prompt not in by_prompt and prompt not in pruned:
                    found.append(f"lost: {prompt}")
        if each.get("did") == "post":
            for job in by_prompt[each["prompt"]]:
                if (job["id"], job["image_name"]) != (each["id"], each["image"]):
                    found.append(f"{each['prompt']} has another id or name than was told")
    pictures = {
        str(path.relative_to(root / "outputs")): path.read_bytes()
        for path in (root / "outputs").rglob("[!.]*.png")
    }
    for job in jobs:
        found += _fault_of(job, pictures.pop(job["path"], None), said, full)
    for path, data in pictures.items():
        if (read_recipe(data) or {}).get("request", {}).get("prompt") not in pruned:
            found.append(f"nobody's picture: {path}")
    return found


def _fault_of(
    job: Mapping[str, Any],
    picture: bytes | None,
    said: Sequence[Mapping[str, Any]],
    full: bool,
) -> list[str]:
    prompt, state = job["prompt"], job["state"]
    may = {"completed"}
    for what, ends in (("cancel", {"cancelled"}), ("retry", {"failed"})):
        if prompt in _asked(said, "begin", what):
            may |= ends
        if full and prompt in _asked(said, "did", what):
            may = ends if what == "cancel" else may - ends
    if "raise" in prompt and not (full and prompt in _asked(said, "did", "retry")):
        may |= {"failed"}
    if state not in may:
        return [f"{prompt} is {state}"]
    if full and prompt in _asked(said, "did", "delete") and job["deleted_at"] is None:
        return [f"the deletion of {prompt} is forgotten"]
    if full and prompt in _asked(said, "did", "prune"):
        return [f"{prompt} is there although it was pruned"]
    if state == "completed" and job["deleted_at"] is None:
        if picture is None:
            return [] if prompt in _asked(said, "begin", "prune") else [f"no picture of {prompt}"]
        if hashlib.sha256(picture).hexdigest() != job["sha256"]:
            return [f"the picture of {prompt} is not the recorded one"]
    return []


def _folder_faults(root: Path, said: Sequence[Mapping[str, Any]]) -> list[str]:
    inbox = root / "inbox"
    left = [p.name for p in inbox.iterdir() if not p.name.startswith(".") and p.is_file()]
    left += [
        f"{room}/{p.name}" for room in (".claimed", "refused") for p in (inbox / room).iterdir()
    ]
    found = [f"left over: {name}" for name in left]
    gone = {each["file"] for each in said if each.get("begin") == "prune"}
    for each in said:
        if each.get("did") != "file" or each["file"] in gone:
            continue
        stem, suffix = os.path.splitext(each["file"])
        kept = [p.name for p in (inbox / "done").rglob(f"{stem}~????????{suffix}*")]
        ends = sorted(
            name[len(stem) + 9 :] for name in kept if not name.endswith(".csv.result.csv")
        )
        if ends != [suffix, f"{suffix}.result.json"]:
            found.append(f"{each['file']} lies in done/ as {kept}")
        back = list((inbox / "done").rglob(f"{stem}~????????.refused.csv"))
        if each["file"] == "three.json" and not (back and b"bad,7," in back[0].read_bytes()):
            found.append("a row that cannot be used was not given back")
    return found


def _input_faults(root: Path, wanted: set[str]) -> list[str]:
    """A picture that a job starts from, or that was sent, is kept whole."""
    kept = {path.name: path.read_bytes() for path in (root / ".steady" / "inputs").glob("*")}
    return [
        f"the input {sha256[:8]} is not what it was"
        for sha256 in sorted(wanted)
        if hashlib.sha256(kept.get(sha256, b"")).hexdigest() != sha256
    ]


def _event_faults(
    root: Path,
    jobs: Sequence[dict[str, Any]],
    said: Sequence[Mapping[str, Any]],
    told: list[Any],
    full: bool,
) -> list[str]:
    """Everything was told, before the cut or after it, and as one event where commits hold."""
    found = untold(root, [*(each["told"] for each in said if "told" in each), *told])
    anew = _asked(said, "begin", "retry") | _asked(said, "begin", "resume")
    twice = {job["ticket"] for job in jobs if job["prompt"] in anew}  # its batch ended twice
    if not full:
        return [each for each in found if " was told as " not in each]
    return [
        each
        for each in found
        if " was told as " not in each or not any(ticket in each for ticket in twice)
    ]


def judge(place: Path, tree: Tree, said: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lay out, drain, look. ``place`` is a folder of its own, which goes afterwards if all is well."""
    root = place / "root"
    shutil.rmtree(place, ignore_errors=True)
    root.mkdir(parents=True)
    lay_out(root, tree)
    found = judge_root(root, said, place)
    if not found:
        shutil.rmtree(place)
    return found


def judge_root(root: Path, said: Sequence[Mapping[str, Any]], work: Path) -> list[str]:
    """Drain and look. ``work``: see ``drain``."""
    full = json.loads((root / "config.yaml").read_text())["synchronous"] != "normal"
    code = drain(root, work)
    heard = work / "told"
    told = [json.loads(line) for line in heard.read_text().splitlines()] if heard.exists() else []
    try:
        found = [] if code == 0 else [f"the watcher ended with {code}"]
        return found + faults(root, said, told, full=full)
    except (OSError, sqlite3.Error) as error:
        return [f"the watcher ended with {code}; {type(error).__name__}: {error}"]
