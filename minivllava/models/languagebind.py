"""LanguageBind: encoders of several modalities, each bound to one language space by contrast (section 3.1).

Image and text learn together first; every further modality is then bound to the frozen text encoder.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from minivllava.config import TextConfig, VisionConfig, VisionTowerConfig
from minivllava.fields import check_range, check_types
from minivllava.models.encoders import build_encoder
from minivllava.models.text import TextEncoder

MAX_LOGIT_SCALE = math.log(100)  # CLIP's bound of the temperature


@dataclass(frozen=True)
class LanguageBindConfig:
    """Which modalities are bound, the text encoder that binds them, and the width of the joint space."""

    encoders: dict[str, VisionConfig | VisionTowerConfig]
    text: TextConfig
    embed_dim: int

    def __post_init__(self):
        check_types(self)
        check_range(self, 1, math.inf, "embed_dim")


class LanguageBind(nn.Module):
    """`encoders[modality]`, their projections into the joint space, and the text encoder."""

    def __init__(self, config: LanguageBindConfig):
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(
            {name: build_encoder(c, clips=name == "video") for name, c in config.encoders.items()}
        )
        self.projections = nn.ModuleDict(
            {name: nn.Linear(c.width, config.embed_dim, bias=False) for name, c in config.encoders.items()}
        )
        self.text_encoder = TextEncoder(config.text)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed(self, modality: str, pixels: Tensor) -> Tensor:
        """Unit vectors of images (b, c, h, w) or clips (b, t, c, h, w): (b, embed_dim)."""
        return F.normalize(self.projections[modality](self.encoders[modality](pixels).pooled), dim=-1)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit vectors of texts (b, s), right-padded, each ending in the end-of-text token: (b, embed_dim)."""
        return F.normalize(self.text_projection(self.text_encoder(ids)), dim=-1)

    def forward(self, modality: str, pixels: Tensor, ids: Tensor) -> Tensor:
        """The contrastive loss of b pairs, a scalar."""
        if self.training:
            # OpenCLIP bounds the parameter itself after each step: a bound in the loss alone would have no
            # gradient above it, and a temperature that once passed it could never come back
            with torch.no_grad():
                self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return info_nce(self.embed(modality, pixels), self.embed_text(ids), self.logit_scale)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = "cpu", dtype: torch.dtype | str = torch.float32
    ) -> "LanguageBind":
        """Loads a checkpoint folder or hub id, of this project or of LanguageBind; its tokenizer is in `.tokenizer`.

        See `minivllava.checkpoints.loading.load_languagebind`.
        """
        from minivllava.checkpoints.loading import load_languagebind

        model, tokenizer = load_languagebind(path, device, dtype)
        model.tokenizer = tokenizer
        return model


def info_nce(visual: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of b pairs of unit vectors (b, d): each must find its partner among b, both ways.

    Scores are cosines times exp(logit_scale), one over the temperature. Returns the mean of both cross-entropies.
    With several processes each scores its own b rows against all processes' columns (LanguageBind's
    `gather_with_grad` and `local_loss`), so the mean over processes is the loss of the whole batch.
    """
    all_visual, all_text, first = visual, text, 0
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        all_visual, all_text = (torch.cat(all_gather(x)) for x in (visual, text))
        first = dist.get_rank() * len(visual)
    scale = logit_scale.exp()
    partner = torch.arange(first, first + len(visual), device=visual.device)
    to_text = F.cross_entropy(scale * visual @ all_text.T, partner)
    to_visual = F.cross_entropy(scale * text @ all_visual.T, partner)
    return (to_text + to_visual) / 2
