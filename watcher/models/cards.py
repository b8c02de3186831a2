"""The cards of a root: which models its jobs may name, what each allows, and who runs it.

A card is made of an entry of the setting `models`, of what the model's own profile says
(``profile.json`` beside it, or the table in catalogue.py), and of what its engine said when it
was last loaded. Looks only, so a crash leaves nothing.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from watcher.config import Config, ModelSetting
from watcher.errors import SteadyError
from watcher.jobs import MAX_STEPS, Feature
from watcher.limits import Card, Limits
from watcher.modelnames import model_name
from watcher.models.catalogue import (
    CATALOGUE,
    OF_FILES,
    PROFILE,
    STARTER,
    ZIMAGE_TURBO,
    Profile,
    locate,
    place_of,
    present,
    revision_of,
    split,
)
from watcher.models.loras import settled
from watcher.models.upscalers import upscaler_file

if TYPE_CHECKING:
    from watcher.store import JobStore

#: Engine options that name a further file or folder of a model.
_PIECES = ("transformer", "base")
#: Where the record keeps what engines said of themselves, by the name of the model.
ENGINES_SAID = "engines_said"


def profile_of(model: str, root: Path | None = None) -> dict[str, Any]:
    """The profile of a model: its ``profile.json``, the table's, or Z-Image-Turbo's.

    Raises SteadyError ``model_damaged`` for a profile.json that cannot be used.
    """
    name, _ = split(model)
    known = CATALOGUE[name].profile if name in CATALOGUE else Profile(name=model)
    folder = place_of(model, root)
    path = folder / PROFILE if folder else None
    if path is None or not path.is_file():
        return asdict(known)
    try:
        values: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8"))}
        kept = {f.name: values[f.name] for f in dataclasses.fields(Profile) if f.name in values}
        profile = dataclasses.replace(known, **kept)
    except (OSError, ValueError, TypeError) as error:
        raise SteadyError("model_damaged", f"The model's {PROFILE} cannot be read.") from error
    for name, value in asdict(profile).items():
        if type(value) is not type(getattr(Profile(), name)) or (
            type(value) is int and not 1 <= value <= 2**31
        ):
            raise SteadyError("model_damaged", f"`{name}` in the model's {PROFILE} is no good.")
    return asdict(profile)


def limits_known(config: Config, store: "JobStore | None") -> Limits:
    """The limits for processes that do not choose: by what the watcher kept, or will keep.

    Before its first start (or without a record) ``auto`` is taken for Z-Image-Turbo.
    """
    told = store.get("model") if store else None
    if isinstance(told, dict) and {f.name for f in dataclasses.fields(Profile)} <= told.keys():
        return limits_of(told, config, told["name"], store.get(ENGINES_SAID) if store else None)
    return limits_for(config, ZIMAGE_TURBO if config.model == "auto" else config.model)


def limits_for(config: Config, name: str) -> Limits:
    """The limits where ``name`` is the root's own model, whatever is on record."""
    return limits_of(profile_of(source_of(config, name), config.root), config, name)


def source_of(config: Config, name: str) -> str:
    """The folder, file or hub name behind a name of `models`; of any other that itself."""
    return config.models[name].source if name in config.models else name


def limits_of(
    profile: Mapping[str, Any], config: Config, name: str | None = None, said: Any = None
) -> Limits:
    """What a request may ask and gets under this configuration, of each model it may name.

    ``profile`` and ``name`` are those of the root's own model. ``said``: what each engine said
    when it was last loaded (:func:`said_by`), by name. Raises SteadyError ``bad_config`` for a
    default outside the limits or a side that is no multiple of 16, ``model_damaged``.
    """
    name = name or str(profile["name"])
    said = said if isinstance(said, dict) else {}
    entries = {key: ModelSetting(source=key, engine="zimage") for key in (STARTER, *CATALOGUE)}
    for key, entry in config.models.items():
        entries[key] = entry.model_copy(update={"engine": entry.engine or config.engine})
    called = name if name in config.models else model_name(name) or name
    usual = ModelSetting(source=name, engine=config.engine)
    usual = entries[name] if name in config.models else usual
    defaults = {
        field: getattr(usual, field) or getattr(config, f"default_{field}")
        for field in ("steps", "width", "height")
    }
    entries.pop(called, None)
    others = {
        key: _card(key, entry, _profile_or_usual(entry.source, config), config, said.get(key))
        for key, entry in entries.items()
    }
    return Limits(
        _card(called, usual.model_copy(update=defaults), profile, config, said.get(called)),
        others=others,
        loras=functools.partial(settled, config),
        upscaler=functools.partial(upscaler_file, config.upscalers),
        max_jobs_per_file=config.max_jobs_per_file,
        max_lines=config.max_lines,
        default_format=config.image_format,
        default_name=config.default_name,
        webhook_hosts=tuple(config.webhook_hosts),
    )


def describe_card(card: Card, *, usual: bool) -> dict[str, Any]:
    """A model as plain data, for every list of them; never a path of this machine."""
    return {
        "name": card.name,
        "usual": usual,
        "engine": card.engine,
        "ready": card.absent is None,
        "message": card.absent.message if card.absent else None,
        "remedy": card.absent.remedy if card.absent else None,
        "width": card.default_width,
        "height": card.default_height,
        "num_inference_steps": card.default_steps,
        "guidance_scale": card.default_guidance,
        "max_side": card.max_side,
        "max_pixels": card.max_pixels,
        "accepts": None if card.accepts is None else list(card.accepts),
    }


def _profile_or_usual(source: str, config: Config) -> dict[str, Any]:
    """Its profile; of a damaged one its worker will tell, when a job asks for that model."""
    try:
        return profile_of(source, config.root)
    except SteadyError:
        return asdict(Profile(name=source))


def _card(
    name: str, entry: ModelSetting, profile: Mapping[str, Any], config: Config, said: Any
) -> Card:
    """One card: the entry wins over the profile. Defaults that are not set are made to fit the
    largest side and area."""
    engine = entry.engine or "zimage"
    where = f"models: {name}: " if name in config.models else "default_"
    max_side = entry.max_side or config.max_side or int(profile["max_side"])
    max_pixels = entry.max_pixels or config.max_pixels or int(profile["max_pixels"])
    min_side = int(profile["min_side"])
    width, height = int(profile["native_width"]), int(profile["native_height"])
    if max(width, height) > max_side or width * height > max_pixels:
        scale = min(max_side / max(width, height), (max_pixels / (width * height)) ** 0.5)
        width, height = (max(min_side, int(side * scale) // 16 * 16) for side in (width, height))
    sides = {"width": entry.width or width, "height": entry.height or height}
    for key, side in sides.items():
        if side % 16 or not min_side <= side <= max_side:
            raise SteadyError(
                "bad_config",
                f"`{where}{key}` must be a multiple of 16 from {min_side} to {max_side}.",
            )
    if sides["width"] * sides["height"] > max_pixels:
        raise SteadyError("bad_config", f"The default size has more than {max_pixels} pixels.")
    steps = entry.steps or int(profile["default_steps"])
    if steps > MAX_STEPS:
        raise SteadyError("bad_config", f"`{where}steps` must be at most {MAX_STEPS}.")
    shared = config.engine_options if engine == config.engine else {}
    options = {**shared, **entry.engine_options}
    pieces = [entry.source, *(str(options[key]) for key in _PIECES if options.get(key))]
    if engine == "zimage" and options.get("guidance") is None:
        base = options.get("base")  # the rest of a transformer in one file
        whose = _profile_or_usual(str(base), config) if base else profile
        options["guidance"] = whose["guidance"]
    files = {key: where_it_is(str(options[key]), config) for key in _PIECES if options.get(key)}
    words = _card_words(engine, entry.source, said, guided=bool(options.get("guidance")))
    folder = place_of(entry.source, config.root)
    if folder and not options.get("transformer") and (revision := revision_of(folder)):
        words["revision"] = revision
    return Card(
        name=name,
        engine=engine,
        source=entry.source,
        options=options | files,
        pieces=tuple(pieces),
        default_width=sides["width"],
        default_height=sides["height"],
        default_steps=steps,
        default_guidance=entry.guidance,
        min_side=min_side,
        max_side=max_side,
        max_pixels=max_pixels,
        folder=folder if engine == "zimage" else None,
        absent=_lacking(pieces, config) if engine in OF_FILES else None,
        **words,
    )


def where_it_is(model: str, config: Config) -> str:
    """A model or file as its engine is told of it: a path where it is here, else as it was named.

    Other machines have a model of the hub, and the starter, at a path of their own: by name there.
    """
    here = Path(config.root, Path(model).expanduser())
    if here.exists() and model != STARTER:
        return str(here.resolve())  # complete or not: its transformer may be a file elsewhere
    return model if config.executor != "local" else str(locate(model, config.root) or model)


def _lacking(pieces: Sequence[str], config: Config) -> SteadyError | None:
    """What is missing of a model's files on this machine; None where nothing is that we know of.

    Of one that is put together from several pieces only whether each is there.
    """
    if config.executor != "local":
        return None
    for piece in pieces:
        if len(pieces) == 1 or place_of(piece, config.root) is None:
            try:
                present(piece, config.root)
            except SteadyError as error:
                return error
    return None


# -- what engines say of themselves


def said_by(info: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """What of an EngineInfo (as a worker sent it) is kept, to judge the jobs of ``card`` by."""
    accepts = info.get("accepts")
    told: dict[str, Any] = {
        key: value if isinstance(value := info.get(key), str) and len(value) <= 100 else None
        for key in ("sampler", "schedule", "revision")
    }
    told["accepts"] = (
        [each for each in accepts if each in get_args(Feature)]
        if isinstance(accepts, list)
        else None
    )
    return {"engine": card.engine, "source": card.source, **told}


def _card_words(engine: str, source: str, said: Any, *, guided: bool) -> dict[str, Any]:
    """How a model counts, what it accepts and calls its sampler: its engine's own word on it.

    ``guided``: what the engine ``zimage`` is told of guidance, whatever it said before.
    """
    known: dict[str, Any] = {}
    if isinstance(said, dict) and (said.get("engine"), said.get("source")) == (engine, source):
        known = {key: said.get(key) for key in ("accepts", "sampler", "schedule", "revision")}
    if engine == "zimage":
        guidance = ("guidance", "negative_prompt") if guided else ()
        return known | {"accepts": (*guidance, "image", "mask", "lora", "upscale")}
    accepts = known.get("accepts")
    usual = {"sampler": None, "schedule": None, "idle_steps": 0, "unguided": 0.0}
    return usual | known | {"accepts": None if accepts is None else tuple(accepts)}
