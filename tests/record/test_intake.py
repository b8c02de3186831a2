"""What becomes of files one after the other: who goes first, what a key means, what goes on."""

import contextlib
import errno
import io
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import looks, until

from api.door import Door
from api.submit import Submissions
from watcher import inbox as folder
from watcher.config import Config
from watcher.errors import SteadyError, Trouble
from watcher.inbox.watch import Inbox
from watcher.inputs import Inputs
from watcher.intake import Intake, Reading
from watcher.intake.suspect import Suspect
from watcher.jobfile.tables import Row
from watcher.jobs import Batch, ticket_of_key
from watcher.models.cards import limits_known
from watcher.parts import Shared
from watcher.refused import RefusedRows
from watcher.store import JobStore
from watcher.submission import Body

SENT = [str(uuid.uuid4()) for _ in range(3)]


class Long(Reading):
    """Reads tables whose last row comes again and again until what goes before them is on record."""

    store: JobStore
    path: Path
    seen: list[Any]

    def lines(self, stream: Any, claim: Any, batch: Any) -> Any:
        return Rows(super().lines(stream, claim, batch), self, claim, batch.ticket)

    def served(self, tickets: list[str]) -> bool:
        found = [self.store.batch(ticket) for ticket in tickets]
        return all(batch is not None and batch.recorded_at for batch in found)


class Rows:
    def __init__(self, lines: Any, reading: Long, claim: Any, ticket: str) -> None:
        self._lines, self._reading, self._claim, self._ticket = lines, reading, claim, ticket
        self.warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        last = None
        for last in self._lines:
            yield last
        if self._claim.source == "file":
            send, first = SENT[:1], SENT
        else:  # the submitted table of 500 rows, and two that are shorter
            send = SENT[1:] if self._ticket == SENT[0] else []
            first = send
        for ticket in send:
            suffix = ".json" if ticket == SENT[2] else ".jsonl"
            many = 500 if ticket == SENT[0] else 1
            row = json.dumps({"prompt": f"a fox {ticket} " + "and " * 40}) + "\n"
            folder.drop_file(self._reading.path, row.encode() * many, suffix, ticket)
        for _ in looks(60, "a submission is read while the table is"):
            if self._reading.served(first):
                break
            yield last
        self._reading.seen.append(self._reading.store.batch(self._ticket))


class Desk:
    """A record and an inbox, and whoever reads its files, one by one."""

    def __init__(self, root: Path, reads: type[Reading] = Reading, **card: Any) -> None:
        config = Config.load(root, settle_seconds=0, rescan_seconds=0.05)
        config.state.mkdir(exist_ok=True)
        self.config, self.store = config, JobStore(config.database_url)
        self.inbox = Inbox(config.inbox, settle=0, rescan=0.05)
        self.reading = reads(
            inbox=self.inbox,
            limits=replace(known := limits_known(config, None), usual=replace(known.usual, **card)),
            root=root,
            inputs=Inputs(config, self.store),
        )
        self.after = lambda: None  #: called when something was recorded
        self.intake = Intake(
            Shared(self.store, self.inbox, wake=lambda: self.after()),
            reading=self.reading,
            state=config.state,
            max_queued=1000,
            announce=lambda: None,
        )
        self.inbox.open()

    def take(self, name: str, content: str) -> Batch:
        """Drop a file, and let it be read."""
        draft = self.config.inbox / f".{name}"
        draft.write_text(content)
        draft.rename(self.config.inbox / name)
        return self.read()

    def read(self) -> Batch:
        """Let a file be read that lies there."""
        claims: list[Any] = []
        until(lambda: claims.extend(self.inbox.scan()) or claims)
        self.intake.take(claims[0])
        return self.batch

    @property
    def batch(self) -> Batch:
        """The one that came last."""
        return self.store.batches(limit=1)[0]

    def close(self) -> None:
        self.inbox.close()
        self.store.close()


@pytest.fixture
def desk(root: Path) -> Iterator[Desk]:
    made = Desk(root)
    yield made
    made.close()


def test_no_submission_waits_for_a_table_that_is_being_read(root: Path):
    desk = Desk(root, Long)
    config, store, reading, intake = desk.config, desk.store, desk.reading, desk.intake
    assert isinstance(reading, Long)
    reading.store, reading.path, reading.seen = store, config.inbox, []
    intake.start()
    try:
        draft = config.inbox / ".table"
        draft.write_text("prompt\na cat\na dog\n")
        draft.rename(config.inbox / "table.csv")
        until(lambda: len(reading.seen) == 3, 60, "all submissions are on record")
        short, table, file = reading.seen
        assert [short.ticket, table.ticket] == [SENT[1], SENT[0]]
        assert not any(each.recorded_at for each in reading.seen), "and the tables are not yet"
        until(lambda: store.batch(file.ticket).recorded_at, 100)
        assert [len(store.jobs_of(ticket)) for ticket in SENT[1:]] == [1, 1]
        assert len(store.jobs_of(SENT[0])) >= 500
    finally:
        intake.stop()
        desk.close()


class Overtaken(Long):
    """Reads a table; before its last row the file that goes on with its batch is claimed."""

    def lines(self, stream: Any, claim: Any, batch: Any) -> Any:
        lines = list(super(Long, self).lines(stream, claim, batch))
        if claim.ticket == SENT[0]:
            lines.insert(-1, self)
        return Later(lines)


class Later(Rows):
    def __init__(self, lines: Iterable[Any]) -> None:
        self._lines = lines
        self.warnings = ()

    def __iter__(self) -> Iterator[Any]:
        for each in self._lines:
            if isinstance(each, Reading):
                sent = folder.drop_file(
                    each.path, b"prompt\nmore\n", ".csv", SENT[1], resumes=SENT[0]
                )
                while sent.exists():
                    yield Row(2, 2, {}, ())
            else:
                yield each


class Broken(Reading):
    """Meets a fault of ours in what is no table; one comes while a table is read."""

    path: Path

    def lines(self, stream: Any, claim: Any, batch: Any) -> Any:
        folder.drop_file(self.path, b'{"prompt": "a fox"}', ".json", SENT[0])
        [row] = super().lines(stream, claim, batch)
        return Later(itertools.repeat(row))

    def whole(self, claim: Any, batch: Any) -> Any:
        raise ZeroDivisionError


def test_a_table_is_not_to_blame_for_what_comes_between(root: Path):
    desk = Desk(root, Broken)
    desk.reading.path = desk.config.inbox  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        desk.take("t.csv", "prompt\na cat\n")
    assert Suspect(desk.config.state / "reading").left() == [SENT[0]]
    desk.close()


@pytest.mark.parametrize("left", [bytes(36), b" " * 36, b"\xff" * 36, b""])
def test_a_note_that_a_power_cut_spoiled_blames_nobody(tmp_path: Path, left: bytes):
    (tmp_path / "reading").write_bytes(left)
    assert Suspect(tmp_path / "reading").left() == []


def test_what_goes_on_with_a_batch_waits_until_its_table_was_read(root: Path):
    desk = Desk(root, Overtaken)
    desk.reading.path = desk.config.inbox
    folder.drop_file(desk.config.inbox, f"prompt\na{' ' * 200}\nb\n".encode(), ".csv", SENT[0])
    desk.intake.start()
    try:
        until(lambda: len(desk.store.jobs()) == 3, 60)
        until(lambda: desk.store.batch(SENT[0]).recorded_at and desk.intake.quiet)
        found = {job.request.prompt.strip(): job.row for job in desk.store.jobs()}
    finally:
        desk.intake.stop()
        desk.close()
    assert found == {"a": None, "b": None, "more": 1}


class Cut(BaseException):
    """The process ends here."""


def test_a_table_goes_on_with_no_row_lost_whatever_was_changed_meanwhile(root: Path):
    wide = (1, 2, 4, 26, 27)
    rows = [f"row {n},{1024 if n in wide else 7 if n == 3 else 64},64\n" for n in range(1, 31)]

    def dies() -> None:
        raise Cut

    desk = Desk(root)
    desk.after = dies
    with contextlib.suppress(Cut):
        desk.take("t.csv", "prompt,width,height\n" + "".join(rows))
    assert [job.row for job in desk.store.jobs_in_order(desk.batch.ticket)] == [1, 2, *range(4, 22)]
    desk.close()
    desk = Desk(root, max_side=768)
    [claim] = desk.inbox.leftovers()
    desk.intake.take(claim)
    made = {job.row for job in desk.store.jobs_in_order(desk.batch.ticket)}
    refused = {row.number for row in RefusedRows(desk.config.inbox).of(desk.batch.ticket)}
    assert (refused, desk.batch.refused_rows) == ({3, 26, 27}, 3)
    assert made == set(range(1, 31)) - refused
    desk.close()


class Asked(Reading):
    """Looks, when the rows of a table are about to be read, whether a submission is on record."""

    def lines(self, stream: Any, claim: Any, batch: Any) -> Any:
        assert self.inputs.store is not None
        self.served = self.inputs.store.batch(SENT[1]) is not None
        return super().lines(stream, claim, batch)


def cut_off(root: Path, content: str) -> Path:
    """A table of which the first rows are on record; where those lie that cannot be used."""

    def dies() -> None:
        raise Cut

    desk = Desk(root)
    desk.after = dies
    with contextlib.suppress(Cut):
        desk.take("t.csv", content)
    kept = folder.refused_rows(desk.config.inbox, desk.batch.ticket)
    desk.close()
    return kept


def test_no_submission_waits_for_what_is_known_of_a_table_that_goes_on(root: Path):
    cut_off(root, "prompt\n" + "a fox\n" * 30)
    desk = Desk(root, Asked)
    [claim] = desk.inbox.leftovers()
    folder.drop_file(desk.config.inbox, b'{"prompt": "an owl"}', ".json", SENT[1])
    desk.intake.take(claim)
    assert isinstance(desk.reading, Asked) and desk.reading.served
    desk.close()


class Sick(Reading):
    """Reads from a disk that fails once, behind the first bytes of a file."""

    well = False

    def open(self, claim: Any) -> Any:
        with super().open(claim) as stream:
            made = io.BytesIO(stream.read())
        if not self.well:
            self.well, made.read1 = True, self._fail  # type: ignore[method-assign]
            made.read = lambda size: b"" if size == 16 else self._fail()  # type: ignore[method-assign]
        return made

    def _fail(self, *_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("sent", [False, True])
def test_a_table_on_a_disk_that_fails_is_waited_for(root: Path, sent: bool):
    desk = Desk(root, Sick)
    if sent:  # its sum is made before
        folder.drop_file(desk.config.inbox, b"prompt\na fox\n", ".csv", SENT[0])
    with pytest.raises(Trouble):
        desk.read() if sent else desk.take("t.csv", "prompt\na fox\n")
    [claim] = desk.inbox.leftovers()
    desk.intake.take(claim)
    assert (desk.batch.jobs, desk.batch.error) == (1, None)
    desk.close()


def test_refused_rows_on_a_disk_that_fails_are_waited_for(root: Path):
    kept = cut_off(root, "prompt,width\n,64\n" + "a fox,64\n" * 30)
    away = kept.rename(kept.with_suffix(".away"))
    kept.mkdir()
    desk = Desk(root)
    [claim] = desk.inbox.leftovers()
    with pytest.raises(Trouble):
        desk.intake.take(claim)
    kept.rmdir()
    away.rename(kept)
    desk.intake.take(claim)
    assert (desk.batch.jobs, desk.batch.refused_rows, desk.batch.error) == (30, 1, None)
    desk.close()


def test_refused_rows_of_a_table_that_goes_on_are_told_though_others_were_dismissed(desk: Desk):
    table = "prompt,width\na fox,64\n,64\n"
    ticket = desk.take("t.csv", table).ticket
    desk.store.dismiss(batches=[ticket])
    more = f"{table}an owl,7\n"
    folder.drop_file(desk.config.inbox, more.encode(), ".csv", SENT[0], resumes=ticket)
    assert desk.read().refused_rows == 2
    assert desk.store.refused() == [desk.batch]


@pytest.mark.parametrize(
    ("name", "one", "more"),
    [
        ("o.csv", "prompt,key\na,o1\n", "prompt,key\na,o1\nb,o2\n"),
        ("o.yaml", "- {prompt: a, key: o1}\n", "- {prompt: a, key: o1}\n- {prompt: b, key: o2}\n"),
        ("o.json", '{"jobs": [{"prompt": "a", "key": "o1"}]}', '[{"prompt": "b", "key": "o2"}]'),
    ],
)
def test_a_job_s_key_is_its_own_also_where_it_is_alone_in_its_file(
    desk: Desk, name: str, one: str, more: str
):
    for content in (one, one, more):
        desk.take(name, content)
    assert {job.id for job in desk.store.jobs()} == {ticket_of_key("o1"), ticket_of_key("o2")}


def test_what_becomes_of_jobs_whose_key_was_used_before_is_told(desk: Desk):
    assert desk.take("x.csv", "prompt,key\na,o1\nb,o2\n").warnings == ()
    [words] = desk.take("x.csv", "prompt,key\na,o1\nb,o2\nc,o3\n").warnings
    assert "not made again" in words
    again, other = desk.take("x.csv", "prompt,key\na,o1\nanother b,o2\n").warnings
    assert (again, "for something else" in other) == (words, True)
    [words] = desk.take("y.csv", "prompt,key\nd,o4\nd,o4\nanother d,o4\n").warnings
    assert words == other
    assert [job.request.prompt for job in desk.store.jobs()] == ["d", "c", "b", "a"]


def test_under_a_preset_a_key_is_known_also_after_its_batch_went_on(desk: Desk):
    desk.config.presets.mkdir()
    (desk.config.presets / "few.yaml").write_text("num_inference_steps: 3\n")
    submissions = Submissions(Door(desk.config, desk.store))
    body = Body.of(b'[{"prompt": "a fox"}, {"prompt": "a cat"}]', "two.json")
    for resume in (False, True):
        assert not submissions.submit(body, "order-1", resume=resume, preset="few").replayed
        desk.read()
    assert submissions.submit(body, "order-1", preset="few").replayed
    for other, preset in ((b'{"prompt": "a dog"}', "few"), (body.data, None)):
        with pytest.raises(SteadyError, match="other content"):
            submissions.submit(Body.of(other, "two.json"), "order-1", preset=preset)
    submissions.submit(body, "order-2")
    with pytest.raises(SteadyError, match="other content"):
        submissions.submit(body, "order-2", preset="few")


def test_a_job_with_the_key_of_its_file_is_made_like_the_others(desk: Desk):
    content = "key: night\njobs:\n- a\n- {prompt: b, key: night}\n"
    assert desk.take("night.yaml", content).jobs == 2
    desk.take("night.yaml", content)
    assert len(desk.store.jobs()) == 2


def test_what_starts_from_a_job_with_a_key_finds_it_in_a_batch_that_goes_on(desk: Desk):
    kept = {"prompt": "a", "name": "draft", "key": "o1"}
    for jobs in ([{"prompt": "x"}], [{"prompt": "x"}, kept, {"prompt": "b", "image": "draft"}]):
        body = {"key": "night", "resume": True, "jobs": jobs}
        desk.take("night.json", json.dumps(body))
    *_, draft, started = desk.store.jobs_in_order(ticket_of_key("night"))
    assert (draft.id, started.request.image) == (ticket_of_key("o1"), f"job:{draft.id}")


def test_a_table_cut_off_behind_repeats_numbers_the_others_as_if_it_were_not(root: Path):
    rows = [f"{n},,,\n" for n in range(19)] + ["old,draft,,o1\n"]
    rows += [f"{n},,,\n" for n in range(20, 22)] + ["from it,,draft,\n"]
    desk = Desk(root)
    desk.take("o.csv", "prompt,name,image,key\nold,draft,,o1\n")
    desk.close()
    cut_off(root, "prompt,name,image,key\n" + "".join(rows))
    desk = Desk(root)
    [claim] = [claim for claim in desk.inbox.leftovers() if claim.name == "t.csv"]
    assert [job.index for job in desk.store.jobs_in_order(claim.ticket)] == [*range(19)]
    desk.intake.take(claim)
    *_, one, two, started = desk.store.jobs_in_order(claim.ticket)
    assert [(job.index, job.image_name) for job in (one, two, started)] == [
        (n - 1, f"t_{n:04}") for n in (21, 22, 23)
    ]
    assert started.request.image == f"job:{ticket_of_key('o1')}"
    desk.close()


def test_a_table_without_a_name_that_goes_on_gives_its_pictures_none(desk: Desk):
    ticket = ticket_of_key("night")
    folder.drop_file(desk.config.inbox, b"prompt\na fox\n", ".csv", ticket)
    desk.read()
    folder.drop_file(desk.config.inbox, b"prompt\na fox\nan owl\n", ".csv", SENT[0], resumes=ticket)
    assert desk.read().jobs == 2
    assert all(job.image_name.startswith("ImgGen_") for job in desk.store.jobs())


@pytest.mark.parametrize("suffix", [".txt", ".yaml"])
def test_a_name_with_dots_names_its_pictures_over_http_as_well(desk: Desk, suffix: str):
    ticket = str(uuid.uuid4())
    desk.store.reserve(
        ticket, name="shots.v2", suffix=suffix, source="http", digest="", image_name=False,
    )  # fmt: skip
    content = "a fox\nan owl\n" if suffix == ".txt" else "- a fox\n- an owl\n"
    folder.drop_file(desk.config.inbox, content.encode(), suffix, ticket)
    desk.read()
    assert {job.image_name for job in desk.store.jobs()} == {"shots.v2_0001", "shots.v2_0002"}
    more = b"a cat\n" if suffix == ".txt" else b"- a cat\n"
    folder.drop_file(
        desk.config.inbox, content.encode() + more, suffix, SENT[0],
        resumes=ticket, name=f"shots.v2{suffix}",
    )  # fmt: skip
    desk.read()
    assert desk.store.jobs(limit=1)[0].image_name == "shots.v2_0003"
