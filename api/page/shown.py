"""What the page shows, made from what there is: rows, days, sizes, what a gallery is narrowed to. Pure."""

import contextlib
import csv
import datetime
import hashlib
import io
import itertools
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from api.bodies import json_object
from api.paging import moment_bound, without_nul
from watcher.chosen import rating_range, size_said
from watcher.errors import SteadyError
from watcher.jobfile.tables import Row, refused_csv
from watcher.jobs import Job, JobRequest, JobState
from watcher.limits import Card
from watcher.store import JobFilter, JobStore

_MOST_ROWS = 200  #: refused rows that are shown, to be mended
_LONG_ROW = 100_000  #: characters of a row that is not


@dataclass(frozen=True)
class RunningRow:
    """A job that was handed out. ``step`` None: no word of it yet; ``preview``: the step that the
    last one shows."""

    job: Job
    step: int | None
    steps: int
    left: float | None
    preview: int | None

    @property
    def percent(self) -> int:
        """0..99: it is 100 when the picture is there."""
        return min(99, round(100 * (self.step or 0) / self.steps))


class Chosen(BaseModel):
    """What the gallery is narrowed to, as the address says it; "" for any.

    A further filter is its line here, its line in ``filter``, and a field of pictures.html.
    """

    model_config = ConfigDict(frozen=True)

    text: Annotated[str, Field(max_length=200)] = ""
    state: Annotated[str, Field(max_length=20)] = ""
    rating: Annotated[str, Field(max_length=20)] = ""
    day: Annotated[str, Field(max_length=10)] = ""
    until: Annotated[str, Field(max_length=10)] = ""
    batch: Annotated[str, Field(max_length=64)] = ""
    model: Annotated[str, Field(max_length=100)] = ""
    lora: Annotated[str, Field(max_length=200)] = ""
    size: Annotated[str, Field(max_length=20)] = ""
    seed: Annotated[str, Field(pattern=r"^\s*[0-9]{0,19}\s*$")] = ""
    cursor: Annotated[str | None, Field(pattern="^s[0-9]{1,18}$")] = None

    def filter(self, names: Callable[[str | None], list[str]]) -> JobFilter:
        """``names``: those of a model in the record. Raises SteadyError out_of_range for a day, a
        size or a rating that is none."""
        state = self.state if self.state in {s.value for s in JobState} else ""
        end = self.day or self.until
        return JobFilter(
            state=JobState(state) if state and state != "completed" else None,
            pictured=state in ("", "completed"),
            text=without_nul(self.text.strip()) or None,
            since=moment_bound("day", self.day) if self.day else None,
            until=moment_bound("day", end, end=True) if end else None,
            ticket=without_nul(self.batch) or None,
            rating=rating_range(self.rating) if self.rating else None,
            models=names(without_nul(self.model.strip()) or None),
            lora=without_nul(self.lora.strip()) or None,
            size=size_said(self.size) if self.size.strip() else None,
            seed=int(self.seed) if self.seed.strip() else None,
        )

    @property
    def narrowed(self) -> bool:
        """Is anything but the usual chosen?"""
        said = self.model_dump(exclude={"cursor", "state"})
        return any(said.values()) or self.state not in ("", "completed")

    @property
    def narrowed_further(self) -> bool:
        """Is anything chosen that stands under "More"?"""
        return bool(self.model or self.lora or self.size or self.seed)

    def address(self, cursor: str | None) -> str:
        """The page of the same choice that begins after ``cursor``."""
        members = self.model_dump() | {"cursor": cursor}
        query = urllib.parse.urlencode({k: v for k, v in members.items() if v})
        return f"/pictures?{query}" if query else "/pictures"


@dataclass(frozen=True)
class Month:
    """The pictures of one local month, and where the gallery begins with them."""

    words: str
    count: int
    address: str


def months_of(store: JobStore) -> list[Month]:
    """Every month in which a picture was asked for, the newest first."""
    found: list[Month] = []
    end = 2**62
    while stretch := store.pictures_before(end, _month_of):
        end, count = stretch
        first = datetime.datetime.fromtimestamp(end // 1_000_000).date()
        last = (first + datetime.timedelta(days=32)).replace(day=1) - datetime.timedelta(days=1)
        found.append(Month(f"{first:%B %Y}", count, f"/pictures?until={last}"))
    return found


def _month_of(moment: int) -> int:
    """The first moment of the local month ``moment`` (microseconds UTC) lies in."""
    day = datetime.datetime.fromtimestamp(moment // 1_000_000)
    return int(datetime.datetime(day.year, day.month, 1).timestamp()) * 1_000_000


def captions_of(requests: Sequence[JobRequest]) -> list[str]:
    """What the prompt of each says that the others' do not; of the same prompt its seed."""
    prompts = [request.prompt for request in requests]
    words = [prompt.split() for prompt in prompts]
    if len(set(prompts)) == 1 and len({request.seed for request in requests}) > 1:
        return [f"seed {request.seed}" for request in requests]
    if len(set(prompts)) < 2:
        return prompts
    least = min(map(len, words))
    head = next((n for n in range(least) if len({w[n] for w in words}) > 1), least)
    tail = next(
        (n for n in range(least - head) if len({w[-1 - n] for w in words}) > 1), least - head
    )
    return [
        " ".join(w[head : len(w) - tail]) or prompt
        for w, prompt in zip(words, prompts, strict=True)
    ]


def table_of(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """The first of the refused ``rows`` as in their table: its columns, and their cells.

    The last column says what is wrong. It ends before a row that is too long for a page.
    """
    shown: list[Row] = []
    for row in itertools.islice(rows, _MOST_ROWS):
        if sum(len(name) + len(cell) for name, cell in row.cells.items()) > _LONG_ROW:
            break
        shown.append(row)
    else:
        if not shown:
            return [], []
    table = b"".join(refused_csv(lambda: shown)).decode("utf-8-sig")
    columns, *cells = csv.reader(io.StringIO(table, newline=""))
    return columns, cells


#: Prompts that show what a model can do, where a person does not know what to type.
_PROMPTS = (
    "a lighthouse on a cliff at dusk, waves, film grain",
    "portrait of an old fisherman, window light, 85 mm",
    "a cosy reading corner with a cat, watercolour",
)
_SIMPLE_PROMPTS = (
    "a red boat on a lake at sunset", "a white lighthouse in the hills at night",
    "two red butterflies flying over a lake",
)  # fmt: skip


def prompts_for(*, starter: bool) -> tuple[str, ...]:
    """A few prompts that the model in use draws well."""
    return _SIMPLE_PROMPTS if starter else _PROMPTS


def job_of_form(body: bytes) -> tuple[dict[str, Any], str | None]:
    """What a form that was sent without JavaScript asks for, as a job says it; and its key.

    ``rest`` is what the job that is edited said: it holds where the form has no field. ``after``
    makes the key: of a form that is sent twice one job is made. What is no number where one is
    wanted stays as it is: the reader says so in its words. Raises SteadyError.
    """
    try:
        pairs = urllib.parse.parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError:
        raise SteadyError("bad_request", "The form has too many fields.") from None
    said = {
        name: value for name, value in pairs if name != "metadata"
    }  # the script's: `rest` has it
    rest = json_object(said.pop("rest", "{}").encode())
    key = f"form-{hashlib.sha256(body).hexdigest()}" if said.pop("after", "") else None
    size = said.pop("size", "")
    if "x" in size:
        said["width"], said["height"] = size.split("x", 1)
    job = {name: value for name, value in rest.items() if name not in said}
    for name, value in said.items():
        if value.strip():
            job[name] = _number(value) if name in _NUMBERS else value
    return job, key


#: What the form has a field for where a model takes it; the rest it always has.
FIELDS_OF = {
    "guidance": ("guidance_scale",),
    "lora": ("lora",),
    "negative_prompt": ("negative_prompt",),
    "image": ("image", "mask", "strength", "resize", "mask_only"),
}


def kept_of(
    form: Mapping[str, Any], features: Iterable[str], format: str, *, models: int
) -> list[str]:
    """What a job that is edited says beside the fields that the form has, in words.

    Not that its file is of the usual ``format``. ``features``: what any of the models takes;
    ``models``: how many there are to choose from.
    """
    asked = {"prompt", "width", "height", "num_inference_steps", "seed"}
    asked |= {name for each in features for name in FIELDS_OF[each]}
    if models:
        asked.add("model")
    if form.get("format") == format:
        asked.add("format")
    return [name.replace("_", " ") for name in form if name not in asked]


_MOST_FIELDS = 100
_NUMBERS = ("width", "height", "num_inference_steps", "seed", "count", "guidance_scale")


def _number(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def by_day(jobs: Sequence[Job]) -> list[tuple[int, list[Job]]]:
    """Jobs in their order, cut at local midnights: (the first one's time, jobs)."""
    days: list[tuple[int, list[Job]]] = []
    last: datetime.date | None = None
    for job in jobs:
        date = datetime.datetime.fromtimestamp(job.created_at // 1_000_000).date()
        if date != last:
            days.append((job.created_at, []))
            last = date
        days[-1][1].append(job)
    return days


def sizes_of(card: Card) -> list[tuple[int, int, str]]:
    """A few sizes the model makes well: its own, then upright, lying and small ones."""
    width, height = card.default_width, card.default_height
    short = _step(min(width, height) * 3 / 4)
    wanted = [
        (width, height, "square" if width == height else "default"),
        (short, max(width, height), "upright"),
        (max(width, height), short, "wide"),
        (_step(width / 2), _step(height / 2), "small"),
    ]
    found: list[tuple[int, int, str]] = []
    for w, h, name in wanted:
        fits = min(w, h) >= card.min_side and max(w, h) <= card.max_side
        if fits and w * h <= card.max_pixels and all((w, h) != (a, b) for a, b, _ in found):
            found.append((w, h, name))
    return found


def _step(side: float) -> int:
    return max(16, int(side) // 16 * 16)
