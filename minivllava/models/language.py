"""The language model: a LLaMA decoder (RMSNorm, rotary positions, SwiGLU, grouped-query attention, KV cache).

Rotary positions rotate the two *halves* of a head against each other, as in the Hugging Face code that
Vicuna's weights are stored for; the LLaMA paper rotates neighbouring pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minivllava.config import LanguageConfig
from minivllava.models.layers import attention_weights


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis; computed in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_angles(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles. positions (b, s) -> two (b, 1, s, e)."""
    exponents = torch.arange(0, head_width, 2, device=positions.device).float() / head_width
    angles = positions.float()[..., None] / theta**exponents  # b s e/2
    angles = repeat(angles, "b s e -> b 1 s (two e)", two=2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head's two halves against each other by its position's angle. (b, k, s, e)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


@dataclass
class KVCache:
    """Keys and values of every layer for positions 0 .. size - 1, written in place.

    Each row of a batch writes at its own positions, so conversations of different lengths decode together.
    """

    keys: Tensor  # (layer, b, k, s, e)
    values: Tensor
    used: int = 0  # positions that any row has written

    @classmethod
    def empty(cls, config: LanguageConfig, batch: int, size: int, like: Tensor) -> "KVCache":
        shape = (config.layers, batch, config.kv_heads, size, config.width // config.heads)
        return cls(like.new_zeros(shape), like.new_zeros(shape))

    def update(self, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (b, k, s, e) at positions (b, s); returns all that is stored, (b, k, used, e)."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self.keys[layer][rows, :, positions] = rearrange(key, "b k s e -> b s k e")
        self.values[layer][rows, :, positions] = rearrange(value, "b k s e -> b s k e")
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]


class CausalAttention(nn.Module):
    """Grouped-query self-attention with rotary positions, no biases. (b, s, d) -> (b, s, d)."""

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
        query = rearrange(self.query(x), "b s (k e) -> b k s e", k=self.heads)
        key = rearrange(self.key(x), "b s (k e) -> b k s e", k=self.kv_heads)
        value = rearrange(self.value(x), "b s (k e) -> b k s e", k=self.kv_heads)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def forward(self, x, cos, sin, positions: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        query, key, value = self.split(x, cos, sin)
        mask = None
        if cache is not None:
            key, value = cache.update(layer, positions, key, value)
            seen = torch.arange(cache.used, device=x.device)
            mask = seen <= positions[:, None, :, None]  # b 1 s used
        grouped = self.kv_heads < self.heads
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=cache is None, enable_gqa=grouped
        )
        return self.output(rearrange(mixed, "b k s e -> b s (k e)"))

    def weights(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The attention pattern, for looking inside. (b, s, d) -> (b, k, s, s); rows sum to 1."""
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
    """x + attention(norm(x)), then x + mlp(norm(x)). (b, s, d) -> (b, s, d)."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = CausalAttention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, cos, sin, positions, cache, layer) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, positions, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """Embeddings (b, s, d) -> hidden states (b, s, d); `head` turns those into logits (b, s, v).

    Without a cache, attention is causal over the s positions, so right-padding needs no mask: no real token
    can see it. With a cache, a query at position p sees what its row has stored at positions 0 .. p.
    """

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
    ) -> Tensor:
        """Hidden states after the last norm, (b, s, d).

        positions (b, s) default to 0 .. s - 1. A list given as `attention` receives every layer's pattern,
        (b, k, s, s).
        """
        batch, length = embeddings.shape[:2]
        if positions is None:
            positions = repeat(torch.arange(length, device=embeddings.device), "s -> b s", b=batch)
        if cache is not None:
            cache.used = max(cache.used, int(positions.max()) + 1)
        head_width = self.config.width // self.config.heads
        cos, sin = rotary_angles(positions, head_width, self.config.rope_theta)
        x = embeddings
        for number, layer in enumerate(self.layers):
            if attention is not None:
                attention.append(layer.attention.weights(layer.attention_norm(x), cos, sin))
            x = layer(x, cos, sin, positions, cache, number)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., v)."""
        return self.head(hidden)
