"""The watcher as a process that dies on purpose: ``python crashing.py ROOT --point NAME --nth N``.

It is the product's own ``service.run`` with a checkpoint that sends SIGKILL to itself the
N-th time the named step was done (``*`` is any step). Without a point nothing dies.
"""

import argparse
import os
import signal
import sys
import threading

from watcher import log, service
from watcher.config import Config
from watcher.errors import SteadyError


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("root")
    options.add_argument("--point")
    options.add_argument("--nth", type=int, default=1)
    options.add_argument("--once", action="store_true")
    given = options.parse_args()
    left = given.nth
    lock = threading.Lock()

    def checkpoint(step: str) -> None:
        nonlocal left
        if given.point not in (step, "*"):
            return
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    log.configure("info")
    try:
        return service.run(Config.load(given.root), once=given.once, checkpoint=checkpoint)
    except SteadyError as error:
        print(error, file=sys.stderr)
        return error.kind.exit


if __name__ == "__main__":
    sys.exit(main())
