"""A process of its own for the inbox's tests: ``python inbox_child.py '<json>'``.

{"do": "watch", folder, settle, rescan, uid?}   claims for ever; one JSON line for every
                                                change: claims, health, error
{"do": "claim"|"archive"|"refuse"|"discard"|"submit", folder, way, step, nth}
                                                kills itself with SIGKILL at the nth ``step``
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from watcher import checkpoints, publish
from watcher.errors import SteadyError
from watcher.inbox import arrivals, drop_file
from watcher.inbox.watch import Inbox

TICKET = "11111111-2222-4333-8444-555555555555"


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def peak_mb() -> int:
    """Largest memory of this process so far (a child's ru_maxrss begins with its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def watch(order: dict[str, Any]) -> None:
    arrivals.BLIND_SECONDS = order.get("settle_blind", arrivals.BLIND_SECONDS)
    arrivals.MOST_KNOWN = order.get("room", arrivals.MOST_KNOWN)
    inbox = Inbox(Path(order["folder"]), settle=order["settle"], rescan=order["rescan"])
    if "uid" in order:
        os.setgroups([])
        os.setresgid(order["uid"], order["uid"], order["uid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])
    inbox.open(first=order.get("first", True))
    last: dict[str, Any] = {}
    while True:
        claims, error, worst = [], None, ""
        try:
            claims = inbox.scan()
        except SteadyError as trouble:
            error, worst = trouble.code, trouble.message
        told = {"health": inbox.health(), "error": error, "words": worst}
        if claims or told != last:
            reads = []
            if order.get("read"):
                for claim in claims:
                    try:
                        reads.append(inbox.read(claim, 1000).decode())
                    except SteadyError as trouble:
                        reads.append(trouble.code)
            tell(
                claims=[claim.name for claim in claims],
                reads=reads,
                rss=peak_mb(),
                **told,
            )
            last = told
        if not claims:
            inbox.wait()


def act(order: dict[str, Any]) -> None:
    folder, step = Path(order["folder"]), order["step"]
    left = order.get("nth", 1)

    def die(at: str) -> None:
        nonlocal left
        if at == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def deadly_link(temporary: Path, final: Path) -> None:
        publish.by_link(temporary, final)
        die("inside")

    def deadly_copy(temporary: Path, final: Path) -> None:
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        die("inside")
        os.replace(temporary, final)

    ways: tuple[publish.Way, ...] = {
        "all": publish.WAYS,
        "link": (deadly_link,),
        "rename": (publish.by_rename,),
        "copy": (deadly_copy,),
    }[order["way"]]
    if order["do"] == "submit":
        drop_file(folder, b"prompt: a fox\n", ".yaml", TICKET, ways=ways)
        return
    checkpoints.after = die
    inbox = Inbox(folder, settle=0.05, rescan=0.5, ways=ways)
    inbox.open()
    if order["do"] == "claim":
        while True:
            inbox.wait()
            inbox.scan()
    (claim,) = inbox.leftovers()
    if order["do"] == "archive":
        inbox.archive(
            claim.ticket, claim.name, claim.suffix, day="20260101",
            beside=[(".refused.csv", [b"error\n"]), (".csv.result.csv", [b"row\n"]),
                    (".csv.result.json", [b"{}"])],
        )  # fmt: skip
    elif order["do"] == "refuse":
        inbox.refuse(claim, {"code": "bad_yaml"})
    elif order["do"] == "discard":
        inbox.discard(claim.ticket)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    watch(given) if given["do"] == "watch" else act(given)
