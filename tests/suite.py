"""All of `make test`: two runs of pytest beside each other, so that only one of them imports torch.

``suite.py`` runs everything; ``suite.py again`` only what failed last, one at a time. Every other
word goes to both runs. Keeps two cores busy: most tests wait for something most of the time.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HOUSE = Path(__file__).parents[1]
PICK = "not slow and not gpu and not ray and not postgres and not clients and not powercut"
MODELS = "tests/model"  #: where torch is imported
NOTHING_TO_DO = 5  #: exit code of pytest
#: Words of each run; a file's tests share what it starts, so they stay together.
RUNS = {
    "models": [MODELS],
    "all else": [f"--ignore={MODELS}", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"],
}
AGAIN = ["--last-failed", "--last-failed-no-failures", "none"]


def command(name: str, words: list[str]) -> list[str]:
    """One of the two runs; each remembers its own failures."""
    cache = HOUSE / ".pytest_cache" / name.replace(" ", "_")
    pytest = [sys.executable, "-m", "pytest", "-m", PICK, "-o", f"cache_dir={cache}"]
    return [*pytest, "--durations", "40", *words]


def main(words: list[str]) -> int:
    again = words[:1] == ["again"]
    if again:
        codes = [
            subprocess.run(command(name, [run[0], *AGAIN, *words[1:]]), cwd=HOUSE).returncode
            for name, run in RUNS.items()
        ]
        return max(0 if code == NOTHING_TO_DO else code for code in codes)
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen(
            command("models", [*RUNS["models"], *words]), cwd=HOUSE, stdout=said, stderr=said
        )
        try:
            code = subprocess.run(
                command("all else", [*RUNS["all else"], *words]), cwd=HOUSE
            ).returncode
            other = beside.wait()
        finally:
            beside.kill()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return code or other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
