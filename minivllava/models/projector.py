"""The shared projector, `mlp2x_gelu`: visual features become tokens of the language model (section 3.1)."""

from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, GELU, linear. (..., d of the encoders) -> (..., d of the language model).

    One module for pictures and clips: since both encoders were bound to one language space before,
    it has one kind of feature to translate. That is the paper's title.
    """

    def __init__(self, visual_width: int, language_width: int):
        super().__init__()
        self.linear1 = nn.Linear(visual_width, language_width)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(language_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear2(self.gelu(self.linear1(features)))
