"""The transformer layer that the image, video and text encoders share: pre-LN, with biases, as in CLIP.

Differences from the textbook: none. The language model has its own layers (`language.py`: RMSNorm,
rotary positions, SwiGLU).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's approximation of GELU; the Hugging Face port of Video-LLaVA runs it."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Attention(nn.Module):
    """Multi-head attention with biases. (b, n, d) -> (b, n, d).

    Each position of x attends to all of x, or, given a context (b, s, d), to all of that: cross-attention.
    """

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        split = "b n (k e) -> b k n e"
        query = rearrange(self.query(x), split, k=self.heads)
        key = rearrange(self.key(context), split, k=self.heads)
        value = rearrange(self.value(context), split, k=self.heads)
        # scores are divided by the square root of the head width e
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(rearrange(mixed, "b k n e -> b n (k e)"))

    def weights(self, x: Tensor) -> Tensor:
        """The attention pattern itself, for looking inside. (b, n, d) -> (b, k, n, n); rows sum to 1."""
        query = rearrange(self.query(x), "b n (k e) -> b k n e", k=self.heads)
        key = rearrange(self.key(x), "b n (k e) -> b k n e", k=self.heads)
        return attention_weights(query, key, causal=self.causal)


def attention_weights(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(e)), spelt out. (b, k, s, e) x 2 -> (b, k, s, s)."""
    scores = query @ rearrange(key, "b k s e -> b k e s") / query.shape[-1] ** 0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1)


class MLP(nn.Module):
    """Two linear layers around an activation. (..., d) -> (..., d)."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). (b, n, d) -> (b, n, d)."""

    def __init__(self, config, causal: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config.width, config.heads, causal)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
