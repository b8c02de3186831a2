"""Which model is used, where it lies, what it allows; and how it gets onto this machine.

A model is named ``auto``, ``starter`` (the small one we ship), a folder, or a name on the
Hugging Face hub (``owner/name``, or ``owner/name@revision``). What a model allows is its
*profile*: ``profile.json`` beside the model, or the table here.

Nothing here imports torch, and nothing downloads unless a person asks (:func:`pull`).
Knows nothing of jobs that wait, pictures or HTTP.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from watcher import publish
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.jobs import MAX_STEPS, Limits

log = logging.getLogger(__name__)

#: Answers with the devices of this machine, best first: ``["cuda:0", "cpu"]``.
Probe = Callable[[], Sequence[str]]
#: Is told (bytes done, bytes in all) now and then.
Progress = Callable[[int, int], None]

STARTER = "starter"
ZIMAGE_TURBO = "Tongyi-MAI/Z-Image-Turbo"
PROFILE = "profile.json"
MANIFEST = "manifest.json"

_SPARE = 2_000_000_000  #: bytes that a download or conversion leaves free
_PROBE_SECONDS = 180.0  #: importing torch from a cold, busy disk takes its time
_LOOK_AGAIN_SECONDS = 30.0  #: between looks for a device that is gone
#: What is fetched of a hub's repository: never pickles, never code.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class Profile:
    """What one model allows, and takes when a request says nothing. Sides in pixels."""

    name: str = ZIMAGE_TURBO
    native_width: int = 1024
    native_height: int = 1024
    default_steps: int = 9
    min_side: int = 16
    max_side: int = 2048
    max_pixels: int = 2048 * 2048
    guidance: bool = False  #: does guidance_scale have an effect?
    negative_prompt: bool = False  #: does negative_prompt?


@dataclass(frozen=True)
class Known:
    """A model of the hub that we know: its profile, the one revision we use, its size."""

    profile: Profile
    revision: str
    bytes: int  #: of the download


#: The models we know by name. The revision is the weights' final state: every later commit
#: of that repository touches its README and pictures alone.
CATALOGUE: dict[str, Known] = {
    ZIMAGE_TURBO: Known(
        Profile(), revision="f332072aa78be7aecdf3ee76d5c247082da564a6", bytes=32_900_000_000
    ),
}


class Settings(Protocol):
    """Where the choice is kept: the store's settings."""

    def get(self, key: str) -> Any: ...
    def put(self, key: str, value: Any) -> None: ...


@dataclass
class Choice:
    """The model of this root.

    ``location`` is what the engine is built with: a folder, or the hub name while its files
    are not here. ``device`` may be ``auto``. ``checked`` is true once a look found a device
    again that had been gone.
    """

    name: str
    location: str
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


# -- which


def choose(config: Config, store: Settings, probe: Probe | None = None) -> Choice:
    """The model that ``config.model`` means here.

    ``auto`` is resolved once per root, by ``probe``: a CUDA or MPS device means
    Z-Image-Turbo, else the starter model. That decision is kept under ``model_auto`` and
    never changes by itself. The profile of whatever is in use goes to ``model``, where the
    other processes read it.

    Raises SteadyError: ``worker_unavailable`` when the probe does not answer (nothing is
    decided then), ``model_damaged`` for an unusable profile.json. Missing weights are no
    error here: the engine says so, and the queue waits.
    """
    wanted = next(iter(config.devices), config.device)
    watched = False
    if config.model != "auto":
        name, device, why = config.model, wanted, "the setting `model` names it"
    elif config.engine != "zimage":
        name, device, why = "auto", wanted, f"the engine `{config.engine}` has its own"
    else:
        kept = store.get("model_auto")
        if not _usable(kept):
            kept = _decide(wanted, probe or probe_devices)
            store.put("model_auto", kept)
        name, why = kept["name"], kept["why"]
        device = kept["device"] if wanted == "auto" else wanted
        watched = wanted == "auto" and kept["device"] != "cpu"
    choice = Choice(
        name=name,
        location=str(locate(name, config.root) or name),
        device=device,
        profile=profile_of(name, config.root),
        why=why,
        starter=name == STARTER,
        watched=watched,
    )
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


def _decide(wanted: str, probe: Probe) -> dict[str, str]:
    """Z-Image-Turbo where something can carry it, the starter model elsewhere."""
    devices = [wanted] if wanted != "auto" else list(probe())
    for kind in ("cuda", "mps"):
        found = next((device for device in devices if _kind(device) == kind), None)
        if found:
            return {"name": ZIMAGE_TURBO, "device": found, "why": f"this machine has {found}"}
    return {"name": STARTER, "device": "cpu", "why": "this machine has no GPU"}


def _kind(device: str) -> str:
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
        devices = list(probe())
    except SteadyError as error:
        log.warning("devices not looked at: %s", error.message, extra={"action": "probe_failed"})
        choice._next_look = time.monotonic() + choice.look_again
        return
    if any(_kind(device) == _kind(choice.device) for device in devices):
        choice.checked = choice.checked or choice._lost is not None
        choice._lost = None
        return
    choice._lost = SteadyError(
        "device_lost",
        f"`{choice.device}`, for which {choice.name} was chosen, is not there.",
    )
    choice._next_look = time.monotonic() + choice.look_again


def probe_devices(timeout: float = _PROBE_SECONDS) -> list[str]:
    """The devices of this machine, best first, ``cpu`` last. Asks a child process.

    Raises SteadyError ``worker_unavailable`` when the child fails or ``timeout`` (seconds)
    passes.
    """
    # -P keeps the current folder out of the child's path; this package's own home is added,
    # so that it is found from a source checkout too.
    home = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in (os.environ.get("PYTHONPATH"), home) if path]
    command = [sys.executable, "-P", "-m", "watcher.worker", "--probe"]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            timeout=timeout,
            check=True,
        )
        return _devices(json.loads(child.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        raise SteadyError(
            "worker_unavailable", f"The look for devices failed; it said: {said[-1][:200]}."
        ) from error
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise SteadyError(
            "worker_unavailable", "The look for devices did not come back with an answer."
        ) from error


def _devices(answer: Any) -> list[str]:
    """Names out of ``["cuda:0"]``, ``[{"device": "cuda:0", …}]`` or ``{"devices": […]}``."""
    if isinstance(answer, dict):
        answer = answer.get("devices", [])
    names = [one.get("device") if isinstance(one, dict) else one for one in answer]
    found = [name for name in names if isinstance(name, str)]
    return found if "cpu" in found else [*found, "cpu"]


# -- what it allows


def profile_of(model: str, root: Path | None = None) -> dict[str, Any]:
    """The profile of a model: its ``profile.json``, the table's, or Z-Image-Turbo's.

    Raises SteadyError ``model_damaged`` for a profile.json that cannot be used.
    """
    name, _ = _split(model)
    known = CATALOGUE[name].profile if name in CATALOGUE else Profile(name=model)
    folder = _folder_of(model, root)
    path = folder / PROFILE if folder else None
    if path is None or not path.is_file():
        return asdict(known)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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


def stored_profile(config: Config, store: Settings) -> dict[str, Any]:
    """The profile for processes that do not choose: what the watcher said last, or will say.

    Before the watcher's first start ``auto`` is taken for Z-Image-Turbo.
    """
    return _told_profile(store.get("model"), config)


def limits_known(told: Any, config: Config) -> Limits:
    """The limits by what the setting ``model`` holds; ``None`` before the first start."""
    return limits_of(_told_profile(told, config), config)


def _told_profile(told: Any, config: Config) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(Profile)}
    if isinstance(told, dict) and names <= told.keys():
        return {name: told[name] for name in names}
    return profile_of(ZIMAGE_TURBO if config.model == "auto" else config.model, config.root)


def limits_of(profile: Mapping[str, Any], config: Config) -> Limits:
    """What a request may ask and gets, for this model under this configuration.

    The configuration wins over the profile. Defaults that nobody set are made to fit the
    largest side and area. Raises SteadyError ``bad_config`` for a default outside the
    limits or a side that is no multiple of 16.
    """
    max_side = config.max_side or int(profile["max_side"])
    max_pixels = config.max_pixels or int(profile["max_pixels"])
    min_side = int(profile["min_side"])
    width, height = int(profile["native_width"]), int(profile["native_height"])
    if max(width, height) > max_side or width * height > max_pixels:
        scale = min(max_side / max(width, height), (max_pixels / (width * height)) ** 0.5)
        width, height = (max(min_side, int(side * scale) // 16 * 16) for side in (width, height))
    sides = {
        "default_width": config.default_width or width,
        "default_height": config.default_height or height,
    }
    for key, side in sides.items():
        if side % 16 or not min_side <= side <= max_side:
            raise SteadyError(
                "bad_config", f"`{key}` must be a multiple of 16 from {min_side} to {max_side}."
            )
    if sides["default_width"] * sides["default_height"] > max_pixels:
        raise SteadyError("bad_config", f"The default size has more than {max_pixels} pixels.")
    steps = config.default_steps or int(profile["default_steps"])
    if steps > MAX_STEPS:
        raise SteadyError("bad_config", f"`default_steps` must be at most {MAX_STEPS}.")
    return Limits(
        **sides,
        default_steps=steps,
        min_side=min_side,
        max_side=max_side,
        max_pixels=max_pixels,
        max_jobs_per_file=config.max_jobs_per_file,
        max_lines=config.max_lines,
        guidance=bool(profile["guidance"]),
        negative_prompt=bool(profile["negative_prompt"]),
        default_format=config.image_format,
    )


# -- where


def starter_folder() -> Path:
    """The model we ship. Raises SteadyError ``model_missing`` in a broken installation."""
    here = Path(__file__).resolve().parent
    for folder in (here / "starter_model", here.parent / "starter" / "model"):
        if (folder / "model_index.json").is_file():
            return folder
    raise SteadyError(
        "model_missing", "The starter model is not in this installation.", remedy="Install anew."
    )


def locate(model: str, root: Path | None = None) -> Path | None:
    """The folder that holds the model's files, all of them, or None. Never downloads.

    A relative folder is below ``root``.
    """
    folder = _folder_of(model, root)
    return folder if folder is not None and not missing_files(folder) else None


def present(model: str, root: Path | None = None) -> Path:
    """As :func:`locate`, but raises SteadyError ``model_missing`` that says what to do."""
    folder = _folder_of(model, root)
    if folder is None:
        raise SteadyError(
            "model_missing", f"`{model}` is not on this machine.", remedy=_remedy(model)
        )
    missing = missing_files(folder)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SteadyError(
            "model_missing",
            f"`{model}` is not complete: {missing[0]}{more} is missing.",
            remedy=_remedy(model),
        )
    return folder


def revision_of(folder: Path) -> str | None:
    """What names these very weights: a hub snapshot's commit, or the manifest's word."""
    if re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return folder.name
    revision = (_manifest(folder) or {}).get("revision")
    return revision if isinstance(revision, str) else None


def missing_files(folder: Path) -> list[str]:
    """The files a diffusers folder speaks of and does not hold. Reads small JSON alone."""
    index = _json(folder / "model_index.json")
    if index is None:
        return ["model_index.json"]
    missing = []
    for part, what in index.items():
        if not (isinstance(what, list) and len(what) == 2 and all(what)):
            continue
        weights = list((folder / part).glob("*.safetensors"))
        shards = list((folder / part).glob("*.safetensors.index.json"))
        for shard in shards:
            names = (_json(shard) or {}).get("weight_map", {}).values()
            missing += [
                f"{part}/{n}" for n in sorted(set(names)) if not (folder / part / n).is_file()
            ]
        if not (folder / part).is_dir():
            missing.append(f"{part}/")
        elif (folder / part / "config.json").is_file() and not weights and not shards:
            missing.append(f"{part}/*.safetensors")
    return missing


def _remedy(model: str) -> str:
    if _HUB_NAME.fullmatch(model):
        known = CATALOGUE.get(_split(model)[0])
        size = f" ({known.bytes / 1e9:.0f} GB)" if known else ""
        return f"Run `steady model pull`{size}."
    return "Bring the folder back, or set `model` anew."


def _split(model: str) -> tuple[str, str | None]:
    """Hub name and revision; for a model we know the revision we pin."""
    match = _HUB_NAME.fullmatch(model)
    if not match:
        return model, None
    pinned = CATALOGUE[match[1]].revision if match[1] in CATALOGUE else None
    return match[1], match[2] or pinned


def _folder_of(model: str, root: Path | None) -> Path | None:
    """Where the model's files lie, complete or not; None when there is nothing."""
    if model == STARTER:
        return starter_folder()
    folder = Path(root or ".", Path(model).expanduser())
    if folder.is_dir():
        return folder.resolve()
    if not _HUB_NAME.fullmatch(model):
        return None
    name, revision = _split(model)
    home = _repository(name)
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            revision = (home / "refs" / (revision or "main")).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    snapshot = home / "snapshots" / revision
    return snapshot if re.fullmatch(r"[\w-]+", revision) and snapshot.is_dir() else None


def hub_cache() -> Path:
    """Where the hub's own tools keep what they download: shared with them."""
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser() / below
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface" / "hub"


def _repository(name: str) -> Path:
    return hub_cache() / ("models--" + name.replace("/", "--"))


# -- getting and checking it (only when a person asks)


@dataclass(frozen=True)
class HubFile:
    """One file of a hub's repository; ``sha256`` for large files, git's ``sha1`` for small."""

    path: str
    bytes: int
    sha256: str | None
    sha1: str | None


class Hub(Protocol):
    """Where models come from."""

    def files(self, name: str, revision: str) -> tuple[str, list[HubFile]]:
        """The commit that ``revision`` means, and its files."""
        ...

    def download(self, name: str, commit: str, patterns: Sequence[str]) -> Path:
        """Fetch what is not here yet, going on where an earlier call stopped."""
        ...


class HuggingFace:
    """The Hugging Face hub, by its own client (which honours HF_ENDPOINT, HF_TOKEN, …)."""

    def files(self, name: str, revision: str) -> tuple[str, list[HubFile]]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()
        with _reaching():
            commit = api.model_info(name, revision=revision).sha or revision
            return commit, [
                HubFile(f.path, f.size, f.lfs.sha256 if f.lfs else None, f.blob_id)
                for f in api.list_repo_tree(name, revision=commit, recursive=True)
                if isinstance(f, RepoFile)
            ]

    def download(self, name: str, commit: str, patterns: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        with _reaching():
            return Path(
                snapshot_download(
                    name, revision=commit, allow_patterns=list(patterns), cache_dir=hub_cache()
                )
            )


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """The hub client's network errors as OSError, whatever HTTP library is behind it."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise OSError(str(error)) from error


def pull(
    model: str = ZIMAGE_TURBO,
    *,
    hub: Hub | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Download a model, or what is missing of it, check every byte, and say where it lies.

    Repeating it after an interruption goes on where it stopped. A ``manifest.json`` with the
    hub's check sums is left beside the files. Raises SteadyError: ``disk_full`` before
    anything is fetched, ``model_missing`` when the hub cannot be reached or does not know
    the model, ``model_damaged`` when a file is not what the hub says.
    """
    if model == STARTER:
        return starter_folder()
    if not _HUB_NAME.fullmatch(model):
        raise SteadyError(
            "model_missing", f"`{model}` is no hub name.", remedy="Give one such as owner/name."
        )
    hub = hub or HuggingFace()
    name, revision = _split(model)
    try:
        commit, files = hub.files(name, revision or "main")
        files = [file for file in files if _wanted(file.path)]
        total = sum(file.bytes for file in files)
        home = _repository(name)
        _need_space(home, total - min(total, _held(home)))
        with _watching(home, total, progress):
            folder = hub.download(name, commit, _PATTERNS)
    except (OSError, ValueError) as error:  # the hub's own errors are among these
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise SteadyError(
            "model_missing",
            f"The download of {name} did not finish: {text[0][:200]}",
            remedy="Run `steady model pull` again; it goes on where it stopped.",
        ) from error
    manifest = {"model": name, "revision": commit, "files": {f.path: _facts(f) for f in files}}
    _write_json(folder / MANIFEST, manifest)
    if revision is None:  # so that the bare name finds this snapshot later
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(commit, encoding="ascii")
    report = verify(folder, progress=progress)
    if report.problems:
        raise SteadyError("model_damaged", f"After the download {report.problems[0]}")
    return folder


def _wanted(path: str) -> bool:
    return Path(path).suffix in {Path(pattern).suffix for pattern in _PATTERNS}


def _facts(file: HubFile) -> dict[str, Any]:
    check = {"sha256": file.sha256} if file.sha256 else {"sha1": file.sha1}
    return {"bytes": file.bytes} | check


def _held(home: Path) -> int:
    """Bytes on this disk that belong to the repository already."""
    held = 0
    for path in (home / "blobs").glob("*"):
        try:
            held += path.stat().st_blocks * 512
        except (OSError, AttributeError):
            continue
    return held


def _need_space(folder: Path, need: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need and free < need + _SPARE:
        raise SteadyError(
            "disk_full",
            f"{(need + _SPARE) / 1e9:.0f} GB are needed, and {free / 1e9:.0f} GB are free.",
            remedy="Free some space, or set HF_HOME to a larger disk.",
        )


class _watching:
    """Reports how much of a download has arrived, by looking at the disk."""

    def __init__(self, home: Path, total: int, progress: Progress) -> None:
        self._home, self._total, self._progress = home, total, progress
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._report, name="pull-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._done.wait(0.5):
            self._progress(min(self._total, _held(self._home)), self._total)


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found. ``by`` says against what the files were held."""

    folder: Path
    by: str  #: manifest | hub cache | headers
    files: int
    bytes: int
    problems: tuple[str, ...]  #: one sentence each; empty: sound


def verify(
    model: str | Path, root: Path | None = None, *, progress: Progress = lambda done, total: None
) -> Report:
    """Read every file of a model and hold it against its check sum.

    Against ``manifest.json`` (written by pull and convert), else against the names of the
    hub cache's blobs (which are check sums), else only the outline of each weight file.
    Raises SteadyError ``model_missing`` when there is no such model.
    """
    folder = model if isinstance(model, Path) else _folder_of(model, root)
    if folder is None or not folder.is_dir():
        raise SteadyError(
            "model_missing", f"`{model}` is not on this machine.", remedy=_remedy(str(model))
        )
    manifest = _manifest(folder)
    if manifest is not None:
        by, expected = "manifest", manifest["files"]
    else:
        expected = {path: _blob_facts(folder / path) for path in _files_of(folder)}
        by = "hub cache" if all(len(facts) > 1 for facts in expected.values()) else "headers"
    problems = [f"{path} is missing." for path in missing_files(folder) if path not in expected]
    total = sum(int(facts["bytes"]) for facts in expected.values())
    done = 0
    for path, facts in sorted(expected.items()):
        problem = _fault_of(folder / path, facts, _shifted(progress, done, total))
        if problem:
            problems.append(f"{path} {problem}")
        done += int(facts["bytes"])
        progress(done, total)
    return Report(folder, by, len(expected), total, tuple(problems))


def _shifted(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


def _files_of(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    )


def _blob_facts(path: Path) -> dict[str, Any]:
    """The check sum a hub cache's link points to, if it is one."""
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
        facts["sha256"] = blob
    elif path.is_symlink() and re.fullmatch(r"[0-9a-f]{40}", blob):
        facts["sha1"] = blob
    return facts


def _fault_of(path: Path, facts: Mapping[str, Any], progress: Callable[[int], None]) -> str | None:
    """What is wrong with one file, as the rest of a sentence; None when it is sound."""
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            return f"has {size} bytes instead of {facts['bytes']}."
        for kind, begin in (("sha256", b""), ("sha1", b"blob %d\0" % size)):
            if facts.get(kind) and _digest(path, kind, begin, progress) != facts[kind]:
                return "is not what it should be: its check sum differs."
        if path.suffix == ".safetensors" and not _outline_fits(path, size):
            return "is not a whole weight file."
    except FileNotFoundError:
        return "is missing."
    except OSError as error:
        return f"cannot be read: {error.strerror}."
    return None


def _digest(path: Path, kind: str, begin: bytes, progress: Callable[[int], None]) -> str:
    machine = hashlib.new(kind, begin, usedforsecurity=False)
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            machine.update(chunk)
            done += len(chunk)
            progress(done)
    return machine.hexdigest()


def _outline_fits(path: Path, size: int) -> bool:
    """Does a safetensors file end where its own header says?"""
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
            ends = [e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return bool(8 + length + max(ends, default=0) == size)


@dataclass(frozen=True)
class Listed:
    """One model as ``steady model list`` shows it."""

    name: str
    folder: Path | None  #: None: not on this machine
    bytes: int  #: on this disk, or of the download
    complete: bool
    in_use: bool
    revision: str | None


def listed(config: Config, store: Settings | None = None) -> list[Listed]:
    """The models we know and the one in use, wherever they are."""
    told = store.get("model") if store else None
    used = str(told["name"]) if isinstance(told, dict) and "name" in told else config.model
    names = dict.fromkeys([STARTER, *CATALOGUE, *([] if used == "auto" else [used])])
    return [_listed(name, config.root, used) for name in names]


def _listed(name: str, root: Path, used: str) -> Listed:
    folder = _folder_of(name, root)
    known = CATALOGUE.get(_split(name)[0])
    if folder is None:
        revision = known.revision if known else None
        return Listed(name, None, known.bytes if known else 0, False, name == used, revision)
    size = sum((folder / path).stat().st_size for path in _files_of(folder))
    complete = not missing_files(folder)
    return Listed(name, folder, size, complete, name == used, revision_of(folder))


def convert(
    model: str,
    target: Path,
    root: Path | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Write a copy of a model with bfloat16 weights: 38 % less to read at every load.

    ``target`` must not exist; it appears whole, with ``profile.json`` and
    ``manifest.json``. A crash leaves ``<target>.part``, which the next try replaces. Raises
    SteadyError: ``model_missing``, ``disk_full``, ``bad_request`` when the target exists.
    """
    from watcher import convert as converter  # numpy: only where it is asked for

    source = present(model, root)
    if target.exists() or target.is_symlink():
        raise SteadyError(
            "bad_request", f"`{target.name}` exists.", remedy="Name a folder that does not."
        )
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    paths = [path for path in _files_of(source) if path != PROFILE]
    total = sum((source / path).stat().st_size for path in paths)
    _need_space(part, sum(converter.size_of(source / path) for path in paths))
    files: dict[str, Any] = {}
    done = 0
    for path in paths:
        new = part / path
        new.parent.mkdir(parents=True, exist_ok=True)
        converter.to_bfloat16(source / path, new)
        files[path] = {"bytes": new.stat().st_size, "sha256": _digest(new, "sha256", b"", _silent)}
        done += (source / path).stat().st_size
        progress(done, total)
    _write_json(part / PROFILE, profile_of(model, root) | {"name": target.name})
    revision = f"{revision_of(source) or 'unknown'}-bfloat16"
    _write_json(part / MANIFEST, {"model": model, "revision": revision, "files": files})
    os.replace(part, target)
    publish.sync_folder(target.parent)
    return target


def _silent(done: int) -> None:
    """No word about progress."""


def _manifest(folder: Path) -> dict[str, Any] | None:
    manifest = _json(folder / MANIFEST)
    files = (manifest or {}).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(facts, dict) and isinstance(facts.get("bytes"), int) for facts in files.values()
    ):
        return None
    return manifest


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: Any) -> None:
    data = (json.dumps(value, indent=1) + "\n").encode()
    publish.replace(path, data, temporary=path.with_name(path.name + ".part"))
