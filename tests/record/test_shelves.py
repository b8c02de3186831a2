"""done/ and refused/: whatever step a death cuts off, the next call finishes the job."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from inbox_child import TICKET

from watcher import publish
from watcher.errors import SteadyError
from watcher.inbox import Claim, drop_file, lies_refused
from watcher.inbox.watch import Inbox

CHILD = Path(__file__).parents[1] / "inbox_child.py"
OTHER = "22222222-2222-4333-8444-555555555555"
WAYS = {"link": (publish.by_link,), "rename": (publish.by_rename,), "copy": (publish.by_copy,)}


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "inbox"


@pytest.fixture
def inbox(folder: Path) -> Iterator[Inbox]:
    box = Inbox(folder, settle=0.0, rescan=5.0)
    box.open()
    yield box
    box.close()


def put(folder: Path, name: str, ticket: str = TICKET, text: str = "prompt: a fox\n") -> None:
    """A claimed file, as a claim leaves it."""
    (folder / ".claimed").mkdir(parents=True, exist_ok=True)
    (folder / ".claimed" / f"{ticket}~{name}").write_text(text)


def only(inbox: Inbox) -> Claim:
    (claim,) = inbox.leftovers()
    return claim


def tree(folder: Path) -> dict[str, str]:
    """Everything in the inbox but the mark: path -> content."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".steady"
    }


def archive(inbox: Inbox, name: str, day: str = "20260101", result: bytes = b"{}") -> None:
    suffix = os.path.splitext(name)[1].lower()
    beside = [
        (".refused.csv", [b"error\n"]),
        (f"{suffix}.result.csv", [b"row\n"]),
        (f"{suffix}.result.json", [result[:1], result[1:]]),
    ]
    inbox.archive(TICKET, name, suffix, day=day, beside=beside)


DONE = {
    "done/20260101/cats~11111111.csv": "prompt: a fox\n",
    "done/20260101/cats~11111111.csv.result.json": "{}",
    "done/20260101/cats~11111111.csv.result.csv": "row\n",
    "done/20260101/cats~11111111.refused.csv": "error\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_archiving(folder: Path, way: str) -> None:
    put(folder, "cats.csv")
    inbox = Inbox(folder, settle=0.0, rescan=5.0, ways=WAYS[way])
    inbox.open()
    for _ in range(2):
        archive(inbox, "cats.csv")
        assert tree(folder) == DONE
    inbox.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["inside", "archived_moved", "sidecar_written"])
def test_archiving_cut_off_anywhere_is_finished_by_the_next_call(
    folder: Path, way: str, step: str
) -> None:
    if (way, step) == ("rename", "inside"):
        return  # one system call: there is no inside
    put(folder, "cats.csv")
    order = {"do": "archive", "folder": str(folder), "way": way, "step": step}
    died = subprocess.run([sys.executable, str(CHILD), json.dumps(order)], timeout=30)
    assert died.returncode == -9
    assert tree(folder) != DONE or step == "sidecar_written"
    inbox = Inbox(folder, settle=0.0, rescan=5.0, ways=WAYS[way])
    inbox.open()
    archive(inbox, "cats.csv")
    assert tree(folder) == DONE
    assert inbox.leftovers() == []
    inbox.close()


def test_a_retry_on_another_day_writes_the_result_where_the_file_lies(
    inbox: Inbox, folder: Path
) -> None:
    put(folder, "cats.csv")
    archive(inbox, "cats.csv")
    archive(inbox, "cats.csv", day="20260202", result=b'{"again": 1}')
    assert tree(folder) == DONE | {"done/20260101/cats~11111111.csv.result.json": '{"again": 1}'}


def test_a_file_somebody_removed_from_done_still_gets_its_result(
    inbox: Inbox, folder: Path
) -> None:
    beside = [(".yaml.result.json", [b"{}"])]
    inbox.archive(TICKET, "cats.yaml", ".yaml", day="20260101", beside=beside)
    assert tree(folder) == {"done/20260101/cats~11111111.yaml.result.json": "{}"}


def test_names_that_are_shown_otherwise_are_found(inbox: Inbox, folder: Path) -> None:
    name = os.fsdecode(b"l\xe9on\n.yaml")
    put(folder, name)
    put(folder, "other.yaml", OTHER)
    claim = next(c for c in inbox.leftovers() if c.ticket == TICKET)
    assert claim.name == "l\\xe9on\\x0a.yaml"
    beside = [(".yaml.result.json", [b"{}"])]
    inbox.archive(claim.ticket, claim.name, claim.suffix, day="20260101", beside=beside)
    assert sorted(os.listdir(folder / "done/20260101")) == [
        "l_xe9on_x0a~11111111.yaml", "l_xe9on_x0a~11111111.yaml.result.json",
    ]  # fmt: skip
    assert only(inbox).ticket == OTHER


def test_a_failing_result_leaves_no_half_file(inbox: Inbox, folder: Path) -> None:
    put(folder, "cats.yaml")

    def result() -> Iterator[bytes]:
        yield b"{"
        raise SteadyError("database_trouble")

    with pytest.raises(SteadyError):
        beside = [(".yaml.result.json", result())]
        inbox.archive(TICKET, "cats.yaml", ".yaml", day="20260101", beside=beside)
    assert tree(folder) == {"done/20260101/cats~11111111.yaml": "prompt: a fox\n"}


def test_discarding(inbox: Inbox, folder: Path) -> None:
    put(folder, "cats.yaml", OTHER)
    drop_file(folder, b"prompt: a fox", ".json", TICKET)
    (claim,) = inbox.scan()
    inbox.discard(claim.ticket)
    inbox.discard(claim.ticket)
    assert only(inbox).ticket == OTHER
    inbox.discard(OTHER)
    assert tree(folder) == {}


REFUSED = {
    "refused/cats.yaml": "prompt: a fox\n",
    "refused/cats.yaml.error.json": json.dumps(
        {"file": "cats.yaml", "ticket": TICKET, "code": "bad_yaml"}, indent=1
    )
    + "\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", ["sidecar_written", "inside", "refused_moved"])
def test_refusing_cut_off_anywhere_is_finished_by_the_next_call(
    folder: Path, way: str, step: str
) -> None:
    if (way, step) == ("rename", "inside"):
        return  # one system call: there is no inside
    put(folder, "cats.yaml")
    inbox = Inbox(folder, settle=0.0, rescan=5.0, ways=WAYS[way])
    inbox.open()
    claim = only(inbox)
    order = {"do": "refuse", "folder": str(folder), "way": way, "step": step}
    died = subprocess.run([sys.executable, str(CHILD), json.dumps(order)], timeout=30)
    assert died.returncode == -9
    for _ in range(2):
        assert inbox.refuse(claim, {"code": "bad_yaml"}) == folder / "refused" / "cats.yaml"
        assert tree(folder) == REFUSED
    inbox.close()


def test_refused_names_that_are_taken_get_numbers(inbox: Inbox, folder: Path) -> None:
    tickets = [f"{number:08}-2222-4333-8444-555555555555" for number in range(11)]
    for ticket in tickets:
        put(folder, "cats.yaml", ticket, text=ticket)
    where = [inbox.refuse(claim, {"code": "bad_yaml"}).name for claim in inbox.leftovers()]
    assert where == [
        "cats.yaml", *(f"cats_{n}.yaml" for n in range(2, 10)),
        f"cats~{tickets[9]}.yaml", f"cats~{tickets[10]}.yaml",
    ]  # fmt: skip
    for name, ticket in zip(where, tickets, strict=True):
        assert (folder / "refused" / name).read_text() == ticket
        reason = json.loads((folder / "refused" / f"{name}.error.json").read_text())
        assert reason["ticket"] == ticket


def test_a_refused_file_moved_back_is_a_plain_new_file(inbox: Inbox, folder: Path) -> None:
    put(folder, "cats.yaml")
    drop_file(folder, b"prompt: a fox", ".yaml", OTHER)
    (ours,) = inbox.scan()
    (other,) = [c for c in inbox.leftovers() if c.ticket == TICKET]
    back = [inbox.refuse(claim, {"code": "bad_yaml"}) for claim in (ours, other)]
    assert [path.name for path in back] == [f"submitted-{OTHER}.yaml", "cats.yaml"]
    for path in back:
        path.rename(folder / path.name)
    again = inbox.scan()
    assert len(again) == 2
    assert not {c.ticket for c in again} & {TICKET, OTHER}
    assert {c.source for c in again} == {"file"}
    # refused again, the stale reason is replaced
    (cats,) = [c for c in again if c.name == "cats.yaml"]
    assert inbox.refuse(cats, {"code": "bad_shape"}).name == "cats.yaml"
    reason = json.loads((folder / "refused/cats.yaml.error.json").read_text())
    assert (reason["code"], reason["ticket"]) == ("bad_shape", cats.ticket)


def test_a_mended_file_leaves_no_old_reason(inbox: Inbox, folder: Path) -> None:
    put(folder, "cats.csv")
    put(folder, "owls.csv", OTHER)
    for claim in list(inbox.leftovers()):
        inbox.refuse(claim, {"code": "bad_csv"})
    put(folder, "cats.csv")
    (folder / "refused" / "cats.csv").unlink()  # moved back, and claimed again
    archive(inbox, "cats.csv")
    put(folder, "owls.csv")
    archive(inbox, "owls.csv")  # another file of a name that still lies there
    left = sorted(path.name for path in (folder / "refused").iterdir())
    assert left == ["owls.csv", "owls.csv.error.json"]


def test_a_refused_file_is_known_by_its_ticket_while_it_lies_there(
    inbox: Inbox, folder: Path
) -> None:
    for ticket in (TICKET, OTHER):
        put(folder, "night.csv", ticket)
        inbox.refuse(next(c for c in inbox.leftovers() if c.ticket == ticket), {"code": "bad_csv"})
    lie = {ticket: lies_refused(folder, ticket, "night.csv", ".csv") for ticket in (TICKET, OTHER)}
    assert lie == {TICKET: True, OTHER: True}
    (folder / "refused" / "night_2.csv").rename(folder / "night.csv")  # mended, and back
    assert lies_refused(folder, TICKET, "night.csv", ".csv")
    assert not lies_refused(folder, OTHER, "night.csv", ".csv")
    assert lies_refused(folder, OTHER, "night\\xff.csv", ".csv"), "nobody can tell"


def test_words_no_text_can_hold_are_written_all_the_same(inbox: Inbox, folder: Path) -> None:
    put(folder, "cats.yaml")
    inbox.refuse(only(inbox), {"message": "half a \ud800 pair"})
    body = json.loads((folder / "refused/cats.yaml.error.json").read_bytes())
    assert body["message"] == "half a \ud800 pair"


def test_nothing_is_written_into_a_folder_that_is_not_ours(
    inbox: Inbox, folder: Path, root: Path
) -> None:
    put(folder, "cats.yaml")
    claim = only(inbox)
    folder.rename(root / "away")
    folder.mkdir()
    for call in (
        lambda: archive(inbox, "cats.yaml"),
        lambda: inbox.discard(TICKET),
        lambda: inbox.refuse(claim, {}),
        lambda: inbox.read(claim, 100),
    ):
        with pytest.raises(SteadyError) as error:
            call()
        assert error.value.code == "folder_gone"
    assert os.listdir(folder) == []
    folder.rmdir()
    (root / "away").rename(folder)
    inbox.scan()
    archive(inbox, "cats.yaml")
    assert inbox.leftovers() == []


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 256 KiB at the inbox's place."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_nothing(small_disk: Path) -> None:
    inbox = Inbox(small_disk, settle=0.0, rescan=0.2)
    inbox.open()
    put(small_disk, "cats.csv")
    claim = only(inbox)
    hog = small_disk / "hog"
    with pytest.raises(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for call in (
        lambda: archive(inbox, "cats.csv"),
        lambda: drop_file(small_disk, b"prompt: a fox", ".yaml", OTHER),
    ):  # fmt: skip
        with pytest.raises(SteadyError) as error:
            call()
        assert error.value.code == "disk_full"
    assert os.listdir(small_disk / ".tmp") == []
    hog.unlink()
    assert drop_file(small_disk, b"prompt: a fox", ".yaml", OTHER).exists()
    archive(inbox, "cats.csv")
    assert tree(small_disk) == DONE | {f"api-{OTHER}.yaml": "prompt: a fox"}
    assert claim.ticket == TICKET
    inbox.close()


def test_a_shelf_on_another_disk_is_said(folder: Path) -> None:
    inbox = Inbox(folder, settle=0.0, rescan=0.2)
    inbox.open()
    put(folder, "cats.csv")
    claim = only(inbox)
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "done"], check=True)
    try:
        with pytest.raises(SteadyError) as error:
            archive(inbox, "cats.csv")
    finally:
        subprocess.run(["umount", "-l", folder / "done"], check=True)
    assert error.value.code == "folder_gone" and "is on another disk" in error.value.message
    assert error.value.remedy == "Take off what is mounted in it."
    archive(inbox, "cats.csv")
    assert claim.ticket == TICKET and tree(folder) == DONE
    inbox.close()


def test_a_disk_that_became_read_only_costs_nothing(small_disk: Path) -> None:
    inbox = Inbox(small_disk, settle=0.0, rescan=0.2)
    inbox.open()
    put(small_disk, "cats.csv")
    (small_disk / "new.yaml").write_text("prompt: a cat")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SteadyError) as error:
        archive(inbox, "cats.csv")
    assert error.value.code == "folder_gone" and "Read-only" in error.value.message
    for _ in range(3):
        assert inbox.scan() == []
    assert (
        "new.yaml cannot be taken and does not run (Read-only file system)."
        in (inbox.health()["problems"])
    )
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    archive(inbox, "cats.csv")
    (small_disk / "new.yaml").touch()
    assert [c.name for c in inbox.scan()] == ["new.yaml"]
    inbox.close()
