"""model pull, list, verify, convert: the weights on this machine.

Thin words around watcher/models/weights.py. Only these commands download, and only when a person asks.
"""

from pathlib import Path
from typing import Annotated

import typer

from watcher.commands.bar import Bar
from watcher.commands.desk import Desk, command, command_group
from watcher.errors import SteadyError

_models = command_group("model", "The weights on this machine.")
_loras = command_group("lora", "The LoRAs that jobs may name.")

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="starter, owner/name, a folder or a name of `models` [default: the real one]",
    ),
]
#: Against what a model's files were checked, in words.
_CHECKED = {
    "manifest": "by the sums noted when it came",
    "hub": "by the hub's sums",
    "sizes": "by their sizes; nobody noted sums",
}


@command(into=_models)
def pull(
    desk: Desk,
    name: Name = None,
    sha256: Annotated[
        str | None,
        typer.Option(help="Fetch owner/name/file.safetensors into upscalers/, if it is this one."),
    ] = None,
) -> None:
    """Download a model (Z-Image-Turbo: 33 GB); goes on where it was stopped."""
    from watcher.models import weights
    from watcher.models.catalogue import hub_cache

    if sha256 is not None:
        if name is None:
            raise SteadyError("bad_request", "--sha256 wants owner/name/file.safetensors.")
        file = weights.pull_upscaler(name, sha256, desk.config.upscalers)
        desk.answer({"upscaler": file.stem, "file": str(file)}, f"{file.stem} is in {file}")
        return
    name = _source_named(desk, name)
    desk.talk(f"Fetching {name} into {hub_cache()}")
    with Bar(desk) as bar:
        folder = weights.pull_model(name, progress=bar.bytes)
    desk.answer({"model": name, "folder": str(folder)}, f"{name} is in {folder}")


@command("list", into=_models)
def list_models(desk: Desk) -> None:
    """List the models that jobs may name, and where their files are."""
    from watcher.models.cards import describe_card, limits_known
    from watcher.models.catalogue import OF_FILES, place_of
    from watcher.models.weights import bytes_of

    with desk.record_if_any() as store:
        limits = limits_known(desk.config, store)
    for card in limits.cards:
        usual = card is limits.usual
        place = place_of(card.source, desk.config.root) if card.engine in OF_FILES else None
        size = bytes_of(card.source, place)
        where = str(place or f"{card.engine}: {card.source}")
        if card.absent is not None:
            where = f"{card.absent.message} {card.absent.remedy}"
        desk.answer(
            describe_card(card, usual=usual)
            | {"source": card.source, "folder": str(place) if place else None}
            | {"bytes": size, "revision": card.revision},
            f"{card.name:<26}  {size / 1e9:6.2f} GB  {'usual' if usual else '':<5}  {where}",
        )


@command("list", into=_loras)
def list_loras(desk: Desk) -> None:
    """List the LoRAs, the models they fit, and the words they were trained with."""
    from watcher.models.cards import limits_known
    from watcher.models.loras import listed_loras

    with desk.record_if_any() as store:
        limits = limits_known(desk.config, store)
    for one in listed_loras(desk.config, limits.cards):
        fits = "for " + ", ".join(one["models"]) if one["models"] else "for no model here"
        words = "  words: " + ", ".join(one["trigger_words"]) if one["trigger_words"] else ""
        tells = (one["tensors_sha256"] or "-")[:12]
        desk.answer(
            one, f"{one['name']:<20}  {one['bytes'] / 1e6:8.1f} MB  {tells:<12}  {fits}{words}"
        )


@command(into=_models)
def verify(desk: Desk, name: Name = None) -> int:
    """Read all of a model's files and say which are damaged or missing."""
    from watcher.models import weights
    from watcher.models.catalogue import missing_remedy

    name = _source_named(desk, name)
    with Bar(desk) as bar:
        report = weights.verify_model(name, desk.config.root, progress=bar.bytes)
    sound = not report.problems
    desk.answer(
        {
            "model": name,
            "folder": str(report.folder),
            "checked_against": report.by,
            "files": report.files,
            "bytes": report.bytes,
            "problems": list(report.problems),
        },
        f"{name}: {report.files} files, {report.bytes / 1e9:.2f} GB, "
        + (f"all whole ({_CHECKED[report.by]})" if sound else "damaged"),
    )
    if sound:
        return 0
    raise SteadyError("model_damaged", " ".join(report.problems[:5]), remedy=missing_remedy(name))


@command(into=_models)
def convert(
    desk: Desk,
    target: Annotated[Path, typer.Argument(help="The new folder.")],
    name: Name = None,
) -> None:
    """Write a bfloat16 copy of a model: 38 % less to read at every start."""
    from watcher.engines.convert import convert_model

    name = _source_named(desk, name)
    with Bar(desk) as bar:
        folder = convert_model(name, target.absolute(), desk.config.root, progress=bar.bytes)
    desk.answer({"model": name, "folder": str(folder)}, f"{folder}; use it by `model: {folder}`")


def _source_named(desk: Desk, name: str | None) -> str:
    """The folder, file or hub name of a model; without a name of the one that the settings name,
    and of the real one where they leave it open."""
    from watcher.models.cards import source_of
    from watcher.models.catalogue import STARTER, ZIMAGE_TURBO

    if name is None:
        name = desk.config.model
        name = ZIMAGE_TURBO if name in ("auto", STARTER) else name
    return source_of(desk.config, name)
