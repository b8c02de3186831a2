"""The run whose file-system calls are recorded: ``strace python cutscene.py ROOT PORT WORK``.

A real `steady serve` and the people who use it. Whatever somebody was told, or has made
durable, is said to the trace and to the file WORK/promises, so the judge knows what a cut may
not take back. WORK, outside the root, also holds what its processes say.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cuttrace import SAYS
from engines import expected
from receivers import Receiver

ROWS = 23  #: two transactions of a table


def say(**what: Any) -> None:
    """To the trace: opens a file that is not there, whose name is the message."""
    with (Path(sys.argv[3]) / "promises").open("a") as promises:
        promises.write(json.dumps(what) + "\n")
    with contextlib.suppress(OSError):
        os.open(SAYS + json.dumps(what).encode().hex(), os.O_RDONLY)


class Scene:
    """A root, its service, and somebody who asks."""

    def __init__(self, root: Path, port: int) -> None:
        self._root = root
        self._port = port

    def drop(self, name: str, content: str, prompts: list[str]) -> None:
        """Put a file into the inbox as a careful person does."""
        say(begin="file", file=name, prompts=prompts)
        self._put("inbox", name, content.encode())
        say(did="file", file=name, prompts=prompts)

    def _put(self, folder: str, name: str, content: bytes) -> None:
        """Written elsewhere and flushed, then moved in, and flushed."""
        draft = self._root / f"draft-{name}"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self._root / folder / name)
        for changed in (self._root / folder, self._root):
            handle = os.open(changed, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        sent = {"Content-Type": "application/json"} | headers
        try:
            if isinstance(body, bytes):
                sent["Content-Type"] = "application/octet-stream"
            elif body is not None:
                body = json.dumps(body)
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status < 300, (method, path, answer.status, said)
            return json.loads(said) if said else None
        finally:
            connection.close()

    def post(self, prompt: str, image: str | None = None, **headers: str) -> str:
        say(begin="post", prompt=prompt)
        asked = {"prompt": prompt} | ({"image": image} if image else {})
        told = self.ask("POST", "/generate-image", asked, **headers)
        say(did="post", prompt=prompt, id=told["job_id"], image=told["image_name"])
        return str(told["job_id"])

    def act(self, what: str, prompt: str, method: str, path: str) -> None:
        say(begin=what, prompt=prompt)
        self.ask(method, path)
        say(did=what, prompt=prompt)

    def wait(self, job: str, *states: str) -> None:
        until(
            lambda: self.ask("GET", f"/jobs/{job}")["state"] in states,
            f"{job} {states}",
        )

    def settled(self) -> None:
        """Everything has ended and is put away."""

        def all_over() -> bool:
            counts = self.ask("GET", "/queue")["counts"]
            claimed = list((self._root / "inbox" / ".claimed").iterdir())
            waiting = [p for p in (self._root / "inbox").iterdir() if p.suffix]
            untold = self.ask("GET", "/webhooks/deliveries?state=pending")["deliveries"]
            return not (counts["queued"] or counts["generating"] or claimed or waiting or untold)

        until(all_over, "the end")

    def play(self, gate: Path, *, long: bool) -> None:
        """Every way a job comes and goes. ``gate``: a path that holds a job while it is there."""
        self.settled()
        if long:
            say(begin="prune", prompt="early steps=1", file="early.yaml")
            steady(self._root, "prune", "--older-than", "0s", "--images")
            say(did="prune", prompt="early steps=1", file="early.yaml")
        names = [f"three-{n} steps=1" for n in range(3)]
        three = {"on_error": "skip", "jobs": [*names, {"prompt": "bad", "width": 7}]}
        self.drop("three.json", json.dumps(three), names)
        (self._root / "inputs").mkdir(exist_ok=True)
        self._put("inputs", "cat.png", _png("cat"))
        self.drop("cat.yaml", "{prompt: cat steps=1, image: cat.png}", ["cat steps=1"])
        dog = _png("dog")
        sha256 = hashlib.sha256(dog).hexdigest()
        assert self.ask("POST", "/inputs", dog)["sha256"] == sha256
        say(did="send", sha256=sha256)
        self.post("dog steps=1", f"sha256:{sha256}")
        first = self.post("post-0 steps=1")
        self.post("post-1 steps=1", **{"Idempotency-Key": "k1"})
        if not long:
            self.settled()
            return
        rows = [f"row-{n} steps=1" for n in range(ROWS)]
        self.drop("table.csv", "prompt\n" + "\n".join(rows) + "\n", rows)
        self.wait(first, "completed")
        self.act("delete", "post-0 steps=1", "DELETE", f"/jobs/{first}/image")
        faulty = "faulty raise once steps=1"
        fails = self.post(faulty)
        self.wait(fails, "failed")
        self.act("retry", faulty, "POST", f"/jobs/{fails}/retry")
        self.wait(fails, "completed")
        self.settled()
        gate.touch()
        held = self.post(f"held held={gate} steps=1")
        self.wait(held, "generating")
        victim = self.post("victim steps=1")
        self.act("cancel", "victim steps=1", "DELETE", f"/jobs/{victim}")
        gate.unlink()
        keyed = [f"keyed-{n} steps=1" for n in range(3)]
        for name, part, more in (
            ("k1.json", keyed[:2], {}),
            ("k2.json", keyed, {"resume": True}),
        ):
            jobs = [{"prompt": p} for p in part]
            say(begin="resume" if more else "key", prompt=part[0])
            self.drop(name, json.dumps({"key": "night", "jobs": jobs} | more), part)
            self.settled()
        self.post("last steps=1")
        self.settled()


def _png(words: str) -> bytes:
    data = io.BytesIO()
    expected(words, 1, 64, 64).save(data, "png")
    return data.getvalue()


def until(predicate: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if predicate():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)


def steady(root: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "watcher.cli", "--root", root, "-q", *words], check=True)


def main() -> None:
    root, port, work, length = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        Path(sys.argv[3]),
        sys.argv[4],
    )
    os.chdir(root)
    settings = json.loads((root / "config.yaml").read_text())
    hooks = int(settings["webhooks"][0]["url"].split(":")[2].split("/")[0])
    receiver = Receiver(port=hooks, hears=lambda heard: say(told=heard.told))
    scene = Scene(root, port)
    scene.drop("early.yaml", "prompt: early steps=1\n", ["early steps=1"])
    with (work / "said").open("ab") as said:
        service = subprocess.Popen(
            [sys.executable, "-m", "watcher.cli", "--root", root, "serve", "--port", str(port)],
            stdout=said, stderr=said,
        )  # fmt: skip
    try:
        until(lambda: bool(scene.ask("GET", "/health")), "the service")
        scene.play(work / "gate", long=length == "long")
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)
        receiver.close()
    assert receiver.refused == []


if __name__ == "__main__":
    main()
