"""Exact-match evaluation of a model, beside the baselines that each withhold something from it.

model            images and clips as they are
shuffled frames  clips with their frames in random order
single frame     clips whose middle frame replaces all others
blind            the question without its image or clip
majority         the commonest answer in training to the type of question; no model at all
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minivllava.chat import answer_prompts
from minivllava.checkpoints.storage import read_card
from minivllava.data.cache import weights_fingerprint
from minivllava.data.conversation import PLACEHOLDERS, visual_kinds
from minivllava.data.dataset import load_pixels, probe_pixels
from minivllava.data.records import asked_kind, check_folder, check_media, load_records
from minivllava.errors import ConfigError, DataError, check_choice
from minivllava.files import write_json
from minivllava.models.generate import Sampling
from minivllava.models.vllava import VideoLLaVA
from minivllava.provenance import environment

VIEWS = ("model", "shuffled frames", "single frame", "blind")


def evaluate(
    model: VideoLLaVA, records, view: str = "model", batch_size: int = 64, max_new_tokens: int = 16,
    progress: bool = True, load: Callable[[str, str], Tensor] | None = None,
) -> list[dict]:  # fmt: skip
    """The model's greedy answer to every record's last question, which must be followed by its true answer.

    view: one of VIEWS, above. load(path, kind): features that were computed before; of files as they are, so only
    the view "model" takes them.
    Returns dicts of `id`, `kind` ("image", "video", "text"), `file`, `type`,
    `needs_order`, `question`, `truth`, `answer`, `correct` (equal except for case, spaces and a final stop).
    Raises DataError for a record that does not end in an answer, ConfigError for a view that does not exist or does
    not take `load`.
    """
    from tqdm.auto import tqdm

    check_choice("view", view, VIEWS)
    if load is not None and view != "model":
        raise ConfigError(f"The view {view!r} encodes files itself: leave load out, which gives them as they are.")
    visuals = load or _Visuals(model, view)
    prompts, rows = [], []
    for row in records:
        turns = row["conversations"]
        if len(turns) < 2 or turns[-1]["from"] != "gpt":
            raise DataError(f"{row['where']}: evaluation needs a question and its true answer as the last two turns.")
        turns = turns[:-1] if view != "blind" else [_without_placeholders(turn) for turn in turns[:-1]]
        kinds = visual_kinds(turns)
        prompts.append(model.encode(turns, where=row["where"])[0])
        rows.append((row, list(zip(row["visuals"], kinds, strict=False))))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[str] = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=f"evaluate: {view}", disable=not progress, leave=False) as bar:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            seen = [[visuals(path, kind) for path, kind in rows[i][1]] for i in chosen]
            replies = answer_prompts(model, [prompts[i] for i in chosen], seen, Sampling(max_new_tokens))
            for i, reply in zip(chosen, replies, strict=True):
                answers[i] = reply
            bar.update(len(chosen))
    return [_prediction(row, answer) for (row, _), answer in zip(rows, answers, strict=True)]


class _Visuals:
    """Features of files as one view shows them, each file encoded once."""

    def __init__(self, model: VideoLLaVA, view: str):
        self.model, self.view = model, view
        self.features: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, path: str, kind: str) -> Tensor:
        if path not in self.features:
            config = self.model.config
            pixels = load_pixels(path, kind, config, config.video.frames)
            if kind == "video" and self.view == "shuffled frames":
                seed = zlib.crc32(path.rsplit("/", 1)[-1].encode())
                pixels = pixels[np.random.default_rng(seed).permutation(len(pixels))]
            if kind == "video" and self.view == "single frame":
                pixels = pixels[len(pixels) // 2].expand_as(pixels)
            self.features[path] = self.model.features(pixels[None])[0]
        return self.features[path]


def _without_placeholders(turn: dict) -> dict:
    value = turn["value"]
    for marker in PLACEHOLDERS:
        value = value.replace(marker + "\n", "").replace(marker, "")
    return {"from": turn["from"], "value": value}


def _prediction(row: dict, answer: str) -> dict:
    question, truth = (turn["value"] for turn in row["conversations"][-2:])
    return {
        "id": row["id"],
        "kind": asked_kind(row["images"], row["videos"]),
        "file": row["visuals"][0] if row["visuals"] else None,
        "type": row["types"][-1] if row["types"] else "question",
        "needs_order": bool(row["needs_order"] and row["needs_order"][-1]),
        "question": question.rsplit("\n", 1)[-1],
        "truth": truth,
        "answer": answer,
        "correct": normalised(answer) == normalised(truth),
    }


def normalised(answer: str) -> str:
    """Lower case, single spaces, no final full stop: what exact match compares."""
    return " ".join(answer.lower().split()).rstrip(". ")


def majority(records, training) -> list[dict]:
    """Predictions of the commonest training answer to each (kind, type) of question; without types, to each kind."""
    commonest: dict[tuple, Counter] = defaultdict(Counter)
    for row in training:
        kind = asked_kind(row["images"], row["videos"])
        answers = [turn["value"] for turn in row["conversations"][1::2]]
        for name, answer in zip(row["types"] or ["question"] * len(answers), answers, strict=False):
            commonest[kind, name][normalised(answer)] += 1
    predictions = []
    for row in records:
        prediction = _prediction(row, "")
        counts = commonest[prediction["kind"], prediction["type"]]
        predictions.append(_prediction(row, counts.most_common(1)[0][0] if counts else ""))
    return predictions


def accuracy(predictions: Iterable[dict], **wanted) -> tuple[float | None, int]:
    """(share correct, how many) of the predictions whose fields have the wanted values; (None, 0) if there are none."""
    hits = [p["correct"] for p in predictions if all(p[key] == value for key, value in wanted.items())]
    return (sum(hits) / len(hits) if hits else None), len(hits)


def table(views: dict[str, Sequence[dict]]) -> list[dict]:
    """Rows of accuracies, one per kind and question type and their totals, with a column for each view.

    Each row: `kind`, `type` ("all" for totals, "needs order" for what only the order of frames tells), `n`,
    and each view's accuracy.
    """
    model = views["model"]
    rows = []
    for kind in sorted({p["kind"] for p in model}):
        of_kind = [p for p in model if p["kind"] == kind]
        names = ["all", *sorted({p["type"] for p in of_kind})]
        names += ["needs order"] if any(p["needs_order"] for p in of_kind) else []
        for name in names:
            wanted = {"all": {}, "needs order": {"needs_order": True}}.get(name, {"type": name})
            scores = {view: accuracy(ps, kind=kind, **wanted)[0] for view, ps in views.items()}
            rows.append({"kind": kind, "type": name, "n": accuracy(model, kind=kind, **wanted)[1], **scores})
    return rows


def all_views(model: VideoLLaVA, records, training, max_new_tokens: int = 16) -> dict[str, list[dict]]:
    """Predictions of every view of some records, and of the majority answer in `training`, by name."""
    clips = records.filter(lambda row: bool(row["videos"]))
    asked = {"model": records, "shuffled frames": clips, "single frame": clips, "blind": records}
    views = {view: evaluate(model, some, view, max_new_tokens=max_new_tokens) for view, some in asked.items()}
    return views | {"majority": majority(records, training)}


def evaluate_world(model: VideoLLaVA, world: str | Path, out: str | Path | None = None) -> dict:
    """All views of the test split and of the compositional one.

    Returns `tables` and `predictions` by split, without a split of no records, `of` (a hash of the weights, and the
    world's name) and `made_with`; writes the same to `out` (JSON). `world` is a folder that `build_world` made.
    """
    world = Path(world)
    training = load_records(world / "stage2.json")
    predictions = {}
    for split in ("test", "compositional"):
        if json.loads((world / f"{split}.json").read_text(encoding="utf-8")):
            predictions[split] = all_views(model, load_records(world / f"{split}.json"), training)
    return _written(predictions, _subject(model, world), out)


def evaluate_files(
    model: VideoLLaVA, files: Sequence[str | Path], media: str | Path, out: str | Path | None = None,
    max_new_tokens: int = 64, skip_broken: bool = False,
) -> tuple[dict, list[str]]:  # fmt: skip
    """All views of your own records in LLaVA's format: of each, its last question. Returns results as those of
    `evaluate_world`, and the files left out. The majority answer is the commonest among these records themselves.

    Raises MediaError for broken media, unless `skip_broken`, before anything is asked; DataError as `evaluate`.
    """
    check_folder(media)
    records, skipped = check_media(load_records(files, media), skip_broken, probe=probe_pixels(model.config))
    names = [Path(file).name for file in files]
    predictions = {", ".join(names): all_views(model, records, records, max_new_tokens)}
    return _written(predictions, {"weights": weights_fingerprint(model), "data": names}, out), skipped


def _written(predictions: dict[str, dict], subject: dict, out: str | Path | None) -> dict:
    """Results of predictions by split and view."""
    tables = {split: table(views) for split, views in predictions.items()}
    results = {"tables": tables, "predictions": predictions, "of": subject, "made_with": environment()}
    if out is not None:
        write_json(out, results)
    return results


def known_results(model: VideoLLaVA, world: str | Path, file: str | Path) -> dict | None:
    """What `evaluate_world` wrote to `file`, if it is about these weights and this world; else None."""
    if not Path(file).is_file():
        return None
    known = read_card(Path(file), "delete it, to evaluate anew")
    return known if known.get("of") == _subject(model, world) else None


def _subject(model: VideoLLaVA, world: str | Path) -> dict:
    return {"weights": weights_fingerprint(model), "world": Path(world).name}
