"""What a row of the record says: rows to nouns, nouns to columns. No SQL in here."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from watcher.jobs import Batch, Job, JobRequest, JobState, Priority
from watcher.store.schema import Row

_MOST_WARNINGS = 100  #: of a batch

_PRIORITIES = {priority.level: priority for priority in Priority}
_NOTHING_SAID = JobRequest(prompt="-")


#: What a column says by the name and in the form it has in the noun.
_AS_IN_BATCHES = [field.name for field in fields(Batch) if field.name not in
                  {"jobs", "cancelled", "paused", "archived", "axes", "error", "warnings"}]  # fmt: skip
_AS_IN_JOBS = [field.name for field in fields(Job) if field.name not in
               {"index", "state", "request", "priority", "cancel_requested", "forwards",
                "model", "warnings", "facts"}]  # fmt: skip

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def to_json(value: Any) -> str:
    """How a value is written into a column: compact, and readable in any script."""
    return _encoder.encode(value)


def batch_of(row: Row) -> Batch:
    """The Batch a row of the table says."""
    return Batch(
        **{name: row[name] for name in _AS_IN_BATCHES},
        jobs=sum(row[f"n_{state}"] for state in JobState),
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
        facts["attempts"] = [json.loads(line) for line in row["history"].split("\n")[:-1]]
    return Job(
        **{name: row[name] for name in _AS_IN_JOBS},
        index=row["idx"],
        state=JobState(row["state"]),
        request=_NOTHING_SAID.but({**request, "prompt": row["prompt"], "priority": priority.value}),
        priority=priority,
        cancel_requested=bool(row["cancel_requested"]),
        model=row["model"] or None,
        forwards=row["forwards"] or _forwards_before(request),
        warnings=_warnings_of(row["warnings"], facts.get("warnings")),
        facts=facts,
    )


def _forwards_before(request: Mapping[str, Any]) -> int:
    """Forwards of a job that was recorded before they had a column: Z-Image's, one a step less."""
    return max(1, (request.get("num_inference_steps") or 1) - 1)


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
