"""The image encoder and the video encoder (the paper's section 3.1; LanguageBind's section 3).

    pixels -> patch embedding + CLS + positions -> pre_norm -> layers -> hidden states
                                                                     -> post_norm(CLS) = pooled

The video encoder is the same ViT. In every layer, before the spatial attention, each of the n positions
(CLS too) first attends over the t frames:

    x = x + temporal_embedding            (t, d), written into the residual stream
    x = x + temporal_attention(temporal_norm(x))
    x = x + attention(norm1(x))           from here on as in the image encoder, frame by frame
    x = x + mlp(norm2(x))

Differences from the original code: any number of frames runs (its reshape fixes 8), by interpolating the
temporal embedding; there is no random flip.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minivllava.config import VisionConfig
from minivllava.models.layers import Attention, EncoderLayer


class VisionOutput(NamedTuple):
    """What an encoder returns: one vector per picture or clip, and everything in between."""

    pooled: Tensor  # (b, d): CLS of the last layer after post_norm; for clips the mean over frames
    hidden: list[Tensor]  # 1 + layers tensors, (b, n, d) for pictures, (b, t, n, d) for clips


class PatchEmbedding(nn.Module):
    """Cuts frames into patches, embeds each, prepends CLS, adds positions. (b, c, h, w) -> (b, n, d)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.projection = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.cls = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.position = nn.Parameter(torch.randn(1 + config.grid**2, config.width) * 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = rearrange(self.projection(pixels), "b d h w -> b (h w) d")
        cls = repeat(self.cls, "d -> b 1 d", b=len(patches))
        return torch.cat([cls, patches], dim=1) + self.position


class ImageEncoder(nn.Module):
    """Pre-LN ViT. pixels (b, c, h, w), normalised -> VisionOutput with hidden states (b, n, d)."""

    layer_type = EncoderLayer

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.embedding = PatchEmbedding(config)
        self.pre_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(self.layer_type(config) for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, pixels: Tensor) -> VisionOutput:
        hidden = [self.pre_norm(self.embedding(pixels))]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return VisionOutput(self.post_norm(hidden[-1][:, 0]), hidden)

    @torch.no_grad()
    def features(self, pixels: Tensor, layer: int = -2, keep_cls: bool = False) -> Tensor:
        """Frozen patch features for the projector: (b, c, h, w) -> (b, n, d). Section 1.3 of PAPER."""
        hidden = self(pixels).hidden[layer]
        return hidden if keep_cls else hidden[:, 1:]


class VideoEncoderLayer(EncoderLayer):
    """Temporal attention over t for every position, then the spatial layer. ((b t), n, d) -> the same."""

    def __init__(self, config: VisionConfig):
        super().__init__(config)
        self.temporal_embedding = nn.Parameter(torch.randn(1, config.frames, config.width) * config.width**-0.5)
        self.temporal_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.temporal_attention = Attention(config.width, config.heads)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        positions = x.shape[1]
        x = rearrange(x, "(b t) n d -> (b n) t d", t=frames)
        if frames > 1:
            x = x + self.interpolated_embedding(frames)
        x = x + self.temporal_attention(self.temporal_norm(x))
        x = rearrange(x, "(b n) t d -> (b t) n d", n=positions)
        return super().forward(x)

    def interpolated_embedding(self, frames: int) -> Tensor:
        """The temporal embedding at `frames` evenly spaced moments: (1, t, d). Exact at its own length."""
        if frames == self.temporal_embedding.shape[1]:
            return self.temporal_embedding
        channels_first = rearrange(self.temporal_embedding, "1 t d -> 1 d t")
        resized = F.interpolate(channels_first, size=frames, mode="linear", align_corners=True)
        return rearrange(resized, "1 d t -> 1 t d")


class VideoEncoder(ImageEncoder):
    """The ViT with temporal attention. pixels (b, t, c, h, w) -> hidden states (b, t, n, d), any t >= 1."""

    layer_type = VideoEncoderLayer

    def forward(self, pixels: Tensor) -> VisionOutput:
        clips, frames = pixels.shape[:2]
        x = self.embedding(rearrange(pixels, "b t c h w -> (b t) c h w"))
        if self.training and self.config.patch_dropout:
            x = drop_patches(x, frames, self.config.patch_dropout)
        hidden = [self.pre_norm(x)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], frames))
        hidden = [rearrange(x, "(b t) n d -> b t n d", b=clips) for x in hidden]
        # not `post_norm(...).mean(1)` on hidden states of the middle: the original pools the last CLS only
        return VisionOutput(self.post_norm(hidden[-1][:, :, 0]).mean(1), hidden)

    @torch.no_grad()
    def features(self, pixels: Tensor, layer: int = -2, keep_cls: bool = False) -> Tensor:
        """Frozen patch features for the projector: (b, t, c, h, w) -> (b, t, n, d)."""
        hidden = self(pixels).hidden[layer]
        return hidden if keep_cls else hidden[:, :, 1:]

    @classmethod
    def from_image_encoder(cls, config: VisionConfig, image_encoder: ImageEncoder) -> "VideoEncoder":
        """A video encoder whose spatial weights are the image encoder's, and whose temporal attention and
        norm start as copies of each layer's spatial ones (LanguageBind, appendix B)."""
        video_encoder = cls(config)
        video_encoder.load_state_dict(image_encoder.state_dict(), strict=False)
        for layer in video_encoder.layers:
            layer.temporal_attention = copy.deepcopy(layer.attention)
            layer.temporal_norm = copy.deepcopy(layer.norm1)
        return video_encoder

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that binding a video encoder trains: all that the image encoder lacks."""
        return [p for name, p in self.named_parameters() if "temporal" in name]


def drop_patches(x: Tensor, frames: int, share: float) -> Tensor:
    """Hides a random `share` of the patches, the same ones in all frames of a clip; CLS stays.

    ((b t), n, d) -> ((b t), fewer, d). Draws from torch's global generator. LanguageBind's token masking.
    """
    patches = x.shape[1] - 1
    kept = max(1, round(patches * (1 - share)))
    noise = torch.randn(len(x) // frames, patches, device=x.device)
    chosen = repeat(noise.topk(kept).indices, "b n -> (b t) n d", t=frames, d=x.shape[-1])
    return torch.cat([x[:, :1], x[:, 1:].gather(1, chosen)], dim=1)
