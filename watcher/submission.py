"""What somebody hands in: read with the watcher's own reader, then put into the inbox.

The one place for this: the command, HTTP and the page give bytes and a name, and get what the
watcher will make of them, so a file means the same wherever it comes from. Nothing is written
before it is checked. A crash in here leaves at most a temporary file, which the watcher sweeps.
"""

import base64
import binascii
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher import jobfile
from watcher.errors import SteadyError, ValueFault
from watcher.finder import Finder
from watcher.inbox import drop_file
from watcher.inputs import Inputs
from watcher.jobfile.naming import slug
from watcher.jobfile.planner import PlannedJob, Planner, Template
from watcher.jobfile.presets import in_preset, read_preset
from watcher.jobfile.problems import refusal
from watcher.jobfile.rows import RowIterator
from watcher.jobfile.tables import Row
from watcher.jobs import job_ids_of, ticket_of_key
from watcher.limits import Limits
from watcher.suffixes import FORMS, LINE_SUFFIXES, PICTURE_SUFFIXES, remedy_for, suffix_of
from watcher.wildcards import Wildcards

SHOWN = 1000  #: jobs of a plan that are kept
_FEW = 200  #: jobs that are written as one list
_TOLD = 100  #: problems of refused rows and warnings that are
#: A data URI; JSON may put a backslash before each slash.
_WRITTEN_IN = re.compile(rb"data:image\\?/[\w.+-]{2,20};base64,([A-Za-z0-9+/\\]{16,}={0,2})")
NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f/\\]")  #: what no file name that is told holds


def _named_after(data: bytes, suffix: str) -> str:
    """What a body that came without a name is called: its first prompt's beginning, if that is plain."""
    first = rb"\A([^\r\n]{1,40})" if suffix == ".txt" else rb'"prompt"\s*:\s*"([^"\\]{1,40})'
    found = re.search(first, data) if suffix == ".txt" or suffix not in LINE_SUFFIXES else None
    return (slug(found[1].decode("utf-8", "ignore")) if found else "") or "prompts"


@dataclass(frozen=True)
class Plan:
    """What a body would become. ``count`` None: a long table, of which only the head was read.

    ``requests``: the first thousand jobs. ``key``: the file's own, or the one it came with; what it
    leads to is ``ticket``, which without one is new. ``refused_rows``: rows that cannot be used;
    what is wrong with the first of them stands in ``refused``. ``warnings``: of the file and its
    jobs.
    """

    requests: Sequence[PlannedJob]
    count: int | None
    key: str | None
    ticket: str
    warnings: tuple[str, ...]
    refused: tuple[ValueFault, ...]
    refused_rows: int = 0
    resume: bool = False
    beside: bool = False  #: it names pictures of the folder beside

    @property
    def ids(self) -> list[str]:
        """Those of its jobs, of the first thousand; the batch is new, or gets the same again."""
        id_of = job_ids_of(self.ticket)
        return [id_of(n, each.request) for n, each in enumerate(self.requests[:SHOWN])]

    @property
    def sole(self) -> bool:
        """Is it a single job, whose id is the ticket?"""
        return self.count == 1 and self.ids == [self.ticket]


@dataclass(frozen=True)
class Body:
    """What a person hands in: the bytes of a job file, how they are read, and what it is called.

    ``name`` (without suffix) names the batch and the pictures of a file of many.
    """

    data: bytes
    suffix: str
    name: str
    sent: str = ""  #: the digest of what somebody sent, where this is made of it

    @classmethod
    def of(cls, data: bytes, filename: str, suffix: str = "") -> "Body":
        """``filename``'s own suffix decides, if it is one that is read; else ``suffix``.

        Raises SteadyError unsupported_suffix when neither is.
        """
        filename = NOT_IN_NAMES.sub("", filename)
        own = suffix_of(filename)
        if own not in FORMS and suffix not in FORMS:
            words = "Files of this kind are not read."
            raise SteadyError("unsupported_suffix", words, remedy=remedy_for(filename))
        stem = os.path.splitext(filename)[0] or filename
        form = own if own in FORMS else suffix
        return cls(data, form, stem or _named_after(data, form))

    @property
    def table(self) -> bool:
        """Is it read row by row?"""
        return self.suffix in LINE_SUFFIXES

    @property
    def digest(self) -> str:
        """sha256 of what was sent: the same key with another content is a conflict."""
        return self.sent or hashlib.sha256(self.data).hexdigest()

    @property
    def digests(self) -> tuple[str, str]:
        """Those by which it may be on record: also that of its bytes, where a batch went on with them."""
        return self.digest, dataclasses.replace(self, sent="").digest

    def under(self, preset: str | None, given: Mapping[str, Any]) -> "Body":
        """The same, sent with a preset and fields for every job, which may make of it what they will."""
        said = json.dumps([preset, given], sort_keys=True, default=str)
        sent = hashlib.sha256(said.encode() + self.data).hexdigest()
        return dataclasses.replace(self, sent=sent)

    def publish(self, folder: Path, ticket: str, *, name: str, known: bool, resumes: bool) -> None:
        """Put it into the inbox ``folder``, as :func:`drop_file` does; with ``resumes`` as a file of
        its own, which the watcher reads into the batch there is.
        """
        own = str(uuid.uuid4()) if resumes else ticket
        drop_file(folder, self.data, self.suffix, own, known=known,
                  resumes=ticket if resumes else None, name=name)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Reads bodies as the watcher of ``root`` will. ``key``: the one that comes from outside, for
    a body alone or for ``file``, one of several.

    ``beside``: a folder of pictures that a body may name as well; they are sent along.
    Under a ``preset`` (:func:`preset_named`), and with fields put ``over`` those of every job, only
    what :meth:`changed` gives may be published.
    """

    limits: Limits
    root: Path
    inputs: Inputs
    key: str | None = None
    preset: Template | None = None
    beside: Path | None = None
    copies: bool = False  #: pictures that are found are kept
    over: Mapping[str, Any] = field(default_factory=dict)
    salt: str = ""  #: of what is drawn
    file: str = ""

    def plan(self, body: Body, *, head: int | None = None) -> Plan:
        """What ``body`` would become.

        ``head``: so many rows of a table are looked at, and not counted. Raises SteadyError: what
        the watcher would refuse it for.
        """
        return self._of_rows(body, head) if body.table else self._of_whole(body)

    def changed(self, body: Body, given: dict[str, Any]) -> tuple[Body, Plan]:
        """``body`` with the fields ``given`` put over those of every job, as a file of our own.

        What is drawn is drawn for its key, so that a repeat is the same, and without one anew.
        """
        salt = self.key or str(uuid.uuid4())
        keeping = dataclasses.replace(self, copies=True, over=given, salt=salt)
        plan = keeping.plan(body)
        if plan.refused:
            raise refusal(plan.refused)
        if plan.key is not None and self.key is None:
            return dataclasses.replace(self, key=plan.key, file="").changed(body, given)
        sent = "" if plan.beside else body.sent  # the pictures beside it were sent as well
        every: Iterable[Any] = plan.requests
        if body.table:
            every = keeping._rows(body, self._finder())
        bodies = [each.request.model_dump(exclude_none=True, exclude={"count"}) for each in every]
        if body.table or len(bodies) > _FEW:
            lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in bodies]
            new = Body("".join(lines).encode(), ".jsonl", body.name, sent)
        else:
            # A job alone would give its file the key that it has for itself.
            content: Any = bodies[0] if plan.sole else bodies
            data = json.dumps(content, ensure_ascii=False).encode()
            new = Body(data, ".json", body.name, sent)
        return new, plan

    def _of_whole(self, body: Body) -> Plan:
        most = jobfile.most_bytes(body.suffix)
        if len(body.data) > most:
            raise SteadyError("too_large", f"{body.name} has more than {most:,} bytes.")
        finder, data, suffix = self._finder(), body.data, body.suffix
        if self.preset is not None and suffix in PICTURE_SUFFIXES:  # as in its hot folder
            name = f"{body.name}{suffix}" if body.name else ""
            data, suffix = self.inputs.job_from(data, name, self.preset.values), ".json"
        planner, keyed = self._planner(finder), self.key is not None
        parsed = jobfile.parse(data, suffix, planner, stem=body.name, keyed=keyed)
        warnings = dict.fromkeys(parsed.warnings)
        for each in parsed.requests:
            warnings |= dict.fromkeys(each.warnings)
        refused = [problem for row in parsed.refused for problem in row.problems]
        return Plan(
            parsed.requests, len(parsed.requests), *self._led_to(parsed.key),
            tuple(warnings)[:_TOLD], tuple(refused[:_TOLD]), len(parsed.refused), parsed.resume,
            finder.sent,
        )  # fmt: skip

    def _led_to(self, own: str | None) -> tuple[str | None, str]:
        """The key of a body that names ``own``, and its ticket. SteadyError key_conflict."""
        if own is not None and self.key not in (None, own):
            raise SteadyError("key_conflict", "The file names another key than comes with it.")
        key, file = (self.key, self.file) if own is None else (own, "")
        return key, str(uuid.uuid4()) if key is None else ticket_of_key(key, file)

    def _planner(self, finder: Finder) -> Planner:
        base = dataclasses.replace(self.preset or Template(), over=self.over)
        return Planner(
            self.limits, salt=self.salt, wildcards=Wildcards(self.root), preset=base,
            pictures=finder,
        )  # fmt: skip

    def _finder(self) -> Finder:
        return Finder(self.inputs, beside=self.beside, copies=self.copies)

    def _of_rows(self, body: Body, head: int | None) -> Plan:
        rows = self._rows(body, finder := self._finder())
        planned: list[PlannedJob] = []
        refused: list[ValueFault] = []
        said: dict[str, None] = {}
        count = bad = 0
        for row in itertools.islice(rows, head):
            if isinstance(row, Row):
                bad += 1
                refused += row.problems[: _TOLD - len(refused)]
                continue
            count += 1
            if count <= SHOWN:
                planned.append(row)
            if row.warnings and len(said) < _TOLD:
                said |= dict.fromkeys(row.warnings)
        if not count:
            raise jobfile.no_rows(refused)
        jobfile.name_all(planned, body.name, count if head is None else max(count, 2))
        warnings = tuple(dict.fromkeys([*rows.warnings, *said]))[:_TOLD]
        return Plan(
            planned, None if head is not None else count, *self._led_to(None), warnings,
            tuple(refused), bad, beside=finder.sent,
        )  # fmt: skip

    def _rows(self, body: Body, finder: Finder) -> RowIterator:
        return jobfile.read_lines(io.BytesIO(body.data), body.suffix, self._planner(finder))


def lifted(body: Body, inputs: Inputs) -> Body:
    """``body`` with the pictures that are written into it kept, and named by their content.

    Raises SteadyError bad_picture.
    """
    if b";base64," not in body.data or FORMS[body.suffix] in ("picture", "bundle"):
        return body

    def kept(match: re.Match[bytes]) -> bytes:
        try:
            data = base64.b64decode(match[1].replace(b"\\", b""), validate=True)
        except binascii.Error:
            raise SteadyError("bad_picture", "A picture in the body is no base64.") from None
        return inputs.keep(data, "A picture in the body")[0].encode()

    return dataclasses.replace(body, data=_WRITTEN_IN.sub(kept, body.data))


def preset_named(name: str, presets: Path, limits: Limits) -> Template:
    """The preset ``name`` of the folder ``presets``. SteadyError bad_preset."""
    known = sorted(path.stem for path in presets.glob("*.yaml"))
    if name not in known:
        remedy = (
            f"There are: {', '.join(known)}." if known else f"Write {presets.name}/{name}.yaml."
        )
        raise SteadyError("bad_preset", f"There is no preset `{name}`.", remedy=remedy)
    try:
        return read_preset((presets / f"{name}.yaml").read_bytes(), limits)
    except SteadyError as error:
        raise in_preset(error, name) from error
    except OSError as error:
        raise SteadyError("bad_preset", f"presets/{name}.yaml cannot be read.") from error
