"""From visual features to tokens of the language model: the paper's projector, one for images and clips (section 3.1).

Every projector has `tokens`: the features of several images and clips, a list of (n, d of the encoders), to the
visual tokens of all of them, in order, (all tokens, d of the language model).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minivllava.config import ModelConfig
from minivllava.models.projector_variants import LinearProjector, ModalityProjector, Resampler


class Projector(nn.Module):
    """Linear, GELU, linear. (..., d of the encoders) -> (..., d of the language model).

    One module for images and clips: since both encoders were bound to one language space before,
    it has one kind of feature to translate. That is the paper's title.
    """

    def __init__(self, visual_width: int, language_width: int):
        super().__init__()
        self.linear1 = nn.Linear(visual_width, language_width)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(language_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear2(self.gelu(self.linear1(features)))

    def tokens(self, visuals: Sequence[Tensor]) -> Tensor:
        """Each feature becomes one token."""
        return self(torch.cat(list(visuals)))


def build_projector(config: ModelConfig) -> nn.Module:
    """The projector that a config names."""
    widths = config.image.width, config.language.width
    if config.projector == "linear":
        return LinearProjector(*widths)
    if config.projector == "per-modality":
        return ModalityProjector(Projector(*widths), Projector(*widths), config.image.patches + config.keep_cls_image)
    if config.projector == "resampler":
        return Resampler(*widths, config.image.heads, config.projector_queries)
    return Projector(*widths)  # "mlp", and "pooling", which shortens clips before
