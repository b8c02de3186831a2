"""docs/api.md is true: every curl line in it is run, as written, against a running service."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from doors import Bench, running
from store_children import claim_one

from watcher.errors import ERRORS

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
FILES = {
    "zoo.yaml": "matrix: {animal: [fox, owl]}\njobs: ['a {animal}']\n",
    "prompts.txt": "a fox\nan owl\n",
    "zoo.csv": "prompt,seed\na fox,1\nan owl,2\n",
}


def commands() -> list[str]:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_there_are_lines_to_run():
    assert len(commands()) > 30
    assert all(line.startswith("curl -s") for line in commands())


@pytest.mark.skipif(not shutil.which("curl"), reason="the page speaks of curl")
def test_every_line_does_what_the_page_says(bench: Bench, tmp_path: Path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    bench.watcher.pulse()
    with running(bench.config.root, STEADY_MIN_FREE_DISK="0") as service:
        words = {"URL": service.url, "JOB": "", "NAME": "", "BATCH": ""}
        for line in commands():
            bench.watcher.pulse()
            prepare(bench, line, words)
            done = subprocess.run(
                ["sh", "-c", line.replace("curl ", "curl -w '%{stderr}%{http_code}' ", 1)],
                capture_output=True, text=True, cwd=tmp_path, env=words | {"PATH": "/usr/bin:/bin"},
            )  # fmt: skip
            assert re.fullmatch(r"2\d\d", done.stderr.strip()), (line, done.stdout, done.stderr)
            if line.startswith("curl -s $URL/generate-image"):
                body = json.loads(done.stdout)
                words |= {"JOB": body["job_id"], "NAME": body["image_name"]}
            if '"$URL/jobs?filename' in line:
                words["BATCH"] = json.loads(done.stdout)["ticket"]
    assert (tmp_path / "sunset.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "zoo.zip").read_bytes().startswith(b"PK")


def prepare(bench: Bench, line: str, words: dict[str, str]) -> None:
    """Bring the jobs into the state of which the page speaks at this line."""
    if "/image/$JOB" in line or "images.zip" in line:
        bench.watcher.take_in()
        while bench.store.counts()["queued"]:
            bench.watcher.finish()
    elif "PATCH" in line:
        words["JOB"] = bench.post()["job_id"]
        bench.watcher.take_in()
    elif "size=256" in line:
        job = bench.watcher.finish(claim_one(bench.store))
        words["JOB"] = job.id


def test_the_problem_shown_is_one_of_ours():
    text = PAGE.read_text(encoding="utf-8")
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    problem = next(block for block in shown if "code" in block)
    kind = ERRORS[problem["code"]]
    assert (problem["title"], problem["status"], problem["remedy"]) == (
        kind.what, kind.status, kind.do,
    )  # fmt: skip
