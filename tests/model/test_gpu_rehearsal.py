"""The command for the first card: it knows when there is none, and when its time is up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]


def gpu(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=100)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a card")
def test_without_a_card_it_says_so_and_is_content() -> None:
    done = gpu()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "No graphics card here: nothing to measure. CARD=cpu rehearses it on the processor."
    ]


def test_it_is_cut_off_cleanly_and_keeps_what_it_has(tmp_path: Path) -> None:
    done = gpu("--card", "cpu", "--limit", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["figure"] for row in rows][-5:] == ["not run"] * 5
    assert "cut off" in [row["figure"] for row in rows]
    assert "| compile | compile | not run |  | time was up |" in (tmp_path / "gpu.md").read_text()
