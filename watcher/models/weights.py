"""Model files: listed, fetched, checked, converted; each only when a person asks.

What is fetched from the hub goes into the hub's own cache, so that other tools share it.
A ``manifest.json`` with check sums is left beside what we fetched or converted. A crash in a
download leaves its beginning, and the next one goes on there.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from watcher import publish
from watcher.config import Config
from watcher.errors import SteadyError
from watcher.models import profile_of
from watcher.models.catalogue import (
    CATALOGUE,
    MANIFEST,
    PROFILE,
    STARTER,
    ZIMAGE_TURBO,
    folder_of,
    hub_cache,
    is_hub_name,
    manifest_of,
    missing_files,
    missing_remedy,
    outline,
    present,
    repository,
    revision_of,
    split,
    starter_folder,
)

if TYPE_CHECKING:
    from watcher.store import JobStore

#: Is told (bytes done, bytes in all) now and then.
Progress = Callable[[int, int], None]

_SPARE = 2_000_000_000  #: bytes that a download or conversion leaves free
#: What is fetched of a hub's repository: never pickles, never code.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def silent(done: int, total: int) -> None:
    """No word about progress."""


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


class HuggingFace(Hub):
    """The Hugging Face hub, by its own client (which honours HF_ENDPOINT, HF_TOKEN, …)."""

    @override
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

    @override
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


def pull_model(
    model: str = ZIMAGE_TURBO,
    *,
    hub: Hub | None = None,
    progress: Progress = silent,
) -> Path:
    """Download a model, or what is missing of it, check every byte, and say where it lies.

    Repeating it after an interruption goes on where it stopped. A ``manifest.json`` with the
    hub's check sums is left beside the files. Raises SteadyError: ``disk_full`` before
    anything is fetched, ``model_missing`` when the hub cannot be reached or does not know
    the model, ``model_damaged`` when a file is not what the hub says.
    """
    if model == STARTER:
        return starter_folder()
    if not is_hub_name(model):
        raise SteadyError(
            "model_missing", f"`{model}` is no hub name.", remedy="Give one such as owner/name."
        )
    hub = hub or HuggingFace()
    name, revision = split(model)
    try:
        commit, files = hub.files(name, revision or "main")
        files = [file for file in files if _is_fetched(file.path)]
        total = sum(file.bytes for file in files)
        home = repository(name)
        _need_space(home, total - min(total, _held(home)))
        with _watching(home, total, progress):
            folder = hub.download(name, commit, _PATTERNS)
            manifest = {
                "model": name,
                "revision": commit,
                "files": {f.path: _hub_facts(f) for f in files},
            }
            _write_json(folder / MANIFEST, manifest)
            report = verify_model(folder)
            if report.damaged:  # what the hub's cache holds it takes for good: fetch that anew
                for path in report.damaged:
                    _forget(folder / path)
                hub.download(name, commit, _PATTERNS)
                report = verify_model(folder)
    except (OSError, ValueError) as error:  # the hub's own errors are among these
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise SteadyError(
            "model_missing",
            f"The download of {name} did not finish: {text[0][:200]}",
            remedy="Run `steady model pull` again; it goes on where it stopped.",
        ) from error
    if not (home / "refs" / "main").exists():  # so that the bare name finds this snapshot
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(commit, encoding="ascii")
    if report.problems:
        raise SteadyError("model_damaged", f"Downloaded twice, and still: {report.problems[0]}")
    return folder


def _is_fetched(path: str) -> bool:
    """Is it of a kind we fetch, and does it stay below the folder?"""
    inside = not path.startswith("/") and ".." not in path.split("/")
    return inside and Path(path).suffix in {Path(pattern).suffix for pattern in _PATTERNS}


def _hub_facts(file: HubFile) -> dict[str, Any]:
    check = {"sha256": file.sha256} if file.sha256 else {"sha1": file.sha1}
    return {"bytes": file.bytes} | check


def _forget(path: Path) -> None:
    """Remove a file and, in a hub cache, all that it leads to: its blob may be a link again, to
    where the cache keeps what several models share."""
    cache = hub_cache().resolve()
    while True:
        further = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if further is None or not further.parent.resolve().is_relative_to(cache):
            return
        path = further


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
class Verification:
    """What :func:`verify_model` found. ``by`` says against what the files were held."""

    folder: Path
    by: str  #: manifest | hub cache | headers
    files: int
    bytes: int
    problems: tuple[str, ...]  #: one sentence each; empty: sound
    damaged: tuple[str, ...]  #: the files that are there and wrong, below the folder


def verify_model(
    model: str | Path,
    root: Path | None = None,
    *,
    sums: bool = True,
    progress: Progress = silent,
) -> Verification:
    """Read every file of a model and hold it against its check sum.

    Against ``manifest.json`` (written by pull and convert), else against the names of the
    hub cache's blobs (which are check sums), else only the outline of each weight file.
    ``sums=False`` leaves it at sizes and outlines, which takes no time.
    Raises SteadyError ``model_missing`` when there is no such model.
    """
    folder = model if isinstance(model, Path) else folder_of(model, root)
    if folder is None or not folder.is_dir():
        raise SteadyError(
            "model_missing", f"`{model}` is not on this machine.", remedy=missing_remedy(str(model))
        )
    manifest = manifest_of(folder)
    problems = []
    if manifest is not None:
        by, expected = "manifest", manifest["files"]
    else:
        problems = [f"{path} is missing." for path in missing_files(folder)]
        expected = {path: _blob_facts(folder / path) for path in _files_of(folder)}
        by = "hub cache" if all(len(facts) > 1 for facts in expected.values()) else "headers"
    total = sum(int(facts["bytes"]) for facts in expected.values())
    damaged = []
    done = 0
    for path, facts in sorted(expected.items()):
        known = facts if sums else {"bytes": facts["bytes"]}
        problem = _fault_of(folder / path, known, _shifted(progress, done, total))
        if problem:
            problems.append(f"{path} {problem}")
            damaged += [path] if (folder / path).exists() else []
        done += int(facts["bytes"])
        progress(done, total)
    return Verification(folder, by, len(expected), total, tuple(problems), tuple(damaged))


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
            if facts.get(kind) and _digest(path, kind, begin, progress) != facts[kind]:
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


def _digest(path: Path, kind: str, begin: bytes, progress: Callable[[int], None]) -> str:
    machine = hashlib.new(kind, begin, usedforsecurity=False)
    done = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            machine.update(chunk)
            done += len(chunk)
            progress(done)
    return machine.hexdigest()


@dataclass(frozen=True)
class Listed:
    """One model as ``steady model list`` shows it."""

    name: str
    folder: Path | None  #: None: not on this machine
    bytes: int  #: on this disk, or of the download
    complete: bool
    in_use: bool
    revision: str | None
    source: str = ""  #: a folder, a hub name, or what a server calls it
    engine: str = "zimage"


def listed(config: Config, store: "JobStore | None" = None) -> list[Listed]:
    """The models we know and the one in use, wherever they are."""
    told = store.get("model") if store else None
    used = str(told["name"]) if isinstance(told, dict) and "name" in told else config.model
    named = {name: entry.source for name, entry in config.models.items()}
    also = {} if used == "auto" or used in named else {used: used}
    sources = {name: name for name in (STARTER, *CATALOGUE)} | also | named
    engines = {name: entry.engine or config.engine for name, entry in config.models.items()}
    return [
        replace(_listed(name, source, config.root, used), source=source,
                engine=engines.get(name, "zimage"))
        for name, source in sources.items()
    ]  # fmt: skip


def _listed(name: str, source: str, root: Path, used: str) -> Listed:
    folder = folder_of(source, root)
    known = CATALOGUE.get(split(source)[0])
    if folder is None:
        revision = known.revision if known else None
        return Listed(name, None, known.bytes if known else 0, False, name == used, revision)
    size = sum((folder / path).stat().st_size for path in _files_of(folder))
    complete = not missing_files(folder)
    return Listed(name, folder, size, complete, name == used, revision_of(folder))


def convert_model(
    model: str,
    target: Path,
    root: Path | None = None,
    *,
    progress: Progress = silent,
) -> Path:
    """Write a copy of a model with bfloat16 weights: 38 % less to read at every load.

    ``target`` must not exist; it appears whole, with ``profile.json`` and
    ``manifest.json``. A crash leaves ``<target>.part``, which the next try replaces. Raises
    SteadyError: ``model_missing``, ``disk_full``, ``bad_request`` when the target exists.
    """
    source = present(model, root)
    if target.exists() or target.is_symlink():
        raise SteadyError(
            "bad_request", f"`{target.name}` exists.", remedy="Name a folder that does not."
        )
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with publish.disk_errors("The copy cannot be written"):
            files = _write_converted(source, part, progress)
            _write_json(part / PROFILE, profile_of(model, root) | {"name": target.name})
            revision = f"{revision_of(source) or 'unknown'}-bfloat16"
            _write_json(part / MANIFEST, {"model": model, "revision": revision, "files": files})
            os.replace(part, target)
            publish.sync_folder(target.parent)
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise SteadyError("model_damaged", f"`{model}` cannot be converted: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _write_converted(source: Path, part: Path, progress: Progress) -> dict[str, Any]:
    """Write every file anew below ``part``; what the manifest says of them."""
    from watcher.models import convert as converter  # numpy: only where it is asked for

    sizes = {
        path: ((source / path).stat().st_size, converter.converted_size(source / path))
        for path in _files_of(source)
        if path != PROFILE
    }
    _need_space(part, sum(new for _, new in sizes.values()))
    total = sum(old for old, _ in sizes.values())
    files: dict[str, Any] = {}
    done = 0
    for path, (size, _) in sizes.items():
        new = part / path
        new.parent.mkdir(parents=True, exist_ok=True)
        converter.to_bfloat16(source / path, new)
        check = _digest(new, "sha256", b"", lambda _: None)
        files[path] = {"bytes": new.stat().st_size, "sha256": check}
        done += size
        progress(done, total)
    return files


def _write_json(path: Path, value: Any) -> None:
    data = (json.dumps(value, indent=1) + "\n").encode()
    publish.replace(path, data, temporary=path.with_name(path.name + ".part"))
