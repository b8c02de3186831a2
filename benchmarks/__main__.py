"""Every promise of speed and memory in one table, measured here and now.

    python -m benchmarks [PART...] [--json FILE]

Each line is a figure, mostly a ratio within one run, beside the most it should be; the last
one says what missed its goal. These figures are of this machine at this load: believe ratios
and medians. The record at a million rows (benchmarks.store) and the page in a browser
(benchmarks.page) are commands of their own.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import encoders, faults, memory, night, pictures, service
from benchmarks.lines import Line

PARTS: dict[str, Callable[[], list[Line]]] = {
    "encoders": encoders.lines,
    "ready": service.ready,
    "device": service.device,
    "ray": service.on_ray,
    "pair": service.pair,
    "telling": service.telling,
    "bare": service.bare,
    "latency": service.latency,
    "cancel": service.cancel,
    "faults": faults.api,
    "poison": faults.poison,
    "tables": night.tables,
    "first": night.first,
    "files": night.files,
    "pictures": pictures.folder,
    "burst": pictures.burst,
    "pollers": pictures.pollers,
    "memory-starter": memory.starter,
    "memory-photos": memory.photos,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add each line to FILE as JSON")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    lines = []
    for part in given.parts or PARTS:
        begun, cpu = time.monotonic(), _cpu()
        print(f"\n{part}", flush=True)
        found = PARTS[part]()
        lines += found
        circumstances = {
            "part": part,
            "seconds": round(time.monotonic() - begun, 1),
            "cpu_seconds": round(_cpu() - cpu, 1),
            "load": round(os.getloadavg()[0], 1),
            "cores": os.cpu_count(),
            "loop_ms": _loop(),
        }
        for line in found:
            print(line, flush=True)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(circumstances | line.as_dict()) + "\n")
        print(
            "  ({seconds} s, {cpu_seconds} s of CPU, load {load}, loop {loop_ms} ms)".format(
                **circumstances
            )
        )
    judged = [line for line in lines if line.met is not None]
    missed = [line.what for line in judged if not line.met]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} goals met", end="")
    print(f"; missed: {'; '.join(missed)}" if missed else "")
    return 1 if missed else 0


def _cpu() -> float:
    """CPU seconds of this process and of all that it has started and seen end."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def _loop() -> float:
    """Milliseconds of CPU for a fixed piece of work: how much of a processor one has just now.

    About 30 on a quiet one of 2024. Where others share the cores, their CPU time is ours too.
    """
    begun = time.process_time()
    for _ in range(1_000_000):
        pass
    return round((time.process_time() - begun) * 1e3, 1)


if __name__ == "__main__":
    sys.exit(main())
