"""The report is one file that tells the truth, figures name their axes, and attention finds its patches."""

import dataclasses
import json
import re
import shutil

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from minivllava import figures, report
from minivllava.attention import most_focused, visual_attention
from minivllava.data.conversation import VISUAL
from minivllava.data.tokenizer import Tokenizer
from minivllava.data.write_media import write_image, write_video
from minivllava.errors import CheckpointError
from minivllava.evaluation.evaluate import table
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import to_dict
from minivllava.presets import preset

QUESTIONS = {"image": "What shape is the object?", "video": "Which way does it move?"}
LOOKS = ("light", "dark", "light_narrow", "dark_narrow")
PNG = "data:image/png;base64,"
FACTS = {"commit": "0123456789abcdef", "torch": "2.99.1", "python": "3.11", "machine": "an abacus"}


def prediction(kind, file, number, answer, needs_order=False):
    return {
        "id": f"{kind}-{number}", "kind": kind, "file": str(file),
        "type": "motion" if needs_order else "shape", "needs_order": needs_order,
        "question": QUESTIONS[kind], "truth": "ring", "answer": answer, "correct": answer == "ring",
    }  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VideoLLaVA:
    torch.manual_seed(0)
    config = preset("tiny").model
    small = {"layers": 2, "width": 32, "heads": 2, "mlp_width": 32}
    tokenizer = Tokenizer.train([*QUESTIONS.values(), "USER: ASSISTANT: ring"], 300)
    config = dataclasses.replace(
        config,
        image=dataclasses.replace(config.image, **small),
        video=dataclasses.replace(config.video, **small),
        language=dataclasses.replace(config.language, **small, kv_heads=2, vocab_size=len(tokenizer)),
        keep_cls_video=True,
    )
    return VideoLLaVA(config, tokenizer).eval()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    write_image(folder / "image.png", rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    write_video(folder / "clip.mp4", rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def evaluation(media) -> dict:
    """Images: 3 of 4 right. Clips: 1 of 2, and the one that needs order is wrong."""
    image, clip = media / "image.png", media / "clip.mp4"
    answers = ["ring", "ring", "ring", "<script>alert(1)</script> & moon"]
    right = [prediction("image", image, i, answer) for i, answer in enumerate(answers)]
    right += [prediction("video", clip, 0, "ring"), prediction("video", clip, 1, "moon", needs_order=True)]
    wrong = [p | {"answer": "cross", "correct": False} for p in right]
    commonest = wrong[:5] + [right[5] | {"answer": "ring", "correct": True}]
    views = {"model": right, "shuffled frames": wrong[4:], "single frame": wrong[4:], "blind": wrong,
             "majority": commonest}  # fmt: skip
    unseen = {"model": right[:2], "blind": wrong[:2], "majority": wrong[:2]}
    return {
        "tables": {"test": table(views), "compositional": table(unseen)},
        "predictions": {"test": views, "compositional": unseen},
    }


@pytest.fixture(scope="module")
def logs() -> dict:
    log = [{"step": step, "loss": 60.0 / step, "seconds": 2.0} for step in range(10, 110, 10)]
    return {"stage1": log, "model": log}


@pytest.fixture
def run(tmp_path, model, evaluation, logs, monkeypatch):
    """A finished run, in whose report no chart is drawn, since drawing is slow."""
    folder = tmp_path / "a-run"
    model.save_pretrained(folder / "model")
    about = {"preset": to_dict(preset("tiny")), "start": "somewhere", "made_with": FACTS}
    for name, content in {"run": about, "log": logs, "evaluation": evaluation}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))

    monkeypatch.setattr(report, "_chart", lambda draw, photos=False: dict.fromkeys(LOOKS, PNG))
    return folder


def test_report_is_one_file_that_tells_what_was_found(run, monkeypatch):
    def one_look(draw, photos=False):
        return dict.fromkeys(LOOKS, report._rendered(draw(), photos))

    monkeypatch.setattr(report, "_chart", one_look)
    before = set(run.iterdir())
    path = report.write_report(run)
    assert path == run / "report.html"
    assert set(run.iterdir()) == before | {path}
    html = path.read_text()

    resources = re.findall(r"""(?:src|srcset|href|data|poster)\s*=\s*["']?([^"'\s>]+)""", html)
    assert resources and all(uri.startswith(PNG) and len(uri) > 100 for uri in resources)
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    assert not re.search(r"<(script|link|iframe|object)\b", html)

    text = " ".join(re.sub(r"<style>.*</style>|<[^>]+>", " ", html, flags=re.S).split())
    for number in ("Images 4 questions 75.0", "Clips 2 questions 50.0", "combinations 2 questions 100.0"):
        assert number in text.replace("\u202f", "")
    assert "blind 0.0" in text and "majority 50.0" in text
    assert "model 0.0 shuffled frames 0.0" in text  # what needs order
    for fact in ("tiny, started from somewhere", "0123456789", "2.99.1", "an abacus", "4 × 4 patches"):
        assert fact in text
    assert "2 of 6 answers are wrong" in text
    assert "true: ring" in text


def test_report_escapes_what_models_and_data_say(run):
    html = report.write_report(run).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; moon" in html
    assert "<script>" not in html


@pytest.mark.parametrize("name", ["run.json", "log.json", "evaluation.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_missing_or_broken_pieces_are_named(run, name, content):
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(str(run / name))):
        report.write_report(run)
    assert not (run / "report.html").exists()


def test_an_evaluation_without_results_and_a_lost_model_are_named(run):
    (run / "model/config.json").unlink()
    with pytest.raises(CheckpointError, match="model/config.json"):
        report.write_report(run)
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(CheckpointError, match="evaluation.json holds no test results"):
        report.write_report(run)


def test_a_report_that_fails_leaves_the_old_one(run, monkeypatch):
    (run / "report.html").write_text("old")

    def full(*paths):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(run)
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".report*"))


def test_a_model_without_a_token_for_each_patch_has_a_report_without_overlays(run, model):
    assert "Where it looks" in report.write_report(run).read_text()
    torch.manual_seed(0)
    pooled = VideoLLaVA(dataclasses.replace(model.config, projector="pooling"), model.tokenizer)
    shutil.rmtree(run / "model")
    pooled.save_pretrained(run / "model")
    assert "Where it looks" not in report.write_report(run).read_text()


def test_files_are_drawn_whatever_was_answered():
    right = [prediction("image", f"{i}.png", i, "ring") for i in range(40)]
    wrong = [p | {"correct": i % 3 == 0} for i, p in enumerate(right)]
    drawn = [[group[0]["file"] for group in report.draw_files(ps)["image"]] for ps in (right, wrong)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == report.SHOWN
    assert drawn[0] != [f"{i}.png" for i in range(report.SHOWN)]


def test_result_figure_is_1200_by_700(evaluation):
    figure = report.result_figure(evaluation)
    assert isinstance(figure, Figure)
    assert tuple(figure.get_size_inches() * figure.dpi) == (1200, 700)


def words(figure) -> str:
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible())


def test_loss_curves(logs):
    settings = dict(matplotlib.rcParams)
    figure = figures.loss_curves(logs)
    assert isinstance(figure, Figure) and len(figure.axes) == 2
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Stage 1: projector", "Stage 2: instruction tuning"]
    for axes in figure.axes:
        assert axes.get_xlabel().startswith("step") and axes.get_ylabel() == "loss (nats per token, log scale)"
        drawn = [(line["step"], line["loss"]) for line in logs["model"]]
        np.testing.assert_allclose(axes.lines[0].get_xydata(), drawn)
    assert dict(matplotlib.rcParams) == settings


def test_accuracy_by_type(evaluation):
    rows = evaluation["tables"]["test"]
    figure = figures.accuracy_by_type(rows)
    images, clips = figure.axes
    assert images.get_xlabel() == clips.get_xlabel() == "exact match (%)"
    types = [tick.get_text() for tick in images.get_yticklabels()]
    assert types == ["all", "shape", "motion", "all that need order"]
    assert [bar.get_width() for bar in images.patches] == [75, 75]
    assert [bar.get_width() for bar in clips.patches] == [50, 100, 0, 0]
    majority = [line for line in clips.lines if line.get_marker() == "|"]
    assert [line.get_xdata()[0] for line in majority] == [50, 0, 100, 100]
    shown = words(figure)
    assert all(figures.LABELS[view] in shown for view in ("model", "blind", "majority", "shuffled frames"))
    assert "\n2\n" in shown and "Clips (n = 2)" in words(figures.accuracy_by_type(rows, width=5.5))


def test_strips_and_galleries(evaluation):
    frames = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    strip = figures.frame_strip(frames)
    assert "time" in strip.axes[0].get_xlabel()
    assert [tick.get_text() for tick in strip.axes[0].get_xticklabels()] == list("12345678")
    np.testing.assert_array_equal(strip.axes[0].images[3].get_array(), frames[3])

    predictions = evaluation["predictions"]["test"]["model"]
    shown = words(figures.gallery([(frames[:1], predictions[0]), (frames, predictions[5])]))
    assert QUESTIONS["image"] in shown and QUESTIONS["video"] in shown
    assert "✓ ring" in shown and "✗ moon (true: ring)" in shown


@pytest.mark.parametrize("count", [1, 8])
def test_attention_overlay(count):
    frames = np.zeros((count, 32, 32, 3), np.uint8)
    weights = np.random.default_rng(0).random((count, 4, 4)) / 100
    figure = figures.attention_overlay(frames, {"one head": weights, "another": weights / 2})
    heat = [image for axes in figure.axes for image in axes.images if image.get_array().shape == (4, 4)]
    np.testing.assert_allclose([image.get_array() for image in heat[:count]], 100 * weights)
    assert {image.get_clim() for image in heat[:count]} == {(0, 100 * weights.max())}
    shown = words(figure)
    assert "one head" in shown and "another" in shown and shown.count("attention (%)") == 2


def test_example_sheet(tmp_path, media):
    for folder, file in (("images", "image.png"), ("videos", "clip.mp4")):
        (tmp_path / folder).mkdir()
        shutil.copy(media / file, tmp_path / folder)
    records = {"a": {"image": "images/image.png"}, "b": {"video": "videos/clip.mp4"}}
    files = {"stage1": ("Describe it.", "a noisy caption"), "stage2": ("Is it noise?", "certainly")}
    for name, (question, answer) in files.items():
        talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        rows = [{"id": key, **media_file, "conversations": talk} for key, media_file in records.items()]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    shown = words(figures.example_sheet(tmp_path))
    assert shown.count("a noisy caption") == shown.count("Is it noise?") == shown.count("certainly") == 2


def test_attention_lands_on_the_right_patches(model, media, monkeypatch):
    """A pattern that tells each position's number must come back in the order of frames, rows and columns."""
    seen = {}
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda ids, visuals: seen.update(ids=ids[0]) or embed(ids, visuals))

    def numbered(embeddings, on_attention):
        length = embeddings.shape[1]
        for layer in range(2):
            pattern = torch.zeros(1, 2, length, length)
            pattern[:, :, -1] = torch.arange(length) + 1000.0 * layer
            on_attention(pattern)

    monkeypatch.setattr(model.language_model, "forward", numbered)
    for file, frames, cls in (("image.png", 1, 0), ("clip.mp4", 8, 1)):
        images, weights = visual_attention(model, media / file, "What is it?")
        assert images.shape == (frames, 128, 128, 3) and images.dtype == np.uint8
        assert weights.shape == (2, 2, frames, 4, 4)
        first = int((seen["ids"] == VISUAL).nonzero()[0])
        order = np.arange(frames * (16 + cls)).reshape(frames, -1)[:, cls:]
        expected = first + order.reshape(frames, 4, 4)
        np.testing.assert_array_equal(weights[0, 1], expected)
        np.testing.assert_array_equal(weights[1, 0], expected + 1000)


def test_attention_is_a_share(model, media):
    _, weights = visual_attention(model, media / "clip.mp4", "What is it?")
    assert (weights >= 0).all() and 0 < weights[0, 0].sum() < 1


def test_most_focused_wants_much_attention_on_few_patches():
    weights = np.full((2, 2, 1, 4, 4), 1 / 16)  # all attention, spread evenly
    weights[0, 1] = 0
    weights[0, 1, 0, 2, 3] = 0.1  # one patch, little attention
    weights[1, 0] = 0
    weights[1, 0, 0, 1, 1] = 0.6
    assert most_focused(weights) == (1, 0)


@pytest.mark.parametrize(
    ("share", "n", "verdict"), [(0.95, 260, "Yes"), (0.6, 20, "That is undecided"), (0.2, 260, "No")]
)
def test_what_the_report_says_of_the_order_of_time(share, n, verdict):
    row = {"n": n, "model": share, "shuffled frames": 0.504, "single frame": 0.235, "blind": None, "majority": 0.03}
    said = report._verdict_on_order(row)
    assert said.startswith(f"{verdict}: ") and "shuffled frames, 50.4 %" in said
