"""Which encoder a config describes."""

from torch import nn

from minivllava.config import VisionConfig, VisionTowerConfig
from minivllava.models.masked import MaskedImageEncoder
from minivllava.models.transformers_vision import VisionTower
from minivllava.models.vision import ImageEncoder, VideoEncoder


def build_encoder(config: VisionConfig | VisionTowerConfig, clips: bool = False) -> nn.Module:
    """The encoder of images or of clips that a vision config describes, ours or one of `transformers`."""
    if isinstance(config, VisionTowerConfig):
        return VisionTower(config)
    if clips or config.temporal:
        return VideoEncoder(config)
    return MaskedImageEncoder(config) if config.masked else ImageEncoder(config)
