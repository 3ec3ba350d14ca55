"""Ours against `transformers`: the same weights, the same inputs, one process, in turns.

The peer is `VideoLlavaForConditionalGeneration`. It has no temporal attention, so ours runs without it here, and
keeps the CLS of clips, as the peer does. Both hold the very same parameters. Inputs are conversations about a clip,
from pixels.

    forward            logits at all positions
    forward+backward   the loss of an answer; gradients of projector and language model (stage 2)
    prefill            from pixels to the first token, through each one's own generation
    decode             each further token of it, greedy
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minivllava.bench.timing import PEER, in_turns, ratios
from minivllava.checkpoints.huggingface import names, port_card, spelling
from minivllava.config import LanguageConfig, ModelConfig, VisionConfig
from minivllava.data.conversation import IGNORE
from minivllava.errors import ConfigError
from minivllava.evaluation.port import without_temporal_attention
from minivllava.models.generate import Sampling, generate
from minivllava.models.transformers_language import built
from minivllava.models.vllava import VideoLLaVA

OURS, THEIRS = "ours", PEER
WORDS, LEARNED = 32, 16  # tokens of text beside the clip; of these, in the answer


class Inputs:
    """Conversations about a clip each: ids (b, s), pixels (b, t, c, h, w), labels and mask (b, s), lengths (b,)."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor):
        frames, side = config.video.frames, config.video.image_size
        draw = torch.Generator().manual_seed(0)
        text = torch.randint(3, config.language.vocab_size - 2, (batch, WORDS), generator=draw)
        clip = torch.full((batch, config.visual_tokens("video", frames)), config.video_token)
        self.ids = torch.cat([text[:, :1], clip, text[:, 1:]], dim=1).to(like.device)
        self.clips = torch.randn(batch, frames, 3, side, side, generator=draw).to(like)
        self.labels = self.ids.clone()
        self.labels[:, :-LEARNED] = IGNORE
        self.mask = torch.ones_like(self.ids)
        self.lengths = torch.full((batch,), self.ids.shape[1])  # on the CPU, which reads them


class Ours:
    """A model of this package, and what it does in the cells."""

    def __init__(self, model: VideoLLaVA, compiled: bool = False):
        self.model, self.compiled = model, compiled

    @torch.no_grad()
    def logits(self, x: Inputs) -> Tensor:
        return self.model(x.ids, list(x.clips))

    def loss(self, x: Inputs) -> Tensor:
        loss = self.model(x.ids, list(x.clips), x.labels)
        return loss.total / loss.tokens

    @torch.inference_mode()
    def answer(self, x: Inputs, tokens: int) -> Tensor:
        """This many tokens after the prompt, whatever they are: (b, tokens)."""
        embedded = self.model.embed(x.ids, list(x.clips))
        decoder = self.model.language_model
        return torch.tensor(generate(decoder, embedded, x.lengths, (), Sampling(tokens), compiled=self.compiled))


class Theirs:
    """The peer, and how it does the same. static: with its static cache, which it compiles by itself on a GPU."""

    def __init__(self, model: nn.Module, static: bool = False):
        self.model, self.options = model, {"cache_implementation": "static"} if static else {}

    @torch.no_grad()
    def logits(self, x: Inputs) -> Tensor:
        return self._run(x).logits

    def loss(self, x: Inputs) -> Tensor:
        return self._run(x, labels=x.labels).loss

    def answer(self, x: Inputs, tokens: int) -> Tensor:
        made = self.model.generate(
            input_ids=x.ids, attention_mask=x.mask, pixel_values_videos=x.clips, do_sample=False, pad_token_id=0,
            max_new_tokens=tokens, min_new_tokens=tokens, **self.options,
        )  # fmt: skip
        return made[:, x.ids.shape[1] :].cpu()

    def _run(self, x: Inputs, **options):
        return self.model(
            input_ids=x.ids, attention_mask=x.mask, pixel_values_videos=x.clips, use_cache=False, **options
        )


def comparable(model: VideoLLaVA) -> VideoLLaVA:
    """The model as the peer runs it, of the same parameters: without temporal attention, with the CLS of clips, two
    ids of the vocabulary standing for visual tokens. Raises ConfigError for one that the peer has no place for."""
    need_peer(model.config)
    last = model.config.language.vocab_size - 1
    return without_temporal_attention(
        model, keep_cls_image=False, keep_cls_video=True, image_token=last - 1, video_token=last
    )


def need_peer(config: ModelConfig):
    """Raises ConfigError for a model that the peer has no place for."""
    fits = isinstance(config.image, VisionConfig) and isinstance(config.language, LanguageConfig)
    if not fits or config.projector != "mlp":
        raise ConfigError("The peer in transformers is of CLIP, mlp2x_gelu and LLaMA: compare a model of these.")


def peer_of(model: VideoLLaVA) -> nn.Module:
    """The `VideoLlavaForConditionalGeneration` of the parameters of a `comparable` model."""
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    config = model.config
    tokens = {"<image>": config.image_token, "<video>": config.video_token}
    card = port_card(config, config.language.vocab_size, tokens, next(model.parameters()).dtype)
    with torch.device("meta"):
        peer = built(lambda: VideoLlavaForConditionalGeneration(VideoLlavaConfig(**card)))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ours = {theirs: name for name, theirs in names(parameters).items()}
    peer.load_state_dict({name: parameters[ours[spelling(name)]] for name in peer.state_dict()}, assign=True)
    peer.tie_weights()
    peer = peer.to(model.device)  # its constants; the weights are there
    peer.generation_config.eos_token_id = None  # answers have the length that is asked for
    return peer.eval()


def compare(model: VideoLLaVA, rounds: int = 9, tokens: int = 48, batches: tuple[int, ...] = (1, 8)) -> dict:
    """`rows`, one for each cell and batch size, and `difference`, of the two models' logits and greedy tokens.

    Each row: `cell`, `batch`, `ms` (medians; of decode, for one step), `ratio` (how many times as long the peer
    takes, median over rounds), `between` (its quartiles). A model with temporal attention runs without it.
    """
    same = comparable(model)
    contestants = {OURS: Ours(same), THEIRS: Theirs(peer_of(same))}
    like, rows = next(same.projector.parameters()), []
    for batch in batches:
        x = Inputs(same.config, batch, like)
        runs = {name: partial(contestant.logits, x) for name, contestant in contestants.items()}
        rows.append(_row("forward", batch, runs, rounds, x))
        runs = {name: _gradients(contestant, x) for name, contestant in contestants.items()}
        rows.append(_row("forward+backward", batch, runs, rounds, x))
        rows += answers({name: (contestant, x) for name, contestant in contestants.items()}, rounds, tokens)
    return {"rows": rows, "difference": difference(contestants, Inputs(same.config, 2, like))}


def _row(cell: str, batch: int, runs: dict[str, Callable], rounds: int, x: Inputs) -> dict:
    return {"cell": cell, "batch": batch, **ratios(in_turns(runs, rounds, x.ids.device))}


def _gradients(contestant: Ours | Theirs, x: Inputs) -> Callable:
    def run():
        contestant.loss(x).backward()
        contestant.model.zero_grad()

    return run


def answers(contestants: dict[str, tuple], rounds: int, tokens: int) -> list[dict]:
    """The rows of prefill (one token) and decode (each further one: a long answer's time less a short one's).

    contestants: by name, each with its inputs, of one batch size. Raises ConfigError for more tokens than the context
    has room for: ours would stop there.
    """
    ours, x = next((one, inputs) for one, inputs in contestants.values() if isinstance(one, Ours))
    room = ours.model.config.language.context - x.ids.shape[1]
    if 1 + tokens > room:
        raise ConfigError(
            f"After the prompts of {x.ids.shape[1]} tokens the context has room for {room} more, and answers of "
            f"{1 + tokens} are to be timed: use a model with a longer context, or with --gpu fewer --tokens."
        )
    runs = {}
    for name, (contestant, inputs) in contestants.items():
        runs[name] = partial(contestant.answer, inputs, 1)
        runs[f"{name}, long"] = partial(contestant.answer, inputs, 1 + tokens)
    seconds = in_turns(runs, rounds, x.ids.device)
    steps = {
        name: [(whole - first) / tokens for whole, first in zip(seconds[f"{name}, long"], seconds[name], strict=True)]
        for name in contestants
    }
    batch = len(x.ids)
    return [
        {"cell": "prefill", "batch": batch, **ratios({name: seconds[name] for name in contestants})},
        {"cell": "decode", "batch": batch, **ratios(steps)},
    ]


def difference(contestants: dict, x: Inputs) -> dict:
    """How far apart both are: the largest difference of a logit, and whether the greedy tokens are the same."""
    ours, theirs = contestants[OURS], contestants[THEIRS]
    gap = (ours.logits(x).float() - theirs.logits(x).float()).abs().max().item()
    return {"logits": gap, "same tokens": torch.equal(ours.answer(x, 8), theirs.answer(x, 8))}
