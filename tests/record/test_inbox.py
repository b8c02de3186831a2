"""Files that land: when they are ready, which are taken, how claims survive anything."""

import errno
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import copyfile

import pytest
from conftest import until
from inbox_child import TICKET

from watcher import checkpoints, publish
from watcher.errors import SteadyError
from watcher.inbox import Claim, drop_file, takeover
from watcher.inbox.arrivals import Arrivals
from watcher.inbox.claims import cut, display, entry_of
from watcher.inbox.watch import Inbox
from watcher.inbox.writers import Writer, writer_of

SETTLE = 0.1
CHILD = Path(__file__).parents[1] / "inbox_child.py"


@pytest.fixture
def inbox(root: Path) -> Iterator[Inbox]:
    box = Inbox(root / "inbox", settle=SETTLE, rescan=5.0)
    box.open()
    yield box
    box.close()


@pytest.fixture
def folder(root: Path, inbox: Inbox) -> Path:
    return root / "inbox"


def claims(inbox: Inbox, count: int, timeout: float = 10.0) -> list[Claim]:
    """Drive the inbox until it gave ``count`` claims; fails when it gives others or too few."""
    got: list[Claim] = []
    deadline = time.monotonic() + timeout
    while len(got) < count:
        assert time.monotonic() < deadline, f"only {[c.name for c in got]} of {count}"
        found = inbox.scan()
        got += found
        if not found:
            inbox.wait(0.2)
    assert len(got) == count, [c.name for c in got]
    return got


def nothing_for(inbox: Inbox, seconds: float) -> None:
    """Drive the inbox for ``seconds``: it must not claim anything."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        assert inbox.scan() == []
        inbox.wait(min(left, 0.05))


def claim(inbox: Inbox) -> Claim:
    (one,) = claims(inbox, 1)
    return one


def run_child(**order: object) -> int:
    return subprocess.run([sys.executable, str(CHILD), json.dumps(order)], timeout=60).returncode


# ---------------------------------------------------------------- ready, or still being written


def test_a_written_file_is_claimed_soon_after_its_silence(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a fox")
    begun = time.monotonic()
    got = claim(inbox)
    took = time.monotonic() - begun
    assert SETTLE * 0.9 <= took < SETTLE + 30
    assert (got.name, got.suffix, got.stem, got.source, got.size) == (
        "a.yaml",
        ".yaml",
        "a",
        "file",
        13,
    )
    assert inbox.read(got, 100) == b"prompt: a fox"
    assert got.path == folder / ".claimed" / f"{got.ticket}~a.yaml"
    assert not (folder / "a.yaml").exists()


def test_a_slow_writer_is_waited_for_however_long_it_pauses(inbox: Inbox, folder: Path) -> None:
    with (folder / "a.yaml").open("w") as file:
        for part in ("prompt: a fox\n", "width: 512\n", "height: 512\n"):
            file.write(part)
            file.flush()
            nothing_for(inbox, SETTLE * 3)
    assert inbox.read(claim(inbox), 100).endswith(b"height: 512\n")


def test_a_copy_that_allocates_first_and_keeps_the_time(inbox: Inbox, folder: Path) -> None:
    with (folder / "a.yaml").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 13)
        os.utime(file.fileno(), (1, 1))
        nothing_for(inbox, SETTLE * 3)
        os.pwrite(file.fileno(), b"prompt: a fox", 0)
        os.utime(file.fileno(), (1, 1))
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_a_file_mapped_for_writing_is_waited_for(inbox: Inbox, folder: Path) -> None:
    path = folder / "a.yaml"
    path.write_bytes(b"prompt: a cat")
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 13)
    nothing_for(inbox, SETTLE * 3)
    memory[8:13] = b"a fox"
    memory.close()
    inbox.ring()  # no event tells of an unmapping; the rescan would find it
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_moved_in(inbox: Inbox, folder: Path, root: Path) -> None:
    (root / "x").write_text("prompt: a fox")
    (root / "x").rename(folder / "a.yaml")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_moved_in_while_its_writer_goes_on(inbox: Inbox, folder: Path, root: Path) -> None:
    with (root / "x").open("w") as file:
        file.write("prompt: ")
        file.flush()
        (root / "x").rename(folder / "a.yaml")
        nothing_for(inbox, SETTLE * 3)
        file.write("a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_linked_in_while_written_under_its_other_name(
    inbox: Inbox, folder: Path, root: Path
) -> None:
    with (root / "x").open("w") as file:
        file.write("prompt: ")
        file.flush()
        (folder / "a.yaml").hardlink_to(root / "x")
        nothing_for(inbox, SETTLE * 3)
        file.write("a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_as_rsync_does(inbox: Inbox, folder: Path) -> None:
    temporary = folder / ".a.yaml.AbC123"
    temporary.write_text("prompt: a fox")
    nothing_for(inbox, SETTLE * 3)
    temporary.rename(folder / "a.yaml")
    assert claim(inbox).name == "a.yaml"
    nothing_for(inbox, SETTLE * 2)


def test_as_editors_do(inbox: Inbox, folder: Path) -> None:
    (folder / ".a.yaml.swp").write_bytes(b"b0VIM")
    (folder / "4913").touch()
    (folder / "4913").unlink()
    (folder / "a.yaml").write_text("prompt: a cat")
    (folder / "a.yaml").rename(folder / "a.yaml~")
    (folder / ".#a.yaml").symlink_to("somebody@host.1234")
    (folder / "#a.yaml#").write_text("prompt: half")
    (folder / "a.yaml").write_text("prompt: a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"
    nothing_for(inbox, SETTLE * 3)


def test_as_sed_does(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a cat")
    subprocess.run(["sed", "-i", "s/cat/fox/", str(folder / "a.yaml")], check=True)
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_an_empty_file_may_be_filled_later(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").touch()
    nothing_for(inbox, SETTLE * 3)
    assert inbox.settling == 1
    (folder / "a.yaml").write_text("prompt: a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_a_file_that_stays_empty_is_claimed_in_the_end(root: Path) -> None:
    inbox = Inbox(root / "inbox", settle=0.05, rescan=5.0, arrivals=partial(Arrivals, empty=1.0))
    inbox.open()
    (root / "inbox" / "a.yaml").touch()
    nothing_for(inbox, 0.3)
    with pytest.raises(SteadyError) as error:
        inbox.read(claim(inbox), 100)
    assert error.value.code == "empty_file"
    inbox.close()


def test_a_change_begins_the_silence_anew(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a cat")
    assert inbox.scan() == []
    (folder / "a.yaml").write_text("prompt: a fox")
    begun = time.monotonic()
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"
    assert time.monotonic() - begun >= SETTLE * 0.9


def test_the_same_size_and_time_do_not_hide_a_change(root: Path) -> None:
    arrivals = Arrivals(root, settle=1.0)
    path = root / "a.yaml"
    for now, word in ((100.0, "cat"), (101.5, "fox")):
        path.write_text(f"prompt: a {word}")
        os.utime(path, (1, 1))
        assert arrivals.look(now).ready == []
    assert arrivals.look(102.4).ready == []
    assert [a.name for a in arrivals.look(102.5).ready] == ["a.yaml"]


def test_the_same_name_again_is_a_new_claim(inbox: Inbox, folder: Path) -> None:
    tickets = set()
    for word in ("cat", "fox"):
        (folder / "daily.yaml").write_text(f"prompt: {word}")
        got = claim(inbox)
        assert inbox.read(got, 100) == f"prompt: {word}".encode()
        tickets.add(got.ticket)
    assert len(tickets) == 2


def test_the_lease_probe_tells_the_three_cases(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("x")
    assert writer_of(path) is Writer.NONE
    with path.open("a"):
        assert writer_of(path) is Writer.HOLDS
    assert writer_of(path) is Writer.NONE
    assert writer_of(tmp_path / "missing") is Writer.UNKNOWN


def test_a_writer_that_meets_the_lease_does_not_kill_us(tmp_path: Path) -> None:
    """Probes for a second while two processes open and close the file all the time."""
    path = tmp_path / "a.yaml"
    path.write_text("x")
    code = "import sys\nwhile True: open(sys.argv[1], 'a').close()"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    probe = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from watcher.inbox.writers import Writer, writer_of\n"
        "seen, end = set(), time.monotonic() + 1.0\n"
        "while time.monotonic() < end or len(seen) < 2: seen.add(writer_of(sys.argv[1]))\n"
        "assert seen == {Writer.NONE, Writer.HOLDS}, seen"
    )
    try:
        repository = str(Path(__file__).parents[2])
        done = subprocess.run([sys.executable, "-c", probe, str(path), repository], timeout=60)
        assert done.returncode == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


# ---------------------------------------------------------------- which names


TAKEN = [
    b"a.yaml", b"B.YAML", b"c.Yml", b"d.json", b"e.jsonl", b"f.csv", b"g.tsv", b"h.png",
    b"i.webp", b"j.jpg", b"k.JPEG", b"-rf.yaml", b" .yaml", b"two words.yaml", b"a.b.c.yaml",
    b"api-not-a-uuid.yaml", b"l\xe9on.yaml", "b\u00e4r \U0001f43b.yaml".encode(), b"new\nline.yaml",
    b"bell\x07\x1b[31m.yaml", "left\u202etfel.yaml".encode(), b"x" * 250 + b".yaml",
    "\u00e4".encode() * 125 + b".yaml", b"\xff" * 250 + b".yaml", b"..yaml.yaml"[1:] + b".yaml",
    b"$(touch pwned).yaml", b"a;b|c&d.yaml", b"back\\slash.yaml", b"%s%n.yaml", b"'quote\".yaml",
    b"x.zip",
]  # fmt: skip
LEFT = [
    b".hidden.yaml", b".yaml", b"a.yaml~", b"#a.yaml#", b"a.yaml.part", b"a.yaml.crdownload",
    b"a.yaml.filepart", b"a.yaml.tmp", b"a.yaml.swp", b"4913", b"sedAbC123",
    b"~", b"#", b".gitkeep", b"a.yaml.bak",
]  # fmt: skip
NOTICED = [
    b"jobs.xlsx", b"prompt.MD", b"a.py", b"yaml", b"README", b"x.yamll", b"x.ymal", b"x.json5",
]  # fmt: skip


def test_every_name(root: Path) -> None:
    inbox = Inbox(root / "inbox", settle=0.0, rescan=5.0)
    inbox.open()
    base = os.fsencode(root / "inbox") + b"/"
    taken = [name for name in TAKEN if not name.startswith(b".")]
    for name in taken + LEFT + NOTICED:
        with open(base + name, "wb") as file:
            file.write(b"prompt: " + name[:5])
    got = claims(inbox, len(taken))
    for one in got:
        assert one.path.exists()
        assert len(os.fsencode(one.entry)) <= 37 + 180
        assert one.entry.startswith(one.ticket + "~")
        assert one.suffix in {os.path.splitext(one.name)[1].lower()}
        one.name.encode("utf-8")  # goes into any record
        assert "\n" not in one.name and "\x1b" not in one.name and "\u202e" not in one.name
        inbox.read(one, 1000)
    whole = {os.fsencode(one.entry.partition("~")[2]) for one in got}
    assert {name for name in taken if len(name) <= 180} <= whole
    assert "l\\xe9on.yaml" in {one.name for one in got}
    assert {n.split(" is no")[0] for n in inbox.health()["notices"]} == {
        name.decode() for name in NOTICED
    }
    assert sorted(os.listdir(base)) == sorted(
        LEFT + NOTICED + [b".steady", b".claimed", b".tmp", b"done", b"refused"]
    )
    # and every one can be put on either shelf
    for number, one in enumerate(got):
        if number % 2:
            beside = [(f"{one.suffix}.result.json", [b"{}"])]
            inbox.archive(one.ticket, one.name, one.suffix, day="20260101", beside=beside)
        else:
            inbox.refuse(one, {"code": "bad_yaml"})
    assert inbox.leftovers() == []
    assert len(list((root / "inbox/done/20260101").iterdir())) == 2 * (len(got) // 2)
    assert len(list((root / "inbox/refused").iterdir())) == 2 * len(got) - 2 * (len(got) // 2)
    inbox.close()


def test_cutting_keeps_the_suffix_and_whole_characters() -> None:
    assert cut("a.yaml") == "a.yaml"
    assert cut("\u00e4" * 100 + ".yaml") == "\u00e4" * 87 + ".yaml"
    assert len(os.fsencode(cut(os.fsdecode(b"\xff" * 250 + b".yaml")))) == 180
    assert cut("x" * 300) == "x" * 180


def test_display_is_one_harmless_line() -> None:
    assert (
        display("b\u00e4r \u3000 \U0001f468\u200d\U0001f680.yaml")
        == "b\u00e4r \u3000 \U0001f468\u200d\U0001f680.yaml"
    )
    assert display("a\nb\x1b\u202e.yaml") == "a\\x0ab\\x1b\\u202e.yaml"
    assert display(os.fsdecode(b"l\xe9on")) == "l\\xe9on"


def test_many_notices_stay_short(inbox: Inbox, folder: Path) -> None:
    for number in range(50):
        (folder / f"{number}.md").touch()
    inbox.scan()
    notices = inbox.health()["notices"]
    assert len(notices) == 21
    assert notices[-1] == "… and 30 more."


# ---------------------------------------------------------------- hostile entries


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, _: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)
    server.bind(path.name)
    os.chdir(here)
    server.close()


def _device(path: Path, _: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero: never ends


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside.with_name("nobody"))


def _loop(path: Path, _: Path) -> None:
    path.symlink_to(path)


def _link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside.parent)


def _sparse(path: Path, _: Path) -> None:
    path.touch()
    os.truncate(path, 10 << 30)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (_fifo, "not_a_regular_file"),
        (_socket, "not_a_regular_file"),
        (_device, "not_a_regular_file"),
        (_link, "not_a_regular_file"),
        (_dangling, "not_a_regular_file"),
        (_loop, "not_a_regular_file"),
        (_link_to_folder, "not_a_regular_file"),
        (_sparse, "too_large"),
    ],
)
def test_hostile_entries_are_refused_and_nothing_waits_for_them(
    inbox: Inbox, folder: Path, root: Path, make: object, code: str
) -> None:
    canary = root / "secret" / "canary.yaml"
    canary.parent.mkdir()
    canary.write_text("prompt: secret")
    os.chmod(canary, 0o640)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    make(folder / "x.yaml", canary)  # type: ignore[operator]
    begun = time.monotonic()
    got = claim(inbox)
    for read in (inbox.read, inbox.open_stream):
        with pytest.raises(SteadyError) as error:
            read(got, 1 << 20)
        assert error.value.code == code
    refused = inbox.refuse(got, error.value.as_dict())
    assert time.monotonic() - begun < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 20_000
    assert os.path.lexists(refused) and refused == folder / "refused" / "x.yaml"
    assert json.loads((folder / "refused" / "x.yaml.error.json").read_text())["code"] == code
    assert not os.listdir(folder / ".claimed")
    assert canary.read_text() == "prompt: secret" and canary.stat().st_mode & 0o777 == 0o640
    (folder / "good.yaml").write_text("prompt: a fox")
    assert claim(inbox).name == "good.yaml"


def test_a_folder_is_left_alone_and_said(inbox: Inbox, folder: Path) -> None:
    (folder / "x.yaml").mkdir()
    (folder / "x.yaml" / "inner.yaml").write_text("prompt: a fox")
    nothing_for(inbox, SETTLE * 3)
    assert inbox.health()["notices"] == [
        "x.yaml is a folder; folders are not read. Move its files into the inbox itself."
    ]


def test_our_own_folders_must_be_real(root: Path) -> None:
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    (root / "inbox").mkdir()
    (root / "inbox" / ".claimed").symlink_to(elsewhere)
    inbox = Inbox(root / "inbox", settle=0.0, rescan=0.2)
    inbox.open()
    (root / "inbox" / "a.yaml").write_text("prompt: a fox")
    with pytest.raises(SteadyError) as error:
        inbox.scan()
    assert error.value.code == "folder_gone" and ".claimed" in error.value.message
    assert os.listdir(elsewhere) == []
    (root / "inbox" / ".claimed").unlink()
    assert claim(inbox).name == "a.yaml"
    inbox.close()


def test_a_claim_that_keeps_changing_is_given_up_within_a_second(
    inbox: Inbox, folder: Path
) -> None:
    (folder / "a.yaml").write_text("prompt: a fox")
    got = claim(inbox)
    code = "import sys\nf = open(sys.argv[1], 'ab', 0)\nprint('on', flush=True)\nwhile True: f.write(b'x')"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(got.path)], stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28)),
    ) as writer:  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline() == b"on\n"
        begun = time.monotonic()
        with pytest.raises(SteadyError) as error:
            inbox.read(got, 1 << 30)
        writer.kill()
        assert error.value.code == "unreadable"
        assert time.monotonic() - begun < 30


def test_sizes_are_checked_before_reading(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_bytes(b"x" * 101)
    got = claim(inbox)
    with pytest.raises(SteadyError) as error:
        inbox.read(got, 100)
    assert error.value.code == "too_large" and "101 bytes; 100" in error.value.message
    assert inbox.read(got, 101) == b"x" * 101
    with inbox.open_stream(got, 101) as stream:
        assert stream.read() == b"x" * 101


def test_a_claim_taken_away_is_unreadable_not_a_disk_fault(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a fox")
    got = claim(inbox)
    got.path.unlink()
    with pytest.raises(SteadyError) as error:
        inbox.read(got, 100)
    assert error.value.code == "unreadable"


# ---------------------------------------------------------------- files of our own making

WAYS = {
    "link": (publish.by_link,),
    "rename": (publish.by_rename,),
    "copy": (publish.by_copy,),
    "all": publish.WAYS,
}


@pytest.mark.parametrize("way", WAYS)
def test_submitted_files_need_no_silence(root: Path, way: str) -> None:
    inbox = Inbox(root / "inbox", settle=60.0, rescan=5.0)
    inbox.open()
    ticket = str(uuid.uuid4())
    begun = time.monotonic()
    path = drop_file(root / "inbox", b"prompt: a fox", ".json", ticket, ways=WAYS[way])
    assert path == root / "inbox" / f"api-{ticket}.json"
    got = claim(inbox)
    assert time.monotonic() - begun < 30
    assert (got.ticket, got.source, got.name) == (ticket, "cli", f"api-{ticket}.json")
    assert inbox.read(got, 100) == b"prompt: a fox"
    assert os.listdir(root / "inbox" / ".tmp") == []
    inbox.discard(ticket)
    inbox.discard(ticket)
    assert inbox.leftovers() == []
    inbox.close()


def test_submitting_a_ticket_again_changes_nothing(root: Path) -> None:
    first = drop_file(root / "inbox", b"prompt: a fox", ".yaml", TICKET)
    assert drop_file(root / "inbox", b"prompt: a cat", ".yaml", TICKET) == first
    assert first.read_bytes() == b"prompt: a fox"
    assert os.listdir(root / "inbox" / ".tmp") == []


def test_a_ticket_in_work_is_not_claimed_twice(inbox: Inbox, folder: Path) -> None:
    drop_file(folder, b"prompt: a fox", ".yaml", TICKET)
    got = claim(inbox)
    drop_file(folder, b"prompt: a cat", ".yaml", TICKET)
    drop_file(folder, b"prompt: a cat", ".json", TICKET)
    nothing_for(inbox, SETTLE * 2)
    assert inbox.health()["waiting"] == 2
    assert inbox.read(got, 100) == b"prompt: a fox"
    inbox.discard(TICKET)
    assert [c.ticket for c in claims(inbox, 1)] == [TICKET]  # the second one waits again


@pytest.mark.parametrize("way", ["link", "copy"])
def test_a_submitter_that_dies_leaves_nothing_half(root: Path, way: str) -> None:
    (root / "inbox").mkdir()
    died = run_child(do="submit", folder=str(root / "inbox"), way=way, step="inside")
    assert died == -signal.SIGKILL
    inbox = Inbox(root / "inbox", settle=0.0, rescan=0.2, arrivals=partial(Arrivals, empty=0.6))
    inbox.open()
    if way == "copy":  # the name is reserved, empty: not a job, and another may fill it
        nothing_for(inbox, 0.3)
        assert drop_file(root / "inbox", b"prompt: a cat", ".yaml", TICKET).stat().st_size == 13
    got = claim(inbox)
    assert got.ticket == TICKET
    assert inbox.read(got, 100) == (b"prompt: a cat" if way == "copy" else b"prompt: a fox\n")
    inbox.close()


def test_an_empty_reservation_is_cleared_away(root: Path) -> None:
    inbox = Inbox(root / "inbox", settle=0.0, rescan=0.2, arrivals=partial(Arrivals, empty=0.2))
    inbox.open()
    left = root / "inbox" / f"api-{TICKET}.yaml"
    left.touch()
    until(lambda: (nothing_for(inbox, 0.1), not left.exists())[1])
    assert inbox.leftovers() == []
    inbox.close()


def test_a_submitted_file_still_open_is_waited_for(inbox: Inbox, folder: Path) -> None:
    with (folder / f"api-{TICKET}.yaml").open("w") as file:
        file.write("prompt: ")
        file.flush()
        nothing_for(inbox, SETTLE * 3)
        file.write("a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"


def test_submitting_to_an_inbox_that_is_not_there(root: Path) -> None:
    with pytest.raises(SteadyError) as error:
        drop_file(root / "absent" / "inbox", b"x", ".yaml", TICKET)
    assert error.value.code == "folder_gone"
    (root / "inbox").mkdir()
    with pytest.raises(SteadyError) as error:
        drop_file(root / "inbox", b"x", ".yaml", TICKET, known=True)
    assert error.value.code == "folder_gone" and ".steady" in error.value.message
    assert os.listdir(root / "inbox") == []


def test_old_temporary_files_are_swept_and_young_ones_kept(root: Path) -> None:
    tmp = root / "inbox" / ".tmp"
    tmp.mkdir(parents=True)
    for name in ("submit-old", "submit-young", "watcher-left"):
        (tmp / name).touch()
    os.utime(tmp / "submit-old", (1, 1))
    Inbox(root / "inbox", settle=0.0, rescan=5.0).open()
    assert os.listdir(tmp) == ["submit-young"]


# ---------------------------------------------------------------- claims


def test_claims_are_synced_in_chunks_before_they_are_handed_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(checkpoints, "after", steps.append)
    inbox = Inbox(root / "inbox", settle=0.0, rescan=5.0)
    inbox.open()
    for number in range(600):
        (root / "inbox" / f"{number:04}.yaml").write_text("prompt: a fox")
    got = claims(inbox, 600)
    assert steps == [
        step
        for part in (256, 256, 88)
        for step in ["claimed"] * part + ["claim_taken"] * part + ["claim_synced"]
    ]
    assert [c.name for c in got] == [f"{n:04}.yaml" for n in range(600)]  # in order of arrival
    assert len({c.ticket for c in got}) == 600
    inbox.close()


def test_a_limit_leaves_the_rest_for_the_next_call(inbox: Inbox, folder: Path) -> None:
    for number in range(10):
        (folder / f"{number}.yaml").write_text("prompt: a fox")
    until(lambda: (inbox.scan(limit=0), inbox.settling == 10 and inbox.wait(0.05))[1] is None)
    nothing = inbox.scan(limit=0)
    assert nothing == [] and len(os.listdir(folder / ".claimed")) == 0
    until(lambda: len(inbox.scan(limit=3)) == 3)
    assert len(inbox.scan(limit=3)) == 3
    assert len(inbox.scan()) == 4


@pytest.mark.parametrize("step", ["claimed", "claim_taken", "claim_synced"])
def test_killed_while_claiming_every_file_is_there_once(root: Path, step: str) -> None:
    folder = root / "inbox"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.yaml").write_text(f"prompt: {number}")
    nth = 1 if step == "claim_synced" else 4
    assert run_child(do="claim", folder=str(folder), way="all", step=step, nth=nth) == -9
    inbox = Inbox(folder, settle=0.0, rescan=5.0)
    inbox.open()
    left = inbox.leftovers()
    assert len(left) == (4 if step == "claimed" else 10)
    again = inbox.leftovers()
    assert again == left  # the same tickets, however often it is asked
    rest = claims(inbox, 10 - len(left)) if len(left) < 10 else []
    assert sorted(inbox.read(c, 99) for c in left + rest) == [
        f"prompt: {n}".encode() for n in range(10)
    ]
    assert len({c.ticket for c in left + rest}) == 10
    inbox.close()


def test_leftovers_are_only_ours_and_oldest_first(root: Path) -> None:
    claimed = root / "inbox" / ".claimed"
    claimed.mkdir(parents=True)
    tickets = [str(uuid.uuid4()) for _ in range(5)]
    for ticket in tickets:
        (claimed / f"{ticket}~x.yaml").write_text("prompt: a fox")
    (claimed / "stranger.yaml").touch()
    (claimed / "not-a-uuid~x.yaml").touch()
    inbox = Inbox(root / "inbox", settle=0.0, rescan=5.0)
    inbox.open()
    assert [c.ticket for c in inbox.leftovers()] == tickets
    inbox.close()


def test_a_missing_claimed_folder_is_made_again(inbox: Inbox, folder: Path) -> None:
    (folder / ".claimed").rmdir()
    (folder / "a.yaml").write_text("prompt: a fox")
    assert claim(inbox).path.exists()


def test_a_file_in_use_as_a_mount_is_blocked_and_said(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    inbox = Inbox(root / "inbox", settle=0.0, rescan=0.2)
    inbox.open()
    path = root / "inbox" / "a.yaml"
    path.write_text("prompt: a fox")
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        until(lambda: (nothing_for(inbox, 0.1), inbox.health()["problems"])[1])
        (words,) = inbox.health()["problems"]
        assert words == f"a.yaml cannot be taken and does not run ({os.strerror(errno.EBUSY)})."
        assert inbox.health()["waiting"] == 1 and inbox.settling == 0
    finally:
        subprocess.run(["umount", path], check=True)
    path.touch()  # a change ends the wait of up to a minute
    assert claim(inbox).name == "a.yaml"
    inbox.scan()
    assert inbox.health()["problems"] == []
    inbox.close()


SCANS: list[str] = []
HOOKED: list[bool] = []


def count_scans() -> None:
    """Every ``os.scandir`` of this process is noted from now on (such a hook stays for good)."""

    def note(event: str, args: tuple[object, ...]) -> None:
        if event == "os.scandir":
            SCANS.append(str(args[0]))

    if not HOOKED:
        HOOKED.append(True)
        sys.addaudithook(note)
    SCANS.clear()


@pytest.mark.parametrize("count", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_many_files_take_one_look_and_linear_time(root: Path, count: int) -> None:
    folder = root / "inbox"
    inbox = Inbox(folder, settle=0.0, rescan=60.0)
    inbox.open()
    for number in range(count):
        (folder / f"{number}.csv").write_bytes(b"prompt")
    count_scans()
    begun, used = time.monotonic(), time.process_time()
    got = []
    while len(got) < count:
        got += inbox.scan(limit=256)
    print(
        f"{count} files: {time.monotonic() - begun:.2f} s, CPU {time.process_time() - used:.2f} s"
    )
    assert SCANS.count(str(folder)) == 1
    assert time.process_time() - used < count * 0.01
    assert len({c.name for c in got}) == count
    inbox.close()


def test_room_is_given_to_the_next_as_files_are_taken(root: Path) -> None:
    inbox = Inbox(root / "inbox", settle=0.02, rescan=60.0, arrivals=partial(Arrivals, most=100))
    inbox.open()
    inbox._bell.unsubscribe()  # only its own looks are counted
    inbox._bell.hush()
    for number in range(450):
        (root / "inbox" / f"{number}.yaml").write_text("prompt: a fox")
    count_scans()
    assert inbox.scan() == []
    assert inbox.health()["waiting"] == 450 and inbox.settling == 450
    got: set[str] = set()
    while len(got) < 450:
        found = inbox.scan()
        got |= {claim.name for claim in found}
        if not found:
            inbox.wait()
    assert SCANS.count(str(root / "inbox")) <= 11  # five times seen, five times ready
    assert inbox.settling == 0
    inbox.close()


def test_without_leases_silence_lasts_longer(root: Path) -> None:
    arrivals = Arrivals(root, settle=0.1, blind=5.0)
    (root / "a.yaml").write_text("prompt: a fox")
    arrivals.look(100.0)
    assert [a.name for a in arrivals.look(100.2).ready] == ["a.yaml"]
    arrivals.leases = False
    glance = arrivals.look(104.9)
    assert (glance.ready, glance.settling, glance.due) == ([], 1, 105.0)
    assert [a.name for a in arrivals.look(105.0).ready] == ["a.yaml"]


def test_a_file_that_cannot_be_moved_is_tried_less_and_less_often(root: Path) -> None:
    arrivals = Arrivals(root, settle=0.0)
    (root / "a.yaml").write_text("prompt: a fox")
    (one,) = arrivals.look(time.monotonic()).ready
    waits = []
    for _ in range(6):
        arrivals.block(one, "cannot be taken")
        glance = arrivals.look(time.monotonic())
        assert (glance.ready, glance.blocked) == ([], ["a.yaml cannot be taken."])
        waits.append(round(glance.due - time.monotonic()))
    assert waits == [5, 10, 20, 40, 60, 60]


def test_claims_made_before_the_folder_went_are_handed_out_when_it_is_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "inbox"
    seen: list[str] = []

    def vanish(step: str) -> None:
        seen.append(step)
        if len(seen) == 3:
            folder.rename(root / "away")

    monkeypatch.setattr(checkpoints, "after", vanish)
    inbox = Inbox(folder, settle=0.0, rescan=0.2)
    inbox.open()
    for number in range(10):
        (folder / f"{number}.yaml").write_text(f"prompt: {number}")
    with pytest.raises(SteadyError) as error:
        inbox.scan()
    assert error.value.code == "folder_gone"
    with pytest.raises(SteadyError):
        inbox.scan()
    (root / "away").rename(folder)
    got = claims(inbox, 10)
    assert [c.name for c in got[:3]] == ["0.yaml", "1.yaml", "2.yaml"]
    assert len({c.ticket for c in got}) == 10
    assert {c.entry for c in inbox.leftovers()} == {c.entry for c in got}
    inbox.close()


@pytest.mark.parametrize("state", ["held", "empty", "blind", "blocked"])
def test_waiting_costs_no_cpu(root: Path, state: str) -> None:
    """Nothing that waits for somebody else is looked at in a tight loop."""
    inbox = Inbox(root / "inbox", settle=0.02, rescan=0.5)
    inbox.open()
    path = root / "inbox" / "a.yaml"
    file = path.open("w")
    if state != "empty":
        file.write("prompt: a fox")
        file.flush()
    if state != "held":
        file.close()
    if state == "blind":
        inbox._arrivals.leases = False
    if state == "blocked":
        (one,) = (
            inbox._arrivals.look(time.monotonic() - 1).ready
            or inbox._arrivals.look(time.monotonic() + 1).ready
        )
        inbox._arrivals.block(one, "cannot be taken")
    count_scans()
    nothing_for_real(inbox, 1.0)
    assert SCANS.count(str(root / "inbox")) <= 8, state
    file.close()
    inbox.close()


def nothing_for_real(inbox: Inbox, seconds: float) -> None:
    """As the intake drives it: it waits as long as the inbox says."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        assert inbox.scan() == []
        inbox.wait(left)


def test_what_health_says_is_logged_once(
    inbox: Inbox, folder: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="steady.inbox")
    (folder / "list.yamll").touch()
    folder_back = root / "away"
    for _ in range(3):
        inbox.scan()
    folder.rename(folder_back)
    for _ in range(3):
        with pytest.raises(SteadyError):
            inbox.scan()
    folder_back.rename(folder)
    inbox.scan()
    ours = [r for r in caplog.records if r.name == "steady.inbox"]
    said = [(r.message, r.facts["message"]) for r in ours]  # type: ignore[attr-defined]
    assert said == [
        ("inbox.notice", "list.yamll is no job file. Is .yaml meant? Rename it."),
        ("inbox.notice", "The inbox is not there (No such file or directory)."),
        ("inbox.over", "The inbox is not there (No such file or directory)."),
    ]


@pytest.mark.slow
def test_a_hundred_thousand_files_in_flat_memory(root: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from watcher.inbox.watch import Inbox
inbox = Inbox(Path(sys.argv[1]), settle=1.0, rescan=5.0); inbox.open()
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
begun, count = time.monotonic(), 0
while count < 100_000:
    found = inbox.scan(); count += len(found)
    if not found: inbox.wait()
after = peak()
print(count, time.monotonic() - begun, (after - before) // 1024, after // 1024)
"""
    (root / "inbox").mkdir()
    for number in range(100_000):
        (root / "inbox" / f"{number}.yaml").write_bytes(b"prompt: a fox")
    done = subprocess.run(
        [sys.executable, "-c", code, str(root / "inbox")],
        capture_output=True,
        timeout=110,
        check=True,
    )
    count, _, grown, total = done.stdout.split()
    print(done.stdout)
    assert int(count) == 100_000
    assert int(grown) < 50 and int(total) < 150, "MB"
    assert len(os.listdir(root / "inbox" / ".claimed")) == 100_000


# ---------------------------------------------------------------- one file under two names


def test_a_claim_undone_by_half_is_not_claimed_again(root: Path) -> None:
    """A power cut on a disk without a journal: the old name is back beside the new one."""
    folder = root / "inbox"
    Inbox(folder, settle=SETTLE, rescan=5.0).open()
    ours = folder / ".claimed" / f"{TICKET}~fox.yaml"
    ours.write_text("prompt: a fox")
    for name in ("fox.yaml", "another.yaml"):  # a link of another name is a person's own
        os.link(ours, folder / name)
    inbox = Inbox(folder, settle=SETTLE, rescan=5.0)
    inbox.open()
    assert [claim.ticket for claim in inbox.leftovers()] == [TICKET]
    assert ours.exists() and not (folder / "fox.yaml").exists()
    assert [claim.name for claim in claims(inbox, 1)] == ["another.yaml"]
    inbox.close()


def test_a_version_that_came_between_the_two_names_is_claimed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody saves the file anew while it is claimed: the newer one runs, and only that."""
    folder = root / "inbox"
    replaced = False

    def save_again(step: str) -> None:
        nonlocal replaced
        if step == "claimed" and not replaced:
            replaced = True
            (folder / ".fox.tmp").write_text("prompt: a red fox")
            (folder / ".fox.tmp").rename(folder / "fox.yaml")

    monkeypatch.setattr(checkpoints, "after", save_again)
    inbox = Inbox(folder, settle=0.0, rescan=5.0)
    inbox.open()
    (folder / "fox.yaml").write_text("prompt: a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a red fox"
    nothing_for(inbox, 0.3)
    assert len(os.listdir(folder / ".claimed")) == 1
    inbox.close()


def test_a_file_taken_back_between_the_two_names_does_not_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "inbox"
    steps: list[str] = []

    def take_back(step: str) -> None:
        steps.append(step)
        if steps == ["claimed"]:
            (folder / "fox.yaml").unlink()

    monkeypatch.setattr(checkpoints, "after", take_back)
    inbox = Inbox(folder, settle=0.0, rescan=5.0)
    inbox.open()
    (folder / "fox.yaml").write_text("prompt: a fox")
    until(lambda: (nothing_for(inbox, 0.1), "claim_taken" in steps)[1])
    assert os.listdir(folder / ".claimed") == []
    inbox.close()


def test_an_old_name_on_its_way_out_is_ended_at_the_next_start(root: Path) -> None:
    """Killed after the old name was put aside: the same file, or the newer one, under one ticket."""
    folder = root / "inbox"
    Inbox(folder, settle=SETTLE, rescan=5.0).open()
    for name, newer in (("same.yaml", None), ("newer.yaml", "prompt: newer")):
        path = folder / ".claimed" / f"{uuid.uuid4()}~{name}"
        path.write_text("prompt: older")
        aside = path.with_name(f".{path.name}")
        if newer is None:
            os.link(path, aside)
        else:
            aside.write_text(newer)
    inbox = Inbox(folder, settle=SETTLE, rescan=5.0)
    inbox.open()
    read = {claim.name: inbox.read(claim, 100) for claim in inbox.leftovers()}
    assert read == {"same.yaml": b"prompt: older", "newer.yaml": b"prompt: newer"}
    assert len(os.listdir(folder / ".claimed")) == 2
    inbox.close()


def test_where_links_are_unknown_one_rename_claims(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    folder = root / "inbox"
    monkeypatch.setattr(checkpoints, "after", steps.append)
    inbox = Inbox(folder, settle=0.0, rescan=5.0, ways=WAYS["rename"])
    inbox.open()
    (folder / "fox.yaml").write_text("prompt: a fox")
    assert inbox.read(claim(inbox), 100) == b"prompt: a fox"
    assert steps == ["claimed", "claim_synced"] and not (folder / "fox.yaml").exists()
    inbox.close()


def test_where_two_names_do_not_look_like_one_file_it_is_one_rename(root: Path) -> None:
    """Some network disks number a file by its name: nobody could tell the old one from a new file."""
    source, target = root / "fox.yaml", root / "claimed.yaml"
    source.write_text("prompt: a fox")

    def copy(old: Path, new: Path) -> None:
        copyfile(old, new)

    assert not takeover.begin(source, target, link=copy)
    assert not source.exists() and target.read_text() == "prompt: a fox"


def test_a_file_of_somebody_else_holds_no_leftover_up() -> None:
    """Killed between its two names, in a folder where only its owner may take it away."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        folder = Path(place) / "inbox"
        os.seteuid(65534)
        try:
            Inbox(folder, settle=SETTLE, rescan=5.0).open()
        finally:
            os.seteuid(0)
        for number in range(2):
            (folder / f"{number}.yaml").write_text("prompt: a fox")
            os.chmod(folder / f"{number}.yaml", 0o666)
            os.link(
                folder / f"{number}.yaml", folder / ".claimed" / f"{uuid.uuid4()}~{number}.yaml"
            )
        os.chown(folder, 0, 0)
        os.chmod(folder, 0o1777)
        os.chown(folder / "1.yaml", 65534, 65534)
        os.seteuid(65534)
        try:
            inbox = Inbox(folder, settle=SETTLE, rescan=5.0)
            inbox.open()
            assert [claim.name for claim in inbox.leftovers()] == ["1.yaml"]
            inbox.close()
        finally:
            os.seteuid(0)
        assert (folder / "0.yaml").exists() and not (folder / "1.yaml").exists()


def test_long_names_and_those_of_one_name_are_told_apart_after_a_kill(root: Path) -> None:
    folder = root / "inbox"
    Inbox(folder, settle=SETTLE, rescan=5.0).open()
    long = "x" * 200 + ".yaml"
    for name in ("fox.yaml", "fox.yaml", long):
        ticket = str(uuid.uuid4())
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f"prompt: {ticket}")
        os.link(folder / name, folder / ".claimed" / entry_of(ticket, name))
    inbox = Inbox(folder, settle=SETTLE, rescan=5.0)
    inbox.open()
    assert len(inbox.leftovers()) == 3
    assert [name for name in os.listdir(folder) if name.endswith(".yaml")] == []
    nothing_for(inbox, SETTLE * 2)
    inbox.close()


def test_a_later_file_with_the_number_of_an_old_one_is_claimed(root: Path) -> None:
    folder = root / "inbox"
    Inbox(folder, settle=SETTLE, rescan=5.0).open()
    ours = folder / ".claimed" / f"{TICKET}~fox.yaml"
    ours.write_text("prompt: a fox")
    inbox = Inbox(folder, settle=SETTLE, rescan=5.0)
    inbox.open()
    inbox.leftovers()
    ours.rename(folder / "fox.yaml")  # the very inode, and no claim any more
    assert [claim.name for claim in claims(inbox, 1)] == ["fox.yaml"]
    inbox.close()
