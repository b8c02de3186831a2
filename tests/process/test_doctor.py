"""doctor says of each thing whether it is right: every test breaks one, and only one line fails."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from namespaces import lowered
from safetensors.numpy import load_file, save_file

from watcher.commands.desk import Desk
from watcher.commands.doctor import FAIL, Finding, Machine, findings
from watcher.errors import SteadyError
from watcher.models import catalogue
from watcher.root import locked
from watcher.store import JobStore

HOUSE = Path(__file__).parents[2]
CHECKS = [
    "python", "package", "config", "torch", "device", "memory", "model", "layout", "inbox",
    "outputs", "disks", "record", "watcher", "events", "inotify", "disk", "clock", "port",
    "exposure", "extras",
]  # fmt: skip
GB = 10**9
SEEN = {
    "torch": "2.9.0",
    "cuda": [],
    "unusable": [],
    "broken": False,
    "mps": False,
    "cpu": {"cores": 2, "total": 8 * GB, "free": GB},
}
CARD = {"device": "cuda:0", "name": "x", "capability": [9, 0], "total": 80 * GB, "free": 79 * GB}


class Patient:
    """A healthy root, and what a test makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {"model": "starter", "port": 0}
        self.machine: dict[str, Any] = {"devices": lambda: SEEN}
        for name in ("inbox", "outputs", ".steady"):
            (folder / name).mkdir(parents=True)
        JobStore(f"sqlite:///{folder / 'steady.db'}").close()
        self.save()

    def save(self, **settings: Any) -> None:
        self.settings |= settings
        (self.folder / "config.yaml").write_text(json.dumps(self.settings))

    def findings(self) -> list[Finding]:
        return list(findings(Desk(self.folder), Machine(**self.machine)))

    def failed(self) -> set[str]:
        failed = [one for one in self.findings() if one.level == FAIL]
        assert all(one.mend and one.message for one in failed), failed
        assert len({one.check for one in failed}) == len(failed), "one line each"
        return {one.check for one in failed}


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path / "root")


def test_a_healthy_root_passes_every_check(patient: Patient) -> None:
    found = patient.findings()
    assert [one.check for one in found] == CHECKS
    assert patient.failed() == set()


def test_an_empty_folder_is_no_root_and_stays_empty(tmp_path: Path) -> None:
    found = list(findings(Desk(tmp_path), Machine(devices=lambda: SEEN)))
    [wrong] = [one for one in found if one.level == FAIL]
    assert wrong.check == "record" and "no folder of the service" in wrong.message
    assert list(tmp_path.iterdir()) == []


# -- one thing broken at a time


def unknown_key(patient: Patient) -> None:
    patient.save(prot=8000)


def silent_torch(patient: Patient) -> None:
    def devices() -> dict[str, Any]:
        raise SteadyError("worker_unavailable")

    patient.machine["devices"] = devices


def absent_device(patient: Patient) -> None:
    patient.save(device="cuda:1")


def little_memory(patient: Patient) -> None:
    patient.machine["devices"] = lambda: SEEN | {"cpu": {"cores": 2, "total": 10**6, "free": 1}}


def absent_model(patient: Patient) -> None:
    patient.save(model="nobody/nothing")


def damaged_model(patient: Patient) -> None:
    copy = patient.folder / "copy"
    shutil.copytree(catalogue.starter_folder(), copy)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    patient.save(model="copy")


def outputs_inside_inbox(patient: Patient) -> None:
    patient.save(outputs="inbox/pictures")


def wrong_preset(patient: Patient) -> None:
    (patient.folder / "presets").mkdir()
    (patient.folder / "presets" / "ink.yaml").write_text("stepps: 4\n")


def file_for_inbox(patient: Patient) -> None:
    (patient.folder / "inbox").rmdir()
    (patient.folder / "inbox").touch()


def file_for_outputs(patient: Patient) -> None:
    (patient.folder / "outputs").rmdir()
    (patient.folder / "outputs").touch()


def claims_on_another_disk(patient: Patient) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == patient.folder.stat().st_dev:
        pytest.skip("there is no other file system here")
    (patient.folder / "inbox" / ".claimed").symlink_to(other)


def damaged_record(patient: Patient) -> None:
    file = patient.folder / "steady.db"
    whole = bytearray(file.read_bytes())
    whole[4096 * 2 : 4096 * 6] = b"\xff" * (4096 * 4)
    file.write_bytes(whole)


def newer_record(patient: Patient) -> None:
    with sqlite3.connect(patient.folder / "steady.db") as database:
        database.execute("PRAGMA user_version = 999")
    database.close()


def few_watches(patient: Patient) -> None:
    limits = patient.folder.parent / "kernel" / "fs" / "inotify"
    limits.mkdir(parents=True)
    (limits / "max_user_watches").write_text("64\n")
    patient.machine["kernel"] = limits.parents[1]


def few_watchers_for_this_user(patient: Patient) -> None:
    limits = patient.folder.parent / "kernel" / "user"
    limits.mkdir(parents=True)
    (limits / "max_inotify_instances").write_text("1\n")
    patient.machine["kernel"] = limits.parent


def full_disk(patient: Patient) -> None:
    patient.save(min_free_disk="900TB")


def clock_of_1970(patient: Patient) -> None:
    patient.machine["now"] = lambda: 0.0


def open_to_all(patient: Patient) -> None:
    patient.save(host="0.0.0.0")


def token_for_all(patient: Patient) -> None:
    patient.save(token="auto")
    (patient.folder / ".steady" / "token").write_text("secret")
    (patient.folder / ".steady" / "token").chmod(0o644)


def absent_extra(patient: Patient) -> None:
    patient.save(engine_options={"quantize": "nf4"})
    patient.machine["devices"] = lambda: SEEN | {"cuda": [CARD]}
    patient.machine["installed"] = lambda name: name != "bitsandbytes"


def damaged_base(patient: Patient) -> None:
    damaged_model(patient)
    file = catalogue.starter_folder() / "transformer" / "diffusion_pytorch_model.safetensors"
    entry = {"source": str(file), "options": {"base": "copy"}}
    patient.save(model="mine", models={"mine": entry})


def too_large_for_its_tier(patient: Patient) -> None:
    patient.save(
        model="mine", models={"mine": {"source": "starter", "options": {"tier": "stream"}}}
    )
    few = {"cpu": {"cores": 2, "total": 10**6, "free": 10**6}}
    patient.machine["devices"] = lambda: SEEN | {"cuda": [CARD]} | few


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (unknown_key, "config"),
        (silent_torch, "torch"),
        (absent_device, "device"),
        (little_memory, "memory"),
        (absent_model, "model"),
        (damaged_model, "model"),
        (damaged_base, "model"),
        (too_large_for_its_tier, "memory"),
        (outputs_inside_inbox, "layout"),
        (file_for_inbox, "inbox"),
        (file_for_outputs, "outputs"),
        (wrong_preset, "presets"),
        (claims_on_another_disk, "disks"),
        (damaged_record, "record"),
        (newer_record, "record"),
        (few_watches, "inotify"),
        (few_watchers_for_this_user, "inotify"),
        (full_disk, "disk"),
        (clock_of_1970, "clock"),
        (open_to_all, "exposure"),
        (token_for_all, "exposure"),
        (absent_extra, "extras"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_exactly_what_is_broken_fails(
    patient: Patient, damage: Callable[[Patient], None], check: str
) -> None:
    damage(patient)
    assert patient.failed() == {check}


@pytest.mark.parametrize(
    "entry",
    [
        {"source": "starter"},
        {"source": "starter", "engine": "diffusers"},
        {"source": "one.safetensors", "options": {"base": "starter"}},
    ],
)
def test_a_model_that_has_a_name_is_looked_for_where_it_is(
    patient: Patient, entry: dict[str, Any]
) -> None:
    file = catalogue.starter_folder() / "transformer" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, patient.folder / "one.safetensors")
    own = {"engine": "zimage"} | entry
    patient.save(model="mine", models={"mine": own}, engine="openai")
    assert patient.failed() == set()
    said = [one.message for one in patient.findings() if one.check == "model"]
    assert all(words.startswith("mine in ") and "whole" in words for words in said), said


def test_a_model_in_float32_is_not_taken_for_twice_its_size(patient: Patient) -> None:
    copy = patient.folder / "copy"
    shutil.copytree(catalogue.starter_folder(), copy)
    for file in copy.glob("*/*.safetensors"):
        save_file({k: v.astype("float32") for k, v in load_file(file).items()}, file)
    patient.save(model="copy")
    held = sum(file.stat().st_size for file in copy.glob("*/*.safetensors"))
    some = {"cores": 2, "total": held * 5 // 4, "free": held}
    patient.machine["devices"] = lambda: SEEN | {"cpu": some}
    assert patient.failed() == set()


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"notify": ["mailto://a:b@example.com"]}, "apprise"),
        ({"max_temperature": 80}, "pynvml"),
        ({"models": {"small": {"source": "small.gguf", "options": {"base": "starter"}}}}, "gguf"),
        ({"models": {"small": {"source": "x", "options": {"quantize": "nf4"}}}}, "bitsandbytes"),
        ({"upscalers": "networks"}, "spandrel"),
    ],
)
def test_whatever_asks_for_an_absent_package_is_told_which(
    patient: Patient, settings: dict[str, Any], package: str
) -> None:
    (patient.folder / "networks").mkdir()
    (patient.folder / "networks" / "4x.safetensors").touch()
    patient.machine["installed"] = lambda name: name != package
    assert patient.failed() == set()
    patient.save(**settings)
    [wrong] = [one for one in patient.findings() if one.level == FAIL]
    assert wrong.check == "extras" and package in wrong.message


def test_a_clock_behind_the_newest_job_fails(patient: Patient) -> None:
    with sqlite3.connect(patient.folder / "steady.db") as database:
        columns = [row for row in database.execute("PRAGMA table_info(jobs)") if row[3]]
        # whatever the table asks for, of a job made in the year 2100
        values = {row[1]: 1 if "INT" in row[2].upper() else "{}" for row in columns}
        values |= {"id": "x", "state": "completed", "created_at": 4_102_444_800_000_000}
        names = ", ".join(values)
        marks = ", ".join("?" for _ in values)
        database.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", list(values.values()))
    database.close()
    assert "clock" in patient.failed()


def test_another_program_on_the_port_fails(patient: Patient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        patient.save(port=taken.getsockname()[1])
        assert patient.failed() == {"port"}
        patient.save(host="127.0.0.2")  # where nobody listens
        assert "port" not in patient.failed()
        patient.save(host="192.0.2.1")  # which is no address of this machine
        assert "port" in patient.failed()


def test_a_watcher_without_a_pulse_fails(patient: Patient) -> None:
    with locked(patient.folder / ".steady" / "lock"):
        assert patient.failed() == {"watcher"}


def test_no_room_for_a_watch_fails_and_says_so(patient: Patient) -> None:
    done = run(patient, wrapper=lowered("max_inotify_instances"))
    assert failing(done) == {"inotify"} and done.returncode == 4
    [events] = [one for one in told(done) if one["check"] == "events"]
    assert events["level"] == "note" and "looks" not in events["message"]
    assert "a look every 5 s" in events["message"]


# -- the command


def run(
    patient: Patient, *words: str, path: Path | None = None, wrapper: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    paths = [str(p) for p in (path, HOUSE) if p]
    return subprocess.run(
        [*wrapper, sys.executable, "-c", PROGRAM, "doctor", *(words or ("--json",))],
        cwd=patient.folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=110,
    )


#: `steady`, and at its end the names of what it has imported.
PROGRAM = (
    "import atexit, sys\n"
    "atexit.register(lambda: print('IMPORTED', *sys.modules, file=sys.stderr))\n"
    "from watcher.cli import main\n"
    "main()"
)


def told(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def failing(done: "subprocess.CompletedProcess[str]") -> set[str]:
    return {str(one["check"]) for one in told(done) if one["level"] == "fail"}


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "stranger"
    folder.mkdir()
    yield folder


def test_the_command_on_a_healthy_root(patient: Patient) -> None:
    done = run(patient)
    assert (done.returncode, failing(done)) == (0, set()), done.stdout
    assert [one["check"] for one in told(done)] == CHECKS
    imported = done.stderr.partition("IMPORTED")[2].split()
    assert not {"torch", "diffusers", "transformers", "fastapi"} & set(imported)


def test_a_package_of_the_same_name_fails(patient: Patient, stranger: Path) -> None:
    (stranger / "api.py").write_text("")
    done = run(patient, path=stranger)
    assert (done.returncode, failing(done)) == (4, {"package"}), done.stdout


def test_a_torch_that_cannot_be_imported_fails(patient: Patient, stranger: Path) -> None:
    (stranger / "torch.py").write_text("raise ImportError('no torch for you')")
    done = run(patient, path=stranger)
    assert (done.returncode, failing(done)) == (4, {"torch"}), done.stdout
    assert "no torch for you" in done.stdout


def test_people_read_lines_with_what_mends(patient: Patient) -> None:
    patient.save(min_free_disk="900TB")
    done = run(patient, "-q")
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("FAIL  disk ") and "-> free some" in lines[1]
