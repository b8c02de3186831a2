"""Which model is used. (What it allows: cards.py. Where it lies: catalogue.py.)

A model is named ``auto``, ``starter`` (the small one we ship), a folder, or a name on the
Hugging Face hub (``owner/name``, or ``owner/name@revision``). What a model allows is its
*profile*: ``profile.json`` beside the model, or the table in catalogue.py.

Nothing here imports torch or reaches for the network (weights.py does, when a person asks).
Knows nothing of jobs that wait, pictures or HTTP. The choice is one setting of the record: a
crash leaves it made or not yet made.
"""

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from watcher.config import Config
from watcher.errors import SteadyError
from watcher.models.cards import profile_of, source_of
from watcher.models.catalogue import STARTER, ZIMAGE_TURBO
from watcher.program import environment, module

if TYPE_CHECKING:
    from watcher.store import JobStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Devices:
    """The devices of this machine that can be used, best first: ``["cuda:0", "cpu"]``."""

    names: Sequence[str]
    unusable: str = ""  #: sentences about cards that are there and cannot be used


#: Looks for devices. Raises SteadyError ``device_lost`` while a card is there and cannot be
#: used for now, ``worker_unavailable`` when there is no answer.
Probe = Callable[[], Devices]

_PROBE_SECONDS = 180.0  #: importing torch from a cold, busy disk takes its time
_APPLE_BYTES = 30e9  #: memory of a 32 GB chip: 20.5 GB of weights, a picture, and all else
_LOOK_AGAIN_SECONDS = 30.0  #: between looks for a device that is gone


@dataclass
class Choice:
    """The model of this root.

    ``device`` may be ``auto``. ``checked`` is true once a look found a device again that had been
    gone.
    """

    name: str
    device: str
    profile: dict[str, Any]
    why: str  #: one sentence for log and page
    starter: bool
    checked: bool = False
    watched: bool = False  #: did ``auto`` choose a GPU that must stay?
    look_again: float = _LOOK_AGAIN_SECONDS
    _looking: threading.Thread | None = field(default=None, repr=False)
    _next_look: float = field(default=0.0, repr=False)
    _lost: SteadyError | None = field(default=None, repr=False)

    @property
    def waits(self) -> bool:
        """Is its device there and cannot be used for now?"""
        return self._lost is not None


# -- which


def choose(config: Config, store: "JobStore", probe: Probe | None = None) -> Choice:
    """The model that ``config.model`` means here.

    ``auto`` is resolved once per root, by ``probe``: a CUDA or MPS device means Z-Image-Turbo, else
    the starter model. That decision is kept under ``model_auto`` and never changes by itself (a
    device that is named decides for as long as it is); but "no GPU" is only kept where there is
    none, not where one is there that cannot be used. Where that will pass (a driver too old, a card
    gone for a moment) Z-Image-Turbo is taken and waits for its card, as :func:`check` says. The
    profile of whatever is in use goes to ``model``, where the other processes read it.

    Raises SteadyError: ``worker_unavailable`` when the probe does not answer (nothing is
    decided then), ``model_damaged`` for an unusable profile.json. Missing weights are no
    error here: the engine says so, and the queue waits.
    """
    wanted = next(iter(config.devices), config.device)
    watched, lost = False, None
    if config.model != "auto":
        name, device, why = config.model, wanted, "the setting `model` names it"
    elif config.engine != "zimage":
        name, device, why = "auto", wanted, f"the engine `{config.engine}` has its own"
    else:
        kept = store.get("model_auto")
        if wanted != "auto" or not _usable(kept):
            kept, lasting, lost = _decide(wanted, probe or probe_devices)
            if lasting and wanted == "auto":
                store.put("model_auto", kept)
        name, why = kept["name"], kept["why"]
        device = kept["device"]
        watched = wanted == "auto" and device != "cpu"
    source = source_of(config, name)
    choice = Choice(
        name=name,
        device=device,
        profile=profile_of(source, config.root),
        why=why,
        starter=source == STARTER,
        watched=watched,
        _lost=lost,
    )
    if lost is not None:
        choice._next_look = time.monotonic() + choice.look_again
    told = choice.profile | {
        "name": choice.name,
        "device": device,
        "why": why,
        "starter": choice.starter,
    }
    if store.get("model") != told:
        store.put("model", told)
    return choice


def _usable(kept: Any) -> bool:
    return isinstance(kept, dict) and all(
        isinstance(kept.get(key), str) for key in ("name", "device", "why")
    )


def _decide(wanted: str, probe: Probe) -> tuple[dict[str, str], bool, SteadyError | None]:
    """Z-Image-Turbo where something can carry it, the starter model elsewhere.

    Also: is that to be kept, and what is wrong with the device now.
    """
    try:
        found = Devices([wanted]) if wanted != "auto" else probe()
    except SteadyError as error:
        if error.code != "device_lost":
            raise
        why = "this machine has a GPU, which cannot be used now"
        return {"name": ZIMAGE_TURBO, "device": "cuda", "why": why}, False, error
    for kind in ("cuda", "mps"):
        for name in found.names:
            if _device_kind(name) == kind:
                why = f"this machine has {name}"
                return {"name": ZIMAGE_TURBO, "device": name, "why": why}, True, None
    why = "this machine has no GPU"
    if found.unusable:
        why += f" that can be used. {found.unusable}"
    return {"name": STARTER, "device": "cpu", "why": why}, not found.unusable, None


def _device_kind(device: str) -> str:
    return device.split(":")[0]


def check(choice: Choice, probe: Probe | None = None) -> SteadyError | None:
    """Is the device still there that ``auto`` chose the model for? ``device_lost`` if not.

    Cheap and never waits: a look runs in a thread, once after the start and then, while the
    device is gone, every 30 s; the answer is that of the last look. (A device lost in
    between is noticed by the worker that uses it.) A probe that does not answer changes
    nothing.
    """
    if not choice.watched:
        return None
    looking = choice._looking is not None and choice._looking.is_alive()
    if not looking and time.monotonic() >= choice._next_look:
        choice._next_look = float("inf")
        choice._looking = threading.Thread(
            target=_look, args=(choice, probe or probe_devices), name="device-look", daemon=True
        )
        choice._looking.start()
    return choice._lost


def _look(choice: Choice, probe: Probe) -> None:
    try:
        names = probe().names
        lost = None
        if not any(_device_kind(name) == _device_kind(choice.device) for name in names):
            words = f"`{choice.device}`, for which {choice.name} was chosen, is not there."
            lost = SteadyError("device_lost", words)
    except SteadyError as error:
        if error.code != "device_lost":
            log.warning(
                "devices not looked at: %s", error.message, extra={"action": "probe_failed"}
            )
            choice._next_look = time.monotonic() + choice.look_again
            return
        lost = error
    if lost is None:
        choice.checked = choice.checked or choice._lost is not None
    else:
        choice._next_look = time.monotonic() + choice.look_again
    choice._lost = lost


def probe_devices(timeout: float = _PROBE_SECONDS) -> Devices:
    """The devices of this machine; errors as ``describe_devices``, and ``device_lost``."""
    answer = describe_devices(timeout)
    unusable, host = list(answer["unusable"]), answer["cpu"]["total"]
    if answer["mps"] and host is not None and host < _APPLE_BYTES:
        answer["mps"] = False
        unusable.append(
            f"This chip's {host / 1e9:.0f} GB of memory are too few for {ZIMAGE_TURBO}."
        )
    words = " ".join(unusable)
    if answer["broken"]:
        raise SteadyError(
            "device_lost",
            f"There is a graphics card, but it cannot be used: {words}",
            remedy="Mend that (often: a newer driver); the queue goes on by itself. To go without"
            " the card set `device: cpu`. `docs/gpu.md` says which driver is needed.",
        )
    return Devices(names_of(answer), words)


def describe_devices(timeout: float = _PROBE_SECONDS, *, memory: bool = False) -> dict[str, Any]:
    """What torch sees: its version, each device, with ``memory`` what is free on it. Asks a child.

    Raises SteadyError ``worker_unavailable`` when the child fails or ``timeout`` (seconds)
    passes.
    """
    try:
        child = subprocess.Popen(
            module("watcher.worker", "--probe", *["--memory"] * memory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        try:
            out, words = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)  # no longer: inside a driver that hangs it cannot even die
            raise
        finally:
            for pipe in (child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()
        if child.returncode:
            said = words.decode("utf-8", "replace").strip().splitlines() or ["nothing"]
            raise SteadyError(
                "worker_unavailable", f"The look for devices failed; it said: {said[-1][:200]}."
            )
        answer = dict(json.loads(out.splitlines()[-1]))
        names_of(answer)
        return answer
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        raise SteadyError(
            "worker_unavailable", "PyTorch did not answer when asked for graphics cards."
        ) from error


def names_of(answer: Any) -> list[str]:
    """Names, best first, out of the probe's ``{"cuda": [{"device": "cuda:0", …}], "mps": false, …}``."""
    found = [str(card["device"]) for card in answer["cuda"]]
    return [*found, *(["mps"] if answer["mps"] else []), "cpu"]
