"""A CLIP or SigLIP vision tower of `transformers` in the place of our image encoder or video encoder."""

import torch
from einops import rearrange
from torch import Tensor, nn

from minivllava.config import VisionTowerConfig, check_same_vit
from minivllava.errors import ConfigError, short_reason
from minivllava.models.transformers_language import built
from minivllava.models.vision import TemporalPart, VisionOutput


class VisionTower(nn.Module):
    """A CLIP or SigLIP vision tower, for images (b, c, h, w) and for clips (b, t, c, h, w).

    Clips go through frame by frame; with `config.temporal`, our temporal attention comes before each layer, as
    in `VideoEncoder`. SigLIP's towers have no CLS token. tower: one of `transformers` that is there already.
    """

    def __init__(self, config: VisionTowerConfig, tower: nn.Module | None = None):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.config = config
        card = dict(config.tower)
        kind = card.pop("model_type")
        try:
            theirs = AutoConfig.for_model(kind, **card)
            tower = tower or built(lambda: AutoModel.from_config(theirs, dtype=torch.float32))
        except Exception as error:  # it raises many kinds
            raise ConfigError(f"transformers cannot build the vision tower {kind!r}: {short_reason(error)}") from error
        tower = getattr(tower, "vision_model", tower)  # older versions wrap it once more
        self.embedding = tower.embeddings
        self.pre_norm = getattr(tower, "pre_layrnorm", nn.Identity())  # sic
        self.layers = tower.encoder.layers
        self.post_norm = tower.post_layernorm
        self.pooling = getattr(tower, "head", None)  # SigLIP: attention of one learned query
        if config.temporal:
            self.temporal = nn.ModuleList(TowerLayerOverTime(config) for _ in self.layers)

    def forward(self, pixels: Tensor) -> VisionOutput:
        """Hidden states (b, n, d) of images, (b, t, n, d) of clips; pooled (b, d)."""
        clips = pixels.ndim == 5
        frames = pixels.shape[1] if clips else 1
        if clips:
            pixels = rearrange(pixels, "b t c h w -> (b t) c h w")
        hidden = [self.pre_norm(self.embedding(pixels))]
        for number, layer in enumerate(self.layers):
            x = hidden[-1]
            if clips and self.config.temporal:
                x = self.temporal[number].over_time(x, frames)
            x = layer(x, attention_mask=None)
            hidden.append(x[0] if isinstance(x, tuple) else x)
        last = self.post_norm(hidden[-1])
        pooled = self.pooling(last) if self.pooling is not None else last[:, 0] if self.config.has_cls else last.mean(1)
        if not clips:
            return VisionOutput(pooled, hidden)
        hidden = [rearrange(x, "(b t) n d -> b t n d", t=frames) for x in hidden]
        return VisionOutput(rearrange(pooled, "(b t) d -> b t d", t=frames).mean(1), hidden)

    @torch.no_grad()
    def features(self, pixels: Tensor, layer: int = -2, keep_cls: bool = False) -> Tensor:
        """Frozen patch features for the projector: (b, c, h, w) -> (b, n, d), (b, t, c, h, w) -> (b, t, n, d)."""
        hidden = self(pixels).hidden[layer]
        return hidden if keep_cls or not self.config.has_cls else hidden[..., 1:, :]

    @classmethod
    def from_image_encoder(cls, config: VisionTowerConfig, image_encoder: "VisionTower") -> "VisionTower":
        """A tower for clips whose spatial weights are the image encoder's, and whose temporal attention and norm
        start as copies of each layer's spatial ones (LanguageBind, appendix B).

        Raises ConfigError unless both are the same tower.
        """
        check_same_vit(image_encoder.config, config)
        tower = cls(config)
        tower.load_state_dict(image_encoder.state_dict(), strict=not config.temporal)
        for part, layer in zip(tower.temporal if config.temporal else (), tower.layers, strict=False):
            part.copy_from(layer)
        return tower

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that binding a video encoder trains: all that the image encoder lacks."""
        return [p for name, p in self.named_parameters() if "temporal" in name]


class TowerLayerOverTime(TemporalPart):
    """What a clip goes through before a layer of the tower: a `VideoEncoderLayer` without its spatial half."""

    def __init__(self, config: VisionTowerConfig):
        super().__init__()
        self.build_temporal(config, config.tower.get("layer_norm_eps", 1e-5))

    def copy_from(self, layer: nn.Module):
        """Starts as the spatial attention of a layer of `transformers`, and the norm before it."""
        theirs = layer.self_attn
        pairs = {"query": theirs.q_proj, "key": theirs.k_proj, "value": theirs.v_proj, "output": theirs.out_proj}
        for name, linear in pairs.items():
            getattr(self.temporal_attention, name).load_state_dict(linear.state_dict())
        self.temporal_norm.load_state_dict(layer.layer_norm1.state_dict())
