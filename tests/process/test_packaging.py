"""What is packed: all of the program, nothing of the people who use it. (.ci/wheel installs it.)"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
PRIVATE = "inbox/private.yaml"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel and an sdist, built from a copy in which somebody has been working."""
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=HOUSE, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, tracked):
        if (HOUSE / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((HOUSE / name).read_bytes())
    for name in (
        PRIVATE,
        "outputs/20260101/secret.png",
        "steady.db",
        ".steady/token",
        "demo/x.png",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("nobody's business")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [wheel], [sdist] = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def source_of(*tops: str) -> set[str]:
    files = [path for top in tops for path in (HOUSE / top).rglob("*") if path.is_file()]
    return {path.relative_to(HOUSE).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_program_and_the_starter_model(packed: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(packed["wheel"]).namelist())
    model = {
        f"watcher/starter_model/{p.removeprefix('starter/model/')}"
        for p in source_of("starter/model")
    }
    model |= {f"watcher/starter_loras/{name}.safetensors" for name in ("ink", "neon")}
    wanted = source_of("watcher", "api") | model
    assert wanted <= names
    rest = {name for name in names - wanted if ".dist-info/" not in name}
    assert rest == set(), "no tests, no prompts, no pictures"


def test_the_sdist_holds_the_house_and_nothing_private(packed: dict[str, Path]) -> None:
    with tarfile.open(packed["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    house = {name for name in filter(None, tracked) if (HOUSE / name).is_file()}
    left_out = {
        n for n in house - names if not n.startswith((".ci/", ".github/", "inbox/", "outputs/"))
    }
    assert left_out <= {".pre-commit-config.yaml"}
    mine = ("inbox/", "outputs/", "demo/", ".steady", "steady.db", ".venv")
    assert [name for name in names if name.startswith(mine)] == []
