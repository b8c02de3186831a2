"""The watcher as a process that dies on purpose: ``python crashing.py ROOT --point NAME --nth N``.

It is the product's own ``service.run`` with a checkpoint that sends SIGKILL to itself the
N-th time the named step was done (``*`` is any step). Without a point nothing dies. With
``--broken`` the step raises instead, as a fault of ours would; with ``--clock FILE`` the wall
clock is wrong by the number of seconds in that file.
"""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, ClassVar

from farslots import Stutter
from forked import launcher
from history import rows

from watcher import checkpoints, log, models, service, upkeep
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.executor.build import build
from watcher.log import now_us
from watcher.notify import SCHEDULE


class LateIdentity(service.Inbox):
    """A seeded fault: the ticket is minted when a file is read, so a file left by a crash is
    a new one."""

    def leftovers(self) -> list[Any]:
        fresh = []
        for claim in super().leftovers():
            ticket = str(uuid.uuid4())
            entry = ticket + claim.entry[len(claim.ticket) :]
            claim.path.rename(claim.folder / entry)
            fresh.append(dataclasses.replace(claim, ticket=ticket, entry=entry))
        return fresh


class NamedAtFinish(service.Outputs):
    """A seeded fault: a picture gets its name when it is saved, so nobody can look for it."""

    def save(self, job: Any, image: Any, recipe: Any) -> Any:
        named = dataclasses.replace(job, path=f"{job.folder}/{uuid.uuid4().hex}.png")
        saved = super().save(named, image, recipe)
        rows(
            Path(sys.argv[1]),
            "UPDATE jobs SET path = ? WHERE id = ? RETURNING id",
            named.path,
            job.id,
        )
        return saved


class ToldAfterwards(upkeep.JobStore):
    """A seeded fault: that a batch ended is written to the outbox after the transaction, by
    whoever looks into it a moment later."""

    _late: ClassVar[list[Any]] = []

    def _tell(self, *what: Any) -> int:
        self._late.append((now_us() + 200_000, what))
        return 1

    def due_endpoints(self) -> list[str]:
        while self._late and self._late[0][0] <= self.now():
            with self.write():
                super()._tell(*self._late.pop(0)[1])
        return super().due_endpoints()


def _build_on_ray(stutter: bool, silence: float | None) -> Any:
    """``service.build`` with an actor or a patience of the test's own."""

    def build_it(*given: Any) -> Any:
        executor = build(*given)
        line: Any = executor._line  # type: ignore[attr-defined]
        line._actor = Stutter if stutter else line._actor
        line._silence = silence or line._silence
        return executor

    return build_it


class Poisoned(service.Inbox):
    """No fault of ours: reading a file that holds the word ``poison`` takes the process along."""

    def read(self, claim: Any, limit: int) -> bytes:
        data = super().read(claim, limit)
        if b"poison" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return data


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("root")
    options.add_argument("--point")
    options.add_argument("--nth", type=int, default=1)
    options.add_argument("--once", action="store_true")
    options.add_argument("--standby", action="store_true")
    options.add_argument(
        "--fault", choices=["late-identity", "named-at-finish", "poison", "told-afterwards"]
    )
    options.add_argument("--broken", action="store_true")
    options.add_argument("--cloned", action="store_true", help="workers without their start")
    options.add_argument("--clock", type=Path)
    options.add_argument("--stutter", action="store_true", help="far slots say everything twice")
    options.add_argument(
        "--silence", type=float, help="seconds until a silent actor counts as lost"
    )
    options.add_argument("--pace", type=float, help="scales the schedule of telling others")
    options.add_argument("--probe", help="the machine's devices, best first: cuda:0,cpu")
    given = options.parse_args()
    left = given.nth
    lock = threading.Lock()

    def checkpoint(step: str) -> None:
        nonlocal left
        if given.point not in (step, "*"):
            return
        with lock:
            left -= 1
            if left == 0 and given.broken:
                raise RuntimeError(f"broken on purpose at {step}")
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if given.clock is not None:
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + float(given.clock.read_text())
        time.time_ns = lambda: real_ns() + int(given.clock.read_text()) * 10**9
    if given.fault == "late-identity":
        service.Inbox = LateIdentity  # type: ignore[misc]
    elif given.fault == "poison":
        service.Inbox = Poisoned  # type: ignore[misc]
    elif given.fault == "told-afterwards":
        upkeep.JobStore = ToldAfterwards  # type: ignore[misc]
    elif given.fault == "named-at-finish":
        service.Outputs = NamedAtFinish  # type: ignore[misc]
    if given.stutter or given.silence:
        service.build = _build_on_ray(given.stutter, given.silence)
    launch = launcher() if given.cloned else subprocess.Popen  # before there is a second thread
    checkpoints.after = checkpoint
    log.configure("info")
    try:
        return service.run(
            Config.load(given.root),
            once=given.once,
            standby=given.standby,
            probe=(lambda: models.Devices(given.probe.split(",")))
            if given.probe
            else models.probe_devices,
            launch=launch,
            schedule=[each * (given.pace or 1.0) for each in SCHEDULE],
            lasts=60.0 * (given.pace or 1.0),
        )
    except SteadyError as error:
        print(error, file=sys.stderr)
        return error.kind.exit


if __name__ == "__main__":
    sys.exit(main())
