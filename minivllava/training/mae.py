"""A masked autoencoder (He et al., arXiv 2111.06377): the image encoder that never saw a word.

The paper's Table 5 and Figure 4 set such an encoder beside LanguageBind's. Three patches in four are hidden;
the encoder sees the rest, and a small decoder paints what is missing. Only the encoder is kept.

Differences from the MAE paper: learned positions, as the image encoder has them; a decoder of half the encoder's
width and two layers; pixels as targets without normalising each patch, which on a plain background would ask
for nothing but its noise.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from minivllava.config import ModelConfig, VisionConfig
from minivllava.data.cache import cache_media
from minivllava.data.records import unique_files
from minivllava.files import json_hash
from minivllava.models.layers import EncoderLayer
from minivllava.models.vision import ImageEncoder, keep_patches
from minivllava.run_config import TrainingConfig
from minivllava.training.loop import Task, shuffled_batches, train

MASKED = 0.75  # share of the patches that are hidden in training
DECODER_LAYERS = 2


@dataclass
class Images:
    """A batch of images (b, c, h, w)."""

    pixels: Tensor

    def to(self, device) -> "Images":
        return Images(self.pixels.to(device))


class MaskedAutoencoder(nn.Module):
    """An image encoder and the decoder that it learns with. Images (b, c, h, w) -> their summed loss."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        decoder = replace(config, width=config.width // 2, mlp_width=config.mlp_width // 2)
        self.encoder = ImageEncoder(config)
        self.to_decoder = nn.Linear(config.width, decoder.width)
        self.mask_token = nn.Parameter(torch.randn(decoder.width) * 0.02)
        self.position = nn.Parameter(torch.randn(1 + config.grid**2, decoder.width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(decoder) for _ in range(DECODER_LAYERS))
        self.norm = nn.LayerNorm(decoder.width, decoder.norm_eps)
        self.to_pixels = nn.Linear(decoder.width, 3 * config.patch_size**2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean squared error of the hidden patches' pixels, summed over images; draws the masks at random."""
        patches = self.encoder.config.grid**2
        order = torch.rand(len(pixels), patches, device=pixels.device).argsort(1)
        seen, hidden = order.tensor_split([max(1, round(patches * (1 - MASKED)))], dim=1)
        painted = self.paint(self.encode(pixels, seen), seen)
        p = self.encoder.config.patch_size
        truth = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        error = (painted - truth).square().mean(-1).gather(1, hidden)  # b, hidden patches
        return error.mean(1).sum()

    def encode(self, pixels: Tensor, seen: Tensor) -> Tensor:
        """CLS and the seen patches through the encoder. (b, c, h, w), (b, m) -> (b, 1 + m, d)."""
        x = self.encoder.pre_norm(keep_patches(self.encoder.embedding(pixels), seen))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.encoder.post_norm(x)

    def paint(self, encoded: Tensor, seen: Tensor) -> Tensor:
        """Pixels of every patch, (b, n, p p c), from what the encoder made of the seen ones."""
        x = self.to_decoder(encoded)
        blank = repeat(self.mask_token, "d -> b n d", b=len(x), n=len(self.position) - 1)
        places = repeat(seen, "b m -> b m d", d=x.shape[-1])
        x = torch.cat([x[:, :1], blank.to(x).scatter(1, places, x[:, 1:])], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.to_pixels(self.norm(x[:, 1:]))


def pretrain_mae(
    model: MaskedAutoencoder, records, config: ModelConfig, training: TrainingConfig, folder: str | Path,
    device: str | None = None, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Trains encoder and decoder on the images of records; their words are not read. Returns the log.

    config: the size of the images. folder, device, progress: as `train` takes them.
    """
    files = unique_files(records, "image")
    cache = cache_media(files, "image", config, dtype="float16", progress=progress)
    task = Task(
        sampler=shuffled_batches(len(files), training.batch_size, training.seed),
        collate=lambda indices: Images(torch.stack([cache[files[i]] for i in indices]).float()),
        count=lambda batch: len(batch.pixels),
        loss=lambda model, batch: model(batch.pixels),
        data=json_hash([files]),
    )
    return train(model, task, training, folder, "masked autoencoder", device, progress)
