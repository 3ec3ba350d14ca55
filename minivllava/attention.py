"""Where a model looks when it answers: attention from the end of the prompt to the patches it sees."""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minivllava.data.conversation import VISUAL, encode_conversation, template
from minivllava.data.media import media_kind, read_image, read_video
from minivllava.data.preprocess import CLIP_MEAN, CLIP_STD, preprocess_image, preprocess_video
from minivllava.models.vllava import VideoLLaVA


@torch.inference_mode()
def visual_attention(model: VideoLLaVA, file: str | Path, question: str) -> tuple[np.ndarray, np.ndarray]:
    """The attention of the position that predicts the answer's first token, in every layer and head.

    file: a picture or a clip. Returns (frames, weights): uint8 (t, h, w, 3), pixels of the field that the
    model sees, at 128 px or more; and float32 (layer, k, t, h, w) over its patch grid. A weight is a share of
    that position's attention, so one layer and head sum to at most 1: the rest goes to words.

    Raises MediaError for a file that cannot be read, ContextLengthError for a question that is too long.
    """
    config, kind = model.config, media_kind(file)
    vision, keep_cls = {
        "image": (config.image, config.keep_cls_image),
        "video": (config.video, config.keep_cls_video),
    }[kind]
    picture, pixels = _see(file, kind, config)
    turns = [{"from": "human", "value": f"<{kind}>\n{question}"}]
    counts = [config.visual_tokens(kind, len(picture))]
    ids, _ = encode_conversation(
        turns, model.tokenizer, template(config.template), counts, config.language.context, str(file)
    )
    ids = torch.tensor([ids], device=model.device)
    patterns = _LastRows()
    model.language_model(model.embed(ids, [pixels.to(model.device)]), attention=patterns)
    weights = torch.stack(patterns)[:, :, ids[0] == VISUAL].float().cpu()
    weights = rearrange(weights, "layer k (t n) -> layer k t n", t=len(picture))[..., int(keep_cls) :]
    return picture, rearrange(weights, "layer k t (h w) -> layer k t h w", h=vision.grid).numpy()


def most_focused(weights: np.ndarray) -> tuple[int, int]:
    """The (layer, head), counted from 0, whose attention to patches is furthest from even.

    Furthest by sum of a log(a n), over the n weights a of all frames (layer, k, t, h, w): much attention on
    few patches counts, little attention or an even spread does not.
    """
    flat = rearrange(weights, "layer k t h w -> layer k (t h w)").astype(np.float64)
    focus = (flat * np.log(np.maximum(flat * flat.shape[-1], 1e-12))).sum(-1)
    layer, head = np.unravel_index(focus.argmax(), focus.shape)
    return int(layer), int(head)


class _LastRows(list):
    """Keeps of each layer's pattern (1, k, s, s) the last position's row, (k, s): memory stays small."""

    def append(self, pattern: Tensor):
        super().append(pattern[0, :, -1])


def _see(file: str | Path, kind: str, config) -> tuple[np.ndarray, Tensor]:
    """One field twice: uint8 (t, h, w, 3) to look at, and the encoder's pixels, (c, h, w) or (t, c, h, w)."""
    if kind == "image":
        image, size = read_image(file), config.image.image_size
        pixels = preprocess_image(image, size, config.aspect)
        sharp = rearrange(preprocess_image(image, max(128, size), config.aspect), "c h w -> 1 h w c")
    else:
        clip, size = read_video(file, config.video.frames), config.video.image_size
        pixels = preprocess_video(clip, size)
        sharp = rearrange(preprocess_video(clip, max(128, size)), "t c h w -> t h w c")
    colours = sharp * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)
    return (colours.clamp(0, 1) * 255).round().byte().numpy(), pixels
