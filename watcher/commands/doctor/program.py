"""Python, the package, torch, the device and the model."""

import importlib.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from watcher.commands.doctor.look import FAIL, NOTE, OK, Finding, Look
from watcher.errors import SteadyError
from watcher.program import HOME, installed_version

_SUMMED_BYTES = 1_000_000_000  #: models up to here are read whole; larger ones by their outline


def interpreter() -> Iterator[Finding]:
    """Which Python is this? (An older one than we need cannot even read this.)"""
    words = f"{platform.python_version()} on {platform.system()}, {sys.prefix}"
    yield Finding("python", OK, words)


def package() -> Iterator[Finding]:
    """Others publish packages called `watcher` and `api` too; pip lets them overwrite ours."""
    found = importlib.util.find_spec("api")
    where = Path(found.origin).resolve().parent if found and found.origin else None
    anew = "install into an environment of its own: pip install -c constraints.txt ."
    if where != HOME / "api":
        words = f"`api` is another program's: {where}" if where else "`api` is not installed"
        yield Finding("package", FAIL, words, anew)
        return
    if version := installed_version():
        yield Finding("package", OK, f"{version} in {HOME}")
    else:
        yield Finding("package", NOTE, f"not installed; run from {HOME}", "pip install -e .")


# -- the device and the model


def torch(look: Look) -> Iterator[Finding]:
    """Does torch load, and what was it built for?"""
    if look.devices is None:
        mend = "install it anew: pip install --force-reinstall -c constraints.txt torch"
        words = f"does not answer. {look.torch_trouble.message}"
        yield Finding("torch", FAIL, words, mend)
        return
    built = "for CUDA" if look.devices["cuda"] else "no CUDA card in use"
    yield Finding("torch", OK, f"{look.devices['torch']}, {built}")


def device(look: Look) -> Iterator[Finding]:
    """Is the device that config.yaml asks for there?"""
    if look.devices is None:
        return
    for words in look.devices["unusable"]:
        yield Finding("device", NOTE, words, "see `docs/gpu.md`: drivers and cards")
    there = look.names
    config = look.config
    wanted = [w for w in config.devices or [config.device] if w != "auto"] or [look.device]
    for name in wanted:
        if name not in there and not any(n.split(":")[0] == name for n in there):
            words = f"`{name}` is not there; torch sees {', '.join(there)}"
            yield Finding("device", FAIL, words, "bring it back, or set `device: auto`")
            return
    yield Finding("device", OK, f"{', '.join(wanted)} of {', '.join(there)}")


def memory(look: Look) -> Iterator[Finding]:
    """Do the weights fit, and which tier will hold them?"""
    from watcher.engine import ModelMissing
    from watcher.engines import plan
    from watcher.engines.files import inspect
    from watcher.models.catalogue import OF_FILES, locate

    card = look.card
    if look.devices is None or card is None or card.engine not in OF_FILES:
        return
    options = plan.Options.of(card.options)
    single = locate(options.transformer or card.source, look.config.root)
    folder = locate(options.base or card.source, look.config.root)
    if single is None or folder is None:
        return  # ``weights`` says so
    try:
        weights = inspect(
            folder, kind=None, transformer=single if single.is_file() else None
        ).weights
    except (ModelMissing, SteadyError):
        return  # so too
    host = look.devices["cpu"]
    cards = {found["device"]: found for found in look.devices["cuda"]}
    chip = cards.get(look.device) or (next(iter(cards.values())) if look.device == "cuda" else {})
    described = plan.DeviceDescription(look.device, host_free=host["free"])
    if chip:
        described = replace(described, **chip | {"capability": tuple(chip["capability"])})
    chosen = plan.plan(described, options, look.config.dtype, weights)
    words = " ".join(chosen.because)
    each = {"bfloat16": 2, "float32": 4}[chosen.dtype]
    need = each * (weights.transformer + weights.text_encoder + weights.vae)
    if (chosen.tier != "resident" or not chip) and host["total"] and need > host["total"]:
        words += (
            f" {need / 1e9:.1f} GB of main memory are needed, there are {host['total'] / 1e9:.1f}"
        )
        mend = "use a smaller model, a larger card, or `steady model convert` (bfloat16)"
        yield Finding("memory", FAIL, words, mend)
    else:
        yield Finding("memory", OK, words)


def weights(look: Look) -> Iterator[Finding]:
    """Are the model's files here and whole? Sums are only made of small models: 33 GB take minutes."""
    from watcher.models.catalogue import OF_FILES, STARTER, ZIMAGE_TURBO, missing_remedy
    from watcher.models.weights import verify_model

    card = look.card
    if card is None:
        yield Finding("model", OK, "auto: chosen at the first start")
        return
    if card.engine not in OF_FILES or look.config.executor != "local":
        yield Finding("model", NOTE, f"{card.name}: {card.engine} finds it where it runs")
        return
    if card.absent is not None:
        raise card.absent
    for piece in card.pieces:
        report = verify_model(piece, look.config.root, sums_up_to=_SUMMED_BYTES)
        if report.problems:
            problems = " ".join(report.problems[:3])
            yield Finding("model", FAIL, problems, missing_remedy(piece))
            return
        words = f"{card.name} in {report.folder}; "
        words += (
            "whole"
            if report.bytes <= _SUMMED_BYTES
            else "file sizes are right (`steady model verify` reads every byte)"
        )
        if card.source == STARTER:
            words += f"; small flat drawings: `model: {ZIMAGE_TURBO}` is the real one"
        yield Finding("model", OK, words)
