"""What a row of the record says: rows to nouns, nouns to columns. No SQL in here."""

import json
from collections.abc import Iterable
from typing import Any

from watcher.jobs import Batch, Job, JobRequest, JobState, Priority, forwards_of
from watcher.store.schema import Row

_MOST_WARNINGS = 100  #: of a batch

_PRIORITIES = {priority.level: priority for priority in Priority}


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(value: Any) -> str:
    """How a value is written into a column: compact, and readable in any script."""
    return _encoder.encode(value)


def batch_of(row: Row) -> Batch:
    """The Batch a row of the table says."""
    return Batch(
        ticket=row["ticket"],
        claim=row["claim"],
        name=row["name"],
        suffix=row["suffix"],
        source=row["source"],
        created_at=row["created_at"],
        digest=row["digest"],
        key=row["key"],
        image_name=row["image_name"],
        tries=row["tries"],
        next_line=row["next_line"],
        refused_rows=row["refused_rows"],
        jobs=sum(row[f"n_{state}"] for state in JobState),
        recorded_at=row["recorded_at"],
        cancelled=bool(row["cancelled"]),
        paused=bool(row["paused"]),
        archived=bool(row["archived"]),
        axes=json.loads(row["axes"]) if row["axes"] else {},
        error=json.loads(row["error"]) if row["error"] else None,
        warnings=tuple(json.loads(row["warnings"])),
    )


def job_of(row: Row) -> Job:
    """The Job a row of the table says. Old rows are not checked against today's limits."""
    request: dict[str, Any] = json.loads(row["request"])
    priority = _PRIORITIES[row["class"]]
    facts: dict[str, Any] = json.loads(row["facts"]) if row["facts"] else {}
    if row["history"]:
        facts["attempts"] = [json.loads(line) for line in row["history"].splitlines()]
    return Job(
        seq=row["seq"],
        id=row["id"],
        ticket=row["ticket"],
        index=row["idx"],
        state=JobState(row["state"]),
        rev=row["rev"],
        request=JobRequest.model_construct(
            prompt=row["prompt"], priority=priority.value, **request
        ),
        image_name=row["image_name"],
        folder=row["folder"],
        path=row["path"],
        priority=priority,
        created_at=row["created_at"],
        attempt=row["attempt"],
        deaths=row["deaths"],
        watcher_deaths=row["watcher_deaths"],
        held=row["held"],
        not_before=row["not_before"],
        cancel_requested=bool(row["cancel_requested"]),
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        sha256=row["sha256"],
        bytes=row["bytes"],
        deleted_at=row["deleted_at"],
        row=row["row"],
        model=row["model"] or None,
        forwards=row["forwards"] or forwards_of(request.get("num_inference_steps") or 1),
        rating=row["rating"],
        warnings=_warnings_of(row["warnings"], facts.get("warnings")),
        facts=facts,
    )


def _warnings_of(planned: str | None, found: Any) -> tuple[str, ...]:
    """What was said before the queue, and what the worker found out."""
    if not planned and not found:
        return ()
    said = json.loads(planned) if planned else []
    return tuple(dict.fromkeys([*said, *map(str, found if isinstance(found, list) else ())]))


def with_warnings(known: str, said: Iterable[str]) -> str:
    """A batch's warnings as its row has them, with what else is said of it or of its jobs."""
    every = dict.fromkeys([*json.loads(known), *said])
    return to_json(list(every)[:_MOST_WARNINGS])
