"""Z-Image beside Turbo: guidance where the model takes it, and transformers in one file."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from watcher.engine import EngineRequest, EngineSettings, ModelMissing
from watcher.engines.zimage import ZImage
from watcher.errors import SteadyError

STARTER = Path(__file__).parents[2] / "starter" / "model"
WEIGHTS = STARTER / "transformer" / "diffusion_pytorch_model.safetensors"


def ask(**more: Any) -> EngineRequest:
    asked: dict[str, Any] = {
        "prompt": "a red circle",
        "width": 64,
        "height": 64,
        "num_inference_steps": 5,
        "seed": 5,
    }
    return EngineRequest(**asked | more)


def nothing(done: int, total: int, preview: object = None) -> None:
    """A step nobody watches."""


def loaded(model: Path = STARTER, **options: Any) -> ZImage:
    engine = ZImage(EngineSettings(str(model), "cpu", options={"warm_up": False, **options}))
    engine.load()
    return engine


def bare(guidance: float, negative: str | None, folder: Path = STARTER) -> np.ndarray[Any, Any]:
    """diffusers' own pipeline, called as its users call it."""
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator("cpu").manual_seed(5)
    return np.asarray(
        pipe(
            "a red circle", width=64, height=64, num_inference_steps=4, guidance_scale=guidance,
            negative_prompt=negative, generator=seed,
        ).images[0]
    )  # fmt: skip


def test_guidance_and_negative_prompt_are_honoured_where_the_model_takes_them(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"  # as a fine-tune of one's own: no profile, another shift
    shutil.copytree(STARTER, base, ignore=shutil.ignore_patterns("profile.json", "manifest.json"))
    scheduler = base / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"shift": 3.0', '"shift": 6.0'))
    engine = loaded(base)
    plain = engine.generate(ask(), nothing)
    assert np.array_equal(np.asarray(plain.image), bare(0.0, None, base))
    assert not np.array_equal(np.asarray(plain.image), bare(0.0, None))  # its own shift
    assert (plain.facts["cfg_scale"], plain.facts["forwards"]) == (1, 4)
    for negative in (None, "blue"):
        guided = engine.generate(ask(guidance_scale=2.0, negative_prompt=negative), nothing)
        assert np.array_equal(np.asarray(guided.image), bare(2.0, negative, base))
        assert (guided.facts["cfg_scale"], guided.facts["forwards"]) == (3, 4)
    unguided = engine.generate(ask(guidance_scale=0.0, negative_prompt="blue"), nothing)
    assert unguided.image.tobytes() == plain.image.tobytes()
    assert unguided.facts["cfg_scale"] == 1
    without = loaded(base, guidance=False).generate(ask(guidance_scale=2.0), nothing)
    assert without.image.tobytes() == plain.image.tobytes()


# -- one file


def original() -> dict[str, torch.Tensor]:
    """The starter's transformer under the names that single files of this family use."""
    tensors = {}
    for name, weight in load_file(WEIGHTS).items():
        for ours, theirs in (
            ("all_final_layer.2-1.", "final_layer."),
            ("all_x_embedder.2-1.", "x_embedder."),
            (".to_out.0.", ".out."),
            (".norm_q.", ".q_norm."),
            (".norm_k.", ".k_norm."),
        ):
            name = name.replace(ours, theirs)
        tensors[f"model.diffusion_model.{name}"] = weight
    for name in [n for n in tensors if ".to_q." in n]:
        parts = [tensors.pop(name.replace(".to_q.", f".to_{x}.")) for x in "qkv"]
        tensors[name.replace(".to_q.", ".qkv.")] = torch.cat(parts)
    return tensors


def written(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, path)
    return path


def gguf(path: Path, tensors: dict[str, torch.Tensor], *, small: bool) -> Path:
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    writer = GGUFWriter(path, "lumina2")
    for name, weight in tensors.items():
        kind = GGMLQuantizationType.F32
        if small and name.endswith(".weight") and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            kind = GGMLQuantizationType.Q8_0
        data = quantize(weight.float().numpy(), kind)
        writer.add_tensor(name.removeprefix("model.diffusion_model."), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def want() -> Any:
    return loaded().generate(ask(), nothing)


@pytest.mark.parametrize("way", ["model", "option"])
def test_a_transformer_in_one_file_draws_what_its_folder_draws(
    tmp_path: Path, want: Any, way: str
) -> None:
    file = written(tmp_path / "ours-v2.safetensors", original())
    shared = tmp_path / "shared"  # the encoder and the VAE, without a transformer's weights
    shutil.copytree(STARTER, shared, ignore=shutil.ignore_patterns(WEIGHTS.name, "manifest.json"))
    shutil.copytree(STARTER / "vae", shared / "vae", dirs_exist_ok=True)
    if way == "model":
        engine = ZImage(EngineSettings(str(file), "cpu", options={"base": str(shared)}))
    else:
        engine = ZImage(EngineSettings(str(shared), "cpu", options={"transformer": str(file)}))
    info = engine.load()
    assert (info.model, info.revision and info.revision[:7]) == ("ours-v2", "sha256:")
    assert engine.generate(ask(), nothing).image.tobytes() == want.image.tobytes()


def test_gguf_draws(tmp_path: Path, want: Any) -> None:
    exact = np.asarray(want.image).astype(int)
    for small, off in ((False, 0.01), (True, 4)):
        file = gguf(tmp_path / f"{small}.gguf", original(), small=small)
        engine = ZImage(EngineSettings(str(file), "cpu", options={"base": str(STARTER)}))
        engine.load()  # and drew twice the same
        drawn = np.asarray(engine.generate(ask(), nothing).image).astype(int)
        assert (np.abs(drawn - exact).mean() < off) and (
            small == (not np.array_equal(drawn, exact))
        )


def _less(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(n for n in tensors if n.endswith("qkv.weight"))]


def _more(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.0.feed_forward.w1.scale_weight"] = torch.ones(1)  # of a scaled fp8 file


def _renamed(tensors: dict[str, torch.Tensor]) -> None:
    name = next(n for n in tensors if n.endswith("qkv.weight"))
    tensors["something.else"] = tensors.pop(name)


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    for weight in tensors.values():
        weight.fill_(float("nan"))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_less, "model_damaged", "it holds"),
        (_more, "model_damaged", "it holds"),
        (_renamed, "model_damaged", "lacks weights"),
        (_nan, "model_unfit", "cannot compute here"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None], code: str, words: str
) -> None:
    tensors = original()
    spoil(tensors)
    file = written(tmp_path / "x.safetensors", tensors)
    with pytest.raises(SteadyError, match=words) as caught:
        loaded(file, base=str(STARTER), warm_up=True)
    assert caught.value.code == code
    assert str(tmp_path) not in str(caught.value)


def test_files_and_options_that_cannot_be(tmp_path: Path) -> None:
    file = written(tmp_path / "x.safetensors", original())
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (file, {}, "needs the engine option `base`"),
        (STARTER, {"base": str(STARTER)}, "`base` belongs to"),
        (STARTER, {"transformer": 3}, "`transformer`: it must be text"),
    ]
    for model, options, words in cases:
        with pytest.raises(SteadyError, match=words):
            loaded(model, **options)
    with pytest.raises(ModelMissing, match=r"gone\.safetensors is not there"):
        loaded(tmp_path / "gone.safetensors", base=str(STARTER))
    for torn in (file.read_bytes()[:-1], b"GGUF", b""):
        for name in ("x.safetensors", "x.gguf"):
            (tmp_path / name).write_bytes(torn)
            with pytest.raises(SteadyError) as caught:
                loaded(tmp_path / name, base=str(STARTER))
            assert caught.value.code == "model_damaged", (name, torn[:8])
