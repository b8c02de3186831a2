"""A field is one line: whatever its type, every way in, every answer and the recipe know it."""

import json
import subprocess
import sys
from pathlib import Path

import more_fields


def test_a_line_in_jobs_is_all_that_a_field_of_any_type_needs(tmp_path: Path) -> None:
    for folder in ("jobs", "seed", "cli"):
        (tmp_path / folder).mkdir()
    done = subprocess.run(
        [sys.executable, more_fields.__file__, str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for way, values in said["ways"].items():
        assert values == more_fields.VALUES, way
    assert said["wrong"] == [
        "`mood` must be text. [text of at most 100 characters]",
        "`warmth` must be at most 1. [number, 0..1]",
        "`grain` must be true or false. [true or false]",
        "`inks` must be a list of at most 3, each text. [list of at most 3, each text]",
        "`knobs` must be a mapping of names to number. [mapping of names to number]",
    ]
    assert len(said["held"]) == 2, "what no file may hold is found in lists and mappings as well"
