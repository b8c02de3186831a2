"""Ten minutes on one graphics card: what it is, whether all works, how fast, how much memory.

    python -m benchmarks.gpu [--card cuda:0 | cpu] [--limit 600] [--out FOLDER]

The parts run in order of value, each in a process of its own (a card's fault ends one part), and
every row is kept as soon as it is measured: at the limit the rest is left out and said so.
``gpu.json`` and ``gpu.md`` in FOLDER hold the table. Needs no network and no model: a full-size
Z-Image with random weights is made on the card itself. Without a card it says so and ends;
``cpu`` runs the same parts with the starter model, so that the command itself is known to work.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parent.parent
PARTS = ("card", "service", "model", "tiers", "attention", "checks", "compile")
_SIGNS = ("nvidiactl", "nvidia0", "kfd", "dxg")  #: what lies in /dev where there is a card


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--card", default="cuda:0", help="cuda:N, or cpu for a rehearsal")
    parser.add_argument("--limit", type=float, default=600, help="seconds for all")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu.json and gpu.md")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        from benchmarks import gpuparts  # torch: only in a part's own process

        gpuparts.run(given.part, given.card, say)
        return 0
    if given.card != "cpu" and not any(Path("/dev", sign).exists() for sign in _SIGNS):
        print("No graphics card here: nothing to measure. CARD=cpu rehearses it on the processor.")
        return 0
    end = time.monotonic() + given.limit
    rows = [row for part in PARTS for row in _shown(_part(part, given.card, end))]
    _write(given.out, rows, given.card)
    print(f"\n{given.out / 'gpu.json'} and {given.out / 'gpu.md'} are written")
    return 1 if any(row["unit"] == "FAILED" for row in rows) else 0


def say(what: str, figure: object, unit: str = "", note: str = "") -> None:
    """Print one row, at once."""
    if isinstance(figure, float):
        figure = round(figure, 3)
    print(json.dumps({"what": what, "figure": figure, "unit": unit, "note": note}), flush=True)


def _part(part: str, card: str, end: float) -> Iterator[dict[str, Any]]:
    """The rows of one part, as they come; the last one says how it ended if not well."""
    if end - time.monotonic() < 1:
        yield {"part": part, "what": part, "figure": "not run", "unit": "", "note": "time was up"}
        return
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--card", card]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=HOUSE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        ) as child,
    ):
        timer = threading.Timer(end - time.monotonic(), _kill, (child,))
        timer.start()
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):  # what libraries print
                yield {"part": part, **json.loads(line)}
        code = child.wait()
        timer.cancel()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines() or [""]
    if time.monotonic() >= end:
        yield {"part": part, "what": part, "figure": "cut off", "unit": "", "note": "time was up"}
    elif code:
        note = said[-1][:300]
        yield {"part": part, "what": part, "figure": f"exit {code}", "unit": "FAILED", "note": note}


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _shown(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        print("{part:<10}{what:<52}{figure!s:>14} {unit:<7}{note}".format(**row), flush=True)
        yield row


def _write(folder: Path, rows: list[dict[str, Any]], card: str) -> None:
    head = {
        "when": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "card": card,
        "machine": platform.platform(),
        "python": platform.python_version(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    cells = [[str(row[key]) for key in ("part", "what", "figure", "unit", "note")] for row in rows]
    lines = [
        " ".join(f"{key}: {value}." for key, value in head.items()),
        "",
        "| part | what | figure | | |",
        "|---|---|---:|---|---|",
        *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells),
    ]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def outcomes(report: Path) -> Iterator[tuple[str, str, str]]:
    """Name, outcome and words of every test in a JUnit report."""
    for case in ElementTree.parse(report).iter("testcase"):
        words = [(child.tag, child.get("message") or "") for child in case]
        bad = next((w for w in words if w[0] in ("failure", "error", "skipped")), ("passed", ""))
        yield case.get("name") or "?", bad[0], bad[1].splitlines()[0][:200] if bad[1] else ""


Say = Callable[..., None]

if __name__ == "__main__":
    sys.exit(main())
