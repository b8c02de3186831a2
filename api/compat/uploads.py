"""What clients of OpenAI's Batch API uploaded, and what they said with a batch.

Kept in ``.steady/openai/``, notes and bytes by id. Knows nothing of jobs or HTTP. A crash in
the middle of an upload leaves bytes without a note, which nobody is shown.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from watcher import publish
from watcher.errors import SteadyError
from watcher.log import now_us

_CHUNK = 1 << 20


class Shelf:
    """Uploaded files and batch notes, each a JSON note (and the file's bytes beside it)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, source: BinaryIO, filename: str) -> dict[str, Any]:
        """Keep an upload. The note comes last: a crash leaves bytes without a note."""
        ident = f"file-{uuid.uuid4().hex}"
        with self._disk():
            path = self.path(ident)
            with path.open("xb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
                size = target.tell()
                target.flush()
                publish.sync_fd(target.fileno())
            if not size:
                path.unlink()
                raise SteadyError("empty_file")
            note = {
                "id": ident,
                "object": "file",
                "bytes": size,
                "created_at": now_us() // 1_000_000,
                "filename": filename,
                "purpose": "batch",
                "status": "processed",
            }
            self.write(ident, note)
        return note

    def write(self, ident: str, note: Mapping[str, Any]) -> None:
        """Put a note in the place of an older one, whole or not at all. SteadyError disk_full, folder_gone."""
        with self._disk():
            path = self._folder / f"{ident}.json"
            data = json.dumps(note).encode()
            publish.replace(path, data, temporary=path.with_suffix(f".{uuid.uuid4().hex}.tmp"))

    def note(self, ident: str) -> dict[str, Any] | None:
        """The note of ``ident``; None when there is none or it cannot be read."""
        try:
            return dict(json.loads((self._folder / f"{ident}.json").read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def path(self, ident: str) -> Path:
        """Where the bytes of an upload lie."""
        return self._folder / f"{ident}.jsonl"

    def notes(self, prefix: str) -> list[dict[str, Any]]:
        """All notes whose id begins so, newest first."""
        found = [self.note(path.stem) for path in self._folder.glob(f"{prefix}*.json")]
        return sorted((n for n in found if n), key=lambda n: (-n["created_at"], n["id"]))

    def drop(self, ident: str) -> None:
        """Remove both, the note first: a crash leaves bytes without a note."""
        with self._disk():
            for path in (self._folder / f"{ident}.json", self.path(ident)):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        with publish.disk_errors("Uploads cannot be kept"):
            self._folder.mkdir(parents=True, exist_ok=True)
            yield
