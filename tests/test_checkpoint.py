"""Checkpoint folders: what goes in comes out, and whatever is wrong with one is said in a sentence."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_languagebind, tiny_tokenizer, tiny_vllava

from minivllava import VideoLLaVA
from minivllava.config import from_dict, override, preset, to_dict
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.checkpoint import (
    load_language,
    load_languagebind,
    load_tensors,
    load_vllava,
    save_model,
    save_tensors,
    write_folder,
)
from minivllava.models.language import LanguageModel
from minivllava.models.vision import VideoEncoder


def same_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint folder and the model in it; its video encoder begins as the image encoder."""
    model = tiny_vllava()
    start = VideoEncoder.from_image_encoder(model.config.video, model.image_encoder)
    model.video_encoder.load_state_dict(start.state_dict())
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(path, notes={"seed": 0})
    return path, model


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "copy")


def test_round_trip(saved):
    path, model = saved
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((path / "config.json").read_text())["notes"] == {"seed": 0}
    again = VideoLLaVA.from_pretrained(path)
    assert again.config == model.config and same_weights(again, model) and not again.training
    assert again.tokenizer.encode("red left") == model.tokenizer.encode("red left")
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained == {
        name for name in model.state_dict() if name.startswith(("projector.", "language_model."))
    }
    ids = torch.tensor([[1, 5, 6]])
    torch.testing.assert_close(again(ids), model(ids), rtol=0, atol=0)


def test_half_precision_takes_half_the_room(saved, tmp_path):
    path, model = saved
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    size = (path / "model.safetensors").stat().st_size
    assert (tmp_path / "half/model.safetensors").stat().st_size < 0.6 * size
    again = load_vllava(tmp_path / "half")
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_the_other_two_kinds(tmp_path):
    tokenizer, bound = tiny_tokenizer(), tiny_languagebind()
    save_model(bound, tmp_path / "languagebind", "languagebind", tokenizer=tokenizer)
    again, _ = load_languagebind(tmp_path / "languagebind")
    assert again.config == bound.config and same_weights(again, bound)
    language = LanguageModel(override(tiny_config(len(tokenizer)).language, "tie_embeddings=true"))
    save_model(language, tmp_path / "language", "language", tokenizer=tokenizer)
    again, _ = load_language(tmp_path / "language")
    assert same_weights(again, language)
    assert again.head.weight is again.token_embedding.weight, "tied weights are still one after loading"


def test_equal_tensors_are_stored_once_and_apart_after_loading(saved):
    path, model = saved
    spatial = [f"video_encoder.{name}" for name in model.image_encoder.state_dict()]
    with safe_open(path / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    assert not stored & set(spatial)
    again = load_vllava(path)
    image, video = again.image_encoder.pre_norm.weight, again.video_encoder.pre_norm.weight
    assert torch.equal(image, video)
    with torch.no_grad():
        video.add_(1.0)
    assert not torch.equal(image, video), "training one must leave the other alone"
    pointers = [tensor.data_ptr() for tensor in again.state_dict().values()]
    assert len(pointers) == len(set(pointers))


def test_tensors_round_trip_with_aliases(tmp_path):
    twin = torch.arange(4.0)
    tensors = {
        "a": twin,
        "b": twin.clone(),
        "c": torch.ones(()),
        "d": torch.ones(()),
        "e": torch.zeros(2, 2).T,
    }
    save_tensors(tensors, tmp_path / "t.safetensors")
    again = load_tensors(tmp_path / "t.safetensors")
    assert set(again) == set(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert set(load_file(tmp_path / "t.safetensors")) == {"a", "c", "d", "e"}


# what can be wrong


def refused(path, *words):
    with pytest.raises(CheckpointError) as error:
        load_vllava(path)
    message = str(error.value)
    assert all(word in message for word in (str(path), *words)), message
    assert "\n" not in message
    return message


def change(path, **fields):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_missing_folder_and_files(copy, tmp_path):
    refused(tmp_path / "nothing", "no checkpoint folder")
    refused(copy / "config.json", "no checkpoint folder")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):  # each is read before the last
        (copy / name).unlink()
        refused(copy, name, "missing")


@pytest.mark.parametrize("size", [0, 5, 100, -1, -1000])
def test_truncated_weights(copy, size):
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:size])
    refused(copy, "model.safetensors", "copy it again")


def test_weights_that_are_something_else(copy):
    (copy / "model.safetensors").write_text("<html>Not found</html>" * 50)
    refused(copy, "model.safetensors", "copy it again")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()
    refused(copy, "model.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\udcff"])
def test_config_that_cannot_be_read(copy, text):
    (copy / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(copy, "config.json")


def test_another_kind_of_checkpoint(copy, saved):
    change(copy, kind="language")
    refused(copy, "config.json", "'language'", "'video-llava'")
    with pytest.raises(CheckpointError, match="'video-llava'"):
        load_language(saved[0])
    (copy / "config.json").write_text(json.dumps({"model_type": "video_llava", "text_config": {}}))
    refused(copy, "config.json", "'video_llava'")


def test_a_config_of_another_version(copy, saved):
    config = to_dict(saved[1].config)
    change(copy, config=config | {"colour": 3})
    refused(copy, "config.json", "colour")
    change(copy, config=config | {"image": config["image"] | {"windows": 3}})
    refused(copy, "config.json", "windows")
    change(copy, config=config | {"image": config["image"] | {"heads": 3}})
    refused(copy, "config.json", "heads 3")
    change(copy, config=config | {"image": 3})
    refused(copy, "config.json")
    change(copy, config=None)
    refused(copy, "config.json")


def test_weights_of_another_config(copy, saved):
    config = to_dict(saved[1].config)
    change(copy, config=config | {"language": config["language"] | {"mlp_width": 64}})
    refused(copy, "model.safetensors", "layers.0.mlp.gate.weight is (48, 32), not (64, 32)")
    change(copy, config=config | {"language": config["language"] | {"layers": 3}})
    refused(copy, "model.safetensors", "missing language_model.layers.2", "more")
    change(copy, config=config | {"language": config["language"] | {"layers": 1}})
    refused(copy, "unexpected language_model.layers.1")


def test_a_tokenizer_of_another_vocabulary(copy, saved):
    config = to_dict(saved[1].config)
    size = len(saved[1].tokenizer) - 8
    change(copy, config=config | {"language": config["language"] | {"vocab_size": size}})
    tensors = saved[1].state_dict()
    for name in ("token_embedding", "head"):
        tensors[f"language_model.{name}.weight"] = tensors[f"language_model.{name}.weight"][:size].clone()
    save_tensors(tensors, copy / "model.safetensors")
    refused(copy, "tokenizer.json", str(size))


def test_an_alias_of_nothing(copy):
    save_file({"a": torch.zeros(2)}, copy / "model.safetensors", metadata={"aliases": '{"b": "c"}'})
    refused(copy, "model.safetensors")
    save_file({"a": torch.zeros(2)}, copy / "model.safetensors", metadata={"aliases": "{"})
    refused(copy, "model.safetensors")


# writing


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_write_leaves_the_old_folder_whole(tmp_path):
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "a").write_text("old"))

    def interrupted(folder):
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(path, interrupted)
    assert (path / "a").read_text() == "old" and listing(tmp_path) == ["model"]
    write_folder(path, lambda folder: (folder / "b").write_text("new"))
    assert listing(path) == ["b"] and listing(tmp_path) == ["model"]


@pytest.mark.parametrize("after", [1, 2])
def test_a_write_interrupted_while_renaming(tmp_path, monkeypatch, after):
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "a").write_text("old"))
    from minivllava.models import checkpoint

    replace, calls = checkpoint.os.replace, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == after:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(checkpoint.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, lambda folder: (folder / "a").write_text("new"))
    assert (path / "a").read_text() == "old" and listing(tmp_path) == ["model"]


def test_a_model_without_a_finished_folder_is_no_checkpoint(tmp_path):
    model = tiny_vllava()

    def fail(*_):
        raise OSError("No space left on device")

    model.tokenizer.save = fail
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(tmp_path / "model")
    assert listing(tmp_path) == []


# configs


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_configs_survive_json(name):
    whole = preset(name)
    assert from_dict(type(whole), json.loads(json.dumps(to_dict(whole)))) == whole


def test_overrides():
    changed = override(preset("tiny"), "stage2.steps=5", "model.template=v1", "stage1.learning_rate=1")
    assert (changed.stage2.steps, changed.model.template, changed.stage1.learning_rate) == (5, "v1", 1)
    assert override(preset("tiny"), "stage2.betas=[0.9, 0.99]").stage2.betas == (0.9, 0.99)
    wrong = ("stage2.steps", "stage2.stepz=3", "stage3.steps=3", "stage2.steps=many", "stage2.steps=1.5")
    wrong += ("stage2.steps=true", "stage2=5", "model.keep_cls_video=3", "model.image.heads=3")
    for assignment in wrong:
        with pytest.raises(ConfigError):
            override(preset("tiny"), assignment)
    with pytest.raises(ConfigError, match="'huge'.*tiny"):
        preset("huge")
