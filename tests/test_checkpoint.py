"""Checkpoint folders: what goes in comes out, and whatever is wrong with one is said in a sentence."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_languagebind, tiny_tokenizer, tiny_vllava
from torch import Tensor

from minivllava import VideoLLaVA
from minivllava.chat import Conversation
from minivllava.checkpoints import huggingface, storage
from minivllava.checkpoints.convert import convert
from minivllava.checkpoints.devices import usable_device
from minivllava.checkpoints.loading import load_language, load_languagebind, load_vllava
from minivllava.checkpoints.saving import save_model
from minivllava.checkpoints.storage import load_tensors, save_shards, save_tensors, write_folder
from minivllava.errors import CheckpointError, ConfigError
from minivllava.models.language import LanguageModel
from minivllava.models.vision import VideoEncoder
from minivllava.overrides import from_dict, override, to_dict
from minivllava.presets import preset

LAYER = ["attention_norm", "attention.query", "attention.output", "mlp_norm", "mlp.gate", "mlp.down"]


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
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1, "who may read one file may read all"
    again = VideoLLaVA.from_pretrained(path)
    assert again.config == model.config and same_weights(again, model) and not again.training
    assert again.tokenizer.encode("red left") == model.tokenizer.encode("red left")
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained == {name for name in model.state_dict() if name.startswith(("projector.", "language_model."))}
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


def test_a_dtype_may_be_named(saved, tmp_path):
    saved[1].save_pretrained(tmp_path / "half", dtype="float16")
    assert {t.dtype for t in load_file(tmp_path / "half/model.safetensors").values()} == {torch.float16}
    with pytest.raises(ConfigError, match="'int8'.*float16"):
        saved[1].save_pretrained(tmp_path / "x", dtype="int8")


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


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointers_of_git_lfs(copy, name):
    (copy / "model.safetensors").unlink()
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4733760\n")
    refused(copy, name, "git lfs pull")


def test_weights_that_are_something_else(copy):
    (copy / "model.safetensors").write_text("<html>Not found</html>" * 50)
    refused(copy, "model.safetensors", "copy it again")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()
    refused(copy, "model.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\udcff", "[" * 100_000, '{"a":' * 100_000])
def test_config_that_cannot_be_read(copy, text):
    (copy / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(copy, "config.json")


def test_another_kind_of_checkpoint(copy, saved):
    change(copy, kind="language")
    refused(copy, "config.json", "'language'", "'video-llava'")
    with pytest.raises(CheckpointError, match="'video-llava'"):
        load_language(saved[0])
    (copy / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "text_config": {}}))
    refused(copy, "config.json", "'qwen2_vl'", "'llava'", "'video_llava'")
    (copy / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {}}))  # images alone
    refused(copy, "config.json", "'llava'")


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


@pytest.mark.parametrize("field", ["width", "layers", "heads", "mlp_width", "vocab_size", "norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", ["24", None, -1, [24], True, {}])
def test_sizes_that_are_no_sizes(copy, saved, field, value):
    config = to_dict(saved[1].config)
    change(copy, config=config | {"language": config["language"] | {field: value}})
    refused(copy, "config.json", field)


def test_a_mistake_in_building_is_not_blamed_on_the_file(copy, monkeypatch):
    def mistaken(self, config, tokenizer=None):
        raise AttributeError("a name that was misspelt")

    monkeypatch.setattr(VideoLLaVA, "__init__", mistaken)
    with pytest.raises(AttributeError, match="misspelt"):
        load_vllava(copy)


def test_a_config_that_does_not_say_all(copy, saved):
    """What has been said since the beginning must be said; a later field's default is what was done before it."""
    config = to_dict(saved[1].config)
    for part, name in (("image", "activation"), ("language", "rope_theta"), ("video", "frames")):
        change(copy, config=config | {part: {key: value for key, value in config[part].items() if key != name}})
        refused(copy, "config.json", name)
    change(copy, config={key: value for key, value in config.items() if key != "keep_cls_video"})
    refused(copy, "config.json", "keep_cls_video")
    config["language"].pop("rope_scaling")
    change(copy, config={key: value for key, value in config.items() if key not in ("frame_sampling", "image_token")})
    assert load_vllava(copy).config == saved[1].config


def test_weights_of_another_config(copy, saved):
    config = to_dict(saved[1].config)
    change(copy, config=config | {"language": config["language"] | {"mlp_width": 64}})
    refused(copy, "model.safetensors", "layers.0.mlp.gate.weight is (48, 32), not (64, 32)")
    change(copy, config=config | {"language": config["language"] | {"layers": 3}})
    refused(copy, "model.safetensors", *(f"missing language_model.layers.2.{part}.weight" for part in LAYER))
    change(copy, config=config | {"language": config["language"] | {"layers": 20}})
    refused(copy, "model.safetensors", *(f"missing language_model.layers.{{2..19}}.{part}.weight" for part in LAYER))
    change(copy, config=config | {"language": config["language"] | {"layers": 1}})
    refused(copy, "unexpected language_model.layers.1")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["language_model.layers.0.mlp.up.weight", "image_encoder.pre_norm.bias"])
def test_quantised_weights_are_not_taken_for_others(copy, name, dtype):
    """Of the right shape, but their scales would be missing."""
    weights = load_tensors(copy / "model.safetensors")
    save_tensors(weights | {name: weights[name].to(dtype)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} is quantised"):
        load_vllava(copy)


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
    for aliases in ("{", "[1]", "[" * 100_000, '{"x": ["a"]}', '{"x": 1}'):
        save_file({"a": torch.zeros(2)}, copy / "model.safetensors", metadata={"aliases": aliases})
        refused(copy, "model.safetensors", "copy it again")
        with pytest.raises(CheckpointError, match="copy it again"):
            load_tensors(copy / "model.safetensors")


# weights in several files, and in PyTorch's own


@pytest.fixture
def sharded(saved, tmp_path):
    """The checkpoint again, its weights in shards."""
    path = shutil.copytree(saved[0], tmp_path / "sharded")
    (path / "model.safetensors").unlink()
    save_shards(saved[1].state_dict(), path, shard=20_000)
    assert len(list(path.glob("*.safetensors"))) > 3
    return path


@pytest.fixture
def pickled(saved, tmp_path):
    """The checkpoint again, as two `.bin` files and their index."""
    path = shutil.copytree(saved[0], tmp_path / "pickled")
    (path / "model.safetensors").unlink()
    names = list(saved[1].state_dict())
    files = {name: f"pytorch_model-0000{1 + (number > 40)}-of-00002.bin" for number, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({n: t for n, t in saved[1].state_dict().items() if files[n] == file}, path / file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    return path


def test_shards(saved, sharded, pickled):
    assert same_weights(load_vllava(sharded), saved[1])
    assert same_weights(load_vllava(pickled), saved[1])
    for path in (sharded, pickled):  # they say themselves how many they are
        next(path.glob("*.index.json")).unlink()
        assert same_weights(load_vllava(path), saved[1])


def test_a_shard_of_more_than_there_can_be(copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-99999999999.safetensors")
    refused(copy, "model-00002-of-99999999999.safetensors is missing")


def test_an_old_pickle(saved, pickled):
    for file in pickled.glob("pytorch_model*"):
        file.unlink()
    torch.save(saved[1].state_dict(), pickled / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same_weights(load_vllava(pickled), saved[1])


@pytest.mark.parametrize("change, fault", [(lambda t: t.to("meta"), "holds no"), (Tensor.to_sparse, "is sparse")])
def test_tensors_of_a_pickle_that_cannot_be_read(pickled, change, fault):
    file, name = pickled / "pytorch_model-00002-of-00002.bin", "language_model.norm.weight"
    stored = torch.load(file, weights_only=True)
    torch.save(stored | {name: change(stored[name])}, file)
    refused(pickled, file.name, f"{name} {fault}")


@pytest.mark.parametrize("kind", ["sharded", "pickled"])
def test_shards_that_are_not_whole(request, kind):
    path = request.getfixturevalue(kind)
    index = next(path.glob("*.index.json"))
    last = sorted(path.glob("*-of-*"))[-1]
    data = last.read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        last.write_bytes(data[:size])
        refused(path, last.name, "opy it again")
    last.unlink()
    refused(path, last.name, "missing", index.name)
    card = json.loads(index.read_text())
    index.unlink()
    refused(path, last.name, "missing", "-00001-of-")
    maps = ({"a": "../../passwords"}, {}, {"a": 3}, "text", {"a": ""}, {"a": ".."}, [last.name])
    for text in ("{", "[]", "[" * 100_000, *(json.dumps({"weight_map": names}) for names in maps)):
        index.write_text(text)
        refused(path, index.name)
    first = sorted(set(card["weight_map"].values()))[0]
    index.write_text(json.dumps({"weight_map": {"a": first}}))
    shutil.copy(path / first, last)
    refused(path, index.name, "does not name", "-of-")
    for file in path.glob("*-of-*"):
        if file.name != first:
            file.unlink()
    refused(path, "missing language_model.norm.weight")


def test_no_check_is_an_assertion():
    """`python -O` leaves assertions out."""
    for file in Path(storage.__file__).parents[1].rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), file


def test_a_shard_twice(sharded):
    first = sorted(sharded.glob("*.safetensors"))[0]
    shutil.copy(first, sharded / "model-00099-of-00099.safetensors")
    index = next(sharded.glob("*.index.json"))
    card = json.loads(index.read_text())
    card["weight_map"]["a"] = "model-00099-of-00099.safetensors"
    index.write_text(json.dumps(card))
    refused(sharded, first.name, "model-00099-of-00099.safetensors", "the same tensor")


class Dangerous:
    """A pickle that does something when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_executes_code(saved, pickled, tmp_path, old):
    target = tmp_path / "executed"
    stored = torch.load(pickled / "pytorch_model-00001-of-00002.bin", weights_only=True) | {"x": Dangerous(target)}
    file = pickled / "pytorch_model-00001-of-00002.bin"
    torch.save(stored, file, _use_new_zipfile_serialization=not old)
    refused(pickled, file.name, "execute code")
    file.write_bytes(pickle.dumps({"x": Dangerous(target)}))
    refused(pickled, file.name, "execute code")
    for stored in ({"epoch": 3, "state_dict": {}}, {1: torch.ones(2)}, {("a", "b"): torch.ones(2)}, [torch.ones(2)]):
        torch.save(stored, file)
        refused(pickled, file.name, "more than named tensors")
    assert not target.exists()


# memory


def test_a_model_too_large_for_memory(copy, saved):
    """Said from the config alone, before the weights are looked at."""
    config = to_dict(saved[1].config)
    change(copy, config=config | {"language": config["language"] | {"vocab_size": 10**13}})
    message = refused(copy, "GB of memory", "float32", "is free on cpu")
    assert float(re.search(r"needs ([\d,.]+) GB", message)[1].replace(",", "")) == pytest.approx(
        2 * 10**13 * 32 * 4 / 1e9
    )
    assert float(re.search(r"and ([\d,.]+) [MG]B is free", message)[1].replace(",", "")) > 0


def test_less_memory_is_free_than_the_machine_has(copy, monkeypatch):
    from minivllava.checkpoints import memory

    needed = 4 * sum(t.numel() for t in load_vllava(copy).state_dict().values())
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    load_vllava(copy)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    refused(copy, "of memory")
    load_vllava(copy, dtype="bfloat16")


PEAK = """
import resource, sys, torch
from minivllava.checkpoints.loading import load_language
torch.set_num_threads(1)
load_language(sys.argv[1])
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
model, _ = load_language(sys.argv[2], dtype=getattr(torch, sys.argv[3]))
print(peak() - before, sum(t.numel() * t.itemsize for t in model.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does")
@pytest.mark.parametrize(
    "layout, stored, wanted, vocabulary",
    [
        ("safetensors", "float16", "float32", 4000),
        ("bin", "float32", "bfloat16", 4000),
        ("safetensors", "float32", "bfloat16", 64000),  # where two tensors are half of all
    ],
)
def test_peak_of_memory(tmp_path, layout, stored, wanted, vocabulary):
    """No more than 1.15 times the weights in their final dtype, whatever the files hold."""
    card = {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 8, "num_attention_heads": 8,
    }  # fmt: skip
    for folder, layers in ((tmp_path / "warm", 1), (tmp_path / "large", 14 if wanted == "float32" else 28)):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(card | {"num_hidden_layers": layers}))
        with torch.device("meta"):
            config = huggingface.language_config(card | {"num_hidden_layers": layers}, folder / "config.json")
            names = LanguageModel(config)
        tensors = {
            huggingface.language_names([name])[name]: torch.zeros(tensor.shape, dtype=getattr(torch, stored))
            for name, tensor in names.state_dict().items()
        }
        if layout == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_shards(tensors, folder, shard=60_000_000, alias=False)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "warm"), str(tmp_path / "large"), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    used, weights = map(int, done.stdout.split())
    assert weights > 100e6 and used <= 1.15 * weights, done.stdout + done.stderr


def test_numbers_that_weights_can_have(copy):
    assert {t.dtype for t in load_vllava(copy, dtype="bfloat16").state_dict().values()} == {torch.bfloat16}
    for dtype in ("int8", "bf16", torch.int64):
        with pytest.raises(ConfigError, match="bfloat16"):
            load_vllava(copy, dtype=dtype)


def test_numbers_that_a_dtype_has_no_room_for(tmp_path):
    model = tiny_vllava()
    name = "language_model.layers.0.mlp.up.weight"
    model.state_dict()[name][3, 4] = -1e5
    model.save_pretrained(tmp_path / "model")
    number = load_vllava(tmp_path / "model", dtype="bfloat16").state_dict()[name][3, 4].item()
    assert number == pytest.approx(-1e5, rel=0.01)
    for cast in (
        lambda: load_vllava(tmp_path / "model", dtype="float16"),
        lambda: model.save_pretrained(tmp_path / "x", dtype="float16"),
        lambda: convert(tmp_path / "model", tmp_path / "x", dtype="float16"),
    ):
        with pytest.raises(CheckpointError, match=f"{name} has numbers up to 1e\\+05, too large for float16"):
            cast()
        assert listing(tmp_path) == ["model"]
    model.state_dict()[name][3, 4] = -torch.inf  # as it was stored
    model.save_pretrained(tmp_path / "model")
    assert load_vllava(tmp_path / "model", dtype="float16").state_dict()[name][3, 4] == -torch.inf


def test_a_model_without_a_tokenizer(saved, tmp_path):
    model = load_vllava(saved[0])
    model.tokenizer = None
    model.save_pretrained(tmp_path / "x")
    again = load_vllava(tmp_path / "x")
    assert again.tokenizer is None
    turns = [{"from": "human", "value": "What is this?"}]
    for ask in (again.chat, Conversation(again).ask, lambda words: again.encode(turns)):
        with pytest.raises(CheckpointError, match="no tokenizer"):
            ask("What is this?")


def test_no_device_is_the_usual_one_and_no_name_is_none(saved, tmp_path):
    usual = usable_device(None)
    bound = tiny_languagebind()
    save_model(bound, tmp_path / "bound", "languagebind", tokenizer=tiny_tokenizer())
    save_model(saved[1].language_model, tmp_path / "language", "language", tokenizer=saved[1].tokenizer)
    for load, folder in (
        (load_vllava, saved[0]),
        (lambda *given: load_languagebind(*given)[0], tmp_path / "bound"),
        (lambda *given: load_language(*given)[0], tmp_path / "language"),
    ):
        assert next(load(folder, None).parameters()).device.type == usual
        with pytest.raises(ConfigError, match="The device '' cannot be used"):
            load(folder, "")
        with pytest.raises(CheckpointError, match="None is no name"):
            load(None)


# writing


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_write_leaves_the_old_folder_whole(tmp_path):
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "config.json").write_text("old"))

    def interrupted(folder):
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(path, interrupted)
    assert (path / "config.json").read_text() == "old" and listing(tmp_path) == ["model"]
    write_folder(path, lambda folder: (folder / "model.safetensors").write_text("new"))
    assert listing(path) == ["model.safetensors"] and listing(tmp_path) == ["model"]


@pytest.mark.parametrize("after", [1, 2])
def test_a_write_interrupted_while_renaming(tmp_path, monkeypatch, after):
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "config.json").write_text("old"))
    replace, calls = storage.os.replace, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == after:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(storage.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(path, lambda folder: (folder / "config.json").write_text("new"))
    assert (path / "config.json").read_text() == "old" and listing(tmp_path) == ["model"]


def test_a_folder_that_was_moved_aside_when_the_process_was_killed_is_put_back(tmp_path):
    (tmp_path / ".model.01234567.old").mkdir()
    (tmp_path / ".model.01234567.old/a").write_text("old")
    (tmp_path / ".other.01234567.old").mkdir()
    storage.recover_folder(tmp_path / "model")
    assert (tmp_path / "model/a").read_text() == "old" and listing(tmp_path) == [".other.01234567.old", "model"]
    (tmp_path / ".model.89abcdef.old").mkdir()
    storage.recover_folder(tmp_path / "model")
    assert (tmp_path / "model/a").read_text() == "old"


def test_what_a_killed_process_was_writing_is_removed_a_day_later(tmp_path):
    path = tmp_path / "model[1]"
    for name in (".model[1].01234567.new", ".model[1].89abcdef.new", ".model1.01234567.new"):
        (tmp_path / name / "part").mkdir(parents=True)
        (tmp_path / name / "part/weights").touch()
        for folder in (tmp_path / name / "part", tmp_path / name):
            os.utime(folder, (time.time() - 25 * 3600,) * 2)
    (tmp_path / ".model[1].89abcdef.new/part/more").touch()  # another process is at it
    write_folder(path, lambda folder: (folder / "config.json").touch())
    assert listing(tmp_path) == [".model1.01234567.new", ".model[1].89abcdef.new", "model[1]"]


@pytest.mark.parametrize("foreign", ["notes.txt", "photos/red.jpg", ".git/HEAD", "pytorch_model.bin"])
def test_a_folder_with_other_files_is_left_alone(saved, copy, foreign):
    (copy / foreign).parent.mkdir(exist_ok=True)
    (copy / foreign).write_text("mine")
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=f"{copy} holds {foreign.split('/')[0]}, .*name a new folder"):
        saved[1].save_pretrained(copy)
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
    assert listing(copy.parent) == ["copy"]
    (copy / foreign).rename(copy / ".DS_Store")
    for folder in (path for path in copy.iterdir() if path.is_dir()):
        folder.rmdir()
    saved[1].save_pretrained(copy)
    assert listing(copy) == listing(saved[0])


def test_where_a_folder_may_be_written(saved, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match="the working folder"):
        saved[1].save_pretrained(".")
    Path("file").touch()
    with pytest.raises(CheckpointError, match="file is a file"):
        saved[1].save_pretrained("file")
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    saved[1].save_pretrained("link")  # where it points to, then
    assert Path("link").is_symlink() and listing(Path("empty")) == listing(saved[0])
    Path("dangling").symlink_to("new")
    saved[1].save_pretrained("dangling")
    assert listing(Path()) == ["dangling", "empty", "file", "link", "new"]


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
