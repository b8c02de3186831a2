"""Which model is used, where it lies, what it allows, and how it gets here."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import until
from scripted_torch import ScriptedTorch

from watcher import models
from watcher.commands.desk import Desk
from watcher.commands.models import list_models, pull, verify
from watcher.config import Config
from watcher.engines.convert import convert_model
from watcher.engines.plan import Options
from watcher.errors import SteadyError
from watcher.executor.build import build
from watcher.limits import Card, Limits
from watcher.models import Choice, cards, catalogue, weights
from watcher.models.catalogue import CATALOGUE, STARTER, ZIMAGE_TURBO
from watcher.store import JobStore

PINNED = CATALOGUE[ZIMAGE_TURBO].revision
COMMIT = "c0ffee" + "0" * 34


class Kept(dict[str, Any]):
    """Settings that keep what survives JSON, as the record does."""

    def put(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


class Probe:
    """Answers as it is told, and counts."""

    def __init__(self, *devices: str) -> None:
        self.devices: Sequence[str] = devices
        self.asked = 0

    def __call__(self) -> models.Devices:
        self.asked += 1
        return models.Devices(self.devices)


class Broken(Probe):
    def __call__(self) -> models.Devices:
        self.asked += 1
        raise SteadyError("worker_unavailable", "no answer")


def config(root: Path, **settings: Any) -> Config:
    return Config.load(root, **settings)


@pytest.fixture(autouse=True)
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of one's own."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(SteadyError) as caught:
        call()
    return caught.value.code


# -- which


@pytest.mark.parametrize(
    ("devices", "name", "device"),
    [
        (("cpu",), STARTER, "cpu"),
        (("cuda:0", "cuda:1", "cpu"), ZIMAGE_TURBO, "cuda:0"),
        (("mps", "cpu"), ZIMAGE_TURBO, "mps"),
        (("mps", "cuda:1"), ZIMAGE_TURBO, "cuda:1"),
        ((), STARTER, "cpu"),
    ],
)
def test_auto_goes_by_the_devices(
    root: Path, devices: tuple[str, ...], name: str, device: str
) -> None:
    choice = models.choose(config(root), Kept(), Probe(*devices))
    assert (choice.name, choice.device) == (name, device)
    assert choice.starter == (name == STARTER)
    assert choice.profile["native_width"] == (256 if choice.starter else 1024)
    assert device in choice.why or choice.starter


def test_auto_is_resolved_once(root: Path) -> None:
    kept, probe = Kept(), Probe("cpu")
    first = models.choose(config(root), kept, probe)
    probe.devices = ["cuda:0", "cpu"]
    assert models.choose(config(root), kept, probe) == first
    assert probe.asked == 1


def test_auto_comes_back_to_its_decision_after_a_named_model(root: Path) -> None:
    kept, probe = Kept(), Probe("cuda:0", "cpu")
    assert models.choose(config(root), kept, probe).name == ZIMAGE_TURBO
    assert models.choose(config(root, model="starter"), kept, probe).starter
    assert kept["model"]["name"] == STARTER
    probe.devices = ["cpu"]
    assert models.choose(config(root), kept, probe).name == ZIMAGE_TURBO
    assert kept["model"]["name"] == ZIMAGE_TURBO
    assert probe.asked == 1


def test_a_probe_without_an_answer_decides_nothing(root: Path) -> None:
    kept = Kept()
    assert code_of(lambda: models.choose(config(root), kept, Broken())) == "worker_unavailable"
    assert kept == {}


@pytest.mark.parametrize(
    ("settings", "name", "device"),
    [
        ({"model": "starter"}, STARTER, "auto"),
        ({"model": "starter", "device": "cuda:1"}, STARTER, "cuda:1"),
        ({"model": "owner/thing"}, "owner/thing", "auto"),
        ({"device": "cpu"}, STARTER, "cpu"),
        ({"device": "cuda:1"}, ZIMAGE_TURBO, "cuda:1"),
        ({"devices": ["cuda:2", "cuda:3"]}, ZIMAGE_TURBO, "cuda:2"),
        ({"engine": "engines:Scripted"}, "auto", "auto"),
    ],
)
def test_what_the_settings_name_needs_no_probe(
    root: Path, settings: dict[str, Any], name: str, device: str
) -> None:
    choice = models.choose(config(root, **settings), Kept(), Broken())
    assert (choice.name, choice.device) == (name, device)


def test_the_profile_in_use_is_told_to_the_other_processes(root: Path) -> None:
    kept = Kept()
    plain = config(root)
    assert cards.limits_known(plain, kept) == cards.limits_known(plain, None)
    usual = Card(accepts=("image", "mask", "lora", "upscale"), options={"guidance": False})
    assert cards.limits_known(plain, None).usual == usual
    choice = models.choose(plain, kept, Probe("cpu"))
    assert cards.limits_known(plain, kept) == cards.limits_of(choice.profile, plain, choice.name)
    assert kept["model"] == choice.profile | {"device": "cpu", "why": choice.why, "starter": True}


def test_the_choice_lives_in_the_real_record(root: Path) -> None:
    from watcher.store import JobStore

    plain = config(root)
    store = JobStore(plain.database_url)
    try:
        first = models.choose(plain, store, Probe("cpu"))
    finally:
        store.close()
    store = JobStore(plain.database_url)
    try:
        assert models.choose(plain, store, Broken()) == first
        known = cards.limits_of(first.profile, plain, first.name)
        assert cards.limits_known(plain, store) == known
    finally:
        store.close()


def test_a_lost_device_is_said_and_its_return_noticed(root: Path) -> None:
    probe = Probe("cuda:0", "cpu")
    choice = models.choose(config(root), Kept(), probe)
    choice.look_again = 0.02
    probe.devices = ["cpu"]
    lost = until(lambda: models.check(choice, probe), what="device_lost")
    assert isinstance(lost, SteadyError) and lost.code == "device_lost"
    assert "cuda:0" in lost.message and ZIMAGE_TURBO in lost.message
    assert not choice.checked
    probe.devices = ["cuda:0", "cpu"]
    until(lambda: models.check(choice, probe) is None, what="the device back")
    assert choice.checked


def test_a_present_device_is_looked_for_once(root: Path) -> None:
    probe = Probe("cuda:0", "cpu")
    choice = models.choose(config(root), Kept(), probe)
    choice.look_again = 0.0
    assert models.check(choice, probe) is None
    until(lambda: probe.asked == 2)
    for _ in range(50):
        assert models.check(choice, probe) is None
    assert probe.asked == 2


def test_a_probe_that_fails_later_changes_nothing(root: Path) -> None:
    choice = models.choose(config(root), Kept(), Probe("cuda:0"))
    choice.look_again = 0.01
    broken = Broken()
    until(lambda: models.check(choice, broken) or broken.asked > 2)
    assert models.check(choice, broken) is None


@pytest.mark.parametrize("settings", [{"model": "starter"}, {"device": "cuda:0"}, {}])
def test_only_what_auto_chose_for_a_gpu_is_watched(root: Path, settings: dict[str, Any]) -> None:
    choice = models.choose(config(root, **settings), Kept(), Probe("cpu"))
    probe = Broken()
    assert models.check(choice, probe) is None
    assert choice._looking is None


def test_this_machines_devices_come_from_a_child() -> None:
    devices = models.probe_devices().names
    assert devices[-1] == "cpu"
    assert all(kind.split(":")[0] in ("cuda", "mps", "cpu") for kind in devices)
    assert "torch" not in vars(models)


def test_a_child_that_takes_too_long_is_an_error() -> None:
    assert code_of(lambda: models.probe_devices(timeout=0.01)) == "worker_unavailable"


def test_a_child_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch for you')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SteadyError) as caught:
        models.probe_devices()
    assert caught.value.code == "worker_unavailable"
    assert "no torch for you" in caught.value.message


OLD_DRIVER = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 12040)."
    " Please update your GPU driver. (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)"
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedTorch:
    """A machine whose torch is scripted; its driver is an ``nvidia-smi`` on the path."""
    scripted = ScriptedTorch(tmp_path / "scripted")
    smi = tmp_path / "scripted" / "nvidia-smi"
    smi.touch(mode=0o755)
    monkeypatch.setenv("PYTHONPATH", str(scripted.folder))
    monkeypatch.setenv("PATH", f"{scripted.folder}:{os.environ['PATH']}")
    return scripted


def test_a_driver_too_old_is_waited_for_in_words_and_then_the_real_model_is_taken(
    root: Path, machine: ScriptedTorch
) -> None:
    machine.shows(warning=OLD_DRIVER)
    kept = Kept()
    choice = models.choose(config(root), kept)
    assert (choice.name, choice.waits) == (ZIMAGE_TURBO, True)
    lost = models.check(choice)
    assert lost is not None and lost.code == "device_lost"
    assert "driver on your system is too old (found version 12040)" in lost.message
    assert "Triggered" not in lost.message
    assert "device: cpu" in lost.remedy
    assert "model_auto" not in kept  # nothing is decided by a fault
    wanted = config(root, devices=["auto"])
    build(wanted, choice, models.probe_devices, Limits()).stop(0)  # nor ends the start
    machine.shows(("NVIDIA GeForce RTX 4090", 8, 9))
    choice._next_look = 0.0
    until(lambda: models.check(choice) is None, what="the card")
    assert choice.checked
    again = models.choose(config(root), kept)
    assert (again.name, again.device, again.waits) == (ZIMAGE_TURBO, "cuda:0", False)
    assert kept["model_auto"]["device"] == "cuda:0"


def test_cards_without_code_in_this_torch_are_left_out_in_words(
    root: Path, machine: ScriptedTorch
) -> None:
    machine.shows(("NVIDIA GeForce GTX 1080", 6, 1), ("NVIDIA GeForce RTX 5090", 12, 0))
    found = models.probe_devices()
    assert found.names == ["cuda:1", "cpu"]
    assert "cuda:0 (NVIDIA GeForce GTX 1080, compute capability 6.1)" in found.unusable
    assert "cu126" in found.unusable
    assert models.choose(config(root), Kept()).device == "cuda:1"
    machine.shows(("NVIDIA GeForce GTX 1080", 6, 1))
    kept = Kept()
    choice = models.choose(config(root), kept)
    assert choice.starter and "GTX 1080" in choice.why
    assert "model_auto" not in kept  # another torch will be another matter


def test_code_runs_on_its_own_generation_and_what_can_be_translated_on_newer_ones(
    machine: ScriptedTorch,
) -> None:
    works = {"7.0": False, "7.5": True, "8.7": True, "8.9": True, "9.0": True,
             "10.3": True, "11.0": False, "12.1": True, "13.0": True}  # fmt: skip
    machine.shows(*((name, *map(int, name.split("."))) for name in works))
    usable = [f"cuda:{number}" for number, good in enumerate(works.values()) if good]
    assert models.probe_devices().names == [*usable, "cpu"]


def test_a_sick_card_costs_itself_alone(machine: ScriptedTorch) -> None:
    machine.shows(("CUDA error: unknown error", None, None), ("NVIDIA L4", 8, 9))
    found = models.probe_devices()
    assert found.names == ["cuda:1", "cpu"]
    assert found.unusable == "cuda:0: CUDA error: unknown error"
    answer = models.describe_devices(memory=True)  # which needs a context, and is refused
    assert answer["cuda"][0].get("free") is None
    assert "cuda:1: CUDA error: all CUDA-capable devices are busy" in answer["unusable"][1]
    machine.shows(("CUDA error: unknown error", None, None))
    assert code_of(models.probe_devices) == "device_lost"


@pytest.mark.parametrize(("gigabytes", "name"), [(16, STARTER), (36, ZIMAGE_TURBO)])
def test_a_small_apple_chip_draws_with_the_starter(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gigabytes: int, name: str
) -> None:
    scripted = ScriptedTorch(tmp_path / "scripted", apple=True, memory=gigabytes * 10**9)
    monkeypatch.setenv("PYTHONPATH", str(scripted.folder))
    choice = models.choose(config(root), Kept())
    assert choice.name == name
    assert ("too few" in choice.why) == (name == STARTER)


@pytest.mark.parametrize(
    ("built_for", "words"), [(None, "built without CUDA"), ("13.0", "shows no card")]
)
def test_no_gpu_is_not_a_decision_for_ever_where_a_driver_is(
    root: Path, machine: ScriptedTorch, built_for: str | None, words: str
) -> None:
    machine.shows(built_for=built_for)
    kept = Kept()
    choice = models.choose(config(root), kept)
    assert choice.starter and words in choice.why and "model_auto" not in kept


def test_a_device_that_is_named_decides_only_while_it_is(root: Path) -> None:
    kept = Kept()
    assert models.choose(config(root, device="cpu"), kept, Broken()).starter
    assert models.choose(config(root), kept, Probe("cuda:0", "cpu")).name == ZIMAGE_TURBO
    assert models.choose(config(root, device="cpu"), kept, Broken()).starter


# -- what it allows


def test_profiles(tmp_path: Path) -> None:
    assert cards.profile_of(ZIMAGE_TURBO) == asdict(catalogue.Profile(guidance=False))
    assert cards.profile_of(STARTER)["max_side"] == 1024
    assert cards.profile_of("owner/other") == asdict(catalogue.Profile()) | {"name": "owner/other"}
    (tmp_path / "mine").mkdir()
    assert cards.profile_of("mine", tmp_path)["native_width"] == 1024
    (tmp_path / "mine" / "profile.json").write_text('{"native_width": 512, "author": "x"}')
    assert cards.profile_of("mine", tmp_path) == asdict(catalogue.Profile()) | {
        "name": "mine",
        "native_width": 512,
    }


@pytest.mark.parametrize(
    ("model", "options", "guided"),
    [
        (ZIMAGE_TURBO, {}, False),
        (ZIMAGE_TURBO, {"guidance": True}, True),
        (STARTER, {}, False),
        ("Tongyi-MAI/Z-Image", {}, True),
        ("Tongyi-MAI/Z-Image", {"guidance": None}, True),
        ("Tongyi-MAI/Z-Image", {"guidance": False}, False),
        ("mine.gguf", {"base": ZIMAGE_TURBO}, False),
        ("mine.gguf", {"base": "Tongyi-MAI/Z-Image"}, True),
        ("mine", {}, True),
    ],
)
def test_whether_a_model_takes_guidance_is_decided_by_its_card(
    root: Path, hub: "LocalHub", model: str, options: dict[str, Any], guided: bool
) -> None:
    hub.commit = PINNED
    weights.pull_model(ZIMAGE_TURBO, hub=hub)
    shutil.copytree(catalogue.locate(ZIMAGE_TURBO) or "", root / "mine")
    plain = config(root, model=model, engine_options=options)
    before = cards.limits_known(plain, None).usual
    # Whatever an engine said that was told otherwise, or was of another version.
    for accepts in (["image", "guidance", "negative_prompt"], ["image"], None):
        said = {before.name: cards.said_by({"accepts": accepts}, before)}
        card = cards.limits_of(cards.profile_of(model, root), plain, model, said).usual
        assert card.accepts == before.accepts
        assert card.takes("guidance") == card.takes("negative_prompt") == guided
        assert Options.of(card.options).guidance is guided  # which its engine goes by


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"max_side": "big"}', '{"guidance": 1}', '{"max_side": true}',
     '{"max_side": 0}', '{"name": 3}', "\xff"],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "profile.json").write_bytes(text.encode("latin-1"))
    assert code_of(lambda: cards.profile_of("mine", tmp_path)) == "model_damaged"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1024, 1024, 9, 2048, 2048 * 2048)),
        ({"default_width": 512}, (512, 1024, 9, 2048, 2048 * 2048)),
        ({"default_steps": 4, "max_side": 4096}, (1024, 1024, 4, 4096, 2048 * 2048)),
        ({"max_side": 512}, (512, 512, 9, 512, 2048 * 2048)),
        ({"max_pixels": 500_000}, (704, 704, 9, 2048, 500_000)),
        ({"max_side": 40}, (32, 32, 9, 40, 2048 * 2048)),
    ],
)
def test_the_settings_win_and_defaults_fit(
    root: Path, settings: dict[str, Any], expected: tuple[int, ...]
) -> None:
    limits = cards.limits_of(asdict(catalogue.Profile()), config(root, **settings)).usual
    assert (
        limits.default_width, limits.default_height, limits.default_steps,
        limits.max_side, limits.max_pixels,
    ) == expected  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"default_width": 100}, {"default_height": 4096}, {"default_steps": 101},
        {"default_width": 2048, "default_height": 2048, "max_pixels": 10_000},
    ],
)  # fmt: skip
def test_defaults_nobody_could_use_are_refused(root: Path, settings: dict[str, Any]) -> None:
    profile = asdict(catalogue.Profile())
    assert code_of(lambda: cards.limits_of(profile, config(root, **settings))) == "bad_config"


# -- where


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder of a diffusers model's shape, with sharded and single weights."""
    folder = tmp_path / "tiny"
    parts = {"transformer": ["diffusers", "X"], "vae": ["diffusers", "Y"]}
    index = {"_class_name": "P", "scheduler": ["diffusers", "S"], "safety": [None, None], **parts}
    small: dict[str, Any] = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": {},
        "transformer/config.json": {"of": "transformer"},
        "vae/config.json": {"of": "vae"},
        "transformer/x.safetensors.index.json": {
            "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}
        },
    }
    for path, value in small.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))
    values = np.linspace(-3, 3, 3000, dtype="<f4").reshape(30, 100)
    save(folder / "transformer/x-1.safetensors", {"a": values})
    save(folder / "transformer/x-2.safetensors", {"b": values[:3], "c": values.astype("<f2")})
    save(folder / "vae/v.safetensors", {"d": values * 2})
    (folder / "README.md").write_text("read me")
    return folder


DTYPES = {"<f4": "F32", "<f2": "F16", "<i8": "I64"}


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        data = values.tobytes()
        header[name] = {
            "dtype": DTYPES[values.dtype.str],
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def load(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    return {
        name: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])])
        for name, e in header.items()
        if name != "__metadata__"
    }


def test_a_folder_below_the_root_or_anywhere_is_found(tiny: Path) -> None:
    assert catalogue.locate("tiny", tiny.parent) == tiny
    assert catalogue.locate(str(tiny)) == tiny
    assert catalogue.locate("tinier", tiny.parent) is None
    assert catalogue.missing_files(tiny) == []


def test_the_starter_is_always_here() -> None:
    assert catalogue.locate(STARTER) == catalogue.present(STARTER) == catalogue.starter_folder()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("model_index.json", "model_index.json"),
        ("transformer/x-2.safetensors", "transformer/x-2.safetensors"),
        ("vae/v.safetensors", "vae/*.safetensors"),
        ("scheduler", "scheduler/"),
    ],
)
def test_what_is_missing_is_named(tiny: Path, gone: str, said: str) -> None:
    path = tiny / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert catalogue.missing_files(tiny) == [said]
    assert catalogue.locate(str(tiny)) is None
    with pytest.raises(SteadyError) as caught:
        catalogue.present(str(tiny))
    assert caught.value.code == "model_missing"
    assert said in caught.value.message


def test_a_missing_hub_model_says_how_to_get_it() -> None:
    with pytest.raises(SteadyError) as caught:
        catalogue.present(ZIMAGE_TURBO)
    assert caught.value.code == "model_missing"
    assert caught.value.remedy == f"Run `steady model pull {ZIMAGE_TURBO}` (33 GB)."
    with pytest.raises(SteadyError) as caught:
        catalogue.present("models/sdxl")
    assert caught.value.remedy == "Bring `models/sdxl` back."


@dataclass(frozen=True)
class HubFile:
    """One file of a hub's repository; ``sha256`` for large files, git's ``sha1`` for small."""

    path: str
    bytes: int
    sha256: str | None
    sha1: str | None


class LocalHub:
    """A hub that keeps its repository in a folder, and fills the cache as the real one does."""

    def __init__(self, source: Path, cache: Path, commit: str = COMMIT) -> None:
        self.source, self.cache, self.commit = source, cache, commit
        self.fetched: list[str] = []
        self.breaks_after: int | None = None
        self.spoils: str | None = None
        self.shares = False  #: as hub 2.4 does: a blob is a link into the whole cache's store
        self.extra: list[HubFile] = []

    def look(self, name: str, revision: str) -> tuple[str, int]:
        return self.commit, sum(f.bytes for f in self.files() if not f.path.endswith(".md"))

    def files(self) -> list[HubFile]:
        found = []
        for path in sorted(p for p in self.source.rglob("*") if p.is_file()):
            data = path.read_bytes()
            large = path.suffix == ".safetensors"
            found.append(
                HubFile(
                    path.relative_to(self.source).as_posix(),
                    len(data),
                    hashlib.sha256(data).hexdigest() if large else None,
                    hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                )
            )
        return found + self.extra

    def download(
        self, name: str, commit: str, patterns: Sequence[str], *, anew: bool = False
    ) -> Path:
        home = self.cache / f"models--{name.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        (home / "blobs").mkdir(parents=True, exist_ok=True)
        for file in self.files():
            link = snapshot / file.path
            if not any(fnmatch(file.path, pattern) for pattern in patterns):
                continue
            if link.exists() and not anew:
                continue
            if self.breaks_after is not None and len(self.fetched) >= self.breaks_after:
                raise OSError("connection reset by peer")
            data = (self.source / file.path).read_bytes()
            if file.path == self.spoils:
                data = data[:-1] + bytes([data[-1] ^ 1])
            blob = home / "blobs" / (file.sha256 or file.sha1 or "")
            for old in (blob, link) if anew else ():
                old.unlink(missing_ok=True)
            if self.shares:
                payload = self.cache / "blobs" / "ab" / hashlib.blake2s(data).hexdigest()
                payload.parent.mkdir(parents=True, exist_ok=True)
                if not blob.exists():
                    blob.symlink_to(payload)
                    payload.write_bytes(data)
            else:
                blob.write_bytes(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
            self.fetched.append(file.path)
        return snapshot


@pytest.fixture
def hub(tiny: Path, hub_home: Path) -> LocalHub:
    return LocalHub(tiny, hub_home)


def test_a_pulled_model_is_found_by_its_name(hub: LocalHub, root: Path) -> None:
    assert catalogue.locate("me/tiny") is None
    told: list[tuple[int, int]] = []
    folder = weights.pull_model("me/tiny", hub=hub, progress=lambda *n: told.append(n))
    assert catalogue.locate("me/tiny") == folder
    assert catalogue.locate(f"me/tiny@{COMMIT}") == folder
    assert catalogue.locate("me/tiny@" + "0" * 40) is None
    assert catalogue.revision_of(folder) == COMMIT
    assert "README.md" not in hub.fetched
    assert all(done <= total for done, total in told)
    here = config(root, model="me/tiny")
    assert cards.where_it_is("me/tiny", here) == str(folder)
    far = config(root, model="me/tiny", executor="ray")  # whose machines have their own cache
    assert cards.where_it_is("me/tiny", far) == "me/tiny"
    assert cards.where_it_is(STARTER, far) == STARTER
    (root / "mine.gguf").touch()
    (root / "half").mkdir()
    for name in ("mine.gguf", "half"):  # a base may lack its transformer
        assert cards.where_it_is(name, far) == str(root / name) == cards.where_it_is(name, here)
    report = weights.verify_model("me/tiny")
    assert (report.by, report.files, report.problems) == ("hub", 8, ())


def test_the_known_model_is_pulled_at_its_pinned_revision(hub: LocalHub) -> None:
    hub.commit = PINNED
    folder = weights.pull_model(hub=hub)
    assert folder.name == PINNED
    assert catalogue.locate(ZIMAGE_TURBO) == folder
    (folder.parent / PINNED).rename(folder.parent / ("1" * 40))
    assert catalogue.locate(ZIMAGE_TURBO) is None  # another revision is another model


@pytest.mark.parametrize("ref", ["../../../../tiny", "", "\xff", "."])
def test_a_hostile_ref_leads_nowhere(hub: LocalHub, ref: str) -> None:
    folder = weights.pull_model("me/tiny", hub=hub)
    (folder.parents[1] / "refs" / "main").write_bytes(ref.encode("latin-1"))
    assert catalogue.locate("me/tiny") is None


def test_a_pull_goes_on_where_it_stopped(hub: LocalHub) -> None:
    hub.breaks_after = 3
    with pytest.raises(SteadyError) as caught:
        weights.pull_model("me/tiny", hub=hub)
    assert caught.value.code == "model_missing"
    assert "connection reset" in caught.value.message
    assert "again" in caught.value.remedy
    assert catalogue.locate("me/tiny") is None
    hub.breaks_after = None
    weights.pull_model("me/tiny", hub=hub)
    assert len(hub.fetched) == len(set(hub.fetched)) == 8
    assert catalogue.locate("me/tiny") is not None


def test_a_damaged_file_is_fetched_anew(hub: LocalHub) -> None:
    folder = weights.pull_model("me/tiny", hub=hub)
    path = (folder / "vae/v.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert weights.verify_model("me/tiny").damaged == ("vae/v.safetensors",)
    weights.pull_model("me/tiny", hub=hub)
    assert hub.fetched.count("vae/v.safetensors") == 2
    assert weights.verify_model("me/tiny").problems == ()


def test_a_download_that_stays_damaged_is_said(hub: LocalHub) -> None:
    hub.spoils = "vae/v.safetensors"
    with pytest.raises(SteadyError) as caught:
        weights.pull_model("me/tiny", hub=hub)
    assert caught.value.code == "model_damaged"
    assert "vae/v.safetensors" in caught.value.message


def test_no_room_is_said_before_anything_is_fetched(hub: LocalHub) -> None:
    hub.extra = [HubFile("big.safetensors", 10**15, "0" * 64, None)]
    assert code_of(lambda: weights.pull_model("me/tiny", hub=hub)) == "disk_full"
    assert hub.fetched == []


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "../up", "/abs/olute", "models/sdxl"])
def test_only_hub_names_are_pulled(name: str, hub: LocalHub) -> None:
    assert code_of(lambda: weights.pull_model(name, hub=hub)) == "model_missing"
    assert hub.fetched == []


def test_pulling_the_starter_needs_no_hub() -> None:
    assert weights.pull_model(STARTER) == catalogue.starter_folder()


# -- the real client against a hub of our own


class HubServer(ThreadingHTTPServer):
    """As much of a hub as the real client asks for: one repository from a folder."""

    daemon_threads = True

    def __init__(self, source: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = LocalHub(source, source)
        self.asked: list[str] = []
        self.halfway = threading.Event()
        self.holds = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class HubHandler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path} {self.headers.get('Range')}")
        files = {file.path: file for file in self.server.hub.files()}
        if path == "/api/models/me/tiny/revision/main":
            told = [{"rfilename": file.path, "size": file.bytes} for file in files.values()]
            self.reply({"id": "me/tiny", "sha": COMMIT, "siblings": told})
        elif path == f"/api/models/me/tiny/tree/{COMMIT}":
            self.reply([self.entry(file) for file in files.values()])
        elif path.startswith(f"/me/tiny/resolve/{COMMIT}/"):
            self.send(files[path.split("/", 5)[5]])
        else:
            self.reply({"error": "not found"}, 404)

    def entry(self, file: HubFile) -> dict[str, Any]:
        lfs = {"oid": file.sha256, "size": file.bytes, "pointerSize": 130}
        small = {"type": "file", "path": file.path, "size": file.bytes, "oid": file.sha1}
        return small | ({"lfs": lfs} if file.sha256 else {})

    def reply(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send(self, file: HubFile) -> None:
        data = (self.server.hub.source / file.path).read_bytes()
        ranged = self.headers.get("Range")
        begin = int(ranged.removeprefix("bytes=").split("-")[0]) if ranged else 0
        self.send_response(206 if ranged else 200)
        self.send_header("ETag", f'"{file.sha256 or file.sha1}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - begin))
        if ranged:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.holds and file.path == "vae/v.safetensors":
            self.wfile.write(data[begin : len(data) // 2])
            self.wfile.flush()
            self.server.halfway.set()
            threading.Event().wait()  # until the client is killed and the test ends
        self.wfile.write(data[begin:])


@pytest.fixture
def hub_server(tiny: Path) -> Iterator[HubServer]:
    server = HubServer(tiny)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pulling(
    server: HubServer, name: str = "me/tiny", *, upscaler: tuple[str, Path] | None = None
) -> subprocess.Popen[bytes]:
    """``upscaler``: the sha256 and the folder of one that ``name`` leads to."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    call = f"pull_model('{name}')"
    if upscaler is not None:
        call = f"pull_upscaler('{name}', '{upscaler[0]}', weights.Path('{upscaler[1]}'))"
    script = f"from watcher.models import weights; print(weights.{call})"
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_real_client_pulls_is_killed_and_goes_on(
    hub_server: HubServer, hub_home: Path, tiny: Path
) -> None:
    hub_server.holds = True
    first = pulling(hub_server)
    assert hub_server.halfway.wait(30)
    home = hub_home / "models--me--tiny"
    snapshot = home / "snapshots" / COMMIT
    until(lambda: list(home.glob("blobs/*.incomplete")), what="a part of the file")
    until(lambda: sum(p.is_symlink() for p in snapshot.rglob("*")) == 7, what="all other files")
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    assert catalogue.locate("me/tiny") is None

    hub_server.holds = False
    hub_server.asked.clear()
    out, err = pulling(hub_server).communicate(timeout=60)
    assert out.decode().strip() == str(catalogue.locate("me/tiny")), err.decode()
    again = [line for line in hub_server.asked if line.startswith("GET /me/")]
    assert not [line for line in again if "x-1" in line], "what was whole came again"
    assert weights.verify_model("me/tiny").problems == ()
    assert (home / "refs" / "main").read_text() == COMMIT
    fetched = [p.name for p in snapshot.rglob("*")]
    assert "README.md" not in fetched

    blob = (snapshot / "vae/v.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    hub_server.asked.clear()
    _, err = pulling(hub_server).communicate(timeout=60)
    assert weights.verify_model("me/tiny").problems == (), err.decode()
    assert len([line for line in hub_server.asked if line.startswith("GET /me/")]) == 1


def test_an_upscaler_is_pulled_by_its_digest_alone(
    hub_server: HubServer, hub_home: Path, tiny: Path, tmp_path: Path
) -> None:
    folder, data = tmp_path / "upscalers", (tiny / "vae" / "v.safetensors").read_bytes()
    digest, name = hashlib.sha256(data).hexdigest(), "me/tiny/vae/v.safetensors"
    _, err = pulling(hub_server, name, upscaler=("0" * 64, folder)).communicate(timeout=60)
    assert f"its sha256 is {digest}" in err.decode() and not folder.exists()
    out, err = pulling(hub_server, name, upscaler=(digest, folder)).communicate(timeout=60)
    assert out.decode().strip() == str(folder / "v.safetensors"), err.decode()
    assert [path.name for path in folder.iterdir()] == ["v.safetensors"]
    assert (folder / "v.safetensors").read_bytes() == data
    for wrong in (
        "v.safetensors",
        "me/tiny/v.pth",
        "me/tiny/../v.safetensors",
        "../a/v.safetensors",
    ):
        assert code_of(lambda wrong=wrong: weights.pull_upscaler(wrong, digest, folder)) == (  # type: ignore[misc]
            "model_missing"
        )


def test_a_hub_that_is_not_there_is_said_in_words(hub_server: HubServer) -> None:
    hub_server.server_close()
    _, err = pulling(hub_server).communicate(timeout=60)
    last = err.decode().strip().splitlines()[-1]
    assert "Trouble" in last and "did not finish" in last


def test_a_model_the_hub_does_not_know_is_said_in_words(hub_server: HubServer) -> None:
    _, err = pulling(hub_server, "me/other").communicate(timeout=60)
    last = err.decode().strip().splitlines()[-1]
    assert "Trouble" in last and "did not finish" in last


# -- checking


def test_every_spoiled_byte_is_found_by_the_names_in_the_cache(hub: LocalHub) -> None:
    folder = weights.pull_model("me/tiny", hub=hub)
    for path in weights.files_of(folder):
        blob = (folder / path).resolve()
        good = blob.read_bytes()
        for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good + b"x", b""):
            blob.write_bytes(bad)
            report = weights.verify_model(folder)
            assert report.damaged == (path,)
            assert path in report.problems[0]
        blob.write_bytes(good)
    (folder / "vae/v.safetensors").resolve().unlink()  # a link that leads nowhere
    assert weights.verify_model(folder).problems == ("vae/*.safetensors is missing.",)
    assert catalogue.locate("me/tiny") is None


def test_a_store_that_models_share_is_verified_and_repaired(hub: LocalHub) -> None:
    hub.shares = True
    folder = weights.pull_model("me/tiny", hub=hub)
    report = weights.verify_model("me/tiny")
    assert (report.by, report.problems) == ("hub", ())
    path = (folder / "vae/v.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert weights.verify_model("me/tiny").damaged == ("vae/v.safetensors",)
    weights.pull_model("me/tiny", hub=hub)
    assert weights.verify_model("me/tiny").problems == ()


def test_of_a_bare_folder_the_outlines_are_checked(tiny: Path) -> None:
    report = weights.verify_model("tiny", tiny.parent)
    assert (report.by, report.problems) == ("sizes", ())
    path = tiny / "vae" / "v.safetensors"
    good = path.read_bytes()
    for bad in (good[:-1], good + b"x", b"", b"\xff" * 20, good[:6], struct.pack("<Q", 2) + b"[]"):
        path.write_bytes(bad)
        assert weights.verify_model(tiny).damaged == ("vae/v.safetensors",)
    assert code_of(lambda: weights.verify_model("me/nothing")) == "model_missing"


def test_a_model_in_one_file_is_checked_as_one(tiny: Path) -> None:
    report = weights.verify_model("tiny/vae/v.safetensors", tiny.parent)
    assert (report.by, report.files, report.problems) == ("sizes", 1, ())
    path = tiny / "vae" / "v.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert weights.verify_model(str(path)).damaged == ("v.safetensors",)
    assert code_of(lambda: convert_model(str(path), tiny / "half")) == "bad_request"


def test_the_shipped_model_is_whole() -> None:
    assert weights.verify_model(STARTER).problems == ()


@pytest.fixture
def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """What `steady model list` says of each model, by name."""

    def ask() -> dict[str, Any]:
        list_models(Desk(root, as_json=True))
        return {one["name"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}

    return ask


def test_models_are_listed_with_their_state(
    hub: LocalHub, root: Path, listed: Callable[[], dict[str, Any]]
) -> None:
    hub.commit = PINNED
    (root / "config.yaml").touch()
    before = listed()
    assert before[STARTER]["ready"] and before[STARTER]["folder"] == str(catalogue.starter_folder())
    assert before[ZIMAGE_TURBO]["folder"] is None and not before[ZIMAGE_TURBO]["ready"]
    assert before[ZIMAGE_TURBO]["bytes"] == 32_900_000_000
    folder = weights.pull_model(hub=hub)
    with contextlib.closing(JobStore(config(root).database_url)) as store:
        models.choose(config(root), store, Probe("cuda:0"))
    after = listed()
    assert after[ZIMAGE_TURBO]["folder"] == str(folder)
    assert after[ZIMAGE_TURBO]["revision"] == PINNED
    assert after[ZIMAGE_TURBO]["ready"] and after[ZIMAGE_TURBO]["usual"]
    assert not after[STARTER]["usual"]


def test_every_name_of_the_settings_is_listed_for_what_it_is(
    tiny: Path,
    root: Path,
    listed: Callable[[], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(tiny / "vae/v.safetensors", root / "one.safetensors")
    (root / "config.yaml").write_text(
        "model: mine\n"
        "models:\n"
        "  mine: {source: starter}\n"
        "  single: {source: one.safetensors, options: {base: starter}}\n"
        "  apart: {source: one.safetensors, options: {base: me/base}}\n"
        "  gone: {source: models/sdxl}\n"
        "  far: {source: gpt-image-1, engine: openai}\n"
    )
    told = listed()
    assert told["mine"]["usual"] and told["mine"]["folder"] == str(catalogue.starter_folder())
    assert told["single"]["ready"] and told["single"]["folder"] == str(root / "one.safetensors")
    assert told["single"]["bytes"] == (root / "one.safetensors").stat().st_size
    assert told["apart"]["remedy"] == "Run `steady model pull me/base`."
    assert told["gone"]["remedy"] == "Bring `models/sdxl` back."
    assert told["far"]["ready"] and told["far"]["folder"] is None
    assert verify(Desk(root), "mine") == verify(Desk(root), "single") == 0
    pull(Desk(root), "mine")
    assert str(catalogue.starter_folder()) in capsys.readouterr().out


# -- converting


def test_a_converted_model_is_smaller_whole_and_found(tiny: Path, tmp_path: Path) -> None:
    (tiny / "profile.json").write_text('{"max_side": 512}')
    target = tmp_path / "half"
    told: list[tuple[int, int]] = []
    assert convert_model(str(tiny), target, progress=lambda *n: told.append(n)) == target
    assert told[-1][0] == told[-1][1]
    assert catalogue.locate(str(target)) == target
    report = weights.verify_model(target)
    assert (report.by, report.problems) == ("manifest", ())
    assert cards.profile_of(str(target))["max_side"] == 512
    assert catalogue.revision_of(target) == "unknown-bfloat16"
    for name in ("transformer/x-1", "transformer/x-2", "vae/v"):
        before, after = load(tiny / f"{name}.safetensors"), load(target / f"{name}.safetensors")
        assert before.keys() == after.keys()
        for tensor, (dtype, shape, data) in before.items():
            expected = (dtype, shape, data)
            if dtype == "F32":
                theirs = torch.frombuffer(bytearray(data), dtype=torch.float32).to(torch.bfloat16)
                expected = ("BF16", shape, theirs.view(torch.uint8).numpy().tobytes())
            assert after[tensor] == expected
    assert not target.with_name("half.part").exists()


def test_converting_over_something_or_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    assert code_of(lambda: convert_model(str(tiny), tmp_path / "there")) == "bad_request"
    assert (tmp_path / "there").read_text() == "mine"
    assert code_of(lambda: convert_model("me/nothing", tmp_path / "x")) == "model_missing"


def test_a_conversion_that_was_cut_off_is_begun_anew(tiny: Path, tmp_path: Path) -> None:
    part = tmp_path / "half.part"
    part.mkdir()
    (part / "stale").write_text("stale")
    target = convert_model(str(tiny), tmp_path / "half")
    assert not (target / "stale").exists()
    assert weights.verify_model(target).problems == ()


def test_a_torn_weight_file_is_not_converted(tiny: Path, tmp_path: Path) -> None:
    path = tiny / "vae" / "v.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert code_of(lambda: convert_model(str(tiny), tmp_path / "half")) == "model_damaged"
    assert not (tmp_path / "half").exists()


def test_asking_where_a_model_lies_imports_nothing_heavy() -> None:
    script = (
        "import sys; from watcher import models; from watcher.models import catalogue, weights; catalogue.locate('starter');"
        "print([m for m in ('torch', 'numpy', 'huggingface_hub', 'PIL') if m in sys.modules])"
    )
    home = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=os.environ | {"PYTHONPATH": home}
    )
    assert done.stdout.decode().strip() == "[]"


def test_a_choice_says_little_in_the_log() -> None:
    choice = Choice("a", "b", "cpu", {}, "why", False)
    assert "_looking" not in repr(choice)
