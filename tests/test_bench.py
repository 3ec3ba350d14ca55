"""`minivllava bench`: the peer is the same model, the counted work is the work, the cells hold what they say."""

import inspect
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_config, tiny_vllava
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from minivllava import flops
from minivllava.ablations import STUDY_PARTS
from minivllava.bench import gpu, shipped
from minivllava.bench.kernels import family
from minivllava.bench.peers import Inputs, Ours, Theirs, comparable, compare, peer_of
from minivllava.bench.timing import H100, in_turns, ratios
from minivllava.cli import app
from minivllava.cli.ablate import ablate
from minivllava.errors import ConfigError
from minivllava.models.vllava import VideoLLaVA
from minivllava.presets import preset
from minivllava.provenance import peak_memory


@pytest.fixture(scope="module")
def model() -> VideoLLaVA:
    return tiny_vllava().eval()


def test_the_peer_is_the_same_model(model):
    result = compare(model, rounds=2, tokens=3, batches=(2,))
    assert result["difference"]["logits"] < 1e-4 and result["difference"]["same tokens"]
    assert [row["cell"] for row in result["rows"]] == ["forward", "forward+backward", "prefill", "decode"]
    for row in result["rows"]:  # times are not judged: a decode step, the difference of two, can even be negative
        assert set(row["ms"]) == {"ours", "transformers"} and math.isfinite(row["ratio"]["ours"])


def test_answers_that_the_context_has_no_room_for_are_not_timed(model):
    with pytest.raises(ConfigError, match=r"room for \d+ more, and answers of 1001"):
        compare(model, rounds=1, tokens=1000, batches=(1,))


def test_ours_and_the_peer_share_their_weights_and_take_the_same_step(model):
    same = comparable(model)
    peer = peer_of(same)
    x = Inputs(same.config, 2, next(same.projector.parameters()))
    losses = [contestant.loss(x) for contestant in (Ours(same), Theirs(peer))]
    assert torch.allclose(*losses, atol=1e-5)
    shared = {p.data_ptr() for p in same.parameters()}
    assert all(p.data_ptr() in shared for p in peer.parameters())


def test_a_model_without_a_peer_is_refused():
    with pytest.raises(ConfigError, match="mlp2x_gelu"):
        comparable(tiny_vllava(projector="linear"))


def test_runs_take_turns_and_the_first_round_only_warms_up():
    order = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, torch.device("cpu"))
    assert order == list("ababab") and all(len(times) == 2 for times in seconds.values())


def test_a_ratio_is_the_median_over_rounds_of_what_the_peer_takes():
    row = ratios({"ours": [1.0, 1.0, 2.0], "transformers": [2.0, 3.0, 2.0]})
    assert row["ratio"] == {"ours": 2.0} and row["between"] == {"ours": [1.5, 2.5]} and row["ms"]["ours"] == 1000


def test_decoding_reads_the_weights_of_layers_and_head(model):
    language = model.language_model
    matrices = sum(p.numel() for name, p in language.named_parameters() if p.ndim == 2)
    assert flops.decoder_weights(language.config) == matrices - language.token_embedding.weight.numel()
    cache = language.new_cache(1, 7, torch.zeros(1))
    assert flops.cache_numbers(language.config, 7) == cache.keys.numel() + cache.values.numel()


def test_counted_flops_are_those_of_the_matrix_products(model):
    """Against torch's own counter, which counts all of attention where ours counts its causal half."""
    same = comparable(model)
    x = Inputs(same.config, 1, next(same.projector.parameters()))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        same.language_model.logits(same.language_model(same.embed(x.ids, list(x.clips)))[:, -1])
    frames, words = same.config.video.frames, 32
    counted = flops.prefill_flops(same.config, frames, words)
    tokens = same.config.visual_tokens("video", frames) + words
    future = 2 * tokens**2 * same.config.language.width * same.config.language.layers
    assert counter.get_total_flops() == pytest.approx(counted + future, rel=0.02)


def test_counted_flops_of_a_projector_that_learns(model):
    projector, features = model.projector, torch.randn(10, model.config.image.width)
    with FlopCounterMode(display=False) as counter:
        projector(features).sum().backward()
    assert counter.get_total_flops() == flops.projector_flops(model.config, 10, learns=True)


def test_gpu_cells_on_a_cpu_at_a_small_size():
    saved = []
    result = gpu.run_gpu_bench(tiny_config(), "cpu", torch.float32, rounds=2, tokens=2, batches={1: 2, 2: 2},
                               save=lambda figures: saved.append(len(figures["rows"])))  # fmt: skip
    assert saved == [2, 4, 5, 6], "what is there is kept, whatever comes"
    cells = [(row["cell"], row["batch"]) for row in result["rows"]]
    answers = [(cell, batch) for batch in gpu.ANSWERING_BATCHES for cell in ("prefill", "decode")]
    assert cells == [*answers, ("stage 1, step", 2), ("stage 2, step", 2)]
    stage1, stage2 = result["rows"][-2:]
    assert stage1["MFU"]["ours"] > 0 and stage2["tokens/s"]["transformers"] > 0
    json.dumps(result)
    with pytest.raises(ConfigError, match="device foo"):
        gpu.run_gpu_bench(tiny_config(), "foo")


@pytest.mark.parametrize("total, fewest", [(30, 16), (17.5, 28), (13, 32), (100, 0)])
def test_as_many_layers_keep_their_activations_as_fit(monkeypatch, total, fewest):
    """On a device where a forward pass takes 12 GiB and one more for each layer kept, and a step never less than 16."""
    decoder = torch.nn.Module()
    decoder.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(32))

    def recomputed() -> int:
        return sum("context_fn" not in layer.forward.keywords for layer in decoder.layers)

    runs = {"forward": lambda: 12 + 32 - recomputed()}

    def step(recipe):
        with gpu.recomputing(decoder, recipe):
            kept = 32 - recomputed()
        if max(16, 12 + kept) > total and kept:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu, "_peak_memory", lambda run, device: run())
    monkeypatch.setattr(gpu, "_total_memory", lambda device: total)
    monkeypatch.setattr(gpu, "FILLED", 0.95)
    recipe = gpu.TrainingConfig(recompute_elementwise=True)
    found = gpu._fewest_recomputed(decoder, recipe, runs["forward"], step, torch.device("cuda"))
    assert found == replace(recipe, recomputed_layers=fewest)


def test_kernels_are_told_apart_by_their_names():
    names = {"nvjet_tst_128x256": "products", "void cudnn_generated_fort_native_sdpa_sm90_flash": "attention",
             "Memcpy DtoD": "copies", "triton_poi_fused_mul_silu_0": "fused by torch.compile",
             "multi_tensor_apply_kernel": "optimiser", "elementwise_kernel": "other",
             "triton_poi_fused__scaled_dot_product_cudnn_attention_addcmul_cat_copy_2": "fused by torch.compile",
             "triton_poi_fused_add_cat_mm_mul_permute_slice_t_view_3": "fused by torch.compile",
             "triton_red_fused__fused_rms_norm_0": "fused by torch.compile",
             "triton_red_fused__fused_rms_norm_index_put_mm_t_view_1": "products",
             "triton_red_fused__safe_softmax__to_copy_add_bmm_exp_sub_view_5": "attention"}  # fmt: skip
    assert {name: family(name) for name in names} == names


def test_without_a_gpu_it_says_so_and_counts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["bench", "--gpu"])
    assert result.exit_code == 0 and "no CUDA GPU" in result.output
    found = gpu.floor(preset("paper").model, *H100)
    assert 4 < found["decode, ms at least"] < 5 and 25 < found["prefill, ms at least"] < 35
    assert 1.3e10 < found["decode, bytes a token"] < 1.6e10  # 6.6 billion numbers of two bytes, and the cache
    assert 2.5e13 < found["prefill, operations"] < found["stage 1, operations"] < found["stage 2, operations"]
    assert all(f"{value:.3g}" in result.output for value in found.values())
    result = CliRunner().invoke(app, ["bench", "--gpu", "--device", "cuda"])
    assert "no CUDA GPU" in str(result.exception)
    with pytest.raises(ConfigError, match="The peer in transformers"):
        gpu.floor(replace(preset("paper").model, projector="linear"))


def test_figures_go_into_a_new_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["bench", "--gpu", "--out", str(tmp_path / "new/figures.json")])
    assert result.exit_code == 0, result.exception
    assert "prefill, operations" in json.loads((tmp_path / "new/figures.json").read_text())


def test_a_grid_is_costed_with_the_parts_that_studies_start_from(monkeypatch, tmp_path):
    """Cells of other parts have other keys: the finished ones would not be found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / STUDY_PARTS).mkdir(parents=True)
    asked = []
    monkeypatch.setattr(shipped, "load_vllava", lambda checkpoint: SimpleNamespace(tokenizer="there"))
    monkeypatch.setattr(shipped, "build_world", lambda config: tmp_path)
    monkeypatch.setattr(shipped, "_stage2_rate", lambda *_: (1.0, 0.0))
    monkeypatch.setattr(shipped, "_cold_start", lambda *_: {"ask": 1.0, "import torch": 1.0})
    monkeypatch.setattr(shipped, "grid_costs", lambda preset, parts, *_, **__: asked.append(parts.folder) or {})
    figures = shipped.run_bench("anywhere/tiny", peer=False)
    assert asked == [inspect.signature(ablate).parameters["parts"].default] == [STUDY_PARTS]
    assert 0.1 < figures["peak memory of this process, GiB"] < 64


@pytest.mark.parametrize("system, unit", [("linux", 2**10), ("darwin", 1)])
def test_peak_memory_is_counted_in_the_systems_unit(monkeypatch, system, unit):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 2**30 // unit))
    assert peak_memory() == 3
