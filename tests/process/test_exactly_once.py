"""Exactly once: the watcher is killed after every step of the protocol, then once more in
the recovery, then may finish. Whatever happened, the history must keep its rules."""

import json
import signal
from collections.abc import Callable

import pytest
from engines import expected
from history import faults, pictures, renders, untold
from receivers import SECRET, Receiver
from roots import ON_RAY, Root
from torture import MODELS, kill_on_sight, storm

#: Every step of the protocol that leaves something behind, in the order of a job's journey.
POINTS = [
    "preset_kept", "claimed", "claim_taken", "claim_synced", "begun", "input_noted",
    "input_written", "input_copied", "parsed", "refused_kept", "recorded",
    "group_begun", "group_read", "group_recorded", "chunk_recorded",
    "dispatched", "picture_received", "tmp_written", "linked", "folder_synced",
    "thumbnail_written", "completed", "archived_moved", "sidecar_written", "archived_files",
    "archived", "telling", "told", "told_recorded", "refused_moved",
]  # fmt: skip
#: From here on the picture exists, so a kill may not cost a rendering.
PUBLISHED = POINTS[POINTS.index("linked") : POINTS.index("telling")]
if ON_RAY:  # where a watcher takes seconds to start: each side of what Ray has a part in
    POINTS = ["recorded", "dispatched", "picture_received", "linked", "archived"]
    PUBLISHED = ["linked", "completed"]
KILLS, ROUNDS = (12, 2) if ON_RAY else (24, 3)  #: of the storm, on sight; more: make torture

ROWS = 25
JOBS = 1 + 3 + ROWS + 1 + 1


def fill(root: Root, *, grouped: bool = False) -> None:
    """One job, a list of three, a table in two chunks with a row that cannot be used, a file in a hot folder, a job that starts
    from a picture, and one that must be refused.

    ``grouped``: the first two lie side by side and are taken together.
    """
    lines = "".join(f"row-{i} steps=2,\n" for i in range(ROWS)) + "bad row,7\n"
    three = json.dumps([{"prompt": f"three-{i} steps=2"} for i in range(3)])
    files = [("one.yaml", "prompt: one steps=2\n"), ("table.csv", "prompt,width\n" + lines)]
    files.insert(1 if grouped else 2, ("three.json", three))
    root.preset("hot", "prompt: hot steps=2\n")
    (root.folder / "inputs").mkdir(exist_ok=True)
    expected("input", 1, 64, 64).save(root.folder / "inputs" / "cat.png")
    files.append(("cat.yaml", "{prompt: cat steps=2, image: cat.png}"))
    for name, content in [*files, ("hot/five.yaml", "label: five\n")]:
        root.drop(name, content)
    root.drop("bad.yaml", "prompt: x\nwidht: 64\n")


def check(root: Root, receiver: Receiver, *, kills: int, jobs: int = JOBS) -> None:
    assert faults(root.folder, expected=jobs, log=root.log, kills=kills) == []
    assert untold(root.folder, receiver.told) + receiver.refused == []
    refused = {p.name for p in (root.inbox / "refused").iterdir()}
    assert refused == {"bad.yaml", "bad.yaml.error.json"}
    left = [p.name for p in root.inbox.iterdir() if p.is_file() and not p.name.startswith(".")]
    assert left == []
    done = [p for p in (root.inbox / "done").rglob("*") if p.is_file()]
    assert [p.name for p in (root.inbox / "hot").iterdir()] == []
    assert len(done) == 12, done  # the files, a result each, and the table's rows
    [back] = [path for path in done if path.name.endswith(".refused.csv")]
    assert "bad row,7,`width` must" in back.read_text()


@pytest.mark.parametrize("point", POINTS)
def test_killed_after_a_step_and_again_in_the_recovery(
    make_root: Callable[..., Root], point: str
) -> None:
    with Receiver() as receiver:
        webhook = {"url": receiver.url, "secret": SECRET}
        root = make_root(engine="engines:Tracing", webhooks=[webhook])
        fill(root, grouped=point.startswith("group"))
        first = root.watch(point=point, once=True)
        assert first.wait(60) == -signal.SIGKILL, f"{point} is never reached"
        root.watch(point="*", once=True).wait(60)
        root.finish()
        check(root, receiver, kills=2)


def test_a_file_that_kills_its_reader_twice_is_set_aside_unread(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    root.drop("bomb.yaml", "prompt: poison\n")
    for _ in range(2):
        assert root.watch(fault="poison", once=True).wait(60) == -signal.SIGKILL
    root.drop("fine.yaml", "prompt: fine\n")
    assert root.watch(fault="poison", once=True).wait(60) == 0
    reason = json.loads((root.inbox / "refused" / "bomb.yaml.error.json").read_bytes())
    assert reason["code"] == "crashed_service"
    assert [job["prompt"] for job in root.jobs()] == ["fine"]


@pytest.mark.skipif(ON_RAY, reason="the reading of files knows nothing of Ray")
@pytest.mark.parametrize("step", ["begun", "parsed", "group_begun", "group_read"])
def test_a_file_is_not_to_blame_for_deaths_it_stood_by(
    make_root: Callable[..., Root], step: str
) -> None:
    root = make_root()
    root.drop("a.yaml", "prompt: a steps=1\n")
    jobs = 1
    if step.startswith("group"):
        root.drop("b.yaml", "prompt: b steps=1\n")
        jobs = 2
    for _ in range(4):
        assert root.watch(point=step, once=True).wait(60) == -signal.SIGKILL
    root.finish()
    assert faults(root.folder, expected=jobs, log=root.log, kills=4) == []


def test_one_that_kills_its_reader_takes_no_neighbour_of_its_group_along(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    for name in ("a", "b", "poison", "c", "d"):
        root.drop(f"{name}.yaml", f"prompt: {name} steps=1\n")
    for _ in range(2):
        assert root.watch(fault="poison", once=True).wait(60) == -signal.SIGKILL
    assert root.watch(fault="poison", once=True).wait(60) == 0
    assert sorted(job["prompt"] for job in root.jobs()) == [f"{n} steps=1" for n in "abcd"]
    reason = json.loads((root.inbox / "refused" / "poison.yaml.error.json").read_bytes())
    assert reason["code"] == "crashed_service"
    assert faults(root.folder, expected=4, log=root.log, kills=2) == []


@pytest.mark.skipif(ON_RAY, reason="the reading of files knows nothing of Ray")
def test_a_file_behind_another_is_not_to_blame_either(make_root: Callable[..., Root]) -> None:
    """Every other start dies over the first of them, before it comes to the second."""
    root = make_root()
    root.drop("a.csv", "prompt\na steps=1\n")
    root.drop("b.yaml", "prompt: b steps=1\n")
    for nth in (2, 1) * 3:
        killed = root.watch(point="begun", nth=nth, once=True)
        assert killed.wait(60) == -signal.SIGKILL
    root.finish()
    assert faults(root.folder, expected=2, log=root.log, kills=6) == []


@pytest.mark.parametrize("point", PUBLISHED)
def test_a_published_picture_is_never_rendered_again(
    make_root: Callable[..., Root], point: str
) -> None:
    root = make_root()
    root.drop("one.yaml", "prompt: one steps=2\n")
    assert root.watch(point=point, once=True).wait(60) == -signal.SIGKILL
    root.finish()
    assert list(renders(root.log).values()) == [1]
    assert len(pictures(root.folder)) == 1


@pytest.mark.parametrize("where", ["inbox/.claimed", "outputs"])
def test_killed_the_moment_a_file_is_seen(make_root: Callable[..., Root], where: str) -> None:
    root = make_root()
    assert kill_on_sight(root, where, rounds=ROUNDS) == []


@pytest.mark.timeout(700)
def test_a_storm_of_kills(make_root: Callable[..., Root]) -> None:
    tally = storm(make_root(models=MODELS), kills=KILLS, seed=1)
    assert tally.faults == []
    assert tally.kills == KILLS


SEEDED = [
    ("late-identity", "recorded", "jobs in the record"),
    ("named-at-finish", "thumbnail_written", "belongs to no job"),
    ("told-afterwards", "archived", "was never told"),
]


@pytest.mark.parametrize(("fault", "point", "words"), SEEDED)
def test_the_checks_turn_red_when_the_protocol_is_broken(
    make_root: Callable[..., Root], fault: str, point: str, words: str
) -> None:
    """Seeded faults: without them this very run is green (see above)."""
    with Receiver() as receiver:
        webhook = {"url": receiver.url, "secret": SECRET}
        root = make_root(engine="engines:Tracing", webhooks=[webhook])
        fill(root)
        assert root.watch(point=point, once=True, fault=fault).wait(60) == -signal.SIGKILL
        root.watch(once=True, fault=fault).wait(60)
        found = faults(root.folder, expected=JOBS, log=root.log, kills=1)
        found += untold(root.folder, receiver.told)
        assert [each for each in found if words in each] != []
