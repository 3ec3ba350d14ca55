"""The language model: a LLaMA decoder (RMSNorm, rotary positions, SwiGLU, grouped-query attention, KV cache).

Rotary positions rotate the two *halves* of a head against each other, as in the Hugging Face code that
Vicuna's weights are stored for; the LLaMA paper rotates neighbouring pairs.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minivllava.config import LanguageConfig, RopeScaling
from minivllava.models.layers import attention_weights


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis; the mean is computed in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel there; on a CPU it is made of more operations than the lines below
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(norm.new_tensor(self.eps), norm, norm, value=1 / x.shape[-1]).rsqrt()
        return (x * scale).to(x.dtype) * self.weight


def rotary_angles(
    positions: Tensor, head_width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, for `rotate`. positions (b, s) -> two (b, 1, s, e).

    The sines that a head's first half is multiplied with come negated: that is the rotation's minus sign.
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions.float()[..., None] * scaled_frequencies(1.0 / theta**exponents, scaling)  # b s e/2
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling | None) -> Tensor:
    """The rotary frequencies of a model with a longer context than it was pre-trained with: (e/2,) -> (e/2,)."""
    if scaling is None:
        return frequencies
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed
    turns = scaling.original_context * frequencies / (2 * math.pi)  # within the context of pre-training
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return torch.lerp(slowed, frequencies, ((turns - low) / (high - low)).clamp(0, 1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head's two halves against each other by its position's angle. (b, k, s, e)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos.to(x.dtype), torch.cat([second, first], dim=-1), sin.to(x.dtype))


class LayerCache(NamedTuple):
    """What one layer needs of the cache in one forward pass."""

    keys: Tensor  # (b, k, s, e), of the positions that attention reads
    values: Tensor
    places: slice | Tensor  # where the new positions go: the same in all rows, or (b, k, s, e)
    mask: Tensor | None  # added to scores, 0 or -inf, (b, 1, s, s); None: each sees itself and all before it

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values (b, k, s, e); returns all there are to attend to."""
        for stored, new in ((self.keys, key), (self.values, value)):
            if isinstance(self.places, slice):
                stored[:, :, self.places] = new
            else:
                stored.scatter_(2, self.places, new)
        return self.keys, self.values


@dataclass
class KVCache:
    """Keys and values of every layer for positions 0 .. size - 1, written in place.

    Each row of a batch writes at its own positions, so conversations of different lengths decode together.
    """

    keys: Tensor  # (layer, b, k, s, e)
    values: Tensor
    angles: tuple[Tensor, Tensor]  # cos and sin of every position, (s, e) each
    used: int = 0  # positions 0 .. used - 1 may hold something; attention reads no further

    @classmethod
    def empty(cls, config: LanguageConfig, batch: int, size: int, like: Tensor) -> "KVCache":
        head_width = config.width // config.heads
        shape = (config.layers, batch, config.kv_heads, size, head_width)
        positions = torch.arange(size, device=like.device)[None]
        angles = rotary_angles(positions, head_width, config.rope_theta, config.rope_scaling)
        return cls(like.new_zeros(shape), like.new_zeros(shape), tuple(table.to(like)[0, 0] for table in angles))

    @property
    def size(self) -> int:
        return self.keys.shape[3]

    def first(self, size: int) -> "KVCache":
        """The same memory up to position size - 1, read as a whole: every step then has the same shapes, and nobody
        has to ask the device how far the cache is filled."""
        return KVCache(self.keys[:, :, :, :size], self.values[:, :, :, :size], self.angles, used=size)

    def angles_at(self, positions: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions (b, s), or of 0 .. length - 1, for `rotate`: (b or 1, 1, s, e) each, looked up."""
        if positions is None:
            return tuple(table[None, None, :length] for table in self.angles)
        return tuple(table[positions[:, None]] for table in self.angles)

    def begin(self, positions: Tensor | None, length: int) -> list[LayerCache]:
        """Each layer's share, for new positions (b, s); None: `length` of them from 0 on, as if it was empty."""
        places, mask = slice(0, length), None
        if positions is None:
            self.used = length
        elif self._appends(positions):
            places = slice(self.used - 1, self.used)
        else:
            places = positions[:, None, :, None].expand(-1, self.keys.shape[2], -1, self.keys.shape[4])
            unseen = torch.arange(self.used, device=positions.device) > positions[:, None, :, None]
            mask = self.keys.new_zeros(unseen.shape).masked_fill_(unseen, float("-inf"))
        layers = (stored[:, :, :, : self.used].unbind() for stored in (self.keys, self.values))
        return [LayerCache(keys, values, places, mask) for keys, values in zip(*layers, strict=True)]

    def _appends(self, positions: Tensor) -> bool:
        """Notes how far the cache is filled; whether the positions are one in each row, at the end of all rows."""
        if self.used == self.size:
            return False
        first, last = (int(position) for position in positions.aminmax())
        self.used = max(self.used, last + 1)
        return positions.shape[1] == 1 and first == self.used - 1


class CausalAttention(nn.Module):
    """Grouped-query self-attention with rotary positions, no biases. ((b s), d) -> ((b s), d).

    cos, sin: of the s positions, (b, 1, s, e) or (1, 1, s, e).
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        head_width = config.width // config.heads
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.kv_heads * head_width, bias=False)
        self.value = nn.Linear(config.width, config.kv_heads * head_width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def split(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, values: (b, k, s, e) each, k = kv_heads for the last two."""
        heads = self.heads + self.kv_heads
        joint = torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)
        joint = rearrange(joint, "(b s) (k e) -> b k s e", s=cos.shape[2], k=heads + self.kv_heads)
        turned, value = joint.split([heads, self.kv_heads], dim=1)
        query, key = rotate(turned, cos, sin).split([self.heads, self.kv_heads], dim=1)
        return query, key, value

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None) -> Tensor:
        query, key, value = self.split(x, cos, sin)
        mask = None
        if cache is not None:
            key, value = cache.update(key, value)
            mask = cache.mask
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None and query.shape[2] > 1,
            enable_gqa=self.kv_heads < self.heads,
        )  # fmt: skip
        return self.output(rearrange(mixed, "b k s e -> (b s) (k e)"))

    def weights(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The attention pattern, for looking inside. ((b s), d) -> (b, k, s, s); rows sum to 1."""
        query, key, _ = self.split(x, cos, sin)
        key = repeat(key, "b k s e -> b (k group) s e", group=self.heads // self.kv_heads)
        return attention_weights(query, key, causal=True)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases. (..., d) -> (..., d)."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). ((b s), d) -> ((b s), d)."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = CausalAttention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return x + self.mlp(self.mlp_norm(x))


@functools.cache
def compiled_layer() -> Callable:
    """`DecoderLayer.forward` through torch.compile; all layers share what is compiled for a shape."""
    # the tuning pays for products with a single row, which then read their weights at the memory's full speed
    return torch.compile(DecoderLayer.forward, options={"coordinate_descent_tuning": True})


class LanguageModel(nn.Module):
    """Embeddings (b, s, d) -> hidden states (b, s, d); `head` turns those into logits (b, s, v).

    Without a cache, attention is causal over the s positions, so right-padding needs no mask: no real token
    can see it. With a cache, a query at position p sees what its row has stored at positions 0 .. p.

    recomputed_layers: in training, the first so many layers keep none of their activations; the backward pass
    computes them again (activation checkpointing). All but the layers' inputs is saved: 7B then trains in the
    memory of its weights, gradients and optimiser, for a third more arithmetic. Gradients stay the same.
    """

    recomputed_layers = 0

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.initialise()
        self.tie()

    def tie(self):
        """Lets the head share the token embedding's weights, where the config asks for it."""
        if self.config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    @property
    def tied(self) -> dict[str, str]:
        """Names of weights that are another's, and that other: a head that shares the token embedding's."""
        return {"head.weight": "token_embedding.weight"} if self.config.tie_embeddings else {}

    def initialise(self):
        """Normal weights of deviation sqrt(2 / 5d); those that write into the residual stream are smaller,
        so that its variance stays near one through all layers (GPT-2's rule)."""
        deviation = (2 / (5 * self.config.width)) ** 0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                into_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
                depth = (2 * self.config.layers) ** 0.5 if into_residual else 1.0
                nn.init.normal_(weight, std=deviation / depth)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, s) -> embeddings (b, s, d)."""
        return self.token_embedding(ids)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        attention: list[Tensor] | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Hidden states after the last norm, (b, s, d).

        positions (b, s) default to 0 .. s - 1. A list given as `attention` receives every layer's pattern,
        (b, k, s, s). compiled: runs layers that torch.compile has made, one for all of the same shapes.
        """
        length = embeddings.shape[1]
        if cache is not None:
            caches = cache.begin(positions, length)
            cos, sin = cache.angles_at(positions, length)
        else:
            caches = [None] * len(self.layers)
            if positions is None:
                positions = torch.arange(length, device=embeddings.device)[None]
            head_width = self.config.width // self.config.heads
            angles = rotary_angles(positions, head_width, self.config.rope_theta, self.config.rope_scaling)
            cos, sin = (values.to(embeddings.dtype) for values in angles)
        recomputed = self.recomputed_layers if torch.is_grad_enabled() and cache is None else 0
        run = compiled_layer() if compiled else DecoderLayer.__call__
        x = rearrange(embeddings, "b s d -> (b s) d")  # to all but attention, each token is alone
        for number, (layer, layer_cache) in enumerate(zip(self.layers, caches, strict=True)):
            if attention is not None:
                attention.append(layer.attention.weights(layer.attention_norm(x), cos, sin))
            if number < recomputed:
                x = checkpoint(run, layer, x, cos, sin, use_reentrant=False)
            else:
                x = run(layer, x, cos, sin, layer_cache)
        return rearrange(self.norm(x), "(b s) d -> b s d", s=length)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., v)."""
        return self.head(hidden)

    def new_cache(self, batch: int, size: int, like: Tensor) -> KVCache:
        """An empty cache of `batch` rows and positions 0 .. size - 1, of the dtype and on the device of `like`."""
        return KVCache.empty(self.config, batch, size, like)

    @classmethod
    def from_pretrained(cls, path, **options) -> "LanguageModel":
        """Loads a checkpoint folder or hub id; its tokenizer is in `.tokenizer`. See `checkpoint.load_language`."""
        from minivllava.models.checkpoint import load_language

        model, tokenizer = load_language(path, **options)
        model.tokenizer = tokenizer
        return model
