"""Pictures appear whole or not at all, once, under their own name, and nowhere else."""

import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageChops, ImageDraw, ImageStat

from watcher import checkpoints, publish
from watcher.errors import SteadyError
from watcher.jobs import SUFFIXES, Job, JobRequest, JobState, Priority
from watcher.pictures.outputs import NameTaken, Outputs, Saved, encode
from watcher.pictures.recipe import read_recipe, recipe_of

FORMATS = sorted(SUFFIXES)
STEPS = ["tmp_written", "linked", "folder_synced", "thumbnail_written"]
WAYS = {"link": (publish.by_link,), "rename": (publish.by_rename,), "copy": (publish.by_copy,)}


def job_of(path: str = "20260101/ImgGen_120000.png", id: str = "", **fields: Any) -> Job:
    suffix = Path(path).suffix
    format = next((name for name, known in SUFFIXES.items() if known == suffix), "png")
    values: dict[str, Any] = {
        "prompt": "a fox", "width": 64, "height": 48, "num_inference_steps": 9, "seed": 7,
        "format": format,
    } | fields  # fmt: skip
    return Job(
        seq=1, id=id or str(uuid.uuid4()), ticket="t", index=0, state=JobState.GENERATING, rev=1,
        request=JobRequest(**values), image_name=Path(path).stem, folder=str(Path(path).parent),
        path=path, priority=Priority.NORMAL, created_at=0, attempt=1, forwards=8,
    )  # fmt: skip


def picture(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Left half red, right half a grey slope."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(image).rectangle([0, 0, size[0] // 2 - 1, size[1]], fill=(200, 30, 20))
    return image


def recipe(job: Job) -> dict[str, Any]:
    return recipe_of(job, {"model": "starter", "device": "cpu"})


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: thousands of fsyncs are not what is tested."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def outputs(folder: Path) -> Outputs:
    outputs = Outputs(folder)
    outputs.open()
    return outputs


def pictures(folder: Path) -> list[str]:
    """Every file below ``folder`` but the private ones."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(str(path) for path in found if not path.parts[0].startswith("."))


def described(data: bytes, size: tuple[int, int] = (64, 48)) -> Saved:
    return Saved(hashlib.sha256(data).hexdigest(), len(data), *size)


# -- saving


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_is_saved_with_its_recipe(folder: Path, way: str, format: str) -> None:
    outputs = Outputs(folder, ways=WAYS[way])
    outputs.open()
    job = job_of(f"cats/2026/fox{SUFFIXES[format]}")
    saved = outputs.save(job, picture(), recipe(job))
    data = (folder / job.path).read_bytes()
    assert saved == described(data)
    assert read_recipe(data) == recipe(job)
    assert pictures(folder) == [job.path]
    assert list((folder / ".tmp").iterdir()) == []
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format.upper()
        assert image.mode == "RGB"
        difference = ImageStat.Stat(ImageChops.difference(image, picture())).mean
        assert max(difference) == 0 if format == "png" else max(difference) < 8


def test_without_metadata_only_the_id_goes_in(folder: Path) -> None:
    outputs = Outputs(folder, embed_metadata=False)
    outputs.open()
    for format in FORMATS:
        job = job_of(f"a/b{SUFFIXES[format]}")
        saved = outputs.save(job, picture(), recipe(job))
        assert read_recipe((folder / job.path).read_bytes()) == {"job_id": job.id}
        assert outputs.adopt(job) == saved


def test_what_an_engine_hangs_on_its_picture_stays_out(outputs: Outputs, folder: Path) -> None:
    image = picture().convert("RGBA")
    image.info = {"comment": b"made by alice", "icc_profile": b"alice", "dpi": (72, 72)}
    image.getexif()[0x010E] = "alice"
    for format in FORMATS:
        job = job_of(f"a/b{SUFFIXES[format]}")
        outputs.save(job, image, recipe(job))
        assert b"alice" not in (folder / job.path).read_bytes()


@pytest.mark.parametrize(("size", "expected"), [((64, 48), (64, 48)), ((1024, 512), (256, 128))])
def test_the_thumbnail_shows_the_picture(
    outputs: Outputs, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    job = job_of(width=size[0], height=size[1])
    outputs.save(job, picture(size), recipe(job))
    path = outputs.thumbnail(job)
    assert path.parent.name == job.id[:2]
    with Image.open(path) as image:
        assert image.format == "WEBP"
        assert image.size == expected
        reference = picture(expected)
        assert max(ImageStat.Stat(ImageChops.difference(image, reference)).mean) < 8
    assert job.id.encode() not in path.read_bytes()


def test_saving_again_keeps_the_first_picture(outputs: Outputs, folder: Path) -> None:
    job = job_of()
    first = outputs.save(job, picture(), recipe(job))
    before = (folder / job.path).stat()
    assert outputs.save(replace(job, attempt=2), picture(), recipe(job)) == first
    after = (folder / job.path).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert list((folder / ".tmp").iterdir()) == []


def test_delete_removes_picture_and_thumbnail(outputs: Outputs, folder: Path) -> None:
    job = job_of()
    outputs.save(job, picture(), recipe(job))
    assert outputs.delete(job) is True
    assert pictures(folder) == []
    assert not outputs.thumbnail(job).exists()
    assert outputs.delete(job) is False
    outputs.save(job, picture(), recipe(job))
    assert pictures(folder) == [job.path]


def test_opening_sweeps_what_a_crash_left(outputs: Outputs, folder: Path, tmp_path: Path) -> None:
    (folder / ".tmp" / "x.1.png").write_bytes(b"half")
    kept = tmp_path / "kept"
    kept.write_text("kept")
    (folder / ".tmp" / "link").symlink_to(kept)
    outputs.open()
    assert list((folder / ".tmp").iterdir()) == []
    assert kept.read_text() == "kept"


# -- names taken by others

Occupant = Callable[[Path, Path], object]


def a_file(path: Path, elsewhere: Path) -> None:
    path.write_bytes(b"mine")


def an_empty_file(path: Path, elsewhere: Path) -> None:
    path.touch()


def a_folder(path: Path, elsewhere: Path) -> None:
    path.mkdir()


def a_link_to_nothing(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "nothing")


def a_link_to_a_file(path: Path, elsewhere: Path) -> None:
    (elsewhere / "victim").write_bytes(b"mine")
    path.symlink_to(elsewhere / "victim")


def a_link_to_itself(path: Path, elsewhere: Path) -> None:
    path.symlink_to(path)


def a_hard_link(path: Path, elsewhere: Path) -> None:
    (elsewhere / "victim").write_bytes(b"mine")
    os.link(elsewhere / "victim", path)


def a_pipe(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


def a_sparse_giant(path: Path, elsewhere: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50_000_000_000)


def an_unreadable_file(path: Path, elsewhere: Path) -> None:
    path.write_bytes(b"mine")
    path.chmod(0)


def another_jobs_picture(path: Path, elsewhere: Path) -> None:
    other = job_of()
    path.write_bytes(encode(picture(), "png", recipe(other)))


OCCUPANTS = [
    a_file, an_empty_file, a_folder, a_link_to_nothing, a_link_to_a_file, a_link_to_itself,
    a_hard_link, a_pipe, a_sparse_giant, an_unreadable_file, another_jobs_picture,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("occupy", OCCUPANTS)
def test_a_strangers_file_is_never_touched(
    folder: Path, tmp_path: Path, occupy: Occupant, way: str
) -> None:
    outputs = Outputs(folder, ways=WAYS[way])
    outputs.open()
    job = job_of()
    path = folder / job.path
    path.parent.mkdir()
    occupy(path, tmp_path)
    before = (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns)
    assert outputs.adopt(job) is None
    with pytest.raises(NameTaken):
        outputs.save(job, picture(), recipe(job))
    assert (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns) == before
    assert not (tmp_path / "nothing").exists()
    if (tmp_path / "victim").exists():
        assert (tmp_path / "victim").read_bytes() == b"mine"
    assert list((folder / ".tmp").iterdir()) == []
    renamed = replace(job, path="20260101/ImgGen_120000_2.png")
    outputs.save(renamed, picture(), recipe(renamed))
    assert read_recipe((folder / renamed.path).read_bytes()) == recipe(renamed)


def test_our_own_picture_behind_a_link_is_not_adopted(outputs: Outputs, folder: Path) -> None:
    job = job_of()
    outputs.save(job, picture(), recipe(job))
    (folder / job.path).rename(folder / "moved.png")
    (folder / job.path).symlink_to(folder / "moved.png")
    assert outputs.adopt(job) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-20],
        lambda data: data + b"PK\x03\x04",
        lambda data: data.replace(b"IDAT", b"IDAt", 1),
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    ],
)
def test_a_damaged_picture_is_not_adopted(
    outputs: Outputs, folder: Path, spoil: Callable[[bytes], bytes]
) -> None:
    job = job_of()
    outputs.save(job, picture(), recipe(job))
    data = (folder / job.path).read_bytes()
    (folder / job.path).write_bytes(spoil(data))
    assert outputs.adopt(job) is None
    (folder / job.path).write_bytes(data)
    assert outputs.adopt(job) == described(data)


def test_a_picture_of_another_size_is_not_adopted(outputs: Outputs) -> None:
    job = job_of()
    outputs.save(job, picture(), recipe(job))
    assert outputs.adopt(job_of(id=job.id, width=80)) is None


@pytest.mark.parametrize("damage", ["gone", "empty", "rubbish"])
def test_adopting_mends_the_thumbnail(outputs: Outputs, damage: str) -> None:
    job = job_of()
    saved = outputs.save(job, picture(), recipe(job))
    thumbnail = outputs.thumbnail(job)
    good = thumbnail.read_bytes()
    if damage == "gone":
        thumbnail.unlink()
    else:
        thumbnail.write_bytes(b"" if damage == "empty" else b"rubbish")
    assert outputs.adopt(job) == saved
    assert thumbnail.read_bytes() == good


# -- names that lead elsewhere

EVIL = [
    "../evil.png", "a/../../evil.png", "/tmp/evil.png", "a//b.png", "./a.png", "a/./b.png",
    "nul\x00.png", "a\\..\\b.png", "C:evil.png", ".tmp/x.png", ".thumbs/ab/x.png", ".hidden.png",
    "a/.b/c.png", "line\nbreak.png", "a" * 300 + ".png", "狐" * 100 + ".png", "\ud800.png",
    "a.gif", "noending", "", "a/", "/".join("abcdefghij") + ".png",
]  # fmt: skip


@pytest.mark.parametrize("path", EVIL)
def test_a_path_that_leads_elsewhere_is_refused(
    outputs: Outputs, folder: Path, tmp_path: Path, path: str
) -> None:
    job = job_of(path)
    for touch in (
        outputs.path,
        outputs.adopt,
        outputs.delete,
        lambda job: outputs.save(job, picture(), recipe(job)),
    ):
        with pytest.raises(SteadyError) as caught:
            touch(job)
        assert caught.value.code == "bad_name"
    assert pictures(folder) == []
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("a./\\\x00:\u202e~狐 -_\n") | st.characters(), max_size=12))
def test_no_path_leaves_the_folder(name: str) -> None:
    outputs = Outputs(Path("/nowhere/outputs"))
    try:
        path = outputs.path(job_of(name + ".png"))
    except SteadyError as error:
        assert error.code == "bad_name"
    else:
        assert os.path.normpath(path) == str(path)
        assert path.is_relative_to("/nowhere/outputs")


def test_a_name_may_be_of_any_script(outputs: Outputs, folder: Path) -> None:
    job = job_of("کتاب/лиса-\u200f狐.png")
    outputs.save(job, picture(), recipe(job))
    assert pictures(folder) == [job.path]


def test_a_linked_folder_is_not_followed_outside(
    outputs: Outputs, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "20260101").symlink_to(outside)
    with pytest.raises(SteadyError) as caught:
        outputs.save(job_of(), picture(), {"job_id": "x"})
    assert caught.value.code == "bad_name"
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("id", ["../../x", "a/b", "", ".", "a" * 100, "a\x00b"])
def test_an_odd_id_gets_no_thumbnail_path(outputs: Outputs, id: str) -> None:
    with pytest.raises(SteadyError):
        outputs.thumbnail(replace(job_of(), id=id))


# -- crashes


def save_until(folder: Path, step: str, way: str, job: Job) -> None:
    def kill(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.after = kill  # in a process of its own
    outputs = Outputs(folder, ways=WAYS[way])
    outputs.open()
    outputs.save(job, picture(), recipe(job))


def run(target: Callable[..., None], *args: Any) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    child.join(30)
    return child.exitcode


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_one_picture_in_the_end(
    folder: Path, step: str, way: str
) -> None:
    job = job_of("a/b/fox.png")
    assert run(save_until, folder, step, way, job) == -signal.SIGKILL
    half = pictures(folder)
    assert half == ([] if step == "tmp_written" else [job.path])

    outputs = Outputs(folder, ways=WAYS[way])
    outputs.open()
    adopted = outputs.adopt(job)
    assert (adopted is None) == (step == "tmp_written")
    saved = adopted or outputs.save(replace(job, attempt=2), picture(), recipe(job))

    assert pictures(folder) == [job.path]
    data = (folder / job.path).read_bytes()
    assert saved == described(data)
    assert data == encode(picture(), "png", recipe(job))
    assert outputs.thumbnail(job).is_file()
    assert list((folder / ".tmp").iterdir()) == []


def copy_and_die(temporary: Path, final: Path) -> None:
    """The first half of publish.by_copy."""
    os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.kill(os.getpid(), signal.SIGKILL)


def save_by(folder: Path, way: publish.Way, job: Job) -> None:
    outputs = Outputs(folder, ways=(way,))
    outputs.open()
    outputs.save(job, picture(), recipe(job))


def test_a_kill_between_the_halves_of_a_copy_costs_a_name_and_no_picture(folder: Path) -> None:
    job = job_of()
    assert run(save_by, folder, copy_and_die, job) == -signal.SIGKILL
    outputs = Outputs(folder)
    outputs.open()
    assert outputs.adopt(job) is None
    with pytest.raises(NameTaken):
        outputs.save(job, picture(), recipe(job))


def test_new_folders_are_made_durable_down_from_the_root(folder: Path) -> None:
    """strace is not everywhere: the kernel's own account of fsyncs is asked through a tracer."""
    script = """
import os, sys, json
seen = []
def hook(event, args):
    if event == "os.open" or event == "open":
        seen.append(str(args[0]))
real = os.fsync
def fsync(fd):
    seen.append("fsync " + os.readlink(f"/proc/self/fd/{fd}"))
    real(fd)
os.fsync = fsync
sys.path[:0] = json.loads(sys.argv[2])
from test_outputs import *
folder = Path(sys.argv[1])
outputs = Outputs(folder)
outputs.open()
seen.clear()
outputs.save(job_of("a/b/fox.png"), picture(), {"job_id": "x"})
print(json.dumps([s[6:] for s in seen if s.startswith("fsync ")]))
"""
    paths = json.dumps([str(Path(__file__).parents[n]) for n in range(3)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), paths], capture_output=True, check=True
    )
    synced = [os.path.relpath(path, folder) for path in json.loads(done.stdout)]
    assert synced[:2] == [".", "a"]  # a's name, b's name
    assert synced[2].startswith(".tmp/")  # the bytes
    assert synced[3] == "a/b"  # the picture's name, after its bytes


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; needs root, which CI has."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", disk], check=True
    )
    try:
        yield disk
    finally:
        for place in (disk, disk.with_name("hidden")):
            subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, os.urandom(size[0] * size[1] * 3))


def test_a_full_disk_is_said_and_leaves_nothing_behind(small_disk: Path) -> None:
    outputs = Outputs(small_disk)
    outputs.open()
    free = outputs.free_bytes()
    assert 500_000 < free <= 2**20
    job = job_of(width=1024, height=1024)
    with pytest.raises(SteadyError) as caught:
        outputs.save(job, noise((1024, 1024)), recipe(job))
    assert caught.value.code == "disk_full"
    assert pictures(small_disk) == []
    assert list((small_disk / ".tmp").iterdir()) == []
    assert abs(outputs.free_bytes() - free) < 20_000
    small = job_of()
    outputs.save(small, picture(), recipe(small))
    assert outputs.adopt(small) is not None


def test_a_picture_is_kept_when_only_its_thumbnail_finds_no_room(small_disk: Path) -> None:
    outputs = Outputs(small_disk)
    outputs.open()
    job = job_of(width=512, height=512)
    image = noise((512, 512))
    room = len(encode(image, "png", recipe(job)))
    (small_disk / "20260101").mkdir()
    (small_disk / "filler").write_bytes(bytes(outputs.free_bytes() - room - 9000))
    saved = outputs.save(job, image, recipe(job))
    assert saved.bytes == room
    assert not outputs.thumbnail(job).exists()
    assert list((small_disk / ".tmp").iterdir()) == []
    (small_disk / "filler").unlink()
    assert outputs.adopt(job) == saved
    assert outputs.thumbnail(job).is_file()


def test_no_room_for_names_counts_as_full(small_disk: Path) -> None:
    outputs = Outputs(small_disk)
    outputs.open()
    with pytest.raises(OSError, match="No space"):
        for number in itertools.count():
            (small_disk / f"f{number}").touch()
    assert outputs.free_bytes() == 0


def test_an_unmounted_folder_is_noticed_and_taken_back(small_disk: Path) -> None:
    outputs = Outputs(small_disk)
    marker = outputs.open()
    first = job_of()
    outputs.save(first, picture(), recipe(first))
    hidden = small_disk.with_name("hidden")
    hidden.mkdir()
    subprocess.run(["mount", "--move", small_disk, hidden], check=True)
    second = job_of("20260101/second.png")
    for touch in (outputs.check, lambda: outputs.save(second, picture(), recipe(second))):
        with pytest.raises(SteadyError) as caught:
            touch()
        assert caught.value.code == "folder_gone"
    with pytest.raises(SteadyError) as caught:
        Outputs(small_disk).open(marker)
    assert caught.value.code == "folder_gone"
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "--move", hidden, small_disk], check=True)
    outputs.check()
    outputs.save(second, picture(), recipe(second))
    assert pictures(small_disk) == sorted([first.path, second.path])
    assert Outputs(small_disk).open(marker) == marker


def test_a_read_only_disk_is_said(small_disk: Path) -> None:
    outputs = Outputs(small_disk)
    outputs.open()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SteadyError) as caught:
        outputs.save(job_of(), picture(), {"job_id": "x"})
    assert caught.value.code == "folder_gone"


def test_a_folder_moved_away_is_gone_until_it_is_back(outputs: Outputs, folder: Path) -> None:
    job = job_of()
    folder.rename(folder.with_name("away"))
    for touch in (outputs.check, outputs.free_bytes, lambda: outputs.delete(job)):
        with pytest.raises(SteadyError) as caught:
            touch()
        assert caught.value.code == "folder_gone"
    with pytest.raises(SteadyError):
        outputs.save(job, picture(), recipe(job))
    assert not folder.exists()
    folder.with_name("away").rename(folder)
    outputs.save(job, picture(), recipe(job))
    assert pictures(folder) == [job.path]


def test_an_emptied_folder_on_the_same_disk_is_used_on(outputs: Outputs, folder: Path) -> None:
    first = job_of()
    outputs.save(first, picture(), recipe(first))
    subprocess.run(["rm", "-rf", folder], check=True)
    folder.mkdir()
    outputs.save(first, picture(), recipe(first))
    assert pictures(folder) == [first.path]


def test_a_new_folder_is_made_even_where_one_was_known(folder: Path) -> None:
    marker = Outputs(folder).open()
    subprocess.run(["rm", "-rf", folder], check=True)
    assert Outputs(folder).open(marker) != marker
    assert (folder / ".tmp").is_dir()


@pytest.mark.parametrize("where", ["outputs", "outputs/.tmp", "outputs/20260101"])
def test_a_file_in_a_folders_place_is_said(tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("in the way")
    outputs = Outputs(tmp_path / "outputs")
    with pytest.raises(SteadyError) as caught:
        outputs.open()
        outputs.save(job_of(), picture(), {"job_id": "x"})
    assert caught.value.code == "folder_gone"
    assert (tmp_path / where).read_text() == "in the way"


def test_trouble_of_our_own_is_not_the_folders(outputs: Outputs) -> None:
    def no_handles(temporary: Path, final: Path) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    outputs = Outputs(outputs._folder, ways=(no_handles,))
    outputs.open()
    with pytest.raises(OSError, match="too many"):
        outputs.save(job_of(), picture(), {"job_id": "x"})


# -- many at once


def save_many(folder: Path, number: int, ready: Connection) -> None:
    """1,000 pictures under 1,000 names that the other process wants too."""
    outputs = Outputs(folder)
    outputs.open()
    ready.send(True)
    ready.recv()
    image = picture((16, 16))
    for index in range(1000):
        for suffix in ("", "_2", "_3"):
            job = job_of(f"day/p{index}{suffix}.png", width=16, height=16)
            job = replace(job, attempt=number)
            try:
                outputs.save(job, image, {"job_id": job.id})
                break
            except NameTaken:
                continue
        else:
            os._exit(1)
    os._exit(0)


def test_two_processes_that_want_the_same_names_lose_no_picture(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    Outputs(folder).open()
    pipes, children = [], []
    for number in (1, 2):
        ours, theirs = context.Pipe()
        child = context.Process(target=save_many, args=(folder, number, theirs))
        child.start()
        children.append(child)
        pipes.append(ours)
    for pipe in pipes:
        assert pipe.recv()
    for pipe in pipes:
        pipe.send(True)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    found = [read_recipe((folder / name).read_bytes()) for name in pictures(folder)]
    ids = [one["job_id"] for one in found if one]
    assert len(found) == len(ids) == len(set(ids)) == 2000
    assert list((folder / ".tmp").iterdir()) == []
