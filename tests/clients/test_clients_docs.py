"""docs/clients.md is true: every snippet in it is run, as written, against the real service."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_of_clients import House, house

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def snippets(kind: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("docs") / "root") as made:
        yield made


def to(here: House, text: str) -> str:
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{here.port}").replace(
        "port=8000", f"port={here.port}"
    )


def test_there_are_snippets_to_run():
    assert len(snippets("python")) == 3 and len(snippets("sh")) == 3


@pytest.mark.parametrize("number", range(3))
def test_each_program_runs_as_it_is_written(here: House, number: int, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", to(here, snippets("python")[number])],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = ["256x192 [7, 8] []", "balloon-2 http://127.0.0.1:", "Steps: 8, Sampler: Euler"][number]
    assert told in done.stdout, done.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="the page speaks of curl")
def test_each_line_of_curl_gets_an_answer(here: House, tmp_path: Path):
    lines = [line for block in snippets("sh") for line in block.splitlines() if line]
    assert len(lines) == 7
    for line in lines:
        assert line.startswith("curl -s ")
        command = to(here, line).replace("curl -s", "curl -sS --fail-with-body", 1)
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == 0, (line, done.stdout[:500], done.stderr)
        body = json.loads(done.stdout)
        assert {"data", "images", "sd_model_checkpoint", "progress"} & set(body), line
