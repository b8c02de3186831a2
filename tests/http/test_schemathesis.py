"""The whole API against a fuzzer that reads its own description: nothing but what it promises."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Bench, running

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.fixture
def alive(root: Path) -> Iterator[Bench]:
    """A root whose watcher seems to live: its pulse goes on."""
    stop = threading.Event()
    with Bench(root, model="starter") as bench:

        def beat() -> None:
            while not stop.wait(0.5):
                bench.watcher.pulse()

        bench.watcher.pulse()
        bench.done()
        bench.post()
        bench.watcher.take_in()
        bench.watcher.fail()
        thread = threading.Thread(target=beat)
        thread.start()
        yield bench
        stop.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_requests_find_nothing_the_description_does_not_say(alive: Bench):
    # The same requests every time, so that a change answers for itself; SEED=random finds more.
    named = os.environ.get("FUZZ_SEED", "1")
    seed = [] if named == "random" else ["--seed", named]
    with running(alive.config.root, STEADY_MODEL="starter", STEADY_MIN_FREE_DISK="0") as service:
        done = subprocess.run(
            [
                Path(sys.executable).parent / "schemathesis",
                "--config-file", FUZZ / "schemathesis.toml",
                "run", f"{service.url}/openapi.json",
                "--checks", "all",
                # DELETE of a job cancels it; its row stays, and with it what became of it.
                "--exclude-checks", "use_after_free",
                # One worker: two threads of it made their requests in an order of the moment.
                "--max-examples", "100", "--workers", "1", "--no-color",
                "--suppress-health-check", "all", *seed,
            ],
            capture_output=True,
            text=True,
            cwd=alive.config.root,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(FUZZ)},
        )  # fmt: skip
        log = service.log.read_text()
    generated = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert done.returncode == 0, _findings(done.stdout) + done.stderr[-2_000:]
    assert generated and int(generated[1].replace(",", "")) >= 2000, done.stdout[-2_000:]
    assert "Traceback" not in log
    assert not re.search(r'"status": 5', log)


def _findings(report: str) -> str:
    """The end of a report without its warnings, which are long and stand after what was found."""
    found, _, rest = report.partition("= WARNINGS =")
    return found[-20_000:] + "\n" + rest.partition("= SUMMARY =")[2]
