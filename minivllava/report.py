"""The report of a finished run: one HTML file with everything in it, and one figure for the README."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from minivllava import figures
from minivllava.attention import most_focused, visual_attention
from minivllava.checkpoints.loading import load_vllava
from minivllava.checkpoints.storage import read_card
from minivllava.data.media import read_image, read_video
from minivllava.errors import CheckpointError, ConfigError
from minivllava.evaluation.metrics import wilson
from minivllava.files import write_text
from minivllava.models.vllava import VideoLLaVA

SHOWN, ASKED, MISTAKES = 8, 3, 4  # files of each kind, questions on each, mistakes of each kind
PIXELS = 256  # larger images are shown smaller
REDO = "delete it and give the train command again"
RECIPES = {"language": "language", "languagebind-image": "align_image", "languagebind-video": "align_video",
           "stage1": "stage1", "model": "stage2"}  # a step's name in the log and in the preset  # fmt: skip
SPLITS = {"test": "held-out test", "compositional": "new combinations"}


def write_report(folder: str | Path) -> Path:
    """Writes `folder`/report.html from the run's files and returns its path.

    folder: a run's, with run.json, log.json, evaluation.json (by `evaluate_world`) and the checkpoint model/.
    The file is whole or not there at all. Raises CheckpointError that names what is missing or broken,
    MediaError where an image or clip of the test is gone.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder = Path(folder)
    run, logs, evaluation = (_read(folder / f"{name}.json") for name in ("run", "log", "evaluation"))
    tables, predictions = _parts(evaluation, folder / "evaluation.json")
    model = load_vllava(folder / "model")
    answered = predictions["test"]["model"]
    shown = draw_files(answered)
    order = next((row for row in tables["test"] if row["type"] == "needs order"), None)
    page = Environment(
        loader=PackageLoader("minivllava", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    ).get_template("report.html.jinja")  # fmt: skip
    html = page.render(
        name=folder.resolve().name,
        headlines=_headlines(tables),
        order=order,
        verdict=_verdict_on_order(order) if order else None,
        questions=_questions(tables["test"]),
        unseen=_questions(tables.get("compositional", ())),
        facts=_facts(run, logs, model),
        losses=_chart(lambda **look: figures.loss_curves(logs, **look)) if any(logs.values()) else None,
        accuracies={
            split: _chart(lambda **look: figures.accuracy_by_type(tables[split], **look))  # noqa: B023
            for split in SPLITS if tables.get(split)
        },
        gallery={kind: [_card(group) for group in groups] for kind, groups in shown.items()},
        mistakes=[_card([p]) for kind in figures.KINDS for p in _drawn(_wrong(answered, kind), MISTAKES)],
        wrong=len(_wrong(answered)),
        overlays=_overlays(model, [groups[0][0] for groups in shown.values() if groups]),
        tables={split: _columns(tables[split]) for split in SPLITS if tables.get(split)},
        labels=figures.LABELS,
        type_label=figures.type_label,
        splits=SPLITS,
        asked=ASKED,
    )  # fmt: skip
    write_text(folder / "report.html", html)
    return folder / "report.html"


def result_figure(evaluation: dict):
    """One Figure of 1200 x 700 pixels for a README: held-out images and clips with answers, and accuracies.

    evaluation: what `evaluate_world` returns. The files are drawn at random, clips with a question that needs the order
    of frames first. Raises MediaError where a file is gone.
    """
    from matplotlib.figure import Figure

    tables, predictions = evaluation["tables"], evaluation["predictions"]
    drawn = draw_files(predictions["test"]["model"], count=24)
    chosen = [group[place % len(group)] for place, group in enumerate(drawn["image"][:4])]
    # clips with a question that needs the order of frames come first
    ordered = [max(group, key=lambda p: p["needs_order"]) for group in drawn["video"]]
    chosen += sorted(ordered, key=lambda p: not p["needs_order"])[:3]
    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(6.5, 5.5))
    figures.gallery([(_frames(p), p) for p in chosen], width=6.5, height=7, figure=left, margin=0.12)
    figures.accuracy_by_type(tables["test"], width=5.5, figure=right)
    return figure


def draw_files(predictions: Sequence[dict], count: int = SHOWN) -> dict[str, list[list[dict]]]:
    """Some files of each kind, drawn at random whatever was answered: kind -> files -> their predictions."""
    files: dict[str, dict[str, list[dict]]] = {kind: {} for kind in ("image", "video")}
    for prediction in predictions:
        if prediction["file"] is not None:
            files[prediction["kind"]].setdefault(prediction["file"], []).append(prediction)
    return {kind: _drawn(list(groups.values()), count) for kind, groups in files.items()}


def _drawn(items: list, count: int) -> list:
    order = np.random.default_rng(0).permutation(len(items))
    return [items[i] for i in order[:count]]


def _wrong(predictions: Iterable[dict], kind: str | None = None) -> list[dict]:
    wrong = (p for p in predictions if not p["correct"] and p["file"] is not None)
    return [p for p in wrong if kind in (None, p["kind"])]


def _read(file: Path) -> dict:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: let the run finish first; its train command continues it.")
    return read_card(file, REDO)


def _parts(evaluation: dict, file: Path) -> tuple[dict, dict]:
    try:
        tables, predictions = evaluation["tables"], evaluation["predictions"]
        if tables["test"] and predictions["test"]["model"]:
            return tables, predictions
    except (KeyError, TypeError):
        pass
    raise CheckpointError(f"{file} holds no test results: {REDO}.")


def _headlines(tables: dict[str, list[dict]]) -> list[dict]:
    """The numbers on top: title, and the shares of the model, the blind model and the majority answer."""
    wanted = [("Images", "test", ("image",)), ("Clips", "test", ("video",)),
              ("New combinations", "compositional", ("image", "video"))]  # fmt: skip
    lines = []
    for title, split, kinds in wanted:
        rows = [row for row in tables.get(split, ()) if row["type"] == "all" and row["kind"] in kinds]
        if rows:
            shares = {view: _mean(rows, view) for view in ("model", "blind", "majority")}
            lines.append({"title": title, "n": sum(row["n"] for row in rows), **shares})
    return lines


def _questions(rows: Iterable[dict]) -> int:
    return sum(row["n"] for row in rows if row["type"] == "all")


def _verdict_on_order(row: dict) -> str:
    """What the questions that need order say, in a sentence: the model's 95 % interval beside the best baseline."""
    low, high = wilson(round(row["model"] * row["n"]), row["n"])
    known = {view: 100 * row[view] for view in figures.BASELINES if row.get(view) is not None}
    best = max(known, key=known.get)
    answer = "Yes" if low > known[best] else "No" if high < known[best] else "That is undecided"
    side = "is above" if low > known[best] else "is below" if high < known[best] else "includes"
    return (
        f"{answer}: the 95 % interval of the model's share, {low:.0f} to {high:.0f} %, {side} the best baseline "
        f"({figures.LABELS[best]}, {known[best]:.1f} %)."
    )


def _mean(rows: Sequence[dict], view: str) -> float | None:
    known = [row for row in rows if row.get(view) is not None]
    return sum(row[view] * row["n"] for row in known) / sum(row["n"] for row in known) if known else None


def _columns(rows: list[dict]) -> dict:
    views = [key for key in rows[0] if key not in ("kind", "type", "n")]
    return {"views": views, "rows": rows}


def _facts(run: dict, logs: dict, model: VideoLLaVA) -> list[tuple[str, str]]:
    """(what, value) lines on what was trained, on what and how."""
    preset, made = run.get("preset", {}), run.get("made_with", {})
    vision, language, world = model.config.video, model.config.language, preset.get("world")
    sizes = ", ".join(
        f"{part.replace('_', ' ')} {_count(sum(p.numel() for p in getattr(model, part).parameters()))}"
        for part in ("image_encoder", "video_encoder", "projector", "language_model")
    )
    facts = [("Preset", f"{preset['name']}, started from {run.get('start')}")] if "name" in preset else []
    patches = f"{vision.grid} × {vision.grid} patches"
    layers = f"{language.layers} layers of width {language.width}"
    facts += [
        ("Parameters", sizes),
        ("Sees", f"{vision.image_size} px in {patches}, {vision.frames} frames of a clip"),
        ("Language model", f"{layers}, {len(model.tokenizer):,} tokens"),
    ]
    if world:
        size = f"{world['images']:,} images and {world['clips']:,} clips"
        facts.append(("World", f"{size}, {world['turns']} questions each, seed {world['seed']}"))
    for name, key in RECIPES.items():
        recipe = preset.get(key) or (run.get("training") if name == "model" else None)
        if logs.get(name) and recipe:
            took = figures.duration(sum(line.get("seconds", 0) for line in logs[name]))
            steps = f"{recipe['steps']:,} steps of {recipe['batch_size']}"
            rate = f"learning rate {recipe['learning_rate']:g}, seed {recipe['seed']}"
            facts.append((figures.TITLES[name], f"{steps}, {rate}, {took}"))
    software = [f"{name} {made[name]}" for name in ("minivllava", "torch", "python") if made.get(name)]
    software += [f"commit {made['commit'][:10]}"] if made.get("commit") else []
    facts += [("Machine", made["machine"])] if made.get("machine") else []
    return facts + ([("Made with", ", ".join(software))] if software else [])


def _count(parameters: int) -> str:
    size, unit = (parameters / 1e3, "K") if parameters < 1e6 else (parameters / 1e6, "M")
    return (f"{size:.3g}" if size < 1000 else f"{size:,.0f}") + f"\N{NO-BREAK SPACE}{unit}"


def _frames(prediction: dict) -> np.ndarray:
    """The image, as a clip of one frame, or 8 frames of the clip that a prediction is about."""
    if prediction["kind"] == "image":
        return read_image(prediction["file"])[None]
    return read_video(prediction["file"])


def _card(predictions: list[dict]) -> dict:
    """A file for the gallery: its frames as data URIs, and questions about it."""
    first = predictions[0]
    frames = [_png(frame) for frame in _frames(first)]
    return {"kind": first["kind"], "frames": frames, "questions": predictions[:ASKED]}


def _overlays(model: VideoLLaVA, predictions: Iterable[dict]) -> list[dict]:
    """Attention over the patches of what was asked about; none where the model has no token for each patch."""
    found = []
    for prediction in predictions:
        with suppress(ConfigError):
            found.append(_overlay(model, prediction))
    return found


def _overlay(model: VideoLLaVA, prediction: dict) -> dict:
    frames, weights = visual_attention(model, prediction["file"], prediction["question"])
    layer, head = most_focused(weights)
    maps = {
        f"mean of all {weights.shape[0]} layers and {weights.shape[1]} heads": weights.mean((0, 1)),
        f"most focused head: layer {layer + 1}, head {head + 1}": weights[layer, head],
    }
    chart = _chart(lambda **look: figures.attention_overlay(frames, maps, **look), photos=True)
    return {"chart": chart, "share": [float(found.sum()) for found in maps.values()], **prediction}


def _chart(draw: Callable, photos: bool = False) -> dict[str, str]:
    """A figure as data URIs: on light and dark pages, wide and narrow."""
    wide, narrow = {"width": 9.0}, {"width": 4.2}
    looks = {"light": wide, "light_narrow": narrow}
    looks |= {look.replace("light", "dark"): options | {"dark": True} for look, options in looks.items()}
    return {look: _rendered(draw(**options), photos) for look, options in looks.items()}


def _rendered(figure, photos: bool) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(160)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image, buffer = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), io.BytesIO()
    # 256 colours are plenty for what holds no photos, and take a third of the bytes
    (image if photos else image.quantize(256)).save(buffer, format="PNG")
    return _uri(buffer.getvalue())


def _png(frame: np.ndarray) -> str:
    image, buffer = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((PIXELS, PIXELS))
    image.save(buffer, format="PNG", optimize=True)
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
