"""What the tests of other services' clients stand on: a real watcher and a real API."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import until
from doors import Running, running
from engines import read_log
from roots import Root


class House:
    """One root with both processes; the scripted engine makes the pictures."""

    def __init__(self, root: Root, service: Running) -> None:
        self.root = root
        self.service = service
        self.port = service.port

    @property
    def url(self) -> str:
        return self.service.url

    def made(self, word: str) -> int:
        """Pictures begun for prompts that hold ``word``."""
        return sum(e["event"] == "start" and word in e["prompt"] for e in read_log(self.root.log))

    def jobs(self, word: str) -> list[dict]:
        return [job for job in self.root.jobs() if word in job["prompt"]]

    def running(self, word: str) -> None:
        """Wait until the picture of such a prompt is being made."""
        until(lambda: self.made(word), 30, f"{word} runs; {self.root.said}")


@contextmanager
def house(folder: Path, *, watch: bool = True, **settings) -> Iterator[House]:
    root = Root(folder, **settings)
    try:
        with running(root.folder) as service:
            if watch:
                root.watch()
                until(
                    lambda: [w["state"] for w in root.pulse().get("workers", ())] == ["ready"],
                    60,
                    f"the watcher is ready; {root.said}",
                )
            yield House(root, service)
    finally:
        root.close()
