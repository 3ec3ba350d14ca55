"""From frames to normalised pixels: what the encoders see of an image or a clip."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from minivllava.config import CLIP_MEAN, CLIP_STD
from minivllava.errors import MediaError, check_choice

MOST_PIXELS = 178_956_970  # of an image, before and after it is padded or resized: as many as Pillow opens
Colour = tuple[float, float, float]


def preprocess_image(
    image: np.ndarray, size: int, aspect: str = "square", mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD,
    antialias: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Image uint8 (h, w, 3) to normalised float32 (3, size, size).

    Short side to `size` (bicubic), centre crop, mean and standard deviation. `aspect="pad"` first pads to a square
    with the mean colour (LLaVA's expand2square: stage 2), "square" does not (stage 1). antialias: as `transformers`
    does; without, as the original, whose ToTensor came first: torchvision 0.15 resized tensors without antialiasing.
    Raises ConfigError on another aspect, MediaError for an image so narrow that it would become too large.
    """
    check_choice("aspect", aspect, ("square", "pad"))
    whole = Image.fromarray(image)
    width, height = whole.size
    _check_sides(width, height, size, aspect)
    if aspect == "pad" and width != height:
        side = max(width, height)
        padded = Image.new("RGB", (side, side), tuple(int(255 * part) for part in mean))
        padded.paste(whole, ((side - width) // 2, (side - height) // 2))
        whole, width, height = padded, side, side
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    if not antialias:
        pixels = rearrange(_normalise(torch.from_numpy(np.array(whole)), mean, std), "h w c -> 1 c h w")
        return _centre(F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False), size)[0]
    whole = whole.resize((width, height), Image.Resampling.BICUBIC)
    # rounds down, as transformers; torchvision's CenterCrop can start one pixel later at odd margins
    left, top = (width - size) // 2, (height - size) // 2
    pixels = torch.from_numpy(np.array(whole.crop((left, top, left + size, top + size))))
    return rearrange(_normalise(pixels, mean, std), "h w c -> c h w").contiguous()


def preprocess_video(
    frames: np.ndarray, size: int, mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD, resize: str = "bilinear"
) -> torch.Tensor:
    """Clip uint8 (t, h, w, 3) to normalised float32 (t, 3, size, size), as the original's decord transform; with
    resize="bicubic" as the port to `transformers`, which takes each frame for an image.

    Mean and standard deviation (CLIP's), short side to `size` by plain bilinear interpolation (pytorchvideo's
    ShortSideScale has no antialiasing), centre crop. The original then flips half of all clips at random, at
    inference too; left out, since a flip turns "moves left" into "moves right".
    """
    if resize == "bicubic":
        return torch.stack([preprocess_image(frame, size, "square", mean, std) for frame in frames])
    pixels = rearrange(_normalise(torch.from_numpy(frames.copy()), mean, std), "t h w c -> t c h w")
    height, width = pixels.shape[2:]
    if width < height:
        height, width = int(height / width * size), size
    else:
        height, width = size, int(width / height * size)
    pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return _centre(pixels, size)


def _check_sides(width: int, height: int, size: int, aspect: str):
    """Raises MediaError for an image that would become too large on its way to `size`."""
    long, short = max(width, height), min(width, height)
    wide, high = (long, long) if aspect == "pad" else (size * long // short, size)
    if wide * high > MOST_PIXELS:
        raise MediaError(
            f"An image of {width} x {height} pixels would become one of {wide:,} x {high:,}: crop it to a shape nearer "
            "to a square, or make it smaller."
        )


def _centre(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of (b, c, h, w), (b, c, size, size), as torchvision's CenterCrop rounds."""
    top, left = (round((side - size) / 2) for side in pixels.shape[2:])
    return pixels[:, :, top : top + size, left : left + size].contiguous()


def _normalise(pixels: torch.Tensor, mean: Colour, std: Colour) -> torch.Tensor:
    """uint8 (..., 3) to float32 (..., 3) with mean 0 and deviation 1 over the pixels that an encoder was trained on."""
    return (pixels.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
