"""Tiny pipelines of other families, with random weights, made from their configurations alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.logging import disable_progress_bar
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

STARTER = Path(__file__).parent.parent / "starter" / "model"


def _tokens(most: int) -> Any:
    """The starter's tokenizer, as short as the family's own."""
    found = AutoTokenizer.from_pretrained(STARTER / "tokenizer", local_files_only=True)
    found.model_max_length = most
    return found


def _clip(kind: Any, words: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=32, intermediate_size=37, num_attention_heads=4,
        num_hidden_layers=2, projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    return kind(config)


def _t5(words: int) -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=words, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    )


def _vae(channels: int, width: int = 32) -> Any:
    two = 2 if width > 4 else 1
    return AutoencoderKL(
        block_out_channels=[width * (n + 1) for n in range(two)], latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * two, up_block_types=["UpDecoderBlock2D"] * two,
        layers_per_block=1, norm_num_groups=1, sample_size=32, shift_factor=0.06,
        scaling_factor=1.5, use_quant_conv=channels == 4, use_post_quant_conv=channels == 4,
    )  # fmt: skip


def sdxl() -> DiffusionPipeline:
    tokens = _tokens(77)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=_clip(CLIPTextModel, len(tokens)), unet=unet, tokenizer=tokens,
        text_encoder_2=_clip(CLIPTextModelWithProjection, len(tokens)), tokenizer_2=tokens,
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


def sd3() -> DiffusionPipeline:
    tokens = _tokens(77)
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
        pooled_projection_dim=64, out_channels=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(16),
        text_encoder=_clip(CLIPTextModelWithProjection, len(tokens)), tokenizer=tokens,
        text_encoder_2=_clip(CLIPTextModelWithProjection, len(tokens)), tokenizer_2=tokens,
        text_encoder_3=_t5(len(tokens)), tokenizer_3=tokens,
    )  # fmt: skip


def flux() -> DiffusionPipeline:
    tokens = _tokens(77)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(1, 4),
        text_encoder=_clip(CLIPTextModel, len(tokens)), tokenizer=tokens,
        text_encoder_2=_t5(len(tokens)), tokenizer_2=tokens,
    )  # fmt: skip


def qwen() -> DiffusionPipeline:
    tokens = _tokens(1024)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokens),
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16,
        },
        hidden_size=16, vocab_size=len(tokens),
        vision_start_token_id=1, vision_end_token_id=2, vision_token_id=3, image_token_id=4,
        video_token_id=5,
    )  # fmt: skip
    return QwenImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config), tokenizer=tokens,
    )  # fmt: skip


def pixart() -> DiffusionPipeline:
    """A family whose pipeline tells nobody of its steps."""
    tokens = _tokens(77)
    transformer = PixArtTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, out_channels=8, num_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_channels=32, cross_attention_dim=16,
        use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        transformer=transformer, scheduler=DPMSolverMultistepScheduler(), vae=_vae(4),
        text_encoder=_t5(len(tokens)), tokenizer=tokens,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sdxl": sdxl, "sd3": sd3, "flux": flux, "qwen": qwen,
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """The tiny pipeline of a family as a model's folder; the same weights each time."""
    torch.manual_seed(0)
    disable_progress_bar()
    FAMILIES.get(name, pixart)().save_pretrained(folder)
    return folder
