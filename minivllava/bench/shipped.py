"""What training with a cache, and the first answer of a shipped model, cost on this machine."""

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from minivllava.ablations import RESULTS, STUDY_PARTS
from minivllava.ablations.parts import Parts
from minivllava.ablations.plan import grid_costs
from minivllava.ablations.results import shared_cells
from minivllava.bench.peers import comparable, compare
from minivllava.checkpoints.loading import load_vllava, need_tokenizer
from minivllava.data.build import build_world
from minivllava.data.records import load_records
from minivllava.presets import preset
from minivllava.provenance import environment, peak_memory
from minivllava.run_config import WorldConfig
from minivllava.training.stages import stage2


def run_bench(checkpoint: str | Path, steps: int = 30, peer: bool = True, cell: bool = False) -> dict:
    """Figures by name; each name says its unit. `steps` training steps are timed, the first three dropped.

    peer: also `rows`, of the same weights and inputs through `transformers` (see `peers.compare`), and how far its
    logits are from ours. cell: also computes one cell of the studies of preset tiny, in minutes.
    """
    model = load_vllava(checkpoint)  # what cannot be read, or has no peer, is said before the world is made
    need_tokenizer(model.tokenizer, checkpoint)
    if peer:
        comparable(model)
    world = build_world(WorldConfig(
        images=256, clips=128, align_images=0, align_clips=0, text_documents=0, validation=0, test=4, compositional=0
    ))  # fmt: skip
    figures = dict(environment())
    rates = {}
    for name, cached in (("cached features", True), ("pixels", False)):
        rates[name], waiting = _stage2_rate(checkpoint, world, steps, cached)
        figures[f"stage 2, {name}: samples/s"] = round(rates[name], 1)
        figures[f"stage 2, {name}: share of time waiting for data"] = round(waiting, 4)
    figures["stage 2: cached / pixels, ratio of rates"] = round(rates["cached features"] / rates["pixels"], 2)
    seconds = _cold_start(checkpoint, world)
    figures["ask: seconds from cold start to answer"] = round(seconds["ask"], 2)
    figures["ask: share spent on importing torch"] = round(seconds["import torch"] / seconds["ask"], 2)
    if STUDY_PARTS.is_dir():
        with tempfile.TemporaryDirectory() as store:
            parts = Parts(STUDY_PARTS, store, progress=False)
            figures |= grid_costs("tiny", parts, shared_cells(RESULTS), run=cell)
    figures["peak memory of this process, GiB"] = round(peak_memory(), 2)
    if peer:
        compared = compare(model)
        figures["transformers: largest difference of a logit"] = f"{compared['difference']['logits']:.1e}"
        figures["transformers: same greedy tokens"] = compared["difference"]["same tokens"]
        figures["rows"] = compared["rows"]
    return figures


def _stage2_rate(checkpoint, world: Path, steps: int, cached: bool) -> tuple[float, float]:
    """(samples/s, share of time waiting for data) of stage 2 at the tiny preset's batch."""
    model = load_vllava(checkpoint)
    recipe = replace(preset("tiny").stage2, steps=steps, log_every=1)
    records = load_records(world / "stage2.json")
    with tempfile.TemporaryDirectory() as folder:
        log = stage2(model, records, recipe, folder, cached=cached, progress=False)[3:]
    seconds = sum(line["seconds"] for line in log)
    waiting = sum(line["waiting"] * line["seconds"] for line in log)
    return len(log) * recipe.batch_size / seconds, waiting / seconds


def _cold_start(checkpoint, world: Path) -> dict[str, float]:
    """Seconds of new processes: one that answers about an image, one that only imports torch."""
    image = next((world / "images" / "test").glob("*.png"))
    ask = ["-m", "minivllava.cli", "ask", str(checkpoint), str(image), "How many objects are there?"]
    seconds = {}
    for name, arguments in (("ask", ask), ("import torch", ["-c", "import torch"])):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        seconds[name] = sorted(times)[1]
    return seconds
