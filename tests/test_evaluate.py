"""Evaluation: what each view withholds, exact match, the majority answer, and the table."""

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_vllava, write_records
from typer.testing import CliRunner

from minivllava.checkpoints.loading import load_vllava
from minivllava.cli import app
from minivllava.data.cache import weights_fingerprint
from minivllava.data.dataset import load_pixels
from minivllava.data.records import load_records
from minivllava.errors import CheckpointError, ConfigError, DataError, MediaError
from minivllava.evaluation.evaluate import (
    VIEWS,
    _Visuals,
    accuracy,
    evaluate,
    evaluate_files,
    evaluate_world,
    known_results,
    majority,
    normalised,
    table,
)


@pytest.fixture(scope="module")
def model():
    return tiny_vllava()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return load_records(write_records(tmp_path_factory.mktemp("records")))


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_answers_every_record(model, records, view):
    predictions = evaluate(model, records, view, max_new_tokens=3, progress=False)
    assert [p["id"] for p in predictions] == records["id"]
    assert [p["kind"] for p in predictions] == ["image", "video"] * 4 + ["text"]
    assert all(p["correct"] == (normalised(p["answer"]) == normalised(p["truth"])) for p in predictions)
    assert predictions[0]["question"] == "What colour is the square?", "shown without its placeholder"


def test_a_view_that_does_not_exist_is_refused(model, records):
    with pytest.raises(ConfigError, match="no view 'blnd'; choose one of model, shuffled frames"):
        evaluate(model, records, "blnd")


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "model"])
def test_features_of_files_as_they_are_are_refused_for_other_views(model, records, view):
    with pytest.raises(ConfigError, match="leave load out"):
        evaluate(model, records, view, load=_Visuals(model, "model"))


def test_a_model_of_any_dtype_is_evaluated(records):
    predictions = evaluate(tiny_vllava().bfloat16(), records, max_new_tokens=2, progress=False)
    assert len(predictions) == len(records)


def test_a_split_without_records_is_left_out(model, tmp_path):
    write_records(tmp_path).rename(tmp_path / "test.json")
    (tmp_path / "stage2.json").write_bytes((tmp_path / "test.json").read_bytes())
    (tmp_path / "compositional.json").write_text("[]\n")
    results = evaluate_world(model, tmp_path, tmp_path / "new/evaluation.json")
    assert list(results["tables"]) == list(results["predictions"]) == ["test"]
    assert json.loads((tmp_path / "new/evaluation.json").read_text(encoding="utf-8")) == results
    assert list(results["predictions"]["test"]) == [*VIEWS, "majority"]


def test_results_are_known_of_the_same_weights_and_world_alone(model, tmp_path):
    file = tmp_path / "evaluation.json"
    assert known_results(model, tmp_path, file) is None
    write_records(tmp_path).rename(tmp_path / "test.json")
    (tmp_path / "stage2.json").write_bytes((tmp_path / "test.json").read_bytes())
    (tmp_path / "compositional.json").write_text("[]\n")
    assert evaluate_world(model, tmp_path, file) == known_results(model, tmp_path, file)
    assert known_results(model, tmp_path / "other", file) is None
    other = copy.deepcopy(model)
    next(other.parameters()).data += 1
    assert known_results(other, tmp_path, file) is None
    file.write_text("{")
    with pytest.raises(CheckpointError, match=r"evaluation\.json .*delete it"):
        known_results(model, tmp_path, file)


def test_the_shipped_evaluation_is_of_the_shipped_weights_and_in_the_readme():
    root = Path(__file__).parents[1]
    known = json.loads((root / "data/pretrained/evaluation.json").read_text())
    assert known["of"]["weights"] == weights_fingerprint(load_vllava(root / "data/pretrained/tiny"))
    readme = (root / "README.md").read_text(encoding="utf-8")
    for rows in known["exact match"].values():
        for row in rows:
            if row["type"] == "all":
                assert f"| {row['n']} | **{100 * row['model']:.1f}** |" in readme


def test_what_the_port_lost_is_of_the_shipped_weights_and_in_the_readme():
    root = Path(__file__).parents[1]
    known = json.loads((root / "data/results/port.json").read_text())
    assert known["of"]["weights"] == weights_fingerprint(load_vllava(root / "data/pretrained/tiny"))
    readme = (root / "README.md").read_text(encoding="utf-8")
    for row in known["rows"][:2]:
        with_it, without, lost = (f"{100 * row[name]:.1f}" for name in ("temporal attention", "without it", "lost"))
        assert f"| {row['n']} | {with_it} % | {without} % | {lost} points" in readme


def test_your_own_records_are_scored_beside_the_baselines(model, tmp_path):
    file = write_records(tmp_path)
    results, skipped = evaluate_files(model, [file], tmp_path, tmp_path / "out.json", max_new_tokens=2)
    assert not skipped and json.loads((tmp_path / "out.json").read_text())["tables"] == results["tables"]
    rows = {row["kind"]: row for row in results["tables"]["records.json"] if row["type"] == "all"}
    assert {kind: row["n"] for kind, row in rows.items()} == {"image": 4, "video": 4, "text": 1}
    assert rows["video"]["majority"] == 0.5 and rows["image"]["shuffled frames"] is None

    (tmp_path / "red.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match="red.png"):
        evaluate_files(model, [file], tmp_path)
    Image.new("RGB", (14_000, 800)).save(tmp_path / "blue.png")  # padded to a square, 14,000 x 14,000
    padding = tiny_vllava(aspect="pad")
    left_out = evaluate_files(padding, [file], tmp_path, max_new_tokens=1, skip_broken=True)[1]
    assert left_out == [str(tmp_path / name) for name in ("blue.png", "red.png")]


def test_options_of_evaluate_that_do_not_go_together(tmp_path):
    for wrong in (["--media", "x"], ["--skip-broken"], ["--data", "a.json", "--figure", "a.png"], ["--limit", "3"]):
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path), *wrong])
        assert isinstance(result.exception, ConfigError), wrong


def test_a_figure_needs_a_test_split(tmp_path):
    command = ["evaluate", str(tmp_path), "--preset", "sample", "--set", "world.test=0", "--figure", "a.png"]
    with pytest.raises(ConfigError, match="--figure shows files of the test split"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_batches_give_the_answers_of_single_questions(model, records):
    together = evaluate(model, records, max_new_tokens=4, progress=False)
    alone = evaluate(model, records, batch_size=1, max_new_tokens=4, progress=False)
    assert [p["answer"] for p in together] == [p["answer"] for p in alone]


def test_views_change_clips_and_nothing_else(model, records):
    image, clip = records[0]["visuals"][0], records[1]["visuals"][0]
    shown = {view: _Visuals(model, view) for view in VIEWS}
    assert torch.equal(shown["model"](image, "image"), shown["shuffled frames"](image, "image"))
    assert not torch.equal(shown["model"](clip, "video"), shown["shuffled frames"](clip, "video"))
    pixels = load_pixels(clip, "video", model.config, 4)
    middle = model.features(pixels[2].expand_as(pixels)[None])[0]
    assert torch.equal(shown["single frame"](clip, "video"), middle)


def test_blind_answers_do_not_depend_on_the_file(model, records):
    rows = records.select([0, 2])  # the same question about two images
    answers = [p["answer"] for p in evaluate(model, rows, "blind", progress=False)]
    assert answers[0] == answers[1]


def test_records_without_an_answer_are_refused(model, records, tmp_path):
    record = {"id": 7, "conversations": [{"from": "human", "value": "Why?"}]}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    with pytest.raises(DataError, match="id 7"):
        evaluate(model, load_records(tmp_path / "a.json"), progress=False)


def test_normalised():
    assert normalised(" The  Red circle. ") == "the red circle" == normalised("the red circle .")


def _record(answer, kind="colour", order=False):
    turns = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": answer}]
    return {
        "id": answer, "where": "here", "images": ["a.png"], "videos": [], "visuals": ["a.png"],
        "conversations": turns, "types": [kind], "needs_order": [order],
    }  # fmt: skip


def test_majority_is_the_commonest_answer_to_each_type_in_training():
    training = [_record("red"), _record("red"), _record("blue"), _record("two", "count")]
    test = [_record("red"), _record("blue"), _record("two", "count"), _record("left", "relation")]
    predictions = majority(test, training)
    assert [p["answer"] for p in predictions] == ["red", "red", "two", ""]
    assert [p["correct"] for p in predictions] == [True, False, True, False]


def test_table_counts_what_it_says():
    test = [_record("red"), _record("blue"), _record("left", "motion", order=True)]
    right = majority(test, test[:1])  # "red" to colours, nothing to motions
    rows = {row["type"]: row for row in table({"model": right, "blind": right[:1]})}
    assert (rows["all"]["n"], rows["all"]["model"], rows["all"]["blind"]) == (3, pytest.approx(1 / 3), 1.0)
    assert (rows["colour"]["n"], rows["colour"]["model"]) == (2, 0.5)
    assert (rows["needs order"]["n"], rows["needs order"]["model"]) == (1, 0.0)
    assert rows["motion"]["blind"] is None, "nothing to average is no number"
    assert accuracy([]) == (None, 0)
