"""The judge of `make powercut` finds what a missing flush loses: a fault seeded in the trace.

Without the fault the same states are whole, which `make powercut` shows for all of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuttrace import Trace
from powercut import Bench, record

pytestmark = pytest.mark.powercut


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Trace]]:
    """A short run with each setting of ``synchronous``."""
    yield {s: record(tmp_path_factory.mktemp(s), s, long=False) for s in ("full", "normal")}


def test_the_model_of_the_files_is_what_the_disk_has(
    traces: dict[str, Trace],
) -> None:
    trace = traces["full"]
    root = Path(trace.root)
    found = {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    for passing in (".steady/live.json", ".steady/lock"):
        found.pop(passing, None)
    tree = trace.state(len(trace.events), "kill")
    assert {name: content for name, content in tree.items() if content is not None} == found


@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_nothing_is_lost_as_it_is(
    traces: dict[str, Trace], synchronous: str, tmp_path: Path
) -> None:
    bench = Bench(traces[synchronous], tmp_path)
    tally = bench.run(16, ["ext4", "meta_drop", "strict", "rand"], seed=7)
    assert tally.faults == []
    assert tally.states.total() == 16


#: What is not flushed, and the variant that then loses something.
FAULTS = [
    ("the record", "full", r"steady\.db", "meta_drop"),
    ("the record before a file goes", "normal", r"steady\.db-wal", "meta_drop"),
    ("pictures", "full", r"outputs/\.tmp/.*\.png", "meta_drop"),
    ("the pictures' folder", "full", r"outputs/\d+$", "strict"),
    ("the claims", "full", r"inbox/\.claimed$", "strict"),
    ("the folder of the day in done/", "full", r"inbox/done$", "strict"),
    ("rows that cannot be used", "full", r"inbox/\.rows$", "strict"),
    ("submitted files", "full", r"inbox/\.tmp/", "meta_drop"),
    ("pictures that jobs start from", "full", r"\.steady/inputs/", "meta_drop"),
]


@pytest.mark.parametrize(
    ("synchronous", "lost", "variant"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_missing_flush_is_found(
    traces: dict[str, Trace], synchronous: str, lost: str, variant: str, tmp_path: Path
) -> None:
    broken = traces[synchronous].without(re.compile(lost))
    assert len(broken.events) < len(traces[synchronous].events), "nothing flushes it"
    assert Bench(broken, tmp_path).run(24, [variant], seed=3).faults
