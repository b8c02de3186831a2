"""Hostile files through the whole service: refused quickly, one by one, while it goes on living."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import until
from history import faults
from roots import Root

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    draft = path.with_name(".draft")
    draft.touch()
    os.truncate(draft, 10 << 30)
    draft.rename(path)


def _text(content: str | bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        draft = path.with_name(".draft")
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.rename(path)

    return make


def _long() -> str:
    return "n" * 250 + ".yaml"


BAD = "prompt: x\nwidht: 64\n"
#: name in the inbox -> how it is made. All of them are refused.
HOSTILE: dict[str, Callable[[Path], None]] = {
    "fifo.yaml": os.mkfifo,
    "socket.json": _socket,
    "link.yaml": lambda path: path.symlink_to("/etc/passwd"),
    "dangling.csv": lambda path: path.symlink_to("nobody"),
    "sparse.yaml": _sparse,
    "sparse.csv": _sparse,
    "utf16.yaml": _text("prompt: a fox\n".encode("utf-16-le")),
    "utf32.json": _text('{"prompt": "a fox"}'.encode("utf-32-be")),
    "caf\udce9.yaml": _text(BAD),
    _long(): _text(BAD),
    "new\nline\x1b[2J.yaml": _text(BAD),
    "‮lmay.yaml": _text(BAD),
    "deep.yaml": _text("[" * 100_000),
    "deep.json": _text('{"a":' * 100_000),
    "laughs.yaml": _text(
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefg", "bcdefgh", strict=True))
    ),
    "many.json": _text(json.dumps({"prompt": "x", "count": 10**9})),
    "matrix.yaml": _text(
        "matrix: {a: [1,2,3,4,5,6,7,8,9], b: [1,2,3,4,5,6,7,8,9], c: [1,2,3,4,5,6,7,8,9],"
        " d: [1,2,3,4,5,6,7,8,9]}\njobs: ['{a}{b}{c}{d}']\n"
    ),
    "digits.json": _text('{"prompt": "x", "seed": ' + "9" * 500_000 + "}"),
    "huge.json": _text('{"prompt": "' + "x" * 1_000_000 + '"}'),
    "nul.yaml": _text(b"prompt: a\0b\n"),
    "surrogate.json": _text('{"prompt": "x", "label": "\\ud800"}'),
    "surrogate-prompt.json": _text('{"prompt": "\\udfff"}'),
    "surrogate-meta.json": _text('{"prompt": "x", "metadata": {"\\ud800": "\\udc00"}}'),
    "up.yaml": _text("prompt: x\nname: ../../etc/cron.d/x\n"),
    "root.yaml": _text("prompt: x\nfolder: /etc\n"),
    "dots.json": _text('{"prompt": "x", "folder": "a/../../b"}'),
    "quote.csv": _text('prompt\n"' + "x" * 900_000),
    "columns.csv": _text("prompt" + ",a" * 300_000 + "\nx\n"),
    "bomb.png": _text(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff" + b"\0" * 9),
}  # fmt: skip


def test_every_hostile_file_is_refused_and_the_service_lives_on(
    make_root: Callable[..., Root],
) -> None:
    root = make_root()
    watcher = root.watch()
    root.drop("before.yaml", "prompt: before\n")
    root.wait_for("completed")
    (root.inbox / "folder.yaml").mkdir()
    process = psutil.Process(watcher.pid)
    memory = process.memory_info().rss
    refused = root.inbox / "refused"
    slow: dict[str, float] = {}
    for number, (name, make) in enumerate(HOSTILE.items(), 1):
        begun = time.monotonic()
        make(root.inbox / name)
        until(lambda n=number: len(list(refused.glob("*.error.json"))) >= n, what=repr(name))  # type: ignore[misc]
        slow[name] = time.monotonic() - begun
    assert process.memory_info().rss - memory < 100 * 2**20
    assert watcher.poll() is None
    assert "Traceback" not in root.said.read_text()
    print(max(slow.items(), key=lambda pair: pair[1]))
    root.drop("after.yaml", "prompt: after\n")
    root.wait_for("completed", "completed")
    until(lambda: faults(root.folder, expected=2) == [], what="all put away")
    assert (root.inbox / "folder.yaml").is_dir()
    assert "folder.yaml" in " ".join(root.pulse()["inbox"]["notices"])


def test_the_corpus_of_the_fuzzer_ends_in_done_or_refused(make_root: Callable[..., Root]) -> None:
    root = make_root()
    names = sorted(path.name for path in CORPUS.iterdir())
    for name in names:
        root.drop(name, (CORPUS / name).read_bytes())
    root.watch(once=True).wait(90)
    left = [p.name for p in root.inbox.iterdir() if p.is_file() and not p.name.startswith(".")]
    assert {n for n in left if "." in n} == set()  # a name without a suffix is left alone
    assert set(root.states()) <= {"completed", "failed"}
    assert "Traceback" not in root.said.read_text()


@pytest.mark.parametrize("device", [(1, 5), (1, 7)])
def test_a_device_is_not_opened(make_root: Callable[..., Root], device: tuple[int, int]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    root = make_root()
    os.mknod(root.inbox / "zero.yaml", 0o600 | 0o020000, os.makedev(*device))
    root.finish()
    body = json.loads((root.inbox / "refused" / "zero.yaml.error.json").read_bytes())
    assert body["code"] == "not_a_regular_file"
