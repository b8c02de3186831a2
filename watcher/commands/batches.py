"""export and prune: taking a batch or rated pictures along, and tidying old ones away.

Both work on record and folders directly, with the service up or down.
A crash of an export leaves a part of the copy, never less of what was copied.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from watcher import publish
from watcher.commands.ask import ticket_of
from watcher.commands.desk import Desk, command
from watcher.errors import SteadyError
from watcher.log import now_us

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from watcher.jobs import Batch, Job
    from watcher.pictures.outputs import Outputs
    from watcher.store import JobStore


@command()
def export(
    desk: Desk,
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[TICKET] TARGET",
            help="A batch or one of its jobs (not needed with --rating), then a folder or .zip for"
            " the pictures; .csv or .json for the results; .jpg for a contact sheet.",
        ),
    ],
    rating: Annotated[
        str | None, typer.Option(help="Only pictures you rated so: 4.., 2..3, 5.")
    ] = None,
    page: Annotated[int, typer.Option(min=1, help="Of the contact sheet, 64 pictures each.")] = 1,
) -> None:
    """Copy a batch's pictures, its results or a contact sheet to a place of yours.

    With --rating the pictures you chose. Your ratings go along as XMP:Rating.
    """
    from watcher.chosen import rating_range
    from watcher.pictures.outputs import Outputs
    from watcher.store import JobFilter

    *batches, last = places
    if len(batches) != (1 if rating is None else min(1, len(batches))):
        raise SteadyError("bad_request", "export wants a ticket and a target.")
    target = Path(last)
    if target.suffix and target.exists():
        raise SteadyError("bad_request", f"{target} is there already.", remedy="Name another.")
    with desk.record() as store:
        ticket = ticket_of(store, batches[0]) if batches else None
        found = store.batch(ticket) if ticket else None
        if ticket and found is None:
            raise SteadyError("batch_not_found")
        outputs = Outputs(desk.config.outputs)
        try:
            if rating is not None:
                wanted = JobFilter(ticket=ticket, pictured=True, rating=rating_range(rating))
                number = _take_along(outputs, store.all_jobs(wanted), target)
            elif found is not None:
                number = _write(store, outputs, desk.config.inbox, found, target, page)
        except OSError as error:
            message = f"{target} cannot be written: {error.strerror}."
            raise SteadyError("bad_request", message) from None
    desk.answer({"ticket": ticket, "target": str(target), "jobs": number}, f"{target}")


def _write(
    store: "JobStore", outputs: "Outputs", inbox: Path, batch: "Batch", target: Path, page: int
) -> int:
    from watcher.pictures.sheet import PICTURES, contact_sheet
    from watcher.results import result_json, result_table

    kind = target.suffix.lower()
    if kind in (".csv", ".json"):
        counts = store.progress(batch.ticket)
        parts = (
            result_json(batch, counts, store.jobs_in_order(batch.ticket))
            if kind == ".json"
            else result_table(store, inbox, batch)
        )
        with target.open("xb") as file:
            file.writelines(parts)
        return batch.jobs
    if kind in (".jpg", ".jpeg"):
        jobs_ = store.jobs_of(batch.ticket, PICTURES * (page - 1) - 1, limit=PICTURES)
        if not jobs_:
            raise SteadyError("image_not_ready", f"The batch has no page {page}.")
        target.write_bytes(contact_sheet(outputs, jobs_, batch.axes))
        return len(jobs_)
    jobs = (job for job in store.jobs_in_order(batch.ticket) if job.pictured)
    table = f"{batch.name}.result.csv", result_table(store, inbox, batch)
    return _take_along(outputs, jobs, target, table)


def _take_along(
    outputs: "Outputs",
    jobs: "Iterable[Job]",
    target: Path,
    table: "tuple[str, Iterable[bytes]] | None" = None,
) -> int:
    """The pictures of ``jobs`` as a folder, or as a zip with ``table``; how many there were.

    In a folder nothing is replaced: SteadyError ``bad_request`` at the end for what is another file there.
    """
    from watcher.results import exported, zip_pieces

    there = [(job, path) for job in jobs if (path := outputs.path(job)).is_file()]
    if target.suffix.lower() == ".zip":
        with target.open("xb") as file:
            file.writelines(zip_pieces(_opened_files(there), table))
        return len(there)
    others = []
    for job, picture in _opened_files(there):
        copied, data = target / job.path, b"".join(exported(job, picture))
        copied.parent.mkdir(parents=True, exist_ok=True)
        if not copied.exists():
            publish.replace(copied, data, temporary=copied.with_name(f".{copied.name}.tmp"))
        elif copied.read_bytes() != data:
            others.append(copied)
    if others:
        words = f"{others[0]} is another file already, and so are {len(others) - 1} more."
        raise SteadyError("bad_request", words, remedy="All else is there. Name another folder.")
    return len(there)


def _opened_files(there: "Iterable[tuple[Job, Path]]") -> "Iterator[tuple[Job, BinaryIO]]":
    for job, path in there:
        with path.open("rb") as file:
            yield job, file


@command()
def prune(
    desk: Desk,
    older_than: Annotated[str, typer.Option(help="As in 30d: what ended longer ago goes.")],
    images: Annotated[bool, typer.Option("--images", help="The pictures too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Tidy old batches away: record, done files, results, thumbnails; pictures stay."""
    from watcher.config import seconds_of
    from watcher.inputs import Inputs
    from watcher.pictures.outputs import Outputs
    from watcher.prune import Pruner

    if older_than.strip().isdigit():  # seconds elsewhere; here that would take nearly everything
        raise SteadyError("bad_request", f"--older-than: write {older_than}d if days are meant.")
    try:
        seconds = seconds_of(older_than)
    except ValueError as error:
        raise SteadyError("bad_request", f"--older-than: {error}.") from None
    if not desk.has_record():
        return
    before = now_us() - int(seconds * 1e6)
    with desk.record() as store:
        inputs = Inputs(desk.config, store)
        config, outputs = desk.config, Outputs(desk.config.outputs)
        pruner = Pruner(store, outputs, config.inbox, inputs, config.uploads)
        gone = pruner.prune(before, images=images, dry_run=dry_run)
    verb = "would go" if dry_run else "gone"
    desk.answer(
        {
            "batches": gone.batches,
            "jobs": gone.jobs,
            "pictures": gone.pictures,
            "files": gone.files,
            "inputs": gone.inputs,
            "dry_run": dry_run,
        },
        f"{gone.batches} batches with {gone.jobs} jobs {verb}"
        + (f", {gone.pictures} pictures" if images else "; the pictures stay"),
    )
