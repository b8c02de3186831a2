"""Fuzz target for everything that reads job files; no part of the test suite.

    pip install atheris
    python tests/fuzz/jobfile.py .fuzz tests/fuzz/corpus -max_total_time=600 -max_len=4096

The first byte chooses the format. Any bytes must give planned jobs or a SteadyError that can
be written as JSON, within a second; anything else is a finding.
"""

import json
import sys
import time
from datetime import datetime
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["watcher"]):
    from watcher.errors import ERRORS, SteadyError
    from watcher.jobfile import dump_refused, parse, seeded
    from watcher.jobs import Limits

SUFFIXES = (".yaml", ".json", ".csv", ".jsonl", ".tsv", ".txt")
LIMITS = Limits(max_jobs_per_file=50, max_lines=200)
NOW = datetime(2026, 11, 22)


def wildcards(name: str) -> list[str] | None:
    return {"a": ["x", "{y|__a__}"], "b": ["__b__"]}.get(name)


def read(data: bytes) -> None:
    """One input."""
    if not data:
        return
    begun = time.process_time()
    suffix = SUFFIXES[data[0] % len(SUFFIXES)]
    try:
        parsed = parse(data[1:], suffix, LIMITS, stem="fuzz", now=NOW, wildcards=wildcards)
        for planned in parsed.requests:
            seeded(planned.request, "id").model_dump_json().encode()
        dump_refused(parsed.refused)
    except SteadyError as error:
        assert error.code in ERRORS
        json.dumps(error.as_dict()).encode()
    assert time.process_time() - begun < 1


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
