"""All of `make test`: runs of pytest beside each other, so that one alone imports torch or has a browser.

``suite.py`` runs everything; ``suite.py again`` only what failed last, one at a time. Every other
word goes to each run. Keeps two cores busy: the models compute, the browser draws, and most other
tests wait for something most of the time.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).parents[1]
PICK = "not slow and not gpu and not ray and not postgres and not clients and not powercut"
ALONE = ["tests/model", "tests/browser"]  #: a process each
NOTHING_TO_DO = 5  #: exit code of pytest
#: Which tests each run has.
RUNS = {
    "all else": [f"--ignore={folder}" for folder in ALONE],
    **{folder.removeprefix("tests/"): [folder] for folder in ALONE},
}
#: A file's tests share what it starts, so they stay together.
SPREAD = ["-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
#: The runs share the cores already: a second thread of a small model's would wait, spinning.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
AGAIN = ["--last-failed", "--last-failed-no-failures", "none"]


def command(name: str, words: list[str]) -> list[str]:
    """One of the runs; each remembers its own failures."""
    cache = HOUSE / ".pytest_cache" / name.replace(" ", "_")
    pytest = [sys.executable, "-m", "pytest", "-m", PICK, "-o", f"cache_dir={cache}"]
    return [*pytest, "--durations", "40", *words]


def main(words: list[str]) -> int:
    if words[:1] == ["again"]:
        again = [command(name, [*run, *AGAIN, *words[1:]]) for name, run in RUNS.items()]
        codes = [subprocess.run(each, cwd=HOUSE, env=ENVIRONMENT).returncode for each in again]
        return max(0 if code == NOTHING_TO_DO else code for code in codes)
    first, *beside = (command(name, [*run, *words]) for name, run in RUNS.items())
    first += SPREAD
    with contextlib.ExitStack() as ends:
        running = []
        for each in beside:
            said = ends.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(each, cwd=HOUSE, env=ENVIRONMENT, stdout=said, stderr=said)
            ends.callback(process.kill)
            running.append((process, said))
        code = subprocess.run(first, cwd=HOUSE, env=ENVIRONMENT).returncode
        for process, said in running:
            code = process.wait() or code
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
