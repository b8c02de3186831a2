"""Fuzz target for everything that reads job files; no part of the test suite.

    pip install atheris
    python tests/fuzz/jobfile.py .fuzz tests/fuzz/corpus -max_total_time=600 -max_len=4096

The first byte chooses the suffix, of all that people may drop; a picture's recipe is one more
format, whose text is put into a whole PNG. Any bytes must give planned jobs or a SteadyError that
can be written as JSON, within a second; anything else is a finding.
"""

import json
import struct
import sys
import time
import zlib
from datetime import datetime
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["watcher"]):
    from watcher.errors import ERRORS, SteadyError
    from watcher.jobfile import parse
    from watcher.jobfile.fields import seeded
    from watcher.jobfile.planner import Planner
    from watcher.jobfile.tables import refused_csv
    from watcher.limits import Limits
    from watcher.suffixes import FORMS

RECIPE = "parameters in a .png"
#: The six first ones keep their place: the corpus counts on it.
SUFFIXES = tuple(
    dict.fromkeys((".yaml", ".json", ".csv", ".jsonl", ".tsv", ".txt", *FORMS, RECIPE))
)
LIMITS = Limits(max_jobs_per_file=50, max_lines=200)
NOW = datetime(2026, 11, 22)


def wildcards(name: str) -> list[str] | None:
    return {"a": ["x", "{y|__a__}"], "b": ["__b__"]}.get(name)


def png(text: bytes) -> bytes:
    """A picture of one pixel, with ``text`` where other programs put their settings."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        whole = kind + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    said = chunk(b"tEXt", b"parameters\0" + text)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + said + pixels + chunk(b"IEND", b"")


def read(data: bytes) -> None:
    """One input."""
    if not data:
        return
    begun = time.process_time()
    suffix, data = SUFFIXES[data[0] % len(SUFFIXES)], data[1:]
    if suffix == RECIPE:
        suffix, data = ".png", png(data)
    try:
        parsed = parse(data, suffix, Planner(LIMITS, now=NOW, wildcards=wildcards), stem="fuzz")
        for planned in parsed.requests:
            seeded(planned.request, "id").model_dump_json().encode()
        b"".join(refused_csv(lambda: parsed.refused))
    except SteadyError as error:
        assert error.code in ERRORS
        json.dumps(error.as_dict()).encode()
    assert time.process_time() - begun < 1


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
