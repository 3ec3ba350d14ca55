"""The paper's projector has rivals, which the ablations compare with it.

linear         one linear layer, shared by images and clips: LLaVA-1
per-modality   an `mlp2x_gelu` for images, another for clips: what alignment before projection should spare
resampler      learned queries read any number of features: InstructBLIP's Q-Former, mPLUG-Owl's abstractor
pooling        clips averaged over patches and over frames, then `mlp2x_gelu`: Video-ChatGPT
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from minivllava.data.batching import batched_by_shape
from minivllava.models.layers import MLP, Attention

QUERY_LAYERS = 2  # of the resampler; the Q-Former has 12, mPLUG-Owl's abstractor 6


class LinearProjector(nn.Linear):
    """One linear layer, shared by both modalities. (..., d of the encoders) -> (..., d of the language model)."""

    def tokens(self, visuals: Sequence[Tensor]) -> Tensor:
        """Each feature becomes one token."""
        return self(torch.cat(list(visuals)))


class ModalityProjector(nn.Module):
    """A projector for images and another for clips.

    A visual of as many features as one image has is an image; a clip of a single frame counts as one.
    """

    def __init__(self, image: nn.Module, video: nn.Module, image_features: int):
        super().__init__()
        self.image, self.video = image, video
        self.image_features = image_features

    def tokens(self, visuals: Sequence[Tensor]) -> Tensor:
        """Each feature becomes one token, through its own modality's projector."""
        features = torch.cat(list(visuals))
        lengths = torch.tensor([len(visual) for visual in visuals], device=features.device)
        is_image = (lengths == self.image_features).repeat_interleave(lengths)
        # both always run, if on nothing: processes that train together need the same gradients
        image, video = self.image(features[is_image]), self.video(features[~is_image])
        tokens = image.new_empty(len(features), image.shape[-1])
        tokens[is_image], tokens[~is_image] = image, video
        return tokens


class QueryLayer(nn.Module):
    """Queries attend to each other, then to the features, then through an MLP; pre-LN. (b, s, d) -> (b, s, d)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.mlp = MLP(width, 4 * width, "gelu")

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        queries = queries + self.self_attention(self.self_norm(queries))
        queries = queries + self.cross_attention(self.cross_norm(queries), features)
        return queries + self.mlp(self.mlp_norm(queries))


class Resampler(nn.Module):
    """A fixed number of learned queries reads each image or clip as a whole, whatever its length.

    Differences from InstructBLIP's Q-Former: no text among the queries, no pre-training of its own. From
    mPLUG-Owl's abstractor: queries also attend to each other. Places and times of features are what the
    encoders' own position embeddings left in them.
    """

    def __init__(self, visual_width: int, language_width: int, heads: int, queries: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, visual_width) * visual_width**-0.5)
        self.feature_norm = nn.LayerNorm(visual_width)
        self.layers = nn.ModuleList(QueryLayer(visual_width, heads) for _ in range(QUERY_LAYERS))
        self.norm = nn.LayerNorm(visual_width)
        self.output = nn.Linear(visual_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        """(b, n, d of the encoders) -> (b, s, d of the language model), s learned queries."""
        features = self.feature_norm(features)
        x = repeat(self.queries, "s d -> b s d", b=len(features))
        for layer in self.layers:
            x = layer(x, features)
        return self.output(self.norm(x))

    def tokens(self, visuals: Sequence[Tensor]) -> Tensor:
        """Every visual becomes as many tokens as there are queries; visuals of one length run as one batch."""
        if not any(len(features) for features in visuals):  # text alone: no token, but a gradient of zero
            return rearrange(self(visuals[0][None].new_zeros(0, 1, visuals[0].shape[-1])), "b s d -> (b s) d")
        return torch.cat(batched_by_shape(visuals, self, alike=len))


def pool_clip(features: Tensor) -> Tensor:
    """A clip's features averaged over patches, then over frames: (b, t, n, d) -> (b, t + n, d).

    Video-ChatGPT's spatial and temporal pooling (arXiv 2306.05424, section 3.1): t tokens say what each moment
    holds, n tokens what each place holds, and none what was where when.
    """
    return torch.cat([features.mean(2), features.mean(1)], dim=1)
