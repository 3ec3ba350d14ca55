"""The image encoder of an ablation that sees a part of the patches only, at inference too: `VisionConfig.masked`.

`transformers` runs its masked autoencoder (ViTMAE) like this. `training/mae.py` trains the weights.
"""

import zlib

import torch
from torch import Tensor

from minivllava.models.vision import ImageEncoder, keep_patches


class MaskedImageEncoder(ImageEncoder):
    """An image encoder that hides the share `config.masked` of the patches. (b, c, h, w) -> `VisionOutput`."""

    def embed(self, pixels: Tensor, frames: int = 1) -> Tensor:
        seen = seeded_choice(pixels, self.config.grid**2, self.config.patches)
        return self.pre_norm(keep_patches(self.embedding(pixels), seen))


def seeded_choice(pixels: Tensor, patches: int, kept: int) -> Tensor:
    """`kept` random patches of each image, shuffled, (b, kept): always the same for the same pixels.

    `transformers`' ViTMAE draws anew at each call, at inference too; features could then not be repeated.
    """
    seeds = (zlib.crc32(image.numpy().tobytes()) for image in pixels.detach().float().cpu())
    chosen = [torch.randperm(patches, generator=torch.Generator().manual_seed(seed))[:kept] for seed in seeds]
    return torch.stack(chosen).to(pixels.device)
