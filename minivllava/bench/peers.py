"""Ours against `transformers`: the same weights, the same inputs, one process, in turns.

The peer is `VideoLlavaForConditionalGeneration`. It has no temporal attention, so ours runs without it here, and
keeps the CLS of clips, as the peer does. Both models hold the very same tensors. Inputs are conversations about a
clip, from pixels.

    forward            logits at all positions
    forward+backward   the loss of an answer, gradients of projector and language model (stage 2)
    prefill            from pixels to the first token, through each one's own generation
    decode             each further token of it, greedy
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minivllava.bench.timing import compared, in_turns, synchronise
from minivllava.config import LanguageConfig, ModelConfig, VisionConfig
from minivllava.errors import ConfigError
from minivllava.evaluation.port import without_temporal_attention
from minivllava.models.generate import generate
from minivllava.models.huggingface import names, port_card, spelling
from minivllava.models.pretrained import built
from minivllava.models.vllava import VideoLLaVA

BATCHES = (1, 8)
WORDS, LEARNED = 32, 16  # tokens of text beside the clip; of these, in the answer


def comparable(model: VideoLLaVA) -> VideoLLaVA:
    """The model with the same weights, as the peer runs it: without temporal attention, with the CLS of clips, two
    ids of the vocabulary standing for visual tokens. Raises ConfigError for one that the peer has no place for."""
    config = model.config
    fits = isinstance(config.image, VisionConfig) and isinstance(config.language, LanguageConfig)
    if not fits or config.projector != "mlp":
        raise ConfigError("The peer in transformers is of CLIP, mlp2x_gelu and LLaMA: compare a model of these.")
    last = config.language.vocab_size - 1
    switches = {"keep_cls_image": False, "keep_cls_video": True, "image_token": last - 1, "video_token": last}
    return without_temporal_attention(model, **switches)


def peer_of(model: VideoLLaVA) -> nn.Module:
    """The `VideoLlavaForConditionalGeneration` that holds the tensors of a `comparable` model."""
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    config = model.config
    tokens = {"<image>": config.image_token, "<video>": config.video_token}
    card = port_card(config, config.language.vocab_size, tokens, next(model.parameters()).dtype)
    card["text_config"] |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.device("meta"):
        peer = built(lambda: VideoLlavaForConditionalGeneration(VideoLlavaConfig(**card)))
    tensors = dict(model.named_parameters(remove_duplicate=False))
    ours = {theirs: name for name, theirs in names(tensors).items()}
    peer.load_state_dict({name: tensors[ours[spelling(name)]] for name in peer.state_dict()}, assign=True)
    peer.tie_weights()
    peer = peer.to(model.device)  # its constants; the weights are there
    peer.generation_config.eos_token_id = None  # answers of a fixed length
    for tower in (peer.model.image_tower, peer.model.video_tower):
        tower.requires_grad_(False)
    return peer.eval()


class Inputs:
    """A batch of conversations about a clip each: ids (b, s), pixels (b, t, c, h, w), labels (b, s)."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor, frames: int | None = None):
        frames, side = frames or config.video.frames, config.video.image_size
        draw = torch.Generator().manual_seed(0)
        visual = config.visual_tokens("video", frames)
        words = torch.randint(3, config.language.vocab_size - 2, (batch, WORDS), generator=draw)
        clip = torch.full((batch, visual), config.video_token)
        self.ids = torch.cat([words[:, :1], clip, words[:, 1:]], dim=1).to(like.device)
        self.clips = torch.randn(batch, frames, 3, side, side, generator=draw).to(like)
        self.labels = self.ids.clone()
        self.labels[:, :-LEARNED] = -100
        self.mask = torch.ones_like(self.ids)
        self.lengths = torch.full((batch,), self.ids.shape[1], device=like.device)


class Pair:
    """Both models, and what each cell lets each of them do."""

    def __init__(self, model: VideoLLaVA):
        self.ours, self.theirs = model, peer_of(model)
        # what `transformers` computes for a training step is the mean over the labels
        self.clip_argument = "pixel_values_videos"
        known = inspect.signature(self.theirs.forward).parameters
        if self.clip_argument not in known:
            raise ConfigError(f"This version of transformers takes no {self.clip_argument}: install another one.")

    @torch.no_grad()
    def forward(self, x: Inputs) -> tuple[Callable, Callable]:
        def ours():
            with torch.no_grad():
                return self.ours(x.ids, list(x.clips))

        def theirs():
            with torch.no_grad():
                return self._theirs(x, use_cache=False).logits

        return ours, theirs

    def forward_backward(self, x: Inputs) -> tuple[Callable, Callable]:
        def ours():
            self.ours.zero_grad()
            loss = self.ours(x.ids, list(x.clips), x.labels)
            (loss.total / loss.tokens).backward()

        def theirs():
            self.theirs.zero_grad()
            self._theirs(x, labels=x.labels, use_cache=False).loss.backward()

        return ours, theirs

    def generation(self, x: Inputs, tokens: int, compiled: bool = False) -> tuple[Callable, Callable]:
        """So many tokens after the prompt, whatever they are: (b, tokens)."""

        @torch.inference_mode()
        def ours():
            embedded = self.ours.embed(x.ids, list(x.clips))
            answers = generate(self.ours.language_model, embedded, x.lengths, (), tokens, compiled=compiled)
            return torch.tensor(answers)

        def theirs():
            length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            made = self.theirs.generate(
                input_ids=x.ids, attention_mask=x.mask, pixel_values_videos=x.clips, do_sample=False, pad_token_id=0,
                **length,
            )  # fmt: skip
            return made[:, x.ids.shape[1] :].cpu()

        return ours, theirs

    def _theirs(self, x: Inputs, **options):
        return self.theirs(input_ids=x.ids, attention_mask=x.mask, pixel_values_videos=x.clips, **options)

    def differences(self, x: Inputs, tokens: int = 8) -> dict:
        """How far apart both are: the largest difference of a logit, and whether greedy tokens agree."""
        ours, theirs = (run() for run in self.forward(x))
        answers = [run() for run in self.generation(x, tokens)]
        return {"logits": (ours - theirs).abs().max().item(), "same tokens": torch.equal(*answers)}


def compare(
    model: VideoLLaVA, rounds: int = 7, tokens: int = 48, batches: tuple[int, ...] = BATCHES, training: bool = True
) -> list[dict]:
    """A row for each cell: `cell`, `batch`, `ours ms`, `transformers ms`, `ratio`, `between`; of decode, the
    milliseconds are those of one step. A model with temporal attention is compared without it."""
    pair = Pair(comparable(model))
    like, rows = next(pair.ours.projector.parameters()), []
    for batch in batches:
        x = Inputs(pair.ours.config, batch, like)
        cells = {"forward": pair.forward(x)}
        if training:
            cells["forward+backward"] = pair.forward_backward(x)
        for cell, (ours, theirs) in cells.items():
            seconds = in_turns({"ours": ours, "transformers": theirs}, rounds, like.device)
            rows.append({"cell": cell, "batch": batch, **compared(seconds)})
        pair.ours.zero_grad()
        rows += decode_rows(pair, x, rounds, tokens)
    rows[0] |= {"difference": pair.differences(Inputs(pair.ours.config, 2, like))}
    synchronise(like.device)
    return rows


def decode_rows(pair: Pair, x: Inputs, rounds: int, tokens: int, compiled: bool = False) -> list[dict]:
    """Prefill (one token) and decode (each further one: a long answer's time less a short one's)."""
    first, all_of_them = pair.generation(x, 1, compiled), pair.generation(x, 1 + tokens, compiled)
    runs = {"ours": first[0], "transformers": first[1], "ours, long": all_of_them[0], "theirs, long": all_of_them[1]}
    seconds = in_turns(runs, rounds, x.ids.device)
    prefill = {name: seconds[name] for name in ("ours", "transformers")}
    steps = {
        name: [(whole - part) / tokens for whole, part in zip(seconds[long], seconds[name], strict=True)]
        for name, long in (("ours", "ours, long"), ("transformers", "theirs, long"))
    }
    batch = len(x.ids)
    return [
        {"cell": "prefill", "batch": batch, **compared(prefill)},
        {"cell": "decode", "batch": batch, **compared(steps)},
    ]
