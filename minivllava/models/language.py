"""The language model: a LLaMA decoder (RMSNorm, rotary positions, SwiGLU, grouped-query attention, KV cache)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minivllava.config import CausalLMConfig, LanguageConfig
from minivllava.models import compiled_layers
from minivllava.models.kv_cache import KVCache, LayerCache
from minivllava.models.layers import attention_weights
from minivllava.models.rotary import rotary_angles, rotate
from minivllava.models.transformers_language import TransformersLanguageModel


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


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

    def queries_keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, values: (b, k, s, e) each, k = kv_heads for the last two."""
        split, length = "(b s) (k e) -> b k s e", cos.shape[2]
        query = rearrange(self.query(x), split, s=length, k=self.heads)
        key = rearrange(self.key(x), split, s=length, k=self.kv_heads)
        value = rearrange(self.value(x), split, s=length, k=self.kv_heads)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None) -> Tensor:
        query, key, value = self.queries_keys_values(x, cos, sin)
        mask, causal = None, True
        if cache is not None:
            key, value = cache.update(key, value)
            mask, causal = cache.mask, cache.causal
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=self.kv_heads < self.heads
        )
        return self.output(rearrange(mixed, "b k s e -> (b s) (k e)"))

    def weights(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The attention pattern, for looking inside. ((b s), d) -> (b, k, s, s); rows sum to 1."""
        query, key, _ = self.queries_keys_values(x, cos, sin)
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

    @property
    def tied(self) -> dict[str, str]:
        """Weights that are other weights under a second name, as {name: first name}: a head, the token embedding."""
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
        on_attention: Callable[[Tensor], None] | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Hidden states after the last norm, (b, s, d).

        positions (b, s) default to 0 .. s - 1. cache: of earlier positions. on_attention receives each layer's
        pattern, (b, k, s, s), from the first layer on, and is for passes without a cache. compiled: runs layers through
        torch.compile; all that have the same shapes share what is compiled.
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
        x = rearrange(embeddings, "b s d -> (b s) d")  # to all but attention, each token is alone
        layers = self.layers
        if compiled and on_attention is None:
            run = compiled_layers.compiled(compiled_layers.one_token if length == 1 else compiled_layers.prompt)
            layers = [partial(run, layer) for layer in self.layers]
        for layer, layer_cache in zip(layers, caches, strict=True):
            if on_attention is not None:
                on_attention(layer.attention.weights(layer.attention_norm(x), cos, sin))
            x = layer(x, cos, sin, layer_cache)
        return rearrange(self.norm(x), "(b s) d -> b s d", s=length)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., v)."""
        return self.head(hidden)

    def new_cache(self, batch: int, size: int, like: Tensor) -> KVCache:
        """An empty cache of `batch` rows and positions 0 .. size - 1, of the dtype and on the device of `like`."""
        return KVCache.empty(self.config, batch, size, like)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
    ) -> "LanguageModel":
        """Loads a checkpoint folder or hub id; its tokenizer is in `.tokenizer`. See `load_language`."""
        from minivllava.checkpoints.loading import load_language

        model, tokenizer = load_language(path, device, dtype)
        model.tokenizer = tokenizer
        return model


def build_language_model(config: LanguageConfig | CausalLMConfig) -> LanguageModel | TransformersLanguageModel:
    """The language model that a config describes: ours, or one of `transformers`."""
    return TransformersLanguageModel(config) if isinstance(config, CausalLMConfig) else LanguageModel(config)
