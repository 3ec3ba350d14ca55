"""Zero-shot retrieval and classification: ranks on hand-made similarities, ties, several captions, own files."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import square, tiny_config, tiny_languagebind, tiny_tokenizer

from minivllava import cli
from minivllava.checkpoints.saving import save_model
from minivllava.data.build import build_world
from minivllava.data.dataset import load_pixels
from minivllava.data.write_media import write_image, write_video
from minivllava.errors import ConfigError, DataError
from minivllava.evaluation.pairs import read_pairs, world_pairs
from minivllava.evaluation.retrieval import (
    class_accuracy,
    embed_classes,
    embed_files,
    embed_texts,
    recall_at,
    retrieval,
    zero_shot_classify,
)
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.run_config import WorldConfig


def test_recall_counts_how_many_stand_before_the_own_one():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.4, 0.3, 0.2]])  # own: 1st, 2nd, 3rd
    assert recall_at(similarity, (1, 2, 3)) == pytest.approx([1 / 3, 2 / 3, 1])
    assert recall_at(similarity.T, (1, 2)) == pytest.approx([2 / 3, 1])


def test_ties_count_against_the_model():
    assert recall_at(torch.ones(4, 4), (1, 3, 4)) == [0, 0, 1]
    similarity = torch.tensor([[0.5, 0.5], [0.1, 0.2]])
    assert recall_at(similarity, (1, 2)) == [0.5, 1]


def test_a_visual_with_several_captions_goes_by_the_best_of_them():
    """Two clips; captions 0 and 1 describe the first, 2 the second."""
    visuals = torch.eye(3)[:2]
    texts = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [0.0, 0.6, 0.8]]), dim=-1)
    found = retrieval(visuals, texts, [0, 0, 1], ks=(1, 2))
    # caption 1 lies nearer to clip 1, the others to their own
    assert found["text to visual"] == {"R@1": pytest.approx(200 / 3), "R@2": 100}
    # clip 0 finds caption 0; clip 1 finds caption 1, another's, before its own
    assert found["visual to text"] == {"R@1": 50, "R@2": 100}


def test_one_own_caption_does_not_stand_in_anothers_way():
    """A clip's captions on the first places are all right: the worse ones are not counted against the best."""
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
    own = torch.tensor([[False, True, True, False]])
    assert recall_at(similarity, (1, 2), own) == [0, 1]


def test_a_row_without_a_match_is_an_error():
    with pytest.raises(DataError, match="Row 1"):
        recall_at(torch.ones(2, 2), (1,), torch.tensor([[True, False], [False, False]]))


@pytest.fixture(scope="module")
def bound():
    return tiny_languagebind(), tiny_tokenizer()


@pytest.fixture
def files(tmp_path) -> list[Path]:
    for number, colour in enumerate(("red", "green", "blue")):
        write_image(tmp_path / f"{number}.png", square(colour, 4 + 4 * number))
    return [tmp_path / f"{number}.png" for number in range(3)]


def test_batches_give_the_vectors_of_single_files(bound, files):
    model, tokenizer = bound
    together = embed_files(model, "image", files, progress=False)
    alone = embed_files(model, "image", files, batch_size=1, progress=False)
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(3))
    texts = ["red", "What colour is the square?", "green blue"]
    assert torch.allclose(embed_texts(model, tokenizer, texts), embed_texts(model, tokenizer, texts, 1), atol=1e-6)


def test_clips_go_through_the_video_encoder(bound, tmp_path):
    write_video(tmp_path / "a.mp4", np.stack([square("red", left) for left in range(0, 20, 3)]))
    write_video(tmp_path / "b.mp4", np.stack([square("red", left) for left in range(18, -1, -3)]))
    forward, backward = embed_files(bound[0], "video", [tmp_path / "a.mp4", tmp_path / "b.mp4"], progress=False)
    assert not torch.allclose(forward, backward, atol=1e-4)
    with pytest.raises(ConfigError, match="no depth encoder.*image, video"):
        embed_files(bound[0], "depth", [tmp_path / "a.mp4"])


def test_the_modality_says_how_files_are_read_and_a_config_how_they_become_pixels(tmp_path):
    """A video encoder that sees frame by frame is one of clips; bound encoders keep no config of pixels."""
    config = tiny_config()
    encoders = {"image": config.image, "video": replace(config.video, temporal=False)}
    model = LanguageBind(LanguageBindConfig(encoders, config.text, config.embed_dim)).eval()
    write_video(tmp_path / "a.mp4", np.stack([square("red", left) for left in range(0, 20, 3)]))
    write_image(tmp_path / "a.png", square("red", 4))
    for kind, name, change in (
        ("video", "a.mp4", {"clip_resize": "bicubic"}),
        ("video", "a.mp4", {"frame_sampling": "arange"}),
        ("image", "a.png", {"antialias": False}),
    ):
        file, changed = tmp_path / name, replace(config, **change)
        usual, other = (embed_files(model, kind, [file], progress=False, config=c) for c in (config, changed))
        pixels = load_pixels(file, kind, changed, 4)
        torch.testing.assert_close(other, model.embed(kind, pixels[None]).detach())
        assert not torch.allclose(other, usual, atol=1e-4)


def test_a_class_is_the_mean_of_its_prompts(bound):
    model, tokenizer = bound
    classes, templates = ["red", "green"], ["a {}.", "What is {}?"]
    prompts = embed_texts(model, tokenizer, ["a red.", "What is red?", "a green.", "What is green?"])
    expected = F.normalize(torch.stack([prompts[:2].mean(0), prompts[2:].mean(0)]), dim=-1)
    assert torch.allclose(embed_classes(model, tokenizer, classes, templates), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="has no {}"):
        embed_classes(model, tokenizer, classes, ["red"])


def test_zero_shot_classification_takes_the_nearest_class(bound, files):
    model, tokenizer = bound
    names = zero_shot_classify(model, tokenizer, "image", files, ["red", "left", "square"], ["{}", "the {}"])
    vectors = embed_classes(model, tokenizer, ["red", "left", "square"], ["{}", "the {}"])
    nearest = (embed_files(model, "image", files, progress=False) @ vectors.T).argmax(1)
    assert names == [["red", "left", "square"][i] for i in nearest]


def test_class_accuracy_counts_ties_as_misses():
    classes = torch.eye(7)
    visuals = torch.stack([classes[0], (classes[1] + classes[2]) / 2**0.5, classes[3]])
    assert class_accuracy(visuals, classes, [0, 1, 4]) == {
        "top 1": pytest.approx(100 / 3),
        "top 5": pytest.approx(200 / 3),
    }
    assert [list(class_accuracy(visuals, classes[:n], [0, 0, 0])) for n in (1, 5)] == [["top 1"], ["top 1"]]


# what it is measured on


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    config = WorldConfig(
        size=16, images=0, clips=0, align_images=0, align_clips=0, text_documents=0, validation=0, test=12,
        compositional=0, depth=True,
    )  # fmt: skip
    return build_world(config, tmp_path_factory.mktemp("worlds"), workers=1, progress=False)


@pytest.mark.parametrize(
    "text, told",
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ("[]", "object of named fields"),
        ('{"colour": 3}', "no field colour"),
        ('{"size": "64"}', "size is '64': use a whole number"),
    ],
)
def test_a_folder_that_holds_no_world_is_named(tmp_path, text, told):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(DataError, match=rf"config\.json describes no world \(.*{told}.*\): name a folder"):
        world_pairs(tmp_path)


def test_a_world_without_test_scenes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"test": 0}')
    with pytest.raises(DataError, match="holds no test scenes"):
        world_pairs(tmp_path)


@pytest.mark.parametrize("modality", ["image", "video", "depth"])
def test_the_worlds_test_scenes_have_captions_that_fit_their_questions(world, modality):
    pairs = world_pairs(world, modality)
    assert len(pairs.files) == len(pairs.captions) == 12 and pairs.owners == list(range(12))
    assert all(Path(file).is_file() for file in pairs.files)
    assert pairs.captions == world_pairs(world, modality).captions
    records = json.loads((world / "test.json").read_text())
    kind = "video" if modality == "video" else "image"
    counted = 0
    for record in records:
        if kind in record and record["types"] == ["colour"]:
            assert record["conversations"][-1]["value"] in pairs.captions[int(record[kind][-10:-4])]
            counted += 1
    assert counted > 3
    names = {"image": ["colour", "shape", "place"], "video": ["colour", "shape", "motion"], "depth": ["shape", "place"]}
    assert list(pairs.tasks) == names[modality]
    for name, task in pairs.tasks.items():
        for index, label in task.of.items():
            if name != "motion" or "moves" in task.classes[label]:
                assert task.classes[label] in pairs.captions[index]
        assert all("{}" in template for template in task.templates)


def test_own_pairs(tmp_path):
    rows = [
        {"image": "a.png", "caption": "one", "label": "cat"},
        {"image": "b.png", "captions": ["two", "three"]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "four"}]},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    pairs = read_pairs(tmp_path / "p.json", "image", templates=["a {}"])
    assert pairs.files == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert (pairs.captions, pairs.owners) == (["one", "two", "three", "four"], [0, 1, 1, 0])
    assert (pairs.tasks["label"].classes, pairs.tasks["label"].of) == (["cat"], {0: 0})


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"image": "a.png", "caption": "one"}, {"video": "b.mp4", "caption": "two"}], "p.json:1: a field 'image'"),
        ([{"image": "a.png", "caption": "one"}, {"image": "b.png"}], "'caption' or 'label'"),
        ([{"image": "a.png", "caption": "one"}, {"image": "b.png", "caption": 3}], "'caption' or 'label'"),
        ([{"image": "a.png", "caption": "one"}, {"image": "b.png", "label": "x"}], "b.png has no caption"),
        (
            [{"image": "a.png", "label": "x"}, {"image": "a.png", "label": "y"}],
            "p.json:1: a.png has the label 'y' here, and 'x' before",
        ),
        ([{"image": "a.png", "caption": "one", "label": 3}], "p.json:1: label holds 3, no text"),
        ([{"image": "a.png", "caption": "half \ud83d"}], "p.json:1: it holds half a character"),
    ],
)
def test_own_pairs_that_are_wrong_are_reported_with_file_and_record(tmp_path, rows, words):
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(DataError) as error:
        read_pairs(tmp_path / "p.json", "image")
    assert words in str(error.value)


def test_the_same_label_may_stand_at_several_records_of_a_file(tmp_path):
    rows = [{"image": "a.png", "caption": said, "label": "cat"} for said in ("one", "two")]
    (tmp_path / "p.json").write_text(json.dumps([*rows, {"image": "a.png", "caption": "three", "label": None}]))
    pairs = read_pairs(tmp_path / "p.json", "image")
    assert len(pairs.captions) == 3 and pairs.tasks["label"].of == {0: 0}


def test_retrieve_at_the_command_line(bound, files, tmp_path, monkeypatch, capfd):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivllava", "retrieve", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    parts = tmp_path / "parts"
    save_model(bound[0], parts / "languagebind", "languagebind", tokenizer=bound[1])
    names = ("red", "green", "blue")
    rows = [{"image": f.name, "caption": f"a {c} square", "label": c} for f, c in zip(files, names, strict=True)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    code, out, err = command(parts, "--data", tmp_path / "p.json", "--json", "--device", "cpu")
    assert code == 0, err
    results = json.loads(out)
    assert set(results["retrieval"]["text to visual"]) == {"R@1", "R@5", "R@10"}
    assert results["retrieval"]["visual to text"]["R@5"] == 100, "of three"
    assert results["classification"]["label"]["n"] == 3
    code, out, _ = command(parts, "--data", tmp_path / "p.json", "--device", "cpu", "--template", "{}!")
    assert code == 0 and "text to visual" in out and "chance 33.3 %" in out
    code, _, err = command(parts, "--modality", "depth", "--device", "cpu")
    assert code == 2 and "no depth encoder" in err
    code, _, _ = command(parts, "--data", tmp_path / "p.json", "--device", "cpu", "--out", tmp_path / "new/r.json")
    assert code == 0 and json.loads((tmp_path / "new/r.json").read_text())["files"] == 3
    code, _, err = command(parts, "--data", tmp_path / "p.json", "--device", "meta")
    assert code == 2 and "The device meta" in err
    save_model(bound[0], tmp_path / "mute/languagebind", "languagebind")
    code, _, err = command(tmp_path / "mute", "--data", tmp_path / "p.json", "--device", "cpu")
    assert code == 2 and "holds no tokenizer" in err
    code, _, err = command(parts, "--modality", "sound", "--device", "cpu")
    assert code == 2 and "sound" in err
