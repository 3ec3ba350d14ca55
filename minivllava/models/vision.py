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

from minivllava.config import VisionConfig, check_same_vit
from minivllava.models.layers import Attention, EncoderLayer


class VisionOutput(NamedTuple):
    """What an encoder returns: one vector per image or clip, and everything in between."""

    pooled: Tensor  # (b, d): CLS of the last layer after post_norm; for clips the mean over frames
    hidden: list[Tensor]  # 1 + layers tensors, (b, n, d) for images, (b, t, n, d) for clips


class PatchEmbedding(nn.Module):
    """Cuts frames into patches, embeds each, prepends CLS, adds positions. (b, c, h, w) -> (b, n, d)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.projection = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.cls = nn.Parameter(torch.empty(config.width))
        self.position = nn.Parameter(torch.empty(1 + config.grid**2, config.width))
        nn.init.normal_(self.cls, std=config.width**-0.5)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = rearrange(self.projection(pixels), "b d h w -> b (h w) d")
        cls = repeat(self.cls, "d -> b 1 d", b=len(patches))
        return torch.cat([cls, patches], dim=1) + self.position


class ImageEncoder(nn.Module):
    """Pre-LN ViT. pixels (b, c, h, w), normalised -> VisionOutput with hidden states (b, n, d).

    layers: stop after this many of them; what is pooled is then the last one's.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.embedding = PatchEmbedding(config)
        self.pre_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(self.build_layer(config) for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width, config.norm_eps)

    def build_layer(self, config: VisionConfig) -> EncoderLayer:
        return EncoderLayer(config)

    def embed(self, pixels: Tensor, frames: int = 1) -> Tensor:
        """What the first layer reads. ((b t), c, h, w) -> ((b t), n, d), with t = `frames`."""
        x = self.embedding(pixels)
        if self.training and self.config.patch_dropout:
            x = drop_patches(x, frames, self.config.patch_dropout)
        return self.pre_norm(x)

    def forward(self, pixels: Tensor, layers: int | None = None) -> VisionOutput:
        x = self.embed(pixels)
        hidden = [x]
        for layer in self.layers[:layers]:
            x = layer(x)
            hidden.append(x)
        return VisionOutput(self.post_norm(x[:, 0]), hidden)

    @torch.no_grad()
    def features(self, pixels: Tensor, layer: int = -2, keep_cls: bool = False) -> Tensor:
        """Frozen patch features for the projector: (b, c, h, w) -> (b, n, d); of clips (b, t, c, h, w) -> (b, t, n, d).

        layer: which of the 1 + layers hidden states, from the end where it is negative; later layers do not run.
        """
        layers = layer if layer >= 0 else 1 + len(self.layers) + layer
        hidden = self(pixels, layers).hidden[-1]
        return hidden if keep_cls else hidden[..., 1:, :]


class TemporalPart(nn.Module):
    """What a layer over time has before its spatial half. A mixin: `build_temporal` makes its parameters."""

    def build_temporal(self, config: VisionConfig, norm_eps: float):
        self.temporal_embedding = nn.Parameter(torch.empty(1, config.frames, config.width))
        nn.init.normal_(self.temporal_embedding, std=config.width**-0.5)
        self.temporal_norm = nn.LayerNorm(config.width, norm_eps)
        self.temporal_attention = Attention(config.width, config.heads)

    def over_time(self, x: Tensor, frames: int) -> Tensor:
        """Each position attends over the t frames; residual. ((b t), n, d) -> the same."""
        positions = x.shape[1]
        x = rearrange(x, "(b t) n d -> (b n) t d", t=frames)
        if frames > 1:  # as in the original, an image has none
            x = x + self.interpolated_embedding(frames)
        x = x + self.temporal_attention(self.temporal_norm(x))
        return rearrange(x, "(b n) t d -> (b t) n d", n=positions)

    def interpolated_embedding(self, frames: int) -> Tensor:
        """The temporal embedding at `frames` evenly spaced moments: (1, t, d). Exact at its own length."""
        if frames == self.temporal_embedding.shape[1]:
            return self.temporal_embedding
        channels_first = rearrange(self.temporal_embedding, "1 t d -> 1 d t")
        resized = F.interpolate(channels_first, size=frames, mode="linear", align_corners=True)
        return rearrange(resized, "1 d t -> 1 t d")


class VideoEncoderLayer(EncoderLayer, TemporalPart):
    """Temporal attention at every position, then the image layer on every frame. ((b t), n, d) -> the same."""

    def __init__(self, config: VisionConfig):
        super().__init__(config)
        self.build_temporal(config, config.norm_eps)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return super().forward(self.over_time(x, frames))


class VideoEncoder(ImageEncoder):
    """The ViT with temporal attention. pixels (b, t, c, h, w) -> hidden states (b, t, n, d), any t >= 1.

    Without `config.temporal` it sees each frame for itself, as the port to `transformers` does.
    """

    def build_layer(self, config: VisionConfig) -> EncoderLayer:
        return VideoEncoderLayer(config) if config.temporal else EncoderLayer(config)

    def forward(self, pixels: Tensor, layers: int | None = None) -> VisionOutput:
        clips, frames = pixels.shape[:2]
        x = self.embed(rearrange(pixels, "b t c h w -> (b t) c h w"), frames)
        hidden = [x]
        for layer in self.layers[:layers]:
            x = layer(x, frames) if self.config.temporal else layer(x)
            hidden.append(x)
        hidden = [rearrange(x, "(b t) n d -> b t n d", b=clips) for x in hidden]
        # pooled: the CLS of each frame, after post_norm, averaged over frames
        return VisionOutput(self.post_norm(hidden[-1][:, :, 0]).mean(1), hidden)

    @classmethod
    def from_image_encoder(cls, config: VisionConfig, image_encoder: ImageEncoder) -> "VideoEncoder":
        """A video encoder whose spatial weights are the image encoder's, and whose temporal attention and
        norm, where it has them, start as copies of each layer's spatial ones (LanguageBind, appendix B).

        Raises ConfigError unless both are the same ViT.
        """
        check_same_vit(image_encoder.config, config)
        video_encoder = cls(config)
        video_encoder.load_state_dict(image_encoder.state_dict(), strict=not config.temporal)
        for layer in video_encoder.layers if config.temporal else ():
            layer.temporal_attention = copy.deepcopy(layer.attention)
            layer.temporal_norm = copy.deepcopy(layer.norm1)
        return video_encoder

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that binding a video encoder trains: all that the image encoder lacks. The released encoders
        trained CLS and post_norm, too."""
        return [p for name, p in self.named_parameters() if "temporal" in name]


def drop_patches(x: Tensor, frames: int, share: float) -> Tensor:
    """Hides a random `share` of the patches, the same ones in all frames of a clip; CLS stays.

    ((b t), n, d) -> ((b t), fewer, d). Draws from torch's global generator. LanguageBind's token masking.
    """
    patches = x.shape[1] - 1
    kept = max(1, round(patches * (1 - share)))
    noise = torch.randn(len(x) // frames, patches, device=x.device)
    return keep_patches(x, repeat(noise.topk(kept).indices, "b n -> (b t) n", t=frames))


def keep_patches(x: Tensor, chosen: Tensor) -> Tensor:
    """CLS and the chosen patches of each image, in the order of choice. (b, 1 + n, d), (b, m) -> (b, 1 + m, d)."""
    return torch.cat([x[:, :1], x[:, 1:].gather(1, repeat(chosen, "b m -> b m d", d=x.shape[-1]))], dim=1)
