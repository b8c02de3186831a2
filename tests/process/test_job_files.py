"""docs/job-files.md says what the code does, and every example runs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import until
from roots import Root

from watcher.config import Config
from watcher.jobfile import parse
from watcher.jobfile.hints import BATCH_KEYS, FIELDS, allowed_for
from watcher.jobfile.planner import Planner
from watcher.limits import Card, Limits
from watcher.models.cards import limits_known
from watcher.results import COLUMNS
from watcher.suffixes import JOB_SUFFIXES

HOUSE = Path(__file__).parents[2]
DOC = (HOUSE / "docs" / "job-files.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> dict[str, list[str]]:
    """The first column's word -> the cells of the table under ``heading``."""
    section = DOC.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[c.strip() for c in re.split(r"(?<!\{a)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_field_is_told_with_its_range_and_default() -> None:
    told = rows_of("Fields of a job")
    assert list(told) == list(FIELDS)
    for field, (allowed, default) in told.items():
        assert allowed == allowed_for(field, Card()), field
        assert default


def test_the_defaults_told_are_those_of_the_code() -> None:
    [plan] = parse(b"prompt: x", ".yaml", Planner(Limits())).requests
    told = rows_of("Fields of a job")
    for field in ("width", "height", "num_inference_steps", "format"):
        assert f"({getattr(plan.request, field)})" in told[field][1]
    assert told["count"][1].startswith(str(plan.request.count))


def test_every_key_of_a_batch_and_every_suffix_is_told() -> None:
    assert set(rows_of("A batch")) == set(BATCH_KEYS)
    assert set(re.findall(r"`(\.\w+)`", DOC.partition("The suffix decides")[0])) == JOB_SUFFIXES
    assert ", ".join(COLUMNS) in DOC


def test_the_batch_shown_makes_twelve() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    assert len(parse(text.encode(), ".yaml", Planner(Limits())).requests) == 12


def test_all_examples_run(make_root: Callable[..., Root]) -> None:
    root = make_root()
    limits = limits_known(Config.load(root.folder), None)
    expected = 0
    for path in sorted((HOUSE / "examples").iterdir()):
        if path.suffix in JOB_SUFFIXES:
            expected += len(parse(path.read_bytes(), path.suffix, Planner(limits)).requests)
            root.drop(path.name, path.read_bytes())
    root.finish(90)
    assert root.states() == ["completed"] * expected
    assert not list((root.inbox / "refused").iterdir())


def test_the_one_liners_run(make_root: Callable[..., Root], tmp_path: Path) -> None:
    root = make_root()
    tools = tmp_path / "bin"
    tools.mkdir()
    steady = tools / "steady"
    steady.write_text(f'#!/bin/sh\nexec {sys.executable} -m watcher.cli "$@"\n')
    steady.chmod(0o755)
    environment = root.environment() | {
        "STEADY_ROOT": str(root.folder),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["sh", "-e", str(HOUSE / "examples" / "one-liners.sh")],
        env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    until(lambda: root.states() == ["completed"] * 6, 30, f"{root.states()}")
    assert len(list(root.inbox.glob("api-*.json"))) == 1


@pytest.mark.parametrize("example", ["openai-batch.jsonl", "resume.yaml"])
def test_examples_carry_no_fault(example: str) -> None:
    path = HOUSE / "examples" / example
    parsed = parse(path.read_bytes(), path.suffix, Planner(Limits()), stem=path.stem)
    assert len(parsed.requests) == 3 and not parsed.refused, json.dumps(parsed.warnings)
