"""The text encoder (CLIP's): causal pre-LN transformer, pooled at the end-of-text token."""

import torch
from torch import Tensor, nn

from minivllava.config import TextConfig
from minivllava.models.layers import EncoderLayer


class TextEncoder(nn.Module):
    """Token ids (b, s), right-padded -> pooled (b, d).

    The end-of-text token is the largest id of its row, as in CLIP; padding must have a smaller one.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Parameter(torch.empty(config.context, config.width))
        nn.init.normal_(self.position, std=0.01)
        self.layers = nn.ModuleList(EncoderLayer(config, causal=True) for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width, config.norm_eps)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        ends = ids.argmax(1)
        return self.post_norm(x)[torch.arange(len(ids), device=ids.device), ends]
