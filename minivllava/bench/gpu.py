"""The published sizes with random weights: training steps, prefill and decode, beside `transformers` and the GPU.

A cell says what it took (`ms`), how that compares with the peer (`ratio`), and how near it comes to what the machine
could do at best: of arithmetic the share of the data sheet's FLOPs a second (MFU), of decoding the share of the steps
that the memory's bandwidth allows, since each step must read all of the decoder's weights and its cache.

Both train in one dtype, weights, gradients and AdamW's moments alike. That does not hold for a real run, which keeps
a float32 copy on several GPUs; it is the same for both. Activations that the device has no room for are computed again
in the backward pass: of the peer those of all layers, since it knows all or none; of ours those of as few layers as
fit, and elementwise ones (`training/recompute.py`).
"""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import nn

from minivllava.bench.kernels import kernels
from minivllava.bench.peers import (
    LEARNED,
    OURS,
    THEIRS,
    WORDS,
    Inputs,
    Ours,
    Theirs,
    answers,
    comparable,
    need_peer,
    peer_of,
)
from minivllava.bench.timing import copy_bandwidth, in_turns, peak_rate, product_rate, ratios
from minivllava.checkpoints.devices import usable_device
from minivllava.checkpoints.memory import require_memory
from minivllava.config import ModelConfig
from minivllava.errors import ConfigError
from minivllava.flops import cache_numbers, decoder_weights, prefill_flops, training_flops
from minivllava.models.kv_cache import release
from minivllava.models.language import LanguageModel
from minivllava.models.vllava import VideoLLaVA
from minivllava.provenance import environment
from minivllava.run_config import TrainingConfig
from minivllava.training.loop import freeze_all_but
from minivllava.training.recompute import recompute_all, recomputing

STATES = 4  # numbers for each weight in stage 2: itself, its gradient and AdamW's two moments
TRAINING_BATCH = {1: 8, 2: 4}  # conversations in a step of each stage
ANSWERING_BATCHES = (1, 8)
FILLED = 0.9  # share of the device's memory that a training step may take


def run_gpu_bench(
    config: ModelConfig,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 5,
    tokens: int = 64,
    batches: dict[int, int] | None = None,
    save: Callable[[dict], None] = lambda figures: None,
) -> dict:
    """`rows` of all cells, and what they ran on. `batches`: conversations in a training step, by stage. save: is given
    all there is so far after each cell, since a later one may run out of memory or of time.

    Raises ConfigError without the device or for a model that has no peer, CheckpointError if stage 2 would not fit
    into the device's memory.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("This machine has no CUDA GPU: leave --gpu out, or run it on one that has.")
    usable_device(device)
    need_peer(config)
    model = comparable(random_model(config, device, dtype))
    limits = machine_limits(torch.device(device), dtype)
    peak = limits["data sheet, operations/s"] or limits["product, operations/s"]
    peer = peer_of(model)
    figures = {
        **environment(), "dtype": str(dtype).removeprefix("torch."), "weights": "random",
        "parameters": sum(p.numel() for p in model.parameters()),
        "limits": limits, "floor": floor(config, peak, limits["copy, bytes/s"]), "rows": [],
    }  # fmt: skip
    for batch in ANSWERING_BATCHES:
        figures["rows"] += _answering(model, peer, batch, rounds, tokens, peak, limits["copy, bytes/s"])
        save(figures)
    for stage, batch in (batches or TRAINING_BATCH).items():
        figures["rows"].append(_training(model, peer, stage, batch, rounds, peak))
        save(figures)
    return figures


def machine_limits(device: torch.device, dtype: torch.dtype) -> dict[str, float | None]:
    """What the machine can do at best, as measured now, and by its data sheet if that is known."""
    gpu = device.type == "cuda"
    return {
        "copy, bytes/s": copy_bandwidth(device, 2**31 if gpu else 2**26),
        "product, operations/s": product_rate(device, dtype, 8192 if gpu else 1024),
        "data sheet, operations/s": peak_rate(device),
    }


def floor(config: ModelConfig, rate: float | None = None, bandwidth: float | None = None) -> dict[str, float]:
    """What the cells cannot do without, counted from the sizes alone: FLOPs, and the bytes that decoding reads.

    For one conversation about one clip, in a dtype of two bytes. rate, bandwidth: a device's FLOPs and bytes a second,
    to say also how many milliseconds that takes at least. Raises ConfigError for a model that has no peer.
    """
    need_peer(config)
    frames, language = config.video.frames, config.language
    positions = config.visual_tokens("video", frames) + WORDS
    needed = {
        "prefill, operations": prefill_flops(config, frames, WORDS),
        "decode, bytes a token": (decoder_weights(language) + cache_numbers(language, positions)) * 2,
        "stage 1, operations": training_flops(config, frames, WORDS, LEARNED, 1),
        "stage 2, operations": training_flops(config, frames, WORDS, LEARNED, 2),
    }
    if rate and bandwidth:
        for name, amount in list(needed.items()):
            needed[f"{name.partition(',')[0]}, ms at least"] = 1000 * amount / (bandwidth if "bytes" in name else rate)
    return needed


def random_model(config: ModelConfig, device: str, dtype: torch.dtype) -> VideoLLaVA:
    """A model of this size with the weights of its initialisation, made in place in its final dtype.

    Raises CheckpointError if training all of it in stage 2 would not fit.
    """
    with torch.device("meta"):
        empty = VideoLLaVA(config)
    encoders = sum(p.numel() for part in (empty.image_encoder, empty.video_encoder) for p in part.parameters())
    trained = sum(p.numel() for p in empty.parameters()) - encoders
    require_memory(encoders + STATES * trained, dtype, device, "Stage 2 of this model")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            return VideoLLaVA(config).eval()
    finally:
        torch.set_default_dtype(before)


def _answering(
    model: VideoLLaVA, peer: nn.Module, batch: int, rounds: int, tokens: int, peak: float, bandwidth: float
) -> list[dict]:
    """The rows of prefill and decode: ours as it is and compiled, the peer's with its static cache."""
    x = Inputs(model.config, batch, next(model.projector.parameters()))
    on_gpu = x.ids.is_cuda
    contestants = {OURS: (Ours(model), x), THEIRS: (Theirs(peer, static=on_gpu), x)}
    if on_gpu:
        contestants[f"{OURS}, compiled"] = (Ours(model, compiled=True), x)
    prefill, decode = answers(contestants, rounds, tokens)
    if on_gpu:
        mine = {name: contestant for name, (contestant, _) in contestants.items() if name != THEIRS}
        prefill["kernels"] = {name: kernels(partial(c.answer, x, 1), x.ids.device) for name, c in mine.items()}
        decode["kernels"] = {name: kernels(partial(c.answer, x, 1 + tokens), x.ids.device) for name, c in mine.items()}
    frames = model.config.video.frames
    flops = batch * prefill_flops(model.config, frames, WORDS)
    prefill["MFU"] = {name: flops / (ms / 1000) / peak for name, ms in prefill["ms"].items()}
    decode["tokens/s"] = {name: batch / (ms / 1000) for name, ms in decode["ms"].items()}
    positions = x.ids.shape[1] + tokens // 2  # halfway through the answer
    language = model.config.language
    read = (decoder_weights(language) + batch * cache_numbers(language, positions)) * x.clips.dtype.itemsize
    decode["share of the bandwidth's limit"] = {
        name: read / bandwidth / (ms / 1000) for name, ms in decode["ms"].items()
    }
    return [prefill, decode]


def _training(model: VideoLLaVA, peer: nn.Module, stage: int, batch: int, rounds: int, peak: float) -> dict:
    """The row of one stage: whole steps, with AdamW, of both models. They share their weights, so also its state."""
    x = Inputs(model.config, batch, next(model.projector.parameters()))
    freeze_all_but(model, model.projector, *([model.language_model] if stage == 2 else []))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=x.ids.is_cuda)
    decoder = model.language_model
    release(model)  # training needs the memory of the cache that the last answer left
    model.train()
    peer.train()
    recompute_all(peer)
    recipes = {OURS: TrainingConfig(recompute_elementwise=True)}
    if x.ids.is_cuda:
        recipes[f"{OURS}, compiled"] = TrainingConfig(compiled=True)
    runs, forward = {}, partial(Ours(model).loss, x)
    step = partial(_step, Ours(model), x, optimizer, decoder)
    for name, recipe in recipes.items():
        recipes[name] = _fewest_recomputed(decoder, recipe, forward, step, x.ids.device)
        runs[name] = partial(step, recipes[name])
    runs[THEIRS] = partial(_step, Theirs(peer), x, optimizer)
    memory = {name: _peak_memory(run, x.ids.device) for name, run in runs.items()}
    seconds = in_turns(runs, rounds, x.ids.device)
    row = {"cell": f"stage {stage}, step", "batch": batch, **ratios(seconds)}
    if x.ids.is_cuda:
        row["kernels"] = {name: kernels(runs[name], x.ids.device) for name in recipes}
    model.eval()
    peer.eval()
    row["recomputed layers"] = {name: recipe.recomputed_layers for name, recipe in recipes.items()}
    row["recomputed layers"][THEIRS] = len(decoder.layers)
    flops = batch * training_flops(model.config, model.config.video.frames, WORDS, LEARNED, stage)
    row["tokens/s"] = {name: x.ids.numel() / median(times) for name, times in seconds.items()}
    row["MFU"] = {name: flops / median(times) / peak for name, times in seconds.items()}
    row["peak memory, GiB"] = memory
    return row


def _step(contestant: Ours | Theirs, x: Inputs, optimizer, decoder=None, recipe: TrainingConfig | None = None):
    """A whole step; of ours with what its recipe says of the decoder's layers."""
    try:
        with nullcontext() if recipe is None else recomputing(decoder, recipe):
            contestant.loss(x).backward()
        optimizer.step()
    finally:  # also after a step that found no memory
        optimizer.zero_grad(set_to_none=True)


def _fewest_recomputed(
    decoder: LanguageModel, recipe: TrainingConfig, forward: Callable, step: Callable, device: torch.device
) -> TrainingConfig:
    """The recipe, with as few layers that keep nothing as fit: by what forward passes take with all of them and with
    some, since the peak of a whole step may lie where gradients are, and then by trying. All where memory cannot be
    told."""
    layers, some = len(decoder.layers), max(0, len(decoder.layers) - 4)

    def peak(recomputed: int) -> float | None:
        with recomputing(decoder, replace(recipe, recomputed_layers=recomputed)):
            return _peak_memory(forward, device)

    every = replace(recipe, recomputed_layers=layers)
    step(every)  # AdamW's moments are there from the first step on
    least = peak(layers)
    if least is None:
        return every
    kept_layer = (peak(some) - least) / (layers - some)
    room = FILLED * _total_memory(device) - least
    kept = min(layers, int(room / kept_layer)) if kept_layer > 0 and room > 0 else 0
    for recomputed in range(layers - kept, layers):
        tried = replace(recipe, recomputed_layers=recomputed)
        try:
            step(tried)
            return tried
        except torch.OutOfMemoryError:
            pass
        gc.collect()  # the graph of the step that failed, which its exception held
        torch.cuda.empty_cache()
    return every


def _total_memory(device: torch.device) -> float:
    """GiB of a GPU."""
    return torch.cuda.mem_get_info(device)[1] / 2**30


def _peak_memory(run: Callable, device: torch.device) -> float | None:
    """GiB allocated at most during the second of two runs; None if it cannot be told."""
    run()
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 2**30
