"""Ablations: studies, the grid, statistics, results."""

import json
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_config, tiny_languagebind, tiny_tokenizer
from typer.testing import CliRunner

from minivllava.ablations import cell as cell_module
from minivllava.ablations import runner as runner_module
from minivllava.ablations.cell import pope_summary, run_cell, summary
from minivllava.ablations.parts import Parts, part_key
from minivllava.ablations.plan import measured_rate, plan_study
from minivllava.ablations.questions import answer, questions, write_answers
from minivllava.ablations.records import Data, DepthData, scaled_steps
from minivllava.ablations.results import (
    finished_cells,
    is_current,
    shared_cells,
    summarise,
    whole_seeds,
    write_results,
)
from minivllava.ablations.runner import grid, run_grid, stand_alone
from minivllava.ablations.settings import Mixture, Settings, base_settings, cell_key
from minivllava.ablations.statistics import bootstrap_interval, paired_differences, t_interval, verdict
from minivllava.ablations.study import load_study, study_names
from minivllava.checkpoints.saving import save_model
from minivllava.cli import app
from minivllava.config import ModelConfig
from minivllava.data.world import sample_scene
from minivllava.errors import CheckpointError, ConfigError, DataError, DivergedError, MinivllavaError
from minivllava.models.language import LanguageModel
from minivllava.overrides import override
from minivllava.run_config import TrainingConfig, WorldConfig

ROOT = Path(__file__).resolve().parent.parent
WORLD = WorldConfig(
    size=16, images=6, clips=6, align_images=8, align_clips=4, text_documents=8, validation=0, test=3, compositional=0
)
FEW = TrainingConfig(steps=2, batch_size=4, learning_rate=1e-2, log_every=1)


@pytest.fixture(autouse=True, scope="module")
def _one_thread_and_a_cache_of_its_own(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIVLLAVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


def wide_config(vocabulary: int) -> ModelConfig:
    """The tiny config with room for conversations that are spelt byte by byte."""
    config = tiny_config(vocabulary)
    return replace(config, language=replace(config.language, context=2048))


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(wide_config(len(tiny_tokenizer())), WORLD, FEW, FEW, FEW, FEW, FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shipped parts: encoders and a language model of the tiny sizes."""
    folder, tokenizer = tmp_path_factory.mktemp("parts"), tiny_tokenizer()
    torch.manual_seed(5)
    save_model(
        LanguageModel(wide_config(len(tokenizer)).language), folder / "language", "language", tokenizer=tokenizer
    )
    save_model(tiny_languagebind(), folder / "languagebind", "languagebind", tokenizer=tokenizer)
    return folder


@pytest.fixture
def parts(folder, tmp_path) -> Parts:
    return Parts(folder, tmp_path / "store", "cpu", progress=False)


@pytest.fixture(scope="module")
def shared_parts(folder, tmp_path_factory) -> Parts:
    """One store for tests that only read what a study trains."""
    return Parts(folder, tmp_path_factory.mktemp("store"), "cpu", progress=False)


# settings and studies


def test_changes_set_multiply_and_take_effect_together(settings):
    narrow = override(
        settings, "model.image.width*=0.5", "model.video.width*=0.5", "stage2.steps*=0.1", "temporal=false",
        "model.projector=linear", "stage1.learning_rate*=2", "data2.clips=0.25",
    )  # fmt: skip
    assert (narrow.model.image.width, narrow.model.video.width) == (8, 8)
    assert narrow.stage2.steps == 1, "at least one"
    assert narrow.stage1.learning_rate == pytest.approx(2e-2) and narrow.data2.clips == 0.25
    assert not narrow.temporal and narrow.model.projector == "linear"
    assert narrow.stage1.betas == settings.stage1.betas


@pytest.mark.parametrize(
    "change, told",
    [
        ("model.projektor=linear", "no field 'projektor'"),
        ("model.image.width*=0.5", "same width"),
        ("stage2.steps=many", "does not fit"),
        ("stage2.steps=1.5", "does not fit"),
        ("stage2.steps=true", "does not fit"),
        ("model.projector*=2", "does not fit"),
        ("temporal*=2", "does not fit"),
        ("model=3", "no field 'model'"),
        ("stage2.steps", "FIELD=VALUE"),
        ("image_encoder=clip", "contrastive"),
        ("data1.images=1.5", "0 to 1"),
        ("data1.images=0", None),
    ],
)
def test_changes_that_make_no_sense_are_refused(settings, change, told):
    if told is None:
        with pytest.raises(ConfigError, match="nothing to learn"):
            override(settings, change, "data1.clips=0")
        return
    with pytest.raises(ConfigError, match=told):
        override(settings, change)


def test_a_key_hashes_all_that_matters_and_nothing_else(settings):
    key = cell_key(settings, 0, "w")
    assert (
        cell_key(override(settings, "align_image.steps=9", "language.steps=9", "world.text_documents=1"), 0, "w") == key
    )
    used = override(settings, "image_encoder=mae")
    assert cell_key(override(used, "align_image.steps=9"), 0, "w") != cell_key(used, 0, "w")
    others = [
        cell_key(settings, 1, "w"), cell_key(settings, 0, "v"), cell_key(used, 0, "w"),
        *(cell_key(override(settings, change), 0, "w") for change in (
            "stage2.steps=9", "stage1.learning_rate=0.5", "world.images=5", "model.select_layer=-1", "data1.budget=0",
            "temporal=false", "depth=bound", "language_model=trained", "baselines=true",
        )),
    ]  # fmt: skip
    assert len({key, *others}) == 1 + len(others)
    left_out = override(settings, "data1.budget=0")
    assert cell_key(override(left_out, "stage1.steps=9"), 0, "w") == cell_key(left_out, 0, "w")


@pytest.mark.parametrize("preset", ("sample", "tiny", "small"))
@pytest.mark.parametrize("name", study_names())
def test_every_study_suits_every_preset(name, preset):
    study = load_study(name)
    arms = study.settings(base_settings(preset))
    assert arms[study.reference].baselines and len(arms) >= (2 if name.endswith("-long") else 3)
    keys = {cell.key for cell in grid(arms, 1, "w")}
    assert len(keys) >= len(arms) - 1, "arms differ; of four layers the third from last is the middle"
    for its in arms.values():
        for kind in ("image", "video"):
            assert its.model.visual_tokens(kind, its.model.video.frames) <= its.model.language.context - 512
    assert study.claims and all(claim.paper or claim.expected for claim in study.claims)


def test_there_are_ten_studies_with_follow_ups_and_ten_questions():
    follow_ups = [name for name in study_names() if name.endswith("-long")]
    assert len(study_names()) - len(follow_ups) == 10
    for name in follow_ups:
        of, its = load_study(name.removesuffix("-long")), load_study(name)
        assert {arm.name for arm in its.arms} <= {arm.name for arm in of.arms}, "the same arms"
        asked = {(claim.metric, claim.better, claim.than) for claim in of.claims}
        assert {(claim.metric, claim.better, claim.than) for claim in its.claims} <= asked, "the same claims"
    assert list(questions()) == list(range(1, 11))
    for number, question in questions().items():
        for name, signs in question.verdicts.items():
            study = load_study(name)
            bearing = [claim for claim in study.claims if not claim.questions or number in claim.questions]
            assert number in study.questions and len(signs) == len(bearing), f"question {number}, {name}"


def test_the_shipped_answers_have_two_sentences_and_fit_the_shipped_results():
    folder = ROOT / "data/results"
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in study_names()
               if (folder / f"{name}.json").exists()}  # fmt: skip
    page, readme = (folder / "QUESTIONS.md").read_text(), (ROOT / "README.md").read_text()
    for number, question in questions().items():
        said = answer(number, results)
        assert said in page, "QUESTIONS.md is out of date"
        assert len(re.findall(r"[.)](?= [A-Z]|$)", said)) == 2, said
        assert not re.search("[{}]", said), f"question {number}"
        heading = f"{number}. {question.question}"
        assert f"\n## {heading}\n" in page
        anchor = re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")  # as GitHub makes them
        assert f"| {number} | [{question.question}](data/results/QUESTIONS.md#{anchor}) |" in readme


def test_an_answer_is_withheld_where_verdicts_are_not_those_it_was_written_for(tmp_path):
    results = json.loads((ROOT / "data/results/ratio.json").read_text())
    assert answer(7, {"ratio": results}) and answer(7, {}) is None
    results["claims"][0]["verdict"] = "agrees"
    assert answer(7, {"ratio": results}) is None
    (tmp_path / "ratio.json").write_text(json.dumps(results))
    page = write_answers(tmp_path).read_text()
    assert "No answer was written for these results" in page and questions()[7].doubt.strip() not in page


def test_a_question_that_is_not_whole_is_named(monkeypatch):
    monkeypatch.setattr("minivllava.ablations.questions._file", lambda: {"1": {"question": "Why?"}})
    with pytest.raises(ConfigError, match=r"questions\.toml: Question lacks the field answer, how, verdicts"):
        questions.__wrapped__()


def test_studies_share_cells(settings):
    keys = {
        name: {c.key for c in grid(load_study(name).settings(settings), 1, "w")}
        for name in ("alignment", "joint", "hallucination", "ratio", "stages", "projector")
    }
    assert keys["hallucination"] == keys["alignment"] | keys["joint"]
    assert len(keys["ratio"] & keys["joint"]) >= 3
    assert all(keys["alignment"] & keys[name] for name in ("joint", "stages", "projector"))


@pytest.mark.parametrize(
    "text, told",
    [
        ("title = 'x'\nmetrics = ['image']", "no arms"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[arms]]\nname='a'", "twice"),
        ("title = 'x'\nmetrics = ['imagge']\n[[arms]]\nname='a'", "imagge"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\nsets=[]", "sets"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname=3", "arms: name is 3: use a string"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname=''", "has no name"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\nset=[1]", "arms: set is .*: use a list of strings"),
        ("title = 'x'\nmetrics = [['image']]\n[[arms]]\nname='a'", "metrics is .*: use a list of strings"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[arms]]\nname='b'\nlabel='a'", "two arms are called"),
        ("title = 'x'\nmetrics = ['image']\nquestions = [11]\n[[arms]]\nname='a'", "no question 11"),
        ("title = 'x'\nmetrics = ['image']\nquestions = ['1']\n[[arms]]\nname='a'",
         "questions is .*: use a list of whole numbers"),
        ("title = 'x'\nmetrics = ['image']\nname = '../evil'\n[[arms]]\nname='a'", "its name is '../evil'"),
        ("title = 'x'\nmetrics = ['image']\nname = 'questions'\n[[arms]]\nname='a'", "not that of QUESTIONS.md"),
        ("title = 'x'\nmetrics = ['image']\nname = 'ratio'\n[[arms]]\nname='a'", "as a study of the package"),
        ("title = 'x'\nmetrics = ['image']\ninclude = ['mine.toml']", "includes itself"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[arms]]\nname='b'\n[[claims]]\nmetric='image'\n"
         "better='a'\nthan='b'\nwithin=nan", "within is nan"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[arms]]\nname='b'\n[[claims]]\nmetric='image'\n"
         "better='a'\nthan='b'\nwithin=true", "claims: within is True: use a number"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[claims]]\nmetric='image'\n"
         "better='a'\nthan='a'", "itself"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[claims]]\nmetric='image'\n"
         "better='b'\nthan='a'", "'b'"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[claims]]\nmetric='image'\nbetter='a'",
         "claims: Claim lacks the field than"),
        ("title = 'x'\nmetrics = ['image']\n[[arms]]\nname='a'\n[[arms]]\nname='b'\n[[claims]]\nmetric='image'\n"
         "better='a'\nthan='b'\npoints=inf", "claims: points is inf: use a number"),
        ("title = 'x'\nmetrics = ['image']\narms = 3", "arms is 3: use a list of Arms"),
        ("title = 'x'\nmetrics = ['image']\narms = ['a']", "arms: Arm is an object of named fields, not 'a'"),
        ("title = 'x'\nmetrics = ['image']\ninclude = 3", "include is 3: use a list of strings"),
        ("metrics = ['image']\n[[arms]]\nname='a'", "title"),
        ("title = ", "cannot be read"),
    ],
)  # fmt: skip
def test_a_study_that_is_wrong_says_where(tmp_path, text, told):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        load_study(file)
    assert "mine.toml" in str(error.value)


def test_a_field_is_set_in_one_base_only(tmp_path):
    """Else the arms of `alignment-long`, whose base says the same, would get four times four times the steps."""
    file = tmp_path / "mine.toml"
    text = "title='x'\nmetrics=['image']\nbase=['{}']\ninclude=['alignment-long']\n[[arms]]\nname='a'\nset=['{}']"
    for change in ("stage2.steps*=4", "stage2.steps=9"):
        file.write_text(text.format(change, "image_encoder=contrastive"))
        with pytest.raises(ConfigError, match="mine.toml: .*stage2.steps is set by its base and by that of alignment"):
            load_study(file)
    file.write_text(text.format("world.test=9", "stage2.steps*=4"))
    assert [arm.name for arm in load_study(file).arms] == ["a", "mae"], "a is `united`"


@pytest.mark.parametrize("change, told", [("world.seed=9", "another world"), ("stage2.seed=4", "sets a seed")])
def test_arms_are_asked_the_same_and_seeds_are_the_commands(tmp_path, settings, change, told):
    file = tmp_path / "mine.toml"
    file.write_text(f"title='x'\nmetrics=['image']\n[[arms]]\nname='a'\n[[arms]]\nname='b'\nset=['{change}']")
    with pytest.raises(ConfigError, match=told):
        load_study(file).settings(settings)


def test_unknown_studies_are_listed():
    with pytest.raises(ConfigError, match="alignment, alignment-long, joint"):
        load_study("alignmnet")


# records


def test_mixtures_are_nested_and_the_same_scenes_in_both_stages(settings):
    data = Data(WORLD, progress=False)
    half = Mixture(images=0.5, clips=0.0)
    ids = {stage: set(data.chosen(stage, half)["id"]) for stage in ("stage1", "stage2")}
    assert ids["stage1"] == ids["stage2"] == {f"train-image-{i:06d}" for i in range(3)}
    assert data.chosen("stage2", Mixture())["id"] == data.stage2["id"]
    third = data.chosen("stage1", Mixture(images=1 / 3, clips=1.0))
    assert [i for i in data.stage1["id"] if i in set(third["id"])] == third["id"], "in the same order"
    assert sum(map(bool, third["images"])) == 2 and sum(map(bool, third["videos"])) == 6


def test_each_record_is_seen_as_often_whatever_the_mixture():
    recipe = replace(FEW, steps=100)
    assert scaled_steps(recipe, Mixture(), WORLD) == 100
    assert scaled_steps(recipe, Mixture(clips=0.0), WORLD) == 50
    assert scaled_steps(recipe, Mixture(images=0.5, clips=0.5), WORLD) == 50
    assert scaled_steps(recipe, Mixture(images=0.0, clips=0.15, budget=7.667), WORLD) == pytest.approx(57.5, abs=0.51)


def test_pope_questions_are_answered_truly():
    data = Data(WORLD, progress=False)
    assert len(data.pope) > 2 * WORLD.test
    for row in data.pope:
        scene = sample_scene(WORLD.seed, "test", int(row["id"].split("-")[1]))
        question, answer = (turn["value"] for turn in row["conversations"])
        there = any(f"{thing.colour} {thing.shape}" in question for thing in scene.things)
        assert answer == ("yes" if there else "no"), question


def test_depth_is_asked_without_colours():
    data = DepthData(WORLD, progress=False)
    assert len(data.test) == len(data.test_images) > 0 and len(data.tune) > 0
    assert all("/depth/" in row["images"][0] for row in (*data.test, *data.tune))
    assert all("/images/" in row["images"][0] for row in data.test_images)
    said = " ".join(turn["value"] for row in (*data.test, *data.tune) for turn in row["conversations"])
    assert not any(colour in said for colour in ("colour", "red", "green", "blue", "yellow", "cyan"))
    assert all(row["conversations"][0]["value"].startswith("<image>\n") for row in data.tune)


def test_scores_are_shares_of_right_answers():
    def told(kind, type, truth, answer, order=False):
        return {
            "kind": kind,
            "type": type,
            "needs_order": order,
            "truth": truth,
            "answer": answer,
            "correct": truth == answer,
        }

    found = summary([
        told("image", "colour", "red", "red"), told("image", "shape", "ring", "moon"),
        told("video", "order", "first", "first", True), told("video", "order", "first", "second", True),
        told("video", "motion", "grows", "grows"),
    ])  # fmt: skip
    assert (found["image"], found["image/colour"], found["order"]) == (50, 100, 50)
    assert found["video"] == pytest.approx(66.667)
    pope = pope_summary([
        told("image", f"existence/{split}", truth, answer)
        for split in ("random", "popular", "adversarial")
        for truth, answer in (("yes", "yes"), ("yes", "Yes."), ("no", "yes"), ("no", "no"))
    ])  # fmt: skip
    assert pope["pope"] == pope["pope/random"] == 75 and pope["pope/yes"] == 75
    assert pope["pope/f1"] == pytest.approx(80)


# statistics


def test_intervals_are_scipys():
    values = [51.0, 53.5, 52.0, 54.0, 50.5]
    low, high = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    low, high = bootstrap_interval(values)
    assert min(values) < low < np.mean(values) < high < max(values)
    assert bootstrap_interval(values) == (low, high), "the same draws each time"
    assert bootstrap_interval([1.0]) is None and t_interval([1.0]) is None
    assert bootstrap_interval([2.0, 2.0]) is t_interval([2.0, 2.0]) is None, "two equal counts are no certainty"


def test_no_seed_is_left_out_of_a_comparison():
    assert paired_differences({0: 3.0, 1: 5.0}, {1: 4.0, 0: 1.0}) == {0: 2.0, 1: 1.0}
    with pytest.raises(DataError, match="seed 2"):
        paired_differences({0: 3.0, 1: 5.0, 2: 1.0}, {0: 1.0, 1: 4.0})


@pytest.mark.parametrize(
    "direction, interval, expected",
    [
        ("+", (0.1, 3), "agrees"), ("+", (-3, -0.1), "disagrees"), ("+", (-1, 1), "undecided"),
        ("+", None, "undecided"), ("=", (-1, 1.9), "agrees"), ("=", (2.1, 3), "disagrees"),
        ("=", (-5, -2.1), "disagrees"), ("=", (1, 3), "undecided"), ("=", (-3, 3), "undecided"),
    ],
)  # fmt: skip
def test_verdicts(direction, interval, expected):
    assert verdict(direction, interval, within=2.0) == expected


# cells and their grid


def test_a_cell_is_a_function_of_its_settings_and_seed(settings, folder, tmp_path):
    one, two = (run_cell(settings, 3, Parts(folder, tmp_path / name, "cpu", progress=False)) for name in ("a", "b"))
    for name in ("key", "metrics", "logs", "steps", "n"):
        assert one[name] == two[name]
    other = run_cell(settings, 4, Parts(folder, tmp_path / "a", "cpu", progress=False))
    assert other["logs"] != one["logs"] and other["key"] != one["key"]
    assert one["n"] == {"image": 15, "video": 15, "order": one["n"]["order"], "pope": one["n"]["pope"]}
    assert {"image", "video", "pope", "pope/f1"} <= set(one["metrics"]) and one["baselines"] == {}
    assert json.loads(json.dumps(one)) == one
    assert not (tmp_path / "a" / "unfinished" / one["key"]).exists()


def test_a_seed_draws_the_order_of_the_data_and_steps_follow_the_mixture(settings, parts, monkeypatch):
    asked = []
    for name in ("stage1", "stage2"):
        stage = lambda model, records, config, *_, **__: asked.append((config.seed, config.steps, len(records))) or []  # noqa: E731
        monkeypatch.setattr(cell_module, name, stage)
    data = Data(WORLD, progress=False)
    its = override(settings, "stage1.steps=8", "stage2.steps=12", "data2.clips=0", "data2.budget=2")
    cell_module.train_stages(parts.model(its, 7), its, 7, data, None, Path("nowhere"))
    assert asked == [(7, 8, 12), (7, 12, 6)]


def test_arms_with_the_same_encoders_share_features_and_a_seed_its_projector(settings, parts, monkeypatch):
    starts = {}
    before = cell_module.train_stages

    def train_stages(model, its, seed, *rest, **options):
        starts[its.data2.clips, seed] = model.projector.linear1.weight.clone()
        return before(model, its, seed, *rest, **options)

    monkeypatch.setattr(cell_module, "train_stages", train_stages)
    run_cell(settings, 0, parts)
    caches = set(Path(os.environ["MINIVLLAVA_CACHE"]).glob("features/*"))
    run_cell(override(settings, "data2.clips=0.5", "stage2.learning_rate=0.1"), 0, parts)
    assert set(Path(os.environ["MINIVLLAVA_CACHE"]).glob("features/*")) == caches and len(caches) >= 2
    assert torch.equal(starts[1.0, 0], starts[0.5, 0])


@pytest.mark.parametrize(
    "changes",
    [
        ("image_encoder=contrastive",),
        ("image_encoder=mae", "model.image.masked=0.75"),
        ("temporal=false", "model.video.frames=3", "model.keep_cls_video=true"),
        ("language_model=trained", "model.language.width*=0.5", "model.language.mlp_width*=0.5"),
        ("encoders=trained", "model.image.width*=0.5", "model.video.width*=0.5"),
        ("data1.budget=0", "data2.images=0", "baselines=true"),
        ("data2.budget=0", "model.projector=resampler", "model.select_layer=1"),
    ],
)
def test_every_kind_of_arm_trains(settings, shared_parts, changes):
    its = override(settings, *changes)
    result = run_cell(its, 0, shared_parts)
    assert {"image", "video", "pope"} <= set(result["metrics"])
    assert set(result["steps"]) == {n for n, d in (("stage1", its.data1), ("stage2", its.data2)) if d.budget}
    assert set(result["baselines"]) == (
        {"blind", "single frame", "shuffled frames", "majority"} if its.baselines else set()
    )


def test_further_modalities_are_plugged_into_one_finished_model(settings, parts, monkeypatch):
    trained = []
    before = cell_module.train_stages
    monkeypatch.setattr(cell_module, "train_stages", lambda *a, **o: trained.append(1) or before(*a, **o))
    results = {}
    for depth in ("image", "rgb", "mae", "bound"):
        results[depth] = run_cell(override(settings, f"depth={depth}"), 0, parts)
        assert results[depth]["steps"] == {}, "no training of projector or language model"
    tuned = run_cell(override(settings, "depth=bound", "depth_tuning=0.5", "stage2.steps=4"), 0, parts)
    assert tuned["steps"] == {"depth": 2} and len(trained) == 2, "once for each recipe and seed, whatever the arm"
    assert all("depth" in result["metrics"] for result in results.values())
    model = parts.model(settings, 0)
    rgb, bound, mae = (
        parts.depth_encoder(override(settings, f"depth={depth}"))["layers.0.mlp.up.weight"]
        for depth in ("rgb", "bound", "mae")
    )
    own = model.image_encoder.layers[0].mlp.up.weight
    assert (
        torch.equal(rgb, own) and not torch.equal(bound, own) and (bound - own).abs().mean() < (mae - own).abs().mean()
    )


def test_shipped_parts_of_other_sizes_are_refused(settings, parts):
    with pytest.raises(ConfigError, match="--parts"):
        parts.model(override(settings, "model.language.layers=3"), 0)
    with pytest.raises(ConfigError, match="image encoder"):
        parts.model(override(settings, "model.image.layers=3"), 0)


def test_a_shipped_text_encoder_that_is_another_is_refused(settings, folder, tmp_path):
    """No weight shows an activation or how many heads there are, so the fingerprint is the same."""
    copied = shutil.copytree(folder, tmp_path / "parts")
    card = copied / "languagebind/config.json"
    card.write_text(card.read_text().replace('"activation": "gelu"', '"activation": "quick_gelu"'))
    values = json.loads(card.read_text())
    for encoder in values["config"]["encoders"].values():
        encoder["activation"] = "gelu"
    card.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="The text encoder of .*quick_gelu"):
        Parts(copied, tmp_path / "store", "cpu").check(settings)
    Parts(copied, tmp_path / "store", "cpu").check(override(settings, "model.text.activation=quick_gelu"))


def fake_cell(counts):
    def run(settings, seed, parts):
        counts.append(seed)
        if len(counts) == 3:
            raise KeyboardInterrupt
        key = cell_key(settings, seed, parts.fingerprint)
        return {"key": key, "seed": seed, "metrics": {"image": 50.0 + seed}, "n": {}, "baselines": {}, "seconds": 1.0}

    return run


def test_an_interrupted_grid_continues_and_computes_nothing_twice(settings, parts, monkeypatch):
    arms = {"a": settings, "b": override(settings, "stage2.steps=9"), "same as a": settings}
    cells = grid(arms, 2, parts.fingerprint)
    assert [(c.arm, c.seed) for c in cells[:4]] == [("a", 0), ("b", 0), ("same as a", 0), ("a", 1)]
    counts = []
    monkeypatch.setattr(runner_module, "run_cell", fake_cell(counts))
    with pytest.raises(KeyboardInterrupt):
        run_grid(cells, parts)
    assert len(list((parts.store / "cells").glob("*.json"))) == 2
    found = run_grid(cells, parts)
    assert len(counts) == 5 and len(found) == 4, "two before, one that broke, two after"
    run_grid(cells, parts)
    assert len(counts) == 5
    for text in ("{", "{}", "[]"):
        (parts.store / "cells" / f"{cells[0].key}.json").write_text(text)
        with pytest.raises(CheckpointError, match="delete it"):
            run_grid(cells, parts)


def test_parts_of_other_sizes_are_refused_before_a_world_is_made(settings, parts, monkeypatch):
    monkeypatch.setattr(runner_module, "run_cell", lambda *_: pytest.fail("it began"))
    cells = grid({"a": override(settings, "model.language.width*=2")}, 1, parts.fingerprint)
    with pytest.raises(ConfigError, match="The language model of .* name parts of this preset"):
        run_grid(cells, parts)


def test_a_seed_that_diverges_stops_the_study_and_says_which(settings, parts, monkeypatch):
    def diverge(*_):
        raise DivergedError("stage 2: the loss is not finite at step 3; lower the learning rate.")

    monkeypatch.setattr(runner_module, "run_cell", diverge)
    with pytest.raises(MinivllavaError, match="a, seed 0: stage 2.*No seed is left out"):
        run_grid(grid({"a": settings}, 1, parts.fingerprint), parts)


def test_known_results_are_not_computed_again(settings, parts, monkeypatch):
    counts = []
    monkeypatch.setattr(runner_module, "run_cell", fake_cell(counts))
    cells = grid({"a": settings}, 2, parts.fingerprint)
    found = run_grid(cells, parts, known={cells[0].key: {"key": cells[0].key, "mark": 1}})
    assert counts == [1] and found[cells[0].key]["mark"] == 1


@pytest.mark.parametrize("fails", [False, True])
def test_helpers_end_by_themselves_and_are_ended_where_the_grid_fails(settings, parts, monkeypatch, fails):
    """One that is ended while it is leaving writes a traceback under a study that went well."""
    told = []
    helper = SimpleNamespace(join=lambda: told.append("join"), terminate=lambda: told.append("terminate"))
    monkeypatch.setattr(runner_module, "_start_helpers", lambda *_: [helper])
    monkeypatch.setattr(runner_module, "run_cell", fake_cell([0, 0] if fails else []))
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        run_grid(grid({"a": settings}, 1, parts.fingerprint), parts, 2)
    assert told[0] == ("terminate" if fails else "join") and told[-1] == "join"


def test_processes_share_a_grid_and_find_the_same_numbers(settings, folder, tmp_path):
    arms = {"a": settings, "b": override(settings, "model.projector=linear")}
    found = {}
    for processes in (1, 2):
        parts = Parts(folder, tmp_path / str(processes), "cpu", progress=False)
        cells = grid(arms, 2, parts.fingerprint)
        found[processes] = run_grid(cells, parts, processes)
    assert found[1].keys() == found[2].keys() and len(found[1]) == 4
    for key, alone in found[1].items():
        assert (alone["metrics"], alone["logs"]) == (found[2][key]["metrics"], found[2][key]["logs"])


def test_a_helper_makes_the_world_that_its_cell_needs(settings, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIVLLAVA_CACHE", str(tmp_path / "cache"))
    parts = Parts(folder, tmp_path / "store", "cpu", progress=False)
    (cell,) = grid({"a": override(settings, "image_encoder=mae")}, 1, parts.fingerprint)
    threads = torch.get_num_threads()
    (helper,) = runner_module._start_helpers(1, [cell], parts)
    helper.join()
    torch.set_num_threads(threads)
    assert helper.exitcode == 0 and runner_module.read_cell(parts.store, cell.key)


def test_ranks_of_a_launcher_work_for_themselves(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert stand_alone() == (1, 2)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & set(os.environ)
    assert stand_alone() == (0, 1)


# results


def made_up(study, start, seeds, weights="w"):
    arms = study.settings(start)
    cells = grid(arms, seeds, weights)
    found = {}
    for number, cell in enumerate(cells):
        metrics = {name: 40 + 3 * list(arms).index(cell.arm) + 0.1 * number for name in (*study.metrics, "pope")}
        baselines = {"blind": {name: 30.0 for name in study.metrics}} if cell.settings.baselines else {}
        found[cell.key] = {
            "key": cell.key, "seed": cell.seed, "metrics": metrics, "n": {"image": 9}, "baselines": baselines,
            "seconds": 60, "peak_gib": 1.0, "made_with": {"machine": "here", "commit": "c0ffee", "torch": "2.11"},
        }  # fmt: skip
    return cells, found


@pytest.mark.parametrize("name", ("alignment", "time", "modality"))
def test_results_show_every_seed_and_verdict(name, settings, tmp_path):
    study = load_study(name)
    cells, found = made_up(study, base_settings("tiny"), 3)
    results = summarise(study, "tiny", cells, found)
    assert json.loads(json.dumps(results))["seeds"] == [0, 1, 2]
    assert len(results["cells"]) == 3 * len(study.arms)
    for claim in results["claims"]:
        assert len(claim["differences"]) == 3 and claim["verdict"] in ("agrees", "disagrees", "undecided")
    file = write_results(results, tmp_path)
    text = file.read_text()
    assert f"{name}.png" in text and (tmp_path / f"{name}.png").stat().st_size > 10_000
    for arm in results["arms"]:
        assert f"| **{arm['label']}** |" in text
        for value in arm["metrics"][study.metrics[0]]["values"].values():
            assert f"{value:.1f}" in text
    answers = write_answers(tmp_path).read_text()
    sections = dict(re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", answers, re.MULTILINE | re.DOTALL))
    assert len(sections) == 10
    assert {int(n) for n, text in sections.items() if f"[{name}]({name}.md)" in text} == set(study.questions)
    assert finished_cells(tmp_path / f"{name}.json").keys() == found.keys()
    assert whole_seeds(study.settings(base_settings("tiny")), "w", finished_cells(tmp_path / f"{name}.json")) == 3


def test_a_page_names_the_whole_command_that_made_it(tmp_path):
    study = load_study("stages")
    options = ["--set", "stage2.steps*=4", "--parts", "my parts"]
    results = summarise(study, "tiny", *made_up(study, base_settings("tiny"), 2), options)
    command = "minivllava ablate stages --preset tiny --seeds 2 --set 'stage2.steps*=4' --parts 'my parts'"
    assert f"`{command}`" in write_results(results, tmp_path).read_text()


def test_studies_read_each_others_cells(tmp_path):
    start = base_settings("tiny")
    study = load_study("alignment")
    write_results(summarise(study, "tiny", *made_up(study, start, 2)), tmp_path)
    (tmp_path / "bench-cpu.json").write_text("{}")  # of another kind: not a study's results
    shared = shared_cells(tmp_path)
    base = cell_key(load_study("layer").settings(start)["second-last"], 1, "w")
    assert base in shared, "the base arm of another study is one of these cells"
    assert shared.keys() == finished_cells(tmp_path / "alignment.json").keys()


def test_a_seed_that_is_missing_is_told_and_never_dropped(settings):
    study = load_study("alignment")
    cells, found = made_up(study, base_settings("tiny"), 2)
    del found[cells[-1].key]
    with pytest.raises(DataError, match="mae-masked seed 1"):
        summarise(study, "tiny", cells, found)


def test_a_score_nobody_was_asked_for_is_said_so(settings, tmp_path):
    study = load_study("projector")
    cells, found = made_up(study, base_settings("tiny"), 1)
    for result in found.values():
        del result["metrics"]["order"]
    results = summarise(study, "tiny", cells, found)
    assert [c["verdict"] for c in results["claims"] if c["metric"] == "order"] == ["not asked"]
    assert "not asked" in write_results(results, tmp_path).read_text()


def test_the_config_hash_follows_what_is_compared():
    study, tiny = load_study("layer"), base_settings("tiny")
    hashes = {
        summarise(study, "tiny", *made_up(study, start, seeds))["config_hash"]
        for start, seeds in ((tiny, 1), (tiny, 3), (override(tiny, "stage2.steps=9"), 1))
    }
    assert len(hashes) == 2, "not of how many seeds there are"


def test_results_know_whether_they_are_out_of_date(parts):
    study = load_study("layer")
    for weights, current in ((parts.fingerprint, True), ("others", False)):
        results = summarise(study, "tiny", *made_up(study, base_settings("tiny"), 1, weights))
        assert is_current(results, parts) is current


def test_another_claim_makes_results_out_of_date(settings):
    study = load_study("layer")
    cells, found = made_up(study, settings, 1)
    claims = tuple(replace(claim, within=claim.within + 1) for claim in study.claims)
    hashes = {summarise(one, "tiny", cells, found)["config_hash"] for one in (study, replace(study, claims=claims))}
    assert len(hashes) == 2


def test_a_cell_that_another_study_computed_goes_by_this_studys_arm(settings):
    study = load_study("projector")
    cells, found = made_up(study, settings, 1)
    found = {key: {**result, "arm": "united"} for key, result in found.items()}
    assert [cell["arm"] for cell in summarise(study, "tiny", cells, found)["cells"]] == [cell.arm for cell in cells]


def test_a_parts_key_is_of_all_that_it_follows_from(settings):
    for kind, change in (
        ("language", "model.template=v1"), ("languagebind", "model.antialias=false"), ("mae", "model.aspect=pad"),
    ):  # fmt: skip
        assert part_key(kind, override(settings, change), "w") != part_key(kind, settings, "w")
    same = override(settings, "model.projector=linear")
    assert part_key("language", same, "w") == part_key("language", settings, "w")


def test_a_plan_counts_steps_cells_and_what_is_left(settings, parts):
    study = load_study("stages")
    rate = measured_rate(settings.model.language, torch.device("cpu"))
    assert rate > 1e6
    counted = set()
    plan = plan_study(study, settings, 3, parts, rate, {}, counted)
    arms = {arm.arm: arm for arm in plan.arms}
    assert arms["both"].steps == (2, 2) and arms["stage2-long"].steps == (3,) and arms["both"].cells == 3
    assert plan.minutes > 0 and 0.5 < plan.gib < 2
    again = plan_study(study, settings, 3, parts, rate, {}, counted)
    assert sum(arm.cells for arm in again.arms) == 0 and again.minutes == 0
    cells, found = made_up(study, settings, 2, parts.fingerprint)
    known = plan_study(study, settings, 3, parts, rate, found, set())
    assert [arm.finished for arm in known.arms] == [2] * 5 and {arm.minutes for arm in known.arms} == {1.0}
    cells, found = made_up(study, settings, 3, parts.fingerprint)
    for cell in cells:
        found[cell.key]["seconds"] *= 50 if cell.seed == 0 else 1
    slow = plan_study(study, settings, 4, parts, rate, found, set())
    assert {arm.minutes for arm in slow.arms} == {1.0}, "the first cell trains parts, which no other does"


# the command


@pytest.fixture
def command(settings, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minivllava.ablations.settings.base_settings", lambda name: settings)
    study = tmp_path / "mine.toml"
    study.write_text(
        "title = 'Mine'\nmetrics = ['image', 'video']\n[[arms]]\nname = 'a'\n[[arms]]\nname = 'b'\n"
        "set = ['data1.budget=0']\n"
        "[[claims]]\nmetric = 'image'\nbetter = 'a'\nthan = 'b'\nexpected = 'so'\n"
    )
    usual = ["--parts", str(folder), "--device", "cpu"]
    return lambda *arguments: CliRunner().invoke(app, ["ablate", *arguments, *usual])


def test_a_study_of_ones_own_by_one_command(command, monkeypatch):
    planned = command("mine.toml", "--seeds", "2", "--dry-run")
    assert planned.exit_code == 0 and "minutes" in planned.output, planned.output
    assert not Path("runs/ablations/cells").exists()
    told = command("mine.toml", "--seeds", "2", "--out", "out")
    assert told.exit_code == 0, told.exception
    assert "a beats b" in told.output and Path("out/mine.md").exists()
    first = json.loads(Path("out/mine.json").read_text())
    assert len(first["cells"]) == 4

    monkeypatch.setattr(runner_module, "run_cell", lambda *_: pytest.fail("computed a finished cell again"))
    again = command("mine.toml", "--seeds", "1", "--out", "out")
    assert again.exit_code == 0, again.exception
    second = json.loads(Path("out/mine.json").read_text())
    assert second["cells"] == first["cells"], "seeds that were shown before are not dropped"


def test_a_study_of_ones_own_goes_elsewhere_and_loses_no_cell(command, settings):
    assert command("mine.toml", "--seeds", "1").exit_code == 0
    folder = Path("runs/ablations/results/tiny")
    first = json.loads((folder / "mine.json").read_text())
    assert "Made by `minivllava ablate mine.toml --preset tiny --seeds 1" in (folder / "mine.md").read_text()
    for file in Path("runs/ablations/cells").glob("*.json"):
        file.unlink()
    text = Path("mine.toml").read_text()
    Path("mine.toml").write_text(text.replace("data1.budget=0", "data1.budget=0.5"))
    assert command("mine.toml", "--seeds", "1").exit_code == 0
    replaced = next(cell["key"] for cell in first["cells"] if cell["arm"] == "b")
    assert Path(f"runs/ablations/cells/{replaced}.json").exists()


def test_the_command_lists_studies_and_says_what_is_wrong(command):
    listed = command("--list")
    assert listed.exit_code == 0 and all(name in listed.output for name in study_names())
    for arguments, told in (((), "Name a study"), (("nothing",), "no study 'nothing'")):
        failed = command(*arguments)
        assert failed.exit_code != 0 and isinstance(failed.exception, ConfigError) and told in str(failed.exception)
