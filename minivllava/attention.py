"""Where a model looks when it answers: attention, rollout, occlusion, and how to check such a map.

    visual_attention   the weights from the position that predicts the answer to every patch, by layer and head
    rollout            attention followed through all layers (Abnar and Zuidema, arXiv 2005.00928)
    occlusion          how much less likely the answer becomes when patches are hidden
    true_place         where an object of the embedded world really is; `overlap`: how much of a map lies there

Attention and rollout tell what was read; only occlusion changes the input and sees what follows from it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from minivllava.config import CLIP_MEAN, CLIP_STD, ModelConfig
from minivllava.data.conversation import IGNORE, VISUAL
from minivllava.data.dataset import load_pixels
from minivllava.data.media import frame_indices, media_kind, read_image, read_video
from minivllava.data.preprocess import preprocess_image, preprocess_video
from minivllava.data.render import coverage
from minivllava.data.world import Scene, Thing
from minivllava.errors import ConfigError, DataError
from minivllava.models.vllava import VideoLLaVA


class Prompt(NamedTuple):
    """A question about one image or clip, as the model takes it in."""

    kind: str  # "image" or "video"
    frames: np.ndarray  # to look at: uint8 (t, h, w, 3), the field that the model sees, at 128 px or more
    pixels: Tensor  # for the encoder: (c, h, w) or (t, c, h, w)
    ids: Tensor  # (1, s), -200 for visual tokens
    labels: Tensor  # (1, s), -100 but for the answer, where one was given


def read_prompt(model: VideoLLaVA, file: str | Path, question: str, answer: str | None = None) -> Prompt:
    """A question about an image or a clip, with the answer to it or without, encoded.

    Raises MediaError for a file that cannot be read, ContextLengthError for a question that is too long.
    """
    config, kind = model.config, media_kind(file)
    frames, pixels = _see(file, kind, config)
    turns = [{"from": "human", "value": f"<{kind}>\n{question}"}]
    turns += [] if answer is None else [{"from": "gpt", "value": answer}]
    encoded = model.encode(turns, len(frames), str(file))
    ids, labels = (torch.tensor([row], device=model.device) for row in encoded)
    return Prompt(kind, frames, pixels.to(model.device), ids, labels)


# attention


def token_places(config: ModelConfig, kind: str, frames: int = 1) -> np.ndarray:
    """(frame, row, column), counted from 0, of each visual token of an image or clip: int (n, 3).

    A class token, where the config keeps them, has row and column -1. Raises ConfigError where the model has
    no token for each patch.
    """
    _check_one_token_a_patch(config, kind)
    vision, keep_cls = config.vision(kind), getattr(config, f"keep_cls_{kind}")
    rows, columns = np.divmod(np.arange(vision.grid**2), vision.grid)
    frame = np.stack([np.zeros_like(rows), rows, columns], axis=1)
    if keep_cls:
        frame = np.concatenate([[[0, -1, -1]], frame])
    return np.concatenate([frame + [t, 0, 0] for t in range(frames)])


@torch.inference_mode()
def attention_patterns(model: VideoLLaVA, prompt: Prompt) -> np.ndarray:
    """The language model's whole attention, every position to every position: float32 (layer, k, s, s)."""
    patterns: list[Tensor] = []
    model.language_model(model.embed(prompt.ids, [prompt.pixels]), on_attention=patterns.append)
    return torch.cat(patterns).float().cpu().numpy()


def onto_patches(weights: np.ndarray, prompt: Prompt, config: ModelConfig) -> np.ndarray:
    """Weights of the s positions of a prompt -> of the patches among them: (..., s) -> (..., t, h, w).

    Raises ConfigError where the model has no token for each patch.
    """
    _check_one_token_a_patch(config, prompt.kind)
    vision, keep_cls = config.vision(prompt.kind), getattr(config, f"keep_cls_{prompt.kind}")
    visual = weights[..., (prompt.ids[0] == VISUAL).cpu().numpy()]
    visual = rearrange(visual, "... (t n) -> ... t n", t=len(prompt.frames))[..., int(keep_cls) :]
    return rearrange(visual, "... t (h w) -> ... t h w", h=vision.grid)


@torch.inference_mode()
def visual_attention(model: VideoLLaVA, file: str | Path, question: str) -> tuple[np.ndarray, np.ndarray]:
    """The attention of the position that predicts the answer's first token, in every layer and head.

    file: an image or a clip. Returns (frames, weights): uint8 (t, h, w, 3), pixels of the field that the
    model sees, at 128 px or more; and float32 (layer, k, t, h, w) over its patch grid. A weight is a share of
    that position's attention, so one layer and head sum to at most 1: the rest goes to words.

    Raises MediaError for a file that cannot be read, ContextLengthError for a question that is too long,
    ConfigError where the model has no token for each patch.
    """
    prompt = read_prompt(model, file, question)
    rows: list[Tensor] = []

    def keep_last_row(pattern: Tensor):
        rows.append(pattern[0, :, -1].clone())  # (k, s); a view would keep the whole pattern, of every layer

    model.language_model(model.embed(prompt.ids, [prompt.pixels]), on_attention=keep_last_row)
    weights = torch.stack(rows).float().cpu().numpy()
    return prompt.frames, onto_patches(weights, prompt, model.config)


def most_focused(weights: np.ndarray) -> tuple[int, int]:
    """The (layer, head), counted from 0, whose attention to patches is furthest from even.

    Furthest by sum of a log(a n), over the n weights a of all frames (layer, k, t, h, w): much attention on
    few patches counts, little attention or an even spread does not.
    """
    flat = rearrange(weights, "layer k t h w -> layer k (t h w)").astype(np.float64)
    focus = (flat * np.log(np.maximum(flat * flat.shape[-1], 1e-12))).sum(-1)
    layer, head = np.unravel_index(focus.argmax(), focus.shape)
    return int(layer), int(head)


def rollout(patterns: np.ndarray) -> np.ndarray:
    """Attention followed from the last layer down to the input tokens: (layer, k, s, s) -> (s, s).

    Row i says how much of position i, after all layers, came from each input token, if heads count alike and
    each layer passes on half of what stood there (the residual) and half of what attention brought: the
    product of (mean over heads + identity) / 2 over layers. Rows sum to 1. Abnar and Zuidema 2020, section 3.
    """
    mixed = reduce(patterns, "layer k s z -> layer s z", "mean").astype(np.float64)
    mixed = (mixed + np.eye(mixed.shape[-1])) / 2
    total = mixed[0]
    for layer in mixed[1:]:
        total = layer @ total
    return total


# occlusion


def hide_each(grid: tuple[int, int, int], what: str = "patch") -> np.ndarray:
    """What to hide, one thing at a time, from a grid (t, h, w) of patches: bool (b, t, h, w).

    what: "patch" (b = t h w); "place", one patch in all frames (b = h w); "window", four places that touch,
    in all frames (b = (h - 1) (w - 1)); or "frame" (b = t). Raises DataError on another word.
    """
    t, h, w = grid
    hidden = np.eye(t * h * w, dtype=bool)
    if what == "patch":
        return rearrange(hidden, "b (t h w) -> b t h w", t=t, h=h)
    if what == "place":
        return repeat(np.eye(h * w, dtype=bool), "b (h w) -> b t h w", t=t, h=h)
    if what == "window":
        places = rearrange(np.eye(h * w, dtype=bool), "(i j) (h w) -> i j h w", i=h, h=h)
        windows = places[:-1, :-1] | places[1:, :-1] | places[:-1, 1:] | places[1:, 1:]
        return repeat(windows, "i j h w -> (i j) t h w", t=t)
    if what == "frame":
        return repeat(np.eye(t, dtype=bool), "b t -> b t h w", h=h, w=w)
    raise DataError(f"hide_each knows no {what!r}: choose patch, place, window or frame.")


def onto_hidden(falls: np.ndarray, hide: np.ndarray) -> np.ndarray:
    """The mean of the falls (b,) of all trials that hide a patch, for each patch: (b, t, h, w) -> (t, h, w).

    A patch that no trial hides has 0.
    """
    times = hide.sum(0)
    return (rearrange(falls, "b -> b 1 1 1") * hide).sum(0) / np.where(times, times, 1)


@torch.inference_mode()
def occlusion(
    model: VideoLLaVA, file: str | Path, question: str, answer: str, hide: np.ndarray, batch_size: int = 32
) -> np.ndarray:
    """How much less likely an answer becomes when patches are hidden: float64 (b,), in nats.

    hide: bool (b, t, h, w), the patches that each of b trials hides; t = 1 for an image. Hidden pixels take
    the median colour of the image or clip before the encoder sees them. The likelihood is that of the whole
    answer and the end of the turn. Negative: the answer became more likely.

    Raises DataError when `hide` does not fit the patch grid; and as `read_prompt`.
    """
    prompt = read_prompt(model, file, question, answer)
    vision = model.config.vision(prompt.kind)
    grid = (len(prompt.frames), vision.grid, vision.grid)
    if hide.ndim != 4 or hide.shape[1:] != grid or hide.dtype != bool:
        raise DataError(f"hide is {hide.dtype} {hide.shape}; bool (b, {', '.join(map(str, grid))}) is needed here.")
    pixels = prompt.pixels if prompt.kind == "video" else prompt.pixels[None]  # t c h w
    median = rearrange(pixels, "t c h w -> c (t h w)").median(-1).values
    size = vision.patch_size
    covered = repeat(hide, "b t h w -> b t 1 (h p) (w q)", p=size, q=size)
    trials = torch.where(torch.from_numpy(covered).to(pixels.device), median[:, None, None], pixels)
    trials = torch.cat([pixels[None], trials])  # the first hides nothing
    likelihoods = [_likelihood(model, prompt, part) for part in trials.split(batch_size)]
    whole, *rest = torch.cat(likelihoods).tolist()
    return whole - np.array(rest)


def _likelihood(model: VideoLLaVA, prompt: Prompt, trials: Tensor) -> Tensor:
    """Log-likelihood of the prompt's answer given each of b versions of its pixels, (b, t, c, h, w) -> (b,)."""
    visuals = list(trials if prompt.kind == "video" else trials[:, 0])
    ids, labels = (repeat(row, "1 s -> b s", b=len(trials)) for row in (prompt.ids, prompt.labels))
    learned = labels[0, 1:] != IGNORE  # position i predicts token i + 1
    hidden = model.language_model(model.embed(ids, visuals))[:, :-1][:, learned]
    logs = model.language_model.logits(hidden).double().log_softmax(-1)
    return logs.gather(-1, labels[:, 1:][:, learned][..., None]).sum((1, 2)).cpu()


# the truth, in the embedded world


def true_place(scene: Scene, thing: Thing, frames: int, grid: int) -> np.ndarray:
    """The share of each patch that a thing covers, in the frames that a model sees: float32 (t, h, w) in 0..1.

    frames: how many of a clip the model sees, evenly spread; 1 for an image. grid: patches along one side.
    Overlaps need no care: things of the embedded world keep apart.
    """
    fine = coverage(thing, scene.frames, 16 * grid)
    fine = np.broadcast_to(fine, (scene.frames, *fine.shape[1:]))[frame_indices(scene.frames, frames)]
    return reduce(fine, "t (h p) (w q) -> t h w", "mean", h=grid, w=grid)


def overlap(weights: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The share of a map's positive weight that lies on the patches of an object: (..., t, h, w) -> (...).

    place: bool (t, h, w). 1: all of it; an even map has `place.mean()`, which is chance. A map without any
    positive weight has 0. The "energy-based pointing game" (Wang et al., arXiv 1910.01279).
    """
    positive = np.maximum(weights, 0)
    total = positive.sum((-3, -2, -1))
    return (positive * place).sum((-3, -2, -1)) / np.where(total > 0, total, 1)


def _check_one_token_a_patch(config: ModelConfig, kind: str):
    vision = config.vision(kind)
    if config.projector in ("resampler", "pooling") or vision.masked:
        why = "encoder hides some" if vision.masked else f"projector {config.projector!r} mixes them"
        raise ConfigError(f"There is no token for each patch, since the {why}: use `occlusion` to see where it looks.")


def _see(file: str | Path, kind: str, config: ModelConfig) -> tuple[np.ndarray, Tensor]:
    """One field twice: uint8 (t, h, w, 3) to look at, and the encoder's pixels, (c, h, w) or (t, c, h, w)."""
    if kind == "image":
        sharp = preprocess_image(read_image(file), max(128, config.image.image_size), config.aspect)
        sharp = rearrange(sharp, "c h w -> 1 h w c")
    else:
        clip = read_video(file, config.video.frames, sampling=config.frame_sampling)
        sharp = preprocess_video(clip, max(128, config.video.image_size), resize=config.clip_resize)
        sharp = rearrange(sharp, "t c h w -> t h w c")
    pixels = load_pixels(str(file), kind, config, config.video.frames)
    colours = sharp * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)
    return (colours.clamp(0, 1) * 255).round().byte().numpy(), pixels
