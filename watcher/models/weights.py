"""Model files: listed, fetched, checked; each only when a person asks. (Converted: engines/convert.py.)

What is fetched from the hub goes into the hub's own cache, so that other tools share it; there each
file is called by its check sum. A crash in a download leaves its beginning, and the next one goes
on there.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher import publish
from watcher.errors import SteadyError
from watcher.models.catalogue import (
    CATALOGUE,
    MANIFEST,
    STARTER,
    ZIMAGE_TURBO,
    hub_cache,
    is_hub_name,
    manifest_of,
    missing_files,
    missing_remedy,
    outline,
    place_of,
    repository,
    split,
    starter_folder,
)

#: Is told (bytes done, bytes in all) now and then.
Progress = Callable[[int, int], None]

_SPARE = 2_000_000_000  #: bytes that a download or conversion leaves free
#: What is fetched of a hub's repository: never pickles, never code.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def silent(done: int, total: int) -> None:
    """No word about progress."""


class HuggingFace:
    """Where models come from: the Hugging Face hub, by its own client (which honours HF_ENDPOINT,
    HF_TOKEN, …)."""

    def look(self, name: str, revision: str) -> tuple[str, int]:
        """The commit that ``revision`` means, and the bytes of what is fetched of it."""
        from huggingface_hub import HfApi

        with _reaching():
            told = HfApi().model_info(name, revision=revision, files_metadata=True)
        kinds = {Path(pattern).suffix for pattern in _PATTERNS}
        found = [each for each in told.siblings or () if Path(each.rfilename).suffix in kinds]
        return told.sha or revision, sum(each.size or 0 for each in found)

    def download(
        self, name: str, commit: str, patterns: Sequence[str], *, anew: bool = False
    ) -> Path:
        """Fetch what is not here yet; ``anew``: also what is, which the hub's cache takes for good."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        with _reaching():
            return Path(
                snapshot_download(
                    name,
                    revision=commit,
                    allow_patterns=list(patterns),
                    cache_dir=hub_cache(),
                    force_download=anew,
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


def pull_model(
    model: str = ZIMAGE_TURBO,
    *,
    hub: HuggingFace | None = None,
    progress: Progress = silent,
) -> Path:
    """Download a model, or what is missing of it, check every byte, and say where it lies.

    Repeating it after an interruption goes on where it stopped. Raises SteadyError: ``disk_full``
    before anything is fetched, ``model_missing`` when the hub cannot be reached or does not know
    the model, ``model_damaged`` when a file is not what the hub says.
    """
    if model == STARTER:
        return starter_folder()
    if not is_hub_name(model):
        raise SteadyError(
            "model_missing",
            f"`{model}` is no name on the Hugging Face hub.",
            remedy="Give one such as owner/name.",
        )
    hub = hub or HuggingFace()
    name, revision = split(model)
    try:
        commit, total = hub.look(name, revision or "main")
        home = repository(name)
        need_space(home, total - min(total, _held(home)))
        with _watching(home, total, progress):
            folder = hub.download(name, commit, _PATTERNS)
            report = verify_model(folder)
            if report.damaged:
                hub.download(name, commit, report.damaged, anew=True)
                report = verify_model(folder)
    except (OSError, ValueError) as error:  # the hub's own errors are among these
        raise _unfinished(name, error) from error
    if not (home / "refs" / "main").exists():  # so that the bare name finds this snapshot
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(commit, encoding="ascii")
    if report.problems:
        raise SteadyError("model_damaged", f"Downloaded twice, and still: {report.problems[0]}")
    return folder


def pull_upscaler(source: str, sha256: str, folder: Path) -> Path:
    """Download one network for the field `upscale` into ``folder``, if it is the one of ``sha256``.

    ``source``: owner/name/file.safetensors. A crash leaves what has arrived in the hub's cache.
    Raises SteadyError: ``model_missing`` as for a model, ``model_damaged`` for other bytes.
    """
    found = re.fullmatch(r"([^/]+/[^/]+)/((?:[^/]+/)*[^/]+\.safetensors)", source)
    if found is None or not is_hub_name(found[1]) or ".." in source.split("/"):
        words = f"`{source}` names no file of a hub."
        raise SteadyError("model_missing", words, remedy="Give owner/name/file.safetensors.")
    (name, path), hub = found.groups(), HuggingFace()
    try:
        commit, _ = hub.look(name, "main")
        fetched = hub.download(name, commit, [path], anew=True) / path
        data = fetched.read_bytes()
    except (OSError, ValueError) as error:
        raise _unfinished(name, error) from error
    if (told := hashlib.sha256(data).hexdigest()) != sha256.lower():
        raise SteadyError("model_damaged", f"{path} is another file: its sha256 is {told}.")
    final = folder / fetched.name
    with publish.disk_errors("The upscaler cannot be kept"):
        folder.mkdir(exist_ok=True)
        publish.replace(final, data, temporary=final.with_suffix(".tmp"))
    return final


def _unfinished(name: str, error: Exception) -> SteadyError:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return SteadyError(
        "model_missing",
        f"The download of {name} did not finish: {text[0][:200]}",
        remedy=f"Run `steady model pull {name}` again; it goes on where it stopped.",
    )


def _held(home: Path) -> int:
    """Bytes on this disk that belong to the repository already."""
    held = 0
    for path in (home / "blobs").glob("*"):
        try:
            held += path.stat().st_blocks * 512
        except (OSError, AttributeError):
            continue
    return held


def need_space(folder: Path, need: int) -> None:
    """Is there room for ``need`` bytes where ``folder`` will be? SteadyError disk_full."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need and free < need + _SPARE:
        raise SteadyError(
            "disk_full",
            f"{(need + _SPARE) / 1e9:.0f} GB are needed, and {free / 1e9:.0f} GB are free.",
            remedy="Free some space, or set HF_HOME to a larger disk.",
        )


@contextlib.contextmanager
def _watching(home: Path, total: int, progress: Progress) -> Iterator[None]:
    """Inside, how much of a download has arrived is reported, by looking at the disk."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(0.5):
            progress(min(total, _held(home)), total)

    thread = threading.Thread(target=report, name="pull-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Verification:
    """What :func:`verify_model` found. ``by`` says against what the files were checked."""

    folder: Path
    by: str  #: the sums in a ``manifest``, those of the ``hub``, or ``sizes`` alone
    files: int
    bytes: int
    problems: tuple[str, ...]  #: one sentence each; empty: sound
    damaged: tuple[str, ...]  #: the files that are there and wrong, below the folder


def verify_model(
    model: str | Path,
    root: Path | None = None,
    *,
    sums_up_to: float = math.inf,
    progress: Progress = silent,
) -> Verification:
    """Read every file of a model and hold it against its check sum.

    Against ``manifest.json`` (written by convert), else against the names of the hub cache's
    blobs (which are check sums), else only the outline of each weight file.
    Of more bytes than ``sums_up_to`` only sizes and outlines are looked at, which takes no time.
    Raises SteadyError ``model_missing`` when there is no such model.
    """
    place = model if isinstance(model, Path) else place_of(model, root)
    if place is None:
        raise SteadyError(
            "model_missing", f"`{model}` is not on this machine.", remedy=missing_remedy(str(model))
        )
    folder = place.parent if place.is_file() else place
    manifest = manifest_of(place)
    problems = []
    if manifest is not None:
        by, expected = "manifest", manifest["files"]
    else:
        problems = [f"{path} is missing." for path in missing_files(place)]
        expected = {path: _blob_facts(folder / path) for path in files_of(place)}
        by = "hub" if all(len(facts) > 1 for facts in expected.values()) else "sizes"
    total = sum(int(facts["bytes"]) for facts in expected.values())
    damaged = []
    done = 0
    for path, facts in sorted(expected.items()):
        known = facts if total <= sums_up_to else {"bytes": facts["bytes"]}
        problem = _fault_of(folder / path, known, functools.partial(_tell, progress, done, total))
        if problem:
            problems.append(f"{path} {problem}")
            damaged += [path] if (folder / path).exists() else []
        done += int(facts["bytes"])
        progress(done, total)
    return Verification(folder, by, len(expected), total, tuple(problems), tuple(damaged))


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def files_of(folder: Path) -> list[str]:
    """Every file of a model's folder but the manifest, below it; of a model in one file its name."""
    if folder.is_file():
        return [folder.name]
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    )


def _blob_facts(path: Path) -> dict[str, Any]:
    """The check sum a hub cache's link points to, if it is one."""
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    # One link only: further on the cache may name things by another kind of sum.
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        facts["sha256"] = blob
    elif re.fullmatch(r"[0-9a-f]{40}", blob):
        facts["sha1"] = blob
    return facts


def _fault_of(path: Path, facts: Mapping[str, Any], progress: Callable[[int], None]) -> str | None:
    """What is wrong with one file, as the rest of a sentence; None when it is sound."""
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            return f"has {size} bytes instead of {facts['bytes']}."
        for kind, begin in (("sha256", b""), ("sha1", b"blob %d\0" % size)):
            if facts.get(kind) and file_digest(path, kind, begin, progress) != facts[kind]:
                return "is not what it should be: its check sum differs."
        if path.suffix == ".safetensors":
            outline(path)
    except FileNotFoundError:
        return "is missing."
    except OSError as error:
        return f"cannot be read: {error.strerror}."
    except ValueError:
        return "is not a whole weight file."
    return None


def file_digest(path: Path, kind: str, begin: bytes, progress: Callable[[int], None]) -> str:
    """The check sum of a file, in hexadecimal; ``begin``: bytes before it."""
    machine = hashlib.new(kind, begin, usedforsecurity=False)
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            machine.update(chunk)
            done += len(chunk)
            progress(done)
    return machine.hexdigest()


def bytes_of(model: str, place: Path | None) -> int:
    """Bytes of a model on this disk; of one we know and that is not here, of the download."""
    if place is None:
        known = CATALOGUE.get(split(model)[0])
        return known.bytes if known else 0
    folder = place.parent if place.is_file() else place
    return sum((folder / path).stat().st_size for path in files_of(place))


def write_json(path: Path, value: Any) -> None:
    """Put ``value`` in the place of what ``path`` says, durably. Raises OSError."""
    data = (json.dumps(value, indent=1) + "\n").encode()
    publish.replace(path, data, temporary=path.with_name(path.name + ".part"))
