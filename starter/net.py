"""The transformer's forward for training: whole batches, one size, no lists, no masks.

The library's forward takes lists of pictures and captions of any size and pads them. A training
batch has one size and captions padded to one length, so the same computation can run on plain
tensors. `forward_batch` does it with the model's own modules; called with `library_block` it gives
the very bits of the library's forward (a test holds them equal). `fast_block` is the same block
written for `torch.compile`: real rotary numbers and plain matrix products, equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = "2-1"  #: The one patch size of the model, in the library's naming.
CAPTION_MULTIPLE = 32  #: Captions are padded to a multiple of this many tokens.

#: Whether this processor multiplies bfloat16 itself; others do it twenty times slower than float32.
HALF = bool(torch.cpu._is_avx512_bf16_supported())

Block = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]


def patchify(latents: Tensor) -> Tensor:
    """Latents [batch, channels, height, width] to patches [batch, height * width / 4, 4 * channels]."""
    batch, channels, height, width = latents.shape
    grid = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, height * width // 4, 4 * channels)


def unpatchify(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `patchify`; `height` and `width` in latent pixels."""
    batch = patches.shape[0]
    grid = patches.view(batch, height // 2, width // 2, 2, 2, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


def library_block(block: Any, x: Tensor, freqs: Tensor, modulation: Tensor | None) -> Tensor:
    """Run a block as the library does."""
    result: Tensor = block(x, None, freqs, modulation)
    return result


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of channels: x [batch, tokens, heads, channels], cos and sin [1, tokens, 1, channels / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).type_as(x)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _fast_block(
    block: Any, x: Tensor, cos: Tensor, sin: Tensor, modulation: Tensor | None
) -> Tensor:
    attn, feed = block.attention, block.feed_forward
    heads = attn.heads
    if modulation is None:
        scale_a: Any = 1.0
        gate_a: Any = 1.0
        scale_f: Any = 1.0
        gate_f: Any = 1.0
    else:
        mod = block.adaLN_modulation(modulation).float().unsqueeze(1)
        scale_a, gate_a, scale_f, gate_f = mod.chunk(4, dim=2)
        scale_a, gate_a, scale_f, gate_f = (
            1.0 + scale_a,
            gate_a.tanh(),
            1.0 + scale_f,
            gate_f.tanh(),
        )
    inner = _rms(x, block.attention_norm1.weight, block.attention_norm1.eps) * scale_a
    weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
    query, key, value = F.linear(inner, weight).unflatten(-1, (3, heads, -1)).unbind(2)
    query = _rotate(_rms(query, attn.norm_q.weight, attn.norm_q.eps), cos, sin)
    key = _rotate(_rms(key, attn.norm_k.weight, attn.norm_k.eps), cos, sin)
    scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
    share = (scores.float() * query.shape[-1] ** -0.5).softmax(-1)
    mixed = (share @ value.transpose(1, 2).type_as(share)).transpose(1, 2).flatten(2)
    out = attn.to_out[0](mixed)
    x = x + gate_a * _rms(out, block.attention_norm2.weight, block.attention_norm2.eps)
    inner = _rms(x, block.ffn_norm1.weight, block.ffn_norm1.eps) * scale_f
    hidden = F.silu(feed.w1(inner)) * feed.w3(inner)
    return x + gate_f * _rms(feed.w2(hidden), block.ffn_norm2.weight, block.ffn_norm2.eps)


class FastBlocks:
    """`fast_block`, compiled once per shape where `compiled` is set."""

    def __init__(self, compiled: bool = True) -> None:
        # Sizes, long captions, with and without gradients: more shapes than the default allows.
        torch._dynamo.config.recompile_limit = 96
        self._run: Any = torch.compile(_fast_block, dynamic=False) if compiled else _fast_block

    def __call__(self, block: Any, x: Tensor, freqs: Tensor, modulation: Tensor | None) -> Tensor:
        cos, sin = freqs.real[:1, :, None].contiguous(), freqs.imag[:1, :, None].contiguous()
        result: Tensor = self._run(block, x, cos, sin, modulation)
        return result


def _positions(
    model: Any, caption: int, rows: int, columns: int, padded: int
) -> tuple[Tensor, Tensor]:
    """Rotary numbers of the picture's and the caption's tokens, complex [tokens, channels / 2]."""
    grid = model.create_coordinate_grid((1, rows, columns), (caption + 1, 0, 0)).flatten(0, 2)
    filler = torch.zeros(padded - rows * columns, 3, dtype=grid.dtype)
    words = model.create_coordinate_grid((caption, 1, 1), (1, 0, 0)).flatten(0, 2)
    return model.rope_embedder(torch.cat([grid, filler])), model.rope_embedder(words)


def forward_batch(
    model: Any,
    latents: Tensor,
    times: Tensor,
    features: Tensor,
    lengths: Tensor,
    block: Block = library_block,
    taps: dict[int, Tensor] | None = None,
) -> Tensor:
    """One forward of the transformer on a batch of one size.

    Args:
        model: a `ZImageTransformer2DModel` with one patch size.
        latents: noisy latents [batch, channels, height, width]; height and width even.
        times: the model's time, 1 - sigma, in [batch], 0 (all noise) to 1.
        features: the text encoder's features [batch, tokens, width], tokens a multiple of 32.
        lengths: how many tokens of each caption are real, int [batch].
        block: how one block runs.
        taps: where given, receives the picture's tokens [batch, tokens, dim] after the blocks of
            the main stack whose numbers are its keys.

    Returns:
        The predicted velocity (picture minus noise), of the shape of `latents`.
    """
    batch, _, height, width = latents.shape
    rows, columns, caption = height // 2, width // 2, features.shape[1]
    real = rows * columns
    padded = -(-real // CAPTION_MULTIPLE) * CAPTION_MULTIPLE
    modulation = model.t_embedder(times * model.t_scale).type_as(latents)
    picture_freqs, word_freqs = _positions(model, caption, rows, columns, padded)

    x = model.all_x_embedder[PATCH](patchify(latents))
    if padded > real:
        x = torch.cat([x, model.x_pad_token.expand(batch, padded - real, -1).type_as(x)], dim=1)
    freqs = picture_freqs.expand(batch, -1, -1)
    for layer in model.noise_refiner:
        x = block(layer, x, freqs, modulation)

    words = model.cap_embedder(features)
    absent = torch.arange(caption)[None, :] >= lengths[:, None]
    words = torch.where(absent[..., None], model.cap_pad_token.type_as(words), words)
    freqs = word_freqs.expand(batch, -1, -1)
    for layer in model.context_refiner:
        words = block(layer, words, freqs, None)

    x = torch.cat([x, words.type_as(x)], dim=1)
    freqs = torch.cat([picture_freqs, word_freqs]).expand(batch, -1, -1)
    for number, layer in enumerate(model.layers):
        x = block(layer, x, freqs, modulation)
        if taps is not None and number in taps:
            taps[number] = x[:, :real]
    x = model.all_final_layer[PATCH](x, c=modulation)
    return unpatchify(x[:, :real], height, width)


def grow(model: Any, layers: int) -> Any:
    """A deeper copy of a transformer that computes the same: the new blocks' gates are shut.

    Args:
        model: a `ZImageTransformer2DModel`.
        layers: how many main blocks the copy has, at least as many as `model`.
    """
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    deeper = type(model)(**{**config, "n_layers": layers})
    old = list(model.layers)
    # New blocks stand spread between the old ones, so that each has trained neighbours.
    kept = [round(k * (layers - 1) / (len(old) - 1)) for k in range(len(old))]
    deeper.load_state_dict(model.state_dict(), strict=False)
    for number, layer in enumerate(deeper.layers):
        if number in kept:
            layer.load_state_dict(old[kept.index(number)].state_dict())
        else:
            near = old[min(range(len(old)), key=lambda k: abs(kept[k] - number))]
            layer.load_state_dict(near.state_dict())
            nn.init.zeros_(layer.adaLN_modulation[0].weight)
            nn.init.zeros_(layer.adaLN_modulation[0].bias)
    return deeper


def initialise(model: Any) -> None:
    """Give an untrained transformer the start that was found to train fast, in place."""
    for layer in [*model.noise_refiner, *model.layers]:
        linear = layer.adaLN_modulation[0]
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        with torch.no_grad():
            # Chunks are scale, gate, scale, gate: gates a little open, scales at one.
            dim = layer.dim
            linear.bias[dim : 2 * dim] = 0.3
            linear.bias[3 * dim :] = 0.3
    final = model.all_final_layer[PATCH]
    for linear in (final.linear, final.adaLN_modulation[1]):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(model.x_pad_token, std=0.02)
    nn.init.normal_(model.cap_pad_token, std=0.02)
