r"""Video-LLaVA: two encoders, one projector, one language model (the paper's Figure 2).

    image (c, h, w)        -> image_encoder -> n features      \
    clip (t, c, h, w)      -> video_encoder -> t * n features    > projector -> visual tokens
    cached features (n, d) ----------------------------------  /        |
    text ids -> token embeddings, with visual tokens in the places of the -200s -> language_model -> logits
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minivllava.config import ModelConfig
from minivllava.data.batching import batched_by_shape
from minivllava.data.chat_template import end_of_turn
from minivllava.data.conversation import IGNORE, VISUAL, encode_conversation, template, visual_kinds
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, DataError
from minivllava.models.encoders import build_encoder
from minivllava.models.language import build_language_model
from minivllava.models.projector import build_projector
from minivllava.models.projector_variants import pool_clip


class Loss(NamedTuple):
    """A summed cross-entropy and over how many tokens, so that parts of a batch add up exactly."""

    total: Tensor  # scalar
    tokens: Tensor  # scalar, how many labels were learned


class VideoLLaVA(nn.Module):
    """One model for images and clips. Make one with `from_pretrained`, or from a config to train it."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image_encoder = build_encoder(config.image)
        self.video_encoder = build_encoder(config.video, clips=True)
        self.projector = build_projector(config)
        self.language_model = build_language_model(config.language)
        self.freeze_encoders()

    def freeze_encoders(self):
        """Both encoders stay as alignment left them, in stage 1 and in stage 2."""
        for encoder in (self.image_encoder, self.video_encoder):
            encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VideoLLaVA":
        super().train(mode)
        self.image_encoder.eval()
        self.video_encoder.eval()
        return self

    @property
    def device(self) -> torch.device:
        return next(self.projector.parameters()).device

    # from words and visuals to tokens

    def encode(
        self, turns: Sequence[dict], frames: int | None = None, where: str = "The conversation",
        template_name: str | None = None,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        """Token ids, with -200 for each visual token, and labels of a conversation.

        frames: of its clips (default: the config's 8). template_name: another template than the config's. Raises as
        `encode_conversation`, and CheckpointError for a model without a tokenizer.
        """
        if self.tokenizer is None:
            raise CheckpointError("The model has no tokenizer, so it reads no words: copy its files into the folder.")
        config = self.config
        frames = config.video.frames if frames is None else frames
        counts = [config.visual_tokens(kind, frames) for kind in visual_kinds(turns)]
        form = template(template_name or config.template)
        return encode_conversation(
            turns, self.tokenizer, form, counts, config.language.context, where, config.ids_of_placeholders
        )

    def features(self, visual: Tensor) -> Tensor:
        """Frozen features of a batch: images (b, c, h, w) -> (b, n, d); clips (b, t, c, h, w) -> (b, t n, d).

        With the projector "pooling", clips are pooled here, since that has nothing to learn: (b, t + n, d). The batch
        may be on any device and of any dtype.
        """
        visual = visual.to(next(self.projector.parameters()))
        if visual.ndim == 4:
            return self.image_encoder.features(visual, self.config.select_layer, self.config.keep_cls_image)
        features = self.video_encoder.features(visual, self.config.select_layer, self.config.keep_cls_video)
        if self.config.projector == "pooling":
            return pool_clip(features)
        return rearrange(features, "b t n d -> b (t n) d")

    def encode_visuals(self, visuals: Sequence[Tensor]) -> Tensor:
        """Visual tokens of images, clips and cached features, mixed, in order: (all their tokens, d).

        Each visual is an image (c, h, w), a clip (t, c, h, w), or features (n, d) that `features` gave
        before. Those of one shape run through their encoder as one batch.
        """
        like = next(self.projector.parameters())
        encoded = iter(batched_by_shape([v for v in visuals if v.ndim > 2], self.features))
        found = [next(encoded) if v.ndim > 2 else v.to(like) for v in visuals]
        if not found:  # a batch of text alone runs the projector too: processes that train together average gradients
            found = [like.new_zeros(0, self.config.image.width)]
        return self.projector.tokens(found)

    def embed(self, input_ids: Tensor, visuals: Sequence[Tensor]) -> Tensor:
        """Token embeddings with the visual tokens spliced in where ids are -200: (b, s) -> (b, s, d).

        The placeholder ids of a model from the port, `config.image_token` and `config.video_token`, stand for
        visual tokens too. Visuals fill all of these places in the order of the ids. Raises DataError when they do
        not fill them exactly.
        """
        places = input_ids == VISUAL
        for token in (self.config.image_token, self.config.video_token):
            if token is not None:
                places = places | (input_ids == token)
        places = places.flatten().nonzero()[:, 0]  # before the encoders: a GPU would have to finish them first
        tokens = self.encode_visuals(visuals)
        if len(places) != len(tokens):
            raise DataError(
                f"The text holds {len(places)} places for visual tokens and the visuals give {len(tokens)}: give each "
                "placeholder its own image or clip."
            )
        embeddings = self.language_model.embed(input_ids.clamp(min=0))
        spliced = rearrange(embeddings, "b s d -> (b s) d").index_copy(0, places, tokens.to(embeddings))
        return spliced.view_as(embeddings)

    # training and scoring

    def forward(self, input_ids: Tensor, visuals: Sequence[Tensor] = (), labels: Tensor | None = None):
        """Logits (b, s, v), right-padded like the ids (b, s); or, given labels (b, s), the Loss.

        The loss needs logits at the learned positions alone: a small part of a sequence of visual tokens.
        """
        hidden = self.language_model(self.embed(input_ids, visuals))
        if labels is None:
            return self.language_model.logits(hidden)
        learned = labels[:, 1:] != IGNORE  # position i predicts token i + 1
        logits = self.language_model.logits(hidden[:, :-1][learned])
        total = F.cross_entropy(logits.float(), labels[:, 1:][learned], reduction="sum")
        return Loss(total, learned.sum())

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's end of sequence, the language model's own, the template's."""
        own = [end_of_turn(self.tokenizer)] if self.config.template == "chat" else []
        return tuple({self.tokenizer.eos, *self.config.language.stop, *own})

    # use and storage; the code lives in chat.py and in checkpoints/

    def chat(
        self, question: str, images: Sequence = (), videos: Sequence = (), history: Sequence[tuple[str, str]] = (),
        frames: int | None = None, on_text: Callable[[str], None] | None = None, max_new_tokens: int = 128,
        temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None, compiled: bool = False,
    ) -> str:  # fmt: skip
        """Answers a question about files. See `minivllava.chat.chat`."""
        from minivllava.chat import chat

        return chat(
            self, question, images, videos, history, frames, on_text,
            max_new_tokens, temperature, top_p, generator, compiled,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = "cpu", dtype: torch.dtype | str = torch.float32,
        image_encoder: str | Path | None = None, video_encoder: str | Path | None = None, quantize: str | None = None,
        **switches,
    ) -> "VideoLLaVA":  # fmt: skip
        """Loads a checkpoint folder or hub id. See `minivllava.checkpoints.loading.load_vllava`, which lists the
        switches."""
        from minivllava.checkpoints.loading import load_vllava

        return load_vllava(path, device, dtype, image_encoder, video_encoder, quantize, **switches)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | str | None = None, notes: dict | None = None):
        """Writes a checkpoint folder. See `minivllava.checkpoints.saving.save_model`."""
        from minivllava.checkpoints.saving import save_model

        save_model(self, path, "video-llava", dtype, notes)
