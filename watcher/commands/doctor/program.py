"""Python, the package, torch, the device and the model."""

import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from watcher.commands.doctor.look import FAIL, NOTE, OK, Finding, Look, Machine
from watcher.program import HOME, installed_version

_SUMMED_BYTES = 1_000_000_000  #: models up to here are read whole; larger ones by their outline


def interpreter(machine: Machine) -> Iterator[Finding]:
    """Is this Python new enough?"""
    version = ".".join(str(number) for number in machine.python)
    words = f"{version} on {platform.system()}, {sys.prefix}"
    if machine.python < (3, 11):
        mend = "python3.11 -m venv .venv (or newer), and install anew"
        yield Finding("python", FAIL, words, mend)
    else:
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
    from watcher import models
    from watcher.engines import plan

    if look.devices is None or look.config.engine != "zimage" or look.model == "auto":
        return
    folder = models.locate(look.model, look.config.root)
    if folder is None:
        return  # ``weights`` says so
    if look.model.startswith(models.ZIMAGE_TURBO):
        weights = plan.Z_IMAGE_TURBO
    else:  # two bytes a weight: too much rather than too little
        files = [
            (folder / part).glob("*.safetensors") for part in ("transformer", "text_encoder", "vae")
        ]
        weights = plan.Weights(*(sum(p.stat().st_size for p in some) // 2 for some in files))
    host = look.devices["cpu"]
    cards = {card["device"]: card for card in look.devices["cuda"]}
    card = cards.get(look.device) or (next(iter(cards.values())) if look.device == "cuda" else {})
    chosen = plan.plan(
        plan.DeviceDescription(
            card.get("device", look.device),
            card.get("name", ""),
            tuple(card["capability"]) if card.get("capability") else None,
            card.get("total"),
            card.get("free"),
            host["free"],
        ),
        plan.Options.of(look.config.engine_options),
        look.config.dtype,
        weights,
    )
    words = f"{chosen.dtype}, tier {chosen.tier}"
    each = {"bfloat16": 2, "float32": 4}[chosen.dtype]
    need = each * (weights.transformer + weights.text_encoder + weights.vae)
    if (chosen.tier != "resident" or not card) and host["total"] and need > host["total"]:
        words += f": needs {need / 1e9:.0f} GB of main memory, there are {host['total'] / 1e9:.0f}"
        mend = "use a smaller model, a larger card, or `steady model convert` (bfloat16)"
        yield Finding("memory", FAIL, words, mend)
    else:
        yield Finding("memory", OK, words)


def weights(look: Look) -> Iterator[Finding]:
    """Are the model's files here and whole? Sums are only made of small models: 33 GB take minutes."""
    from watcher import models
    from watcher.models import weights

    if look.config.engine != "zimage":
        yield Finding("model", NOTE, f"the engine {look.config.engine} has its own")
        return
    if look.model == "auto":
        yield Finding("model", OK, "auto: chosen at the first start")
        return
    folder = models.present(look.model, look.config.root)
    small = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= _SUMMED_BYTES
    report = weights.verify_model(look.model, look.config.root, sums=small)
    if report.problems:
        mend = f"steady model pull {look.model}" if models.is_hub_name(look.model) else None
        yield Finding("model", FAIL, " ".join(report.problems[:3]), mend or "bring the files back")
        return
    words = f"{look.model} in {folder}; "
    words += "whole" if small else "sizes right (`steady model verify` reads every byte)"
    if look.model == models.STARTER:
        words += f"; small flat drawings: `model: {models.ZIMAGE_TURBO}` is the real one"
    yield Finding("model", OK, words)
