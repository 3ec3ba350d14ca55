"""Training: schedule, sampling, what learns and what does not, resuming, accumulation, processes, caches."""

import contextlib
import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    COLOURS,
    VISION,
    square,
    tiny_config,
    tiny_languagebind,
    tiny_tokenizer,
    tiny_vllava,
    training,
    write_records,
)
from train_worker import run_task

from minivllava.checkpoints.loading import load_language, load_vllava
from minivllava.checkpoints.saving import save_model
from minivllava.data.cache import cache_media
from minivllava.data.dataset import ConversationDataset, load_pixels
from minivllava.data.records import load_records, unique_files
from minivllava.data.write_media import write_image
from minivllava.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DataError,
    DivergedError,
    MediaError,
)
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.overrides import override
from minivllava.presets import preset
from minivllava.run_config import TrainingConfig
from minivllava.training import align, language, stages
from minivllava.training.align import align_video, family_batches
from minivllava.training.language import conversation_task, pretrain_language, train_tokenizer
from minivllava.training.loop import (
    Task,
    accelerator_for,
    check_precision,
    learning_rate,
    scheduled,
    shuffled_batches,
    train,
)
from minivllava.training.run import assemble, export, finetune, train_video_llava
from minivllava.training.run_folder import Run, running
from minivllava.training.stages import features_fingerprint, stage2, visual_loader

TESTS = Path(__file__).parent
QUIET = {"device": "cpu", "progress": False}


@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_a_cache_of_its_own(tmp_path_factory):
    """One thread, as in the processes that tests start: sums are added in the same order everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIVLLAVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def records_file(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def records(records_file):
    return load_records(records_file)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# AdamW makes a step of this size out of any gradient, even one that is all rounding errors
RATE = 2e-4


def assert_same_log(one: list[dict], other: list[dict]):
    """AdamW hardly sees by what factor gradients are off; their norm does."""
    for key in ("step", "loss", "grad_norm", "tokens"):
        assert [line[key] for line in one] == pytest.approx([line[key] for line in other], rel=1e-5), key


def assert_bit_equal(one, other):
    one, other = weights(one), weights(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# schedule and sampling


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    config = TrainingConfig(steps=200, learning_rate=2.0, warmup=0.05)
    rates = [learning_rate(step, config) for step in range(200)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    assert rates[10] == 2.0 == max(rates)
    assert all(after < before for before, after in zip(rates[10:], rates[11:], strict=False))
    assert rates[105] == pytest.approx(1.0), "half-way between warm-up and end the cosine is at half"
    assert 0 < rates[-1] < 1e-3
    assert all(math.isfinite(learning_rate(s, replace(config, steps=1))) for s in range(1))


@pytest.mark.parametrize("samples, batch_size", [(10, 4), (12, 4), (3, 8), (5, 5), (7, 1)])
def test_every_epoch_holds_each_sample_once(samples, batch_size):
    sampler = shuffled_batches(samples, batch_size, seed=3)
    batches = [sampler(step) for step in range(samples)]
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)
    epochs = [stream[first : first + samples] for first in range(0, len(stream) - samples + 1, samples)]
    assert len(epochs) == batch_size
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    assert batch_size == 1 or samples < 5 or not np.array_equal(epochs[0], epochs[1]), "each in another order"
    np.testing.assert_array_equal(sampler(4), shuffled_batches(samples, batch_size, seed=3)(4))
    assert any(not np.array_equal(shuffled_batches(samples, batch_size, 4)(s), sampler(s)) for s in range(samples))


def test_contrastive_batches_hold_whole_families():
    families = [0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1]
    sampler = family_batches(families, batch_size=6, seed=0)
    seen = set()
    for step in range(30):
        batch = sampler(step)
        assert len(batch) == len(set(batch)) == 6
        whole = [f for f in range(3) if sum(families[i] == f for i in batch) == 3]
        cut = {families[i] for i in batch} - {-1, *whole}
        assert len(cut) <= 1, "at most the last family is cut"
        seen |= set(batch.tolist())
    assert seen == set(range(12))


# a one-layer regression shows the loop itself


class Numbers:
    def __init__(self, values):
        self.values = torch.tensor(values, dtype=torch.float)

    def to(self, device):
        return self


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(3, 3))
        self.shift = torch.nn.Parameter(torch.ones(3))
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, batch):
        x = batch.values[:, None] * self.frozen
        return (x @ self.slope + self.shift).square().sum()


class NoisyLine(Line):
    """Draws random numbers as it trains, as patch dropout does."""

    def forward(self, batch):
        return super().forward(batch) + (self.slope * torch.randn(3, 3)).sum()


def line_task(config):
    return Task(
        sampler=shuffled_batches(20, config.batch_size, config.seed),
        collate=lambda indices: Numbers([float(i) / 20 for i in indices]),
        count=lambda batch: len(batch.values),
        loss=lambda model, batch: model(batch),
        lengths=np.arange(20) % 7,
    )


@pytest.mark.parametrize("clip_norm", [0.7, 0])
def test_one_step_is_adamw_on_the_mean_gradient(tmp_path, clip_norm):
    config = training(steps=1, weight_decay=0.5, clip_norm=clip_norm, betas=(0.8, 0.9))
    model, twin = Line(), Line()
    log = train(model, line_task(config), config, tmp_path, **QUIET)
    batch = Numbers(shuffled_batches(20, 4, 0)(0) / 20)
    loss = twin(batch) / 4
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), clip_norm or math.inf)
    assert norm > 0.7
    optimizer = torch.optim.AdamW(
        [{"params": [twin.slope], "weight_decay": 0.5}, {"params": [twin.shift], "weight_decay": 0.0}],
        lr=1e-2, betas=(0.8, 0.9),
    )  # fmt: skip
    optimizer.step()
    torch.testing.assert_close(weights(model), weights(twin))
    assert log[0]["loss"] == pytest.approx(float(loss.detach())) and log[0]["grad_norm"] == pytest.approx(float(norm))
    assert log[0]["tokens"] == 4 and log[0]["step"] == 1 and 0 <= log[0]["waiting"] <= 1


def test_the_log_has_a_line_for_every_window(tmp_path):
    config = training(steps=10, log_every=4)
    log = train(Line(), line_task(config), config, tmp_path, **QUIET)
    assert [line["step"] for line in log] == [4, 8, 10]
    assert [line["tokens"] for line in log] == [16, 16, 8]
    assert log[-1]["loss"] < log[0]["loss"] and json.loads(json.dumps(log)) == log


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    config = training(batch_size=6, accumulation=4)
    with pytest.raises(ConfigError, match="batch_size 6 is not a multiple"):
        train(Line(), line_task(config), config, tmp_path, **QUIET)


@pytest.mark.parametrize(
    "records, processes, batch, steps", [(100, 3, 4, 25), (100, 2, 4, 25), (3, 2, 2, 2), (1, 2, 2, 1)]
)
def test_only_too_few_records_make_a_batch_smaller(monkeypatch, records, processes, batch, steps):
    """Another number of processes does not: the run would be another one. What does not divide is refused later."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    found = scheduled(training(batch_size=4), records, 1)
    assert (found.batch_size, found.steps) == (batch, steps)


@pytest.mark.parametrize("change", ["batch_size", "accumulation", "log_every", "checkpoint_every"])
def test_numbers_that_no_run_can_have_are_refused(change):
    with pytest.raises(ConfigError, match=f"{change} is 0: use a whole number of at least 1"):
        training(**{change: 0})


@pytest.mark.parametrize(
    "change, told",
    [
        ("language.log_every=0", "language: log_every is 0"),
        ("align_video.checkpoint_every=0", "align_video: checkpoint_every is 0"),
        ("stage2.precision=int3", "stage2: There is no precision 'int3'"),
        ("stage1.learning_rate=-1", "stage1: learning_rate is -1"),
        ("stage1.warmup=2", "stage1: warmup is 2: use a number from 0 to 1"),
        ("stage2.recomputed_layers=-1", "stage2: recomputed_layers is -1"),
        ("model.image.temporal=true", "model: image.temporal is on"),
        ("model.video.masked=0.5", "model: video.masked"),
        ("model.video.patch_dropout=1.5", "model: video: patch_dropout is 1.5"),
        ("model.language.context=0", "model: language: context is 0"),
        ("model.video.layers=6", "video.layers is 6, image.layers is 4: set them alike"),
        ("model.video.heads=2", "video.heads is 2, image.heads is 4"),
        ("stage2.precision=bf16", r"stage1\.precision is no, stage2\.precision is bf16: give all"),
    ],
)
def test_every_recipe_of_a_run_is_checked_before_anything_is_made(tmp_path, monkeypatch, change, told):
    monkeypatch.setattr("minivllava.training.run.build_world", None)
    with pytest.raises(ConfigError, match=told):
        train_video_llava(override(preset("sample"), change), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_the_precision_of_parts_that_are_there_is_not_checked():
    changed = override(preset("sample"), "align_image.precision=bf16")
    check_precision(changed, ("stage1", "stage2"))


def test_a_process_trains_in_one_precision():
    accelerator_for(training(), "cpu")
    with pytest.raises(ConfigError, match="begun on cpu with precision no, .* precision bf16 on cpu: start a new"):
        accelerator_for(training(precision="bf16"), "cpu")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = training()
    task = line_task(config)
    task.loss = lambda model, batch: model(batch) * math.inf
    with pytest.raises(DivergedError, match="step 0"):
        train(Line(), task, config, tmp_path, **QUIET)


class Stopped(Exception):
    """Stands for a run that ends between two steps."""


def stopping(task: Task, at: int) -> Task:
    def sampler(step):
        if step == at:
            raise Stopped
        return task.sampler(step)

    return replace(task, sampler=sampler)


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_run_stopped_at_any_step_continues_to_the_same_weights(tmp_path, stop):
    config = training(steps=8, checkpoint_every=3, weight_decay=0.1)
    whole = NoisyLine()
    log = train(whole, line_task(config), config, tmp_path / "whole", **QUIET)
    with pytest.raises(Stopped):
        train(NoisyLine(), stopping(line_task(config), stop), config, tmp_path / "run", **QUIET)
    continued = NoisyLine()
    again = train(continued, line_task(config), config, tmp_path / "run", **QUIET)
    assert_bit_equal(continued, whole)
    assert [line["loss"] for line in again] == [line["loss"] for line in log]


def test_a_line_of_the_log_that_was_interrupted_goes_on(tmp_path):
    config = training(steps=8, checkpoint_every=3, log_every=4)
    log = train(NoisyLine(), line_task(config), config, tmp_path / "whole", **QUIET)
    with pytest.raises(Stopped):
        train(NoisyLine(), stopping(line_task(config), 5), config, tmp_path / "run", **QUIET)
    assert_same_log(train(NoisyLine(), line_task(config), config, tmp_path / "run", **QUIET), log)


def test_a_state_that_was_moved_aside_when_the_run_was_killed_is_found(tmp_path):
    config = training(steps=8, checkpoint_every=3)
    with pytest.raises(Stopped):
        train(NoisyLine(), stopping(line_task(config), 5), config, tmp_path, **QUIET)
    (tmp_path / "state").rename(tmp_path / ".state.01234567.old")
    log = train(NoisyLine(), stopping(line_task(config), 0), config, tmp_path, **QUIET)  # the first step is done
    assert [line["step"] for line in log] == list(range(1, 9))


def test_the_state_of_a_stage_is_of_its_records(records, tmp_path):
    model, config = tiny_vllava(), training(steps=4, checkpoint_every=1, batch_size=1)
    load = visual_loader(model, records, progress=False)
    tasks = [
        conversation_task(ConversationDataset(some, model.tokenizer, model.config, load), config)
        for some in (records, records, records.select(range(1, len(records))))
    ]
    assert tasks[0].data == tasks[1].data != tasks[2].data


def test_equal_moments_stay_apart_when_a_run_continues(tmp_path):
    """Moments that are equal are stored once; in memory they must be two again."""

    class Waiting(Line):
        def __init__(self):
            super().__init__()
            self.late = torch.nn.ParameterList([torch.ones(3, 3), torch.ones(3, 3)])
            self.gate = 0.0

        def forward(self, batch):
            extra = sum((1 + i) * late.square().sum() for i, late in enumerate(self.late))
            return super().forward(batch) + self.gate * extra

    config = training(steps=6, checkpoint_every=3)

    def task():
        def sampler(step):
            model.gate = float(step >= 4)  # until then both get zero gradients, so all four moments are zero
            return line_task(config).sampler(step)

        return replace(line_task(config), sampler=sampler)

    model = whole = Waiting()
    train(whole, task(), config, tmp_path / "whole", **QUIET)
    model = Waiting()
    with pytest.raises(Stopped):
        train(model, stopping(task(), 4), config, tmp_path / "run", **QUIET)
    model = Waiting()
    train(model, task(), config, tmp_path / "run", **QUIET)
    assert_bit_equal(model, whole)


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    config = training(steps=8, checkpoint_every=3)
    with pytest.raises(Stopped):
        train(Line(), stopping(line_task(config), 5), config, tmp_path, **QUIET)
    less = replace(config, checkpoint_every=2, log_every=3, recomputed_layers=1, recompute_elementwise=True)
    with pytest.raises(Stopped):  # what changes no weight may change
        train(Line(), stopping(line_task(less), 5), less, tmp_path, **QUIET)
    other = replace(config, learning_rate=1e-3, steps=9)
    with pytest.raises(CheckpointError, match="another steps, learning_rate.*another name"):
        train(Line(), line_task(other), other, tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match="another data"):
        train(Line(), replace(line_task(config), data="of other files"), config, tmp_path, **QUIET)
    wider = Line()
    wider.slope = torch.nn.Parameter(torch.ones(3, 4))
    with pytest.raises(CheckpointError, match=r"slope is \(3, 3\), not \(3, 4\)"):
        train(wider, line_task(config), config, tmp_path, **QUIET)
    weights_file = tmp_path / "state/optimizer.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="optimizer.safetensors is truncated"):
        train(Line(), line_task(config), config, tmp_path, **QUIET)
    (tmp_path / "state/state.json").write_text("{")
    with pytest.raises(CheckpointError, match="state cannot be read.*delete it"):
        train(Line(), line_task(config), config, tmp_path, **QUIET)


# the stages


@pytest.mark.parametrize("name", ["stage1", "stage2", "align_image", "align_video"])
def test_only_the_parts_of_a_step_learn(records, tmp_path, name):
    learns = {
        "stage1": ("projector.",),
        "stage2": ("projector.", "language_model."),
        "align_image": ("encoders.image", "projections.image", "text_", "logit_scale"),
        "align_video": ("temporal", "projections.video", "logit_scale"),
    }[name]
    before = tiny_vllava() if name.startswith("stage") else tiny_languagebind()
    if name == "align_video":  # which starts from the image encoder
        align_video(
            before, records.filter(lambda r: bool(r["videos"])), tiny_tokenizer(), tiny_config(300),
            training(steps=0), tmp_path / "0", **QUIET,
        )  # fmt: skip
        image, video = (weights(before.encoders[kind]) for kind in ("image", "video"))
        assert all(torch.equal(image[key], video[key]) for key in image)
    model, log = run_task(name, records, training(steps=2), tmp_path)
    old = weights(before)
    changed = {key for key, tensor in weights(model).items() if not torch.equal(tensor, old[key])}
    may = {key for key in old if any(part in key for part in learns)}
    assert changed <= may, sorted(changed - may)
    # a key's bias shifts all scores of a row alike, so nothing is learned there but rounding errors
    assert may - changed <= {key for key in may if key.endswith(("key.bias", "position"))}, sorted(may - changed)
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == (key in may), key
    assert len(log) == 2 and not model.training


def test_a_video_encoder_without_temporal_attention_is_bound_as_the_image_encoder_it_is(records, tmp_path):
    config = tiny_config(len(tiny_tokenizer()), video=VISION)
    bound = LanguageBind(LanguageBindConfig({"image": VISION, "video": VISION}, config.text, config.embed_dim))
    clips = records.filter(lambda row: bool(row["videos"]))
    log = align_video(bound, clips, tiny_tokenizer(), config, training(), tmp_path / "run", **QUIET)
    assert len(log) == 4
    assert_bit_equal(bound.encoders["video"], bound.encoders["image"])
    assert not torch.equal(bound.projections["video"].weight, bound.projections["image"].weight)
    assemble(config, bound, tiny_vllava().language_model, tiny_tokenizer())


def test_frozen_parts_get_no_gradient(records):
    model = tiny_vllava().train()
    data = ConversationDataset(records, model.tokenizer, model.config, visual_loader(model, records, cached=False))
    from minivllava.data.dataset import collate

    batch = collate([data[i] for i in range(len(data))])
    model(batch.input_ids, batch.visuals, batch.labels).total.backward()
    for key, parameter in model.named_parameters():
        learns = key.startswith(("projector.", "language_model."))
        assert (parameter.grad is not None) == learns, key


def test_accumulation_changes_nothing(records, tmp_path):
    config = training(batch_size=8, learning_rate=RATE)
    whole, log = run_task("stage2", records, config, tmp_path / "1")
    parts, parts_log = run_task("stage2", records, replace(config, accumulation=4), tmp_path / "4")
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-6)
    assert_same_log(parts_log, log)


@pytest.mark.parametrize("progress, processes", [(True, 0), (False, 0), (True, 3)])
def test_a_cache_of_several_batches_holds_every_file(tmp_path, monkeypatch, progress, processes):
    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    if processes:  # as on a machine of so many cores
        monkeypatch.setattr("minivllava.data.cache.cores", lambda: processes)
        monkeypatch.setattr("minivllava.data.cache.MANY", 1)
    files = [str(tmp_path / f"{number}.png") for number in range(5)]
    for number, file in enumerate(files):
        write_image(file, square("red", number))
    config = tiny_config(300)
    cache = cache_media(files, "image", config, batch_size=2, progress=progress)
    for file in files:
        assert torch.equal(cache[file], load_pixels(file, "image", config, 1))


def test_of_two_processes_one_fills_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    write_image(tmp_path / "red.png", square("red", 0))
    both, encoded = threading.Barrier(2), []

    def encode(pixels):
        encoded.append(len(pixels))
        time.sleep(0.2)
        return pixels.flatten(1)

    def cached(_):
        both.wait()
        return cache_media([str(tmp_path / "red.png")], "image", tiny_config(300), encode, progress=False)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(cached, range(2))
    assert encoded == [1] and np.array_equal(first.array, second.array)


@pytest.mark.parametrize("full", ["from the start", "while it is reserved"])
def test_a_cache_that_the_disk_has_no_room_for_is_refused(tmp_path, monkeypatch, full):
    """Writing to the map would end in SIGBUS."""

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    write_image(tmp_path / "red.png", square("red", 0))
    if full == "from the start":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    else:
        monkeypatch.setattr(os, "posix_fallocate", no_room, raising=False)
    with pytest.raises(ConfigError, match="cache/pixels cannot take .*3,072 bytes are needed.* MINIVLLAVA_CACHE"):
        cache_media([str(tmp_path / "red.png")], "image", tiny_config(300), progress=False)
    assert not [file for file in (tmp_path / "cache/pixels").iterdir() if file.suffix != ".lock"]


def test_what_a_killed_process_left_of_a_cache_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    write_image(tmp_path / "red.png", square("red", 0))
    cached = partial(cache_media, [str(tmp_path / "red.png")], "image", tiny_config(300), progress=False)
    cached()
    file = next((tmp_path / "cache").rglob("*.npy"))
    file.rename(file.with_name(f".{file.name}.01234567.part"))
    cached()
    assert file.exists() and not list(file.parent.glob(".*.part"))


@pytest.mark.parametrize("options", [{}, {"load": lambda path, kind: torch.zeros(4, 16)}, {"cached": False}])
def test_features_are_computed_on_the_device_that_training_will_use(records, tmp_path, monkeypatch, options):
    """The device "meta" stands for a GPU; whoever gives features or trains on pixels leaves the model where it is."""
    places = []
    there = SimpleNamespace(device=torch.device("meta"))
    monkeypatch.setattr(stages, "accelerator_for", lambda config, device: there)
    monkeypatch.setattr(stages, "visual_loader", lambda model, *_: places.append(model.device.type))
    monkeypatch.setattr(stages, "train", lambda model, *_, **__: places.append(model.device.type))
    stages.stage1(tiny_vllava(), records, training(), tmp_path, progress=False, **options)
    assert places == (["cpu"] * (2 - ("load" in options)) if options else ["meta"] * 2)


def test_a_broken_file_is_named_by_processes_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("minivllava.data.cache.cores", lambda: 3)
    monkeypatch.setattr("minivllava.data.cache.MANY", 1)
    write_image(tmp_path / "good.png", square("red", 0))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match="bad.png"):
        cache_media([str(tmp_path / name) for name in ("good.png", "bad.png")], "image", tiny_config(300))
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_cached_features_train_the_same_model(records, tmp_path):
    models = []
    for cached in (True, True, False):
        models.append(tiny_vllava())
        stage2(models[-1], records, training(batch_size=6), tmp_path / str(len(models)), cached=cached, **QUIET)
    assert_bit_equal(models[0], models[1])
    torch.testing.assert_close(weights(models[0]), weights(models[2]), rtol=0, atol=1e-6)


def test_a_model_in_half_precision_trains_on_cached_features(records, tmp_path):
    model = tiny_vllava().to(torch.bfloat16)
    log = stage2(model, records, training(), tmp_path, **QUIET)
    assert len(log) == 4 and model.projector.linear1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_is_gone_is_named_whether_features_are_cached_or_not(tmp_path, cached):
    records = load_records(write_records(tmp_path))
    (tmp_path / "red.png").unlink()
    with pytest.raises(MediaError, match=r"red\.png: no such file"):
        visual_loader(tiny_vllava(), records, cached, progress=False)(str(tmp_path / "red.png"), "image")


def test_the_cache_is_of_these_weights_and_these_files(tmp_path):
    model = tiny_vllava()
    file = write_records(tmp_path)
    records = load_records(file)
    image, clip = unique_files(records, "image")[0], unique_files(records, "video")[0]
    pixels = visual_loader(model, records, cached=False)

    def agree():
        load = visual_loader(model, records, progress=False)
        for path, kind in ((image, "image"), (clip, "video")):
            torch.testing.assert_close(load(path, kind), model.features(pixels(path, kind)[None])[0])
            assert torch.equal(load(path, kind), visual_loader(model, records, progress=False)(path, kind))
        return load(image, "image"), load(clip, "video")

    first = agree()
    with torch.no_grad():
        for encoder in (model.image_encoder, model.video_encoder):
            encoder.pre_norm.weight.mul_(2)
    second = agree()
    assert not torch.allclose(first[0], second[0]) and not torch.allclose(first[1], second[1])
    Path(image).write_bytes(Path(unique_files(records, "image")[1]).read_bytes())
    assert not torch.allclose(agree()[0], second[0])


def test_features_are_of_an_encoder_whatever_its_weights():
    model = tiny_vllava()
    quick = tiny_vllava(image=replace(model.config.image, activation="quick_gelu"))
    quick.load_state_dict(model.state_dict())
    assert features_fingerprint(model, "image") != features_fingerprint(quick, "image")
    assert features_fingerprint(model, "video") == features_fingerprint(quick, "video")


def test_language_pretraining_reads_text_alone(records, tmp_path):
    model = tiny_vllava()
    before = weights(model)
    with pytest.raises(DataError, match="text alone"):
        pretrain_language(model, records, training(), tmp_path / "mixed", **QUIET)
    text = records.filter(lambda row: not row["visuals"])
    log = pretrain_language(model, text, training(batch_size=1, steps=20), tmp_path / "text", **QUIET)
    assert log[-1]["loss"] < log[0]["loss"] / 2
    changed = {key for key, tensor in weights(model).items() if not torch.equal(tensor, before[key])}
    assert changed and all(key.startswith("language_model.") for key in changed)
    tokenizer = train_tokenizer(records, 280)
    assert len(tokenizer) <= 280 and tokenizer.decode(tokenizer.encode("red USER:")) == "red USER:"


# a few samples, all the way


def test_a_handful_of_files_is_learned_by_heart(records_file, tmp_path):
    """Real PNG and MP4 files, from JSON to answers: each right for the file that it belongs to."""
    tiny_vllava(seed=3).save_pretrained(tmp_path / "init")
    config = training(batch_size=32, learning_rate=2e-2, checkpoint_every=60, log_every=50)
    recipe = (tmp_path / "init", [records_file], None, config)
    model, skipped = finetune(*recipe, 150, tmp_path / "run", **QUIET)
    assert skipped == []
    folder = records_file.parent
    for number, colour in enumerate(COLOURS):
        assert model.chat("What colour is the square?", images=[folder / f"{colour}.png"]) == colour
        motion = "right" if number in (0, 3) else "left"
        assert model.chat("Which way does the square move?", videos=[folder / f"{colour}.mp4"]) == motion
    pieces: list[str] = []
    answer = model.chat("Which colours are there?", on_text=pieces.append)
    assert answer == "".join(pieces) == ", ".join(COLOURS)
    first = weights(load_vllava(tmp_path / "run/model"))
    again, _ = finetune(*recipe, 150, tmp_path / "run", **QUIET)
    assert all(torch.equal(tensor, first[key]) for key, tensor in weights(again).items()), "done once is done"
    with pytest.raises(CheckpointError, match="run with another training"):
        finetune(*recipe, 151, tmp_path / "run", **QUIET)
    tiny_vllava(seed=4).save_pretrained(tmp_path / "init")
    with pytest.raises(CheckpointError, match="run with another weights"):
        finetune(*recipe, 150, tmp_path / "run", **QUIET)


def test_images_first_takes_no_clip_in_its_first_steps(tmp_path, monkeypatch):
    model, taken = tiny_vllava(), []
    image = model.config.visual_tokens("image", 1)
    records = load_records(write_records(tmp_path))
    collate = language.collate

    def watched(samples):
        taken.append([len(visual) for sample in samples for visual in sample["visuals"]])
        return collate(samples)

    monkeypatch.setattr(language, "collate", watched)
    stage2(model, records, training(steps=8, batch_size=3), tmp_path / "a", images_first=0.5, **QUIET)
    assert len(taken) == 8
    assert set(sum(taken[:4], [])) == {image} and max(sum(taken[4:], [])) > image
    clips = records.select([i for i, row in enumerate(records) if row["videos"]])
    with pytest.raises(DataError, match="Every record has a clip"):
        stage2(model, clips, training(steps=1, batch_size=1), tmp_path / "b", images_first=1.0, **QUIET)


def test_a_world_without_images_for_images_first_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(DataError, match="Every record has a clip"):
        train_video_llava(override(preset("sample"), "world.images=0"), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_broken_media_stops_a_run_before_it_starts_or_is_left_out_by_wish(tmp_path):
    file = write_records(tmp_path)
    (tmp_path / "red.png").write_bytes(b"")
    (tmp_path / "blue.mp4").unlink()
    tiny_vllava().save_pretrained(tmp_path / "init")
    with pytest.raises(MediaError) as error:
        finetune(tmp_path / "init", [file], None, training(), 1, tmp_path / "run", **QUIET)
    assert all(name in str(error.value) for name in ("2 of the files", "red.png", "blue.mp4", "skip"))
    assert not (tmp_path / "run").exists()
    _, skipped = finetune(tmp_path / "init", [file], None, training(), 1, tmp_path / "run", skip_broken=True, **QUIET)
    assert skipped == [str(tmp_path / "blue.mp4"), str(tmp_path / "red.png")]


def test_a_run_that_cannot_be_leaves_nothing_and_one_that_failed_early_may_change(tmp_path):
    file = write_records(tmp_path)
    tiny_vllava().save_pretrained(tmp_path / "init")
    run = tmp_path / "run"

    def tuned(file=file, epochs=1.0, **changes):
        return finetune(tmp_path / "init", file, None, training(**changes), epochs, run, **QUIET)

    for epochs in (0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="use a number above 0"):
            tuned(epochs=epochs)
    record = {"id": "swapped", "image": "red.mp4", "conversations": turns("<image>\nWhat?", "red")}
    (tmp_path / "swapped.json").write_text(json.dumps([record]))
    with pytest.raises(MediaError, match="1 of the files.*\n.*red.mp4 cannot be read as an image"):
        tuned(tmp_path / "swapped.json")
    (tmp_path / "long.json").write_text(json.dumps([{"id": "long", "conversations": turns("word " * 200, "yes")}]))
    with pytest.raises(ContextLengthError, match=r"long\.json: record 0 \(id 'long'\)"):
        tuned(tmp_path / "long.json")
    assert not run.exists()
    with pytest.raises(DivergedError):
        tuned(learning_rate=1e30, steps=20, epochs=20)
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "run.lock"]
    tuned()  # with another learning rate, as the message asks for
    with pytest.raises(CheckpointError, match="another training"):
        tuned(learning_rate=1e-4)


@pytest.mark.parametrize("first, media", [("own", "None"), (None, "own")])
def test_a_run_continues_however_its_paths_are_spelled(tmp_path, monkeypatch, first, media):
    """media: what run.json says; early ones have "None" for the folder of the JSON."""
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    write_records(Path("own"))
    tiny_vllava().save_pretrained("init")
    config = training(checkpoint_every=2)

    def stopped_train(model, task, *arguments, **options):
        return train(model, stopping(task, 3), *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stages, "train", stopped_train)
        finetune("init", "own/records.json", first, config, 2, "run", **QUIET)
    described = json.loads(Path("run/run.json").read_text())
    assert described["media"] == "own"
    Path("run/run.json").write_text(json.dumps(described | {"media": media}))
    state = json.loads(Path("run/model-unfinished/state/state.json").read_text())
    finetune(tmp_path / "init", tmp_path / "own/../own/records.json", tmp_path / "own", config, 2, "run", **QUIET)
    lines = json.loads(Path("run/log.json").read_text())["model"]
    assert lines[:2] == state["log"], "it went on from the state"
    finetune("init", "own/records.json", None, config, 2, "run", **QUIET)
    shutil.copytree("own", "other")
    with pytest.raises(CheckpointError, match="run with another data, media"):
        finetune("init", "other/records.json", None, config, 2, "run", **QUIET)


def turns(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize("name", ["run.json", "log.json"])
def test_a_broken_file_of_a_run_is_named(tmp_path, name):
    Run(tmp_path / "run", {"start": "here"})
    for text in ("{", "[]"):
        (tmp_path / "run" / name).write_text(text)
        with pytest.raises(CheckpointError, match=f"{name} .*: delete .*run to start over"):
            Run(tmp_path / "run", {"start": "here"}).logs()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file cannot be made"), running(tmp_path / "file", {"start": "here"}):
        pass


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, monkeypatch):
    file, run, locked = write_records(tmp_path), tmp_path / "run", "run is being trained by another process"
    tiny_vllava().save_pretrained(tmp_path / "init")
    recipe = tmp_path / "init", file, None, training(), 1, run
    with running(run, {"start": "here"}):
        with pytest.raises(CheckpointError, match=locked):
            finetune(*recipe, **QUIET)
        assert json.loads((run / "run.json").read_text())["start"] == "here" and not (run / "model").exists()
        with monkeypatch.context() as patch:
            patch.setenv("RANK", "1")
            with running(run, {"start": "here"}):
                pass  # another process of the same run
    finetune(*recipe, **QUIET)


def test_a_killed_process_leaves_its_run_to_others(tmp_path):
    def hold():
        with running(tmp_path, {"start": "here"}):
            (tmp_path / "held").touch()
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match="another process"), running(tmp_path, {"start": "here"}):
        pass
    process.kill()
    process.join()
    with running(tmp_path, {"start": "here"}):
        pass


@pytest.mark.parametrize("left", ["model/config.json", "model-unfinished/state"])
def test_a_step_of_a_run_that_is_not_described_is_refused(tmp_path, left):
    file = write_records(tmp_path)
    tiny_vllava().save_pretrained(tmp_path / "init")
    (tmp_path / "run" / left).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=rf"{left.split('/')[0]} was not .*run\.json is gone.*another name"):
        finetune(tmp_path / "init", file, None, training(), 1, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run/run.json").exists()


def test_what_a_run_killed_after_saving_left_is_removed_at_the_next_start(tmp_path):
    for name in (
        "stage1", "stage1-unfinished/state", "model-unfinished/state", "model-unfinished/.state.01234567.new/half",
        ".model.01234567.new",
    ):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "stage1/config.json").touch()
    (tmp_path / "run.json").write_text("{}")
    Run(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-unfinished", "run.json", "stage1"]
    assert [path.name for path in (tmp_path / "model-unfinished").iterdir()] == ["state"]


def test_a_finished_run_is_exported_with_the_parts_it_trained(tmp_path):
    run, model = tmp_path / "run", tiny_vllava()
    Run(run, {"preset": {"name": "mine"}}).write_log("model", [])
    model.save_pretrained(run / "model")
    save_model(model.language_model, run / "language", "language", tokenizer=model.tokenizer)
    export(run, tmp_path / "out")
    assert load_vllava(tmp_path / "out/mine").config == model.config
    assert load_language(tmp_path / "out/parts/language")[0].config == model.config.language
    for folder in (tmp_path / "out", tmp_path / "out/parts"):
        assert [(folder / file).read_text() for file in ("run.json", "log.json")] == [
            (run / file).read_text() for file in ("run.json", "log.json")
        ]
    (run / "run.json").write_text('{"training": {}}')
    with pytest.raises(CheckpointError, match=r"run\.json names no preset.*copy .*model instead"):
        export(run, tmp_path / "out")


def test_a_whole_run_stopped_again_and_again_makes_the_same_model(tmp_path, monkeypatch):
    """All four training steps from nothing, on a few scenes of the embedded world, with patch dropout."""
    steps = ("language", "align_image", "align_video", "stage1", "stage2")
    recipe = override(preset("sample"), *(f"{step}.checkpoint_every=2" for step in steps))
    whole = train_video_llava(recipe, tmp_path / "whole", **QUIET)

    left = 0

    def stopping_train(model, task, *arguments, **options):
        def sampler(step):
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped
            return task.sampler(step)

        return train(model, replace(task, sampler=sampler), *arguments, **options)

    for module in (language, align, stages):
        monkeypatch.setattr(module, "train", stopping_train)
    attempts, continued = 0, None
    while continued is None:
        left, attempts = 5, attempts + 1
        assert attempts < 20, "every attempt should get further"
        with contextlib.suppress(Stopped):
            continued = train_video_llava(recipe, tmp_path / "run", **QUIET)
    assert attempts > 4
    assert_bit_equal(continued, whole)
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("whole", "run")]
    assert len(logs[0]) == 5 and list(logs[0]) == list(logs[1])
    left_over = [path.name for path in (tmp_path / "run").iterdir() if "unfinished" in path.name]
    assert left_over == [] and not any(path.name.startswith(".") for path in (tmp_path / "run").iterdir())


def test_pretraining_goes_on_from_the_language_model_that_is_there(tmp_path):
    parts, run = Path(__file__).parents[1] / "data/pretrained/parts", tmp_path / "run"
    start, tokenizer = load_language(parts / "language")
    model = train_video_llava(preset("sample"), run, parts, more_text=True, **QUIET)
    further, same = load_language(run / "language")
    pairs = zip(further.parameters(), start.parameters(), strict=True)
    moved = max((a - b).abs().max().item() for a, b in pairs)
    assert 0 < moved < 0.01  # four steps at 1e-3: trained, and from there
    assert same.encode("a red circle") == tokenizer.encode("a red circle")
    assert_bit_equal(load_vllava(run / "stage1").language_model, further)
    assert not (run / "languagebind-image").exists() and model.tokenizer is not None
    assert json.loads((run / "run.json").read_text())["start"] == f"{parts}, more text"
    with pytest.raises(CheckpointError, match="another start"):
        train_video_llava(preset("sample"), run, parts, **QUIET)
    shutil.copytree(parts / "languagebind", tmp_path / "bound/languagebind")
    with pytest.raises(CheckpointError, match="bound holds no language/ to train further"):
        train_video_llava(preset("sample"), tmp_path / "other", tmp_path / "bound", more_text=True, **QUIET)


# other processes


def start_worker(folder: Path, records_file: Path, tasks: dict, processes: int = 1, **job):
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(
        json.dumps({"tasks": tasks, "records": str(records_file), "out": str(folder)} | job)
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(TESTS / "train_worker.py")]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*command, str(folder / "job.json")], env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_killed_run_continues_to_the_same_weights(records, records_file, tmp_path):
    fields = {"steps": 8, "checkpoint_every": 3}
    killed = start_worker(tmp_path / "run", records_file, {"stage2": fields}, die_at=7)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = json.loads((tmp_path / "run/stage2/state/state.json").read_text())
    assert state["step"] == 6
    continued, _ = run_task("stage2", records, training(**fields), tmp_path / "run/stage2")
    whole, _ = run_task("stage2", records, training(**fields), tmp_path / "whole")
    assert_bit_equal(continued, whole)


def test_two_processes_take_the_steps_of_one(records, records_file, tmp_path):
    usual = {"steps": 3, "learning_rate": RATE}
    tasks = {"stage2": {"batch_size": 8}, "align_image": {"batch_size": 4}, "align_video": {"batch_size": 4}}
    tasks = {name: usual | fields for name, fields in tasks.items()}
    done = start_worker(tmp_path / "two", records_file, tasks, processes=2)
    assert done.returncode == 0, done.stderr
    for name, fields in tasks.items():
        one, log = run_task(name, records, training(**fields), tmp_path / name)
        two = load_file(tmp_path / f"two/{name}.safetensors")
        # a key's bias has no gradient but rounding errors, which AdamW scales up
        ours = {key: tensor for key, tensor in weights(one).items() if not key.endswith("key.bias")}
        # rounding: next to nothing nearly everywhere, and a hundredth of a step where a gradient is next to zero
        apart = torch.cat([(two[key] - tensor).abs().flatten() for key, tensor in ours.items()])
        assert apart.quantile(0.999) < RATE / 10_000 and apart.max() < RATE / 100, f"{name}: up to {apart.max():.1e}"
        assert_same_log(json.loads((tmp_path / f"two/{name}.json").read_text()), log)
