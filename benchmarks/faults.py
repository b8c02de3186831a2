"""Workers that die or hang in the middle of a job, while clients ask the API all the time."""

import http.client
import json
import statistics
import threading
import time
from typing import Any

from benchmarks.lines import Line, percentile
from benchmarks.rig import Door, Root, a_root, events, read_log, settled, wait, warm

FAULTS = ("segv", "exit", "kill", "hang")
CLIENTS = 3
STEP_DEADLINE = 1.0  #: seconds; the hang's


class _Asking:
    """Clients that ask, each on a connection of its own, until the block ends."""

    def __init__(self, door: Door, paths: tuple[str, ...]) -> None:
        self.times: list[tuple[float, float]] = []  #: (when, milliseconds), monotonic
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(door.connection(), paths))
            for _ in range(CLIENTS)
        ]

    def __enter__(self) -> "_Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, connection: http.client.HTTPConnection, paths: tuple[str, ...]) -> None:
        number = 0
        while not self._stop.wait(0.01):
            begun = time.monotonic()
            connection.request("GET", paths[number % len(paths)])
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 500:
                raise SystemExit(f"{paths[number % len(paths)]}: {answer.status}")
            self.times.append((begun, (time.monotonic() - begun) * 1e3))
            number += 1

    def p99(self, spans: list[tuple[float, float]]) -> float:
        """Milliseconds, of what was asked in any of ``spans``."""
        taken = [ms for at, ms in self.times if any(a <= at <= b for a, b in spans)]
        return percentile(taken, 0.99)


def api(rounds: int = 5) -> list[Line]:
    """Each fault in turn, each beside a job of the same length that is made in peace."""
    noticed: dict[str, list[float]] = {fault: [] for fault in FAULTS}
    peace: list[tuple[float, float]] = []
    trouble: list[tuple[float, float]] = []
    nexts: list[float] = []
    with a_root(step_timeout_seconds=STEP_DEADLINE) as root:
        warm(root)
        door = Door(root)
        paths = ("/health", "/queue", f"/status/{root.jobs()[0]['id']}", "/jobs?limit=20")
        with _Asking(door, paths) as asking:
            for number in range(rounds):
                for fault in FAULTS:
                    peace.append(_span(root, f"calm{number}{fault} steps=4 sleep=0.1", "next"))
                    before = len(read_log(root.log))
                    prompt = f"bad{number} {fault} once steps=4 sleep=0.1"
                    trouble.append(_span(root, prompt, "next", noticed[fault]))
                    happened = events(root, "fault", before)[0]["t"]
                    noticed[fault][-1] -= happened / 1e9
                    nexts.append((events(root, "finish", before)[-1]["t"] - happened) / 1e9)
        idle, during = asking.p99(peace), asking.p99(trouble)
        if set(root.states()) != {"completed"}:
            raise SystemExit("some job was not completed in the end")
    crashes = [seconds for fault in FAULTS[:3] for seconds in noticed[fault]]
    return [
        Line(
            f"API p99 while workers die / while they work, {CLIENTS} clients",
            during / idle, "x", 1.5, f"{during:.1f} against {idle:.1f} ms",
        ),
        Line("a crash is in the record after, worst", max(crashes), "s", 0.5),
        Line(
            f"a hang is in the record after, worst (deadline {STEP_DEADLINE:g} s)",
            max(noticed["hang"]), "s", STEP_DEADLINE + 0.5,
        ),
        Line("from the fault to the next picture, median", statistics.median(nexts), "s"),
    ]  # fmt: skip


def _span(
    root: Root, prompt: str, after: str, died: list[float] | None = None
) -> tuple[float, float]:
    """Run two jobs; from when to when (monotonic). ``died``: gets when the death was recorded."""
    begun = time.monotonic()
    count = len(root.jobs())
    root.drop(f"{prompt.split()[0]}.json", json.dumps([{"prompt": prompt}, {"prompt": after}]))
    if died is not None:
        wait(lambda: any(job["deaths"] for job in root.jobs()[count:]))
        died.append(time.monotonic())
    wait(lambda: len(root.jobs()) == count + 2 and settled(root))
    return begun, time.monotonic()


def poison(jobs: int = 100) -> list[Line]:
    """A job that always crashes its worker, among others that do not."""
    with a_root() as root:
        warm(root)
        prompts = [f"n{number} steps=1" for number in range(jobs - 1)]
        prompts.insert(jobs // 2, "bad segv")
        root.drop("many.json", json.dumps([{"prompt": prompt} for prompt in prompts]))
        wait(lambda: len(root.jobs()) == jobs + 1 and settled(root))
        record: list[dict[str, Any]] = root.jobs()[1:]
        deaths = len(events(root, "fault"))
    bad = [job for job in record if job["state"] != "completed"]
    if [job["error_code"] for job in bad] != ["worker_crashed"]:
        raise SystemExit(f"not as promised: {[(j['prompt'], j['error_code']) for j in bad]}")
    return [
        Line(f"workers that one poisoned job of {jobs} costs", deaths, "", 2),
        Line(f"of the others not completed, {jobs - 1}", len(bad) - 1, "", 0),
    ]
