"""What is packed: all of the program, nothing of the people who use it; and it works alone."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_installed_wheel_works_from_anywhere(packed: dict[str, Path], tmp_path: Path) -> None:
    """In an environment of its own, which sees the other packages of this one."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    [site] = home.glob("lib/python*/site-packages")
    others = [sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))]
    (site / "others.pth").write_text("\n".join(dict.fromkeys(others)) + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps",
         "--no-index", str(packed["wheel"])], check=True,
    )  # fmt: skip
    root = tmp_path / "root"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("STEADY_", "PYTHON"))}
    environment["STEADY_MODEL"] = "starter"
    environment["STEADY_PORT"] = "0"

    def steady(*words: str) -> str:
        done = subprocess.run(
            [str(home / "bin" / "steady"), "--root", str(root), *words],
            cwd="/", env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(site / "watcher") in steady("--version")
    steady("init")
    assert (root / "config.yaml").read_text().startswith("# The settings of one root.")
    steady("doctor")
    steady("submit", "a red fox", "--set", "width=64", "--set", "height=64", "--steps", "2")
    steady("watch", "--once")
    [picture] = root.glob("outputs/*/*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for module in ("watcher", "api"):
        subprocess.run(
            [str(python), "-m", module, "--help"], cwd="/", env=environment, check=True,
            capture_output=True,
        )  # fmt: skip
