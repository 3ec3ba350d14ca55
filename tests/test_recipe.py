"""Recipes: both stages on records as the original's files have them, from published-looking parts."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign import write_language_model, write_tower
from tiny import COLOURS, square, tiny_config, tiny_tokenizer, training
from typer.testing import CliRunner

from minivllava.cli import app, main
from minivllava.cli.recipe import _duration
from minivllava.config import ModelConfig
from minivllava.data.conversation import VISUAL
from minivllava.data.dataset import ConversationDataset
from minivllava.data.records import load_records
from minivllava.data.tokenizer import Tokenizer
from minivllava.data.write_media import write_image, write_video
from minivllava.errors import CheckpointError, ConfigError, ContextLengthError, DataError, MediaError
from minivllava.models.language import DecoderLayer, LanguageModel
from minivllava.models.vllava import VideoLLaVA
from minivllava.overrides import override, to_dict
from minivllava.presets import preset
from minivllava.training import plan as plan_module
from minivllava.training import recipe as recipe_module
from minivllava.training.loop import freeze_all_but
from minivllava.training.lora import lora
from minivllava.training.plan import PARTS, plan_recipe, weight_memory
from minivllava.training.recipe import Recipe, read_recipe, recipe_preset, stage_records, train_recipe
from minivllava.training.run_folder import Run, as_before


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


STAGE1_IMAGES = [
    {
        "id": i,
        "image": f"llava_image/00453/{colour}.jpg",
        "conversations": turns("Render a clear and concise summary of the photo.\n<image>", f"a {colour} square"),
    }
    for i, colour in enumerate(COLOURS)
]
STAGE1_CLIPS = [
    {
        "id": 10,
        "video": "valley/0/red.mp4",
        "conversations": turns("<video>\nDescribe it.", "it moves right"),
    },
    {
        "id": 11,
        "video": "valley/0/gone.mp4",
        "conversations": turns("<video>\nDescribe it.", "it moves left"),
    },
]
STAGE2 = [
    {
        "id": "000000033471",
        "image": "llava_image/00453/red.jpg",
        "model": "",
        "conversations": turns("<image>\nWhat colour?", "red", "Sure?", "yes"),
    },
    {
        "id": 2,
        "video": "valley/0/red.mp4",
        "conversations": turns("Which way?\n<video>", "right", "Really?", "yes"),
    },
    {
        "id": "identity_1",
        "conversations": [{"from": "gpt", "value": "cut off"}, *turns("Hello", "Hello!")],
    },
    {
        "id": "both",
        "image": ["llava_image/00453/red.jpg", "llava_image/00453/blue.jpg"],
        "video": ["valley/0/red.mp4"],
        "conversations": turns("<video><image><image>\nWhat differs?", "the colour"),
    },
    {"id": "long", "conversations": turns("Tell me. " * 60, "No. " * 60)},
]
FILES = {
    "pt_json/llava_image_.json": STAGE1_IMAGES,
    "pt_json/valley_.json": STAGE1_CLIPS,
    "ft_json/llava_image_tune_.json": STAGE2[:1] + STAGE2[3:4],
    "ft_json/videochatgpt_tune_.json": STAGE2[1:2],
    "ft_json/nlp_tune.json": STAGE2[2:3] + STAGE2[4:],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root as the original's TRAIN_AND_VALIDATE.md lays it out, and tiny parts beside it."""
    folder = tmp_path_factory.mktemp("root")
    for name, records in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(records))
    (folder / "llava_image/00453").mkdir(parents=True)
    for colour in COLOURS:
        write_image(folder / f"llava_image/00453/{colour}.jpg", square(colour, 10))
    frames = torch.stack([torch.from_numpy(square("red", left)) for left in range(0, 16, 2)]).numpy()
    (folder / "valley/0").mkdir(parents=True)
    write_video(folder / "valley/0/red.mp4", frames)
    write_language_model(folder / "parts/language", "Qwen2")
    write_tower(folder / "parts/tower", "Siglip")
    return folder


def recipe(root, **changes) -> Recipe:
    parts = {
        "image_encoder": str(root / "parts/tower"),
        "video_encoder": str(root / "parts/tower"),
        "language_model": str(root / "parts/language"),
    }
    small = [f"{stage}.{field}" for stage in ("stage1", "stage2") for field in ("batch_size=4", "precision=no")]
    return replace(read_recipe("smol"), **parts, context=120, change=tuple(small), **changes)


def test_the_shipped_recipes_are_whole():
    smol, paper = read_recipe("smol"), read_recipe("paper")
    assert (smol.preset, paper.preset) == ("smol", "paper") and smol.stage1 == paper.stage1
    assert set(paper.stage1 + paper.stage2) == set(FILES)
    assert recipe_preset(smol).stage1.accumulation == 16
    tuned = recipe_preset(paper, ("stage2.lora_dropout=0.0",), lora=True).stage2
    assert (tuned.lora_rank, tuned.learning_rate, tuned.lora_dropout) == (128, 2e-4, 0.0)
    with pytest.raises(ConfigError, match="no recipe 'huge'.*paper, smol"):
        read_recipe("huge")


def test_only_what_every_batch_runs_is_gathered_layer_by_layer():
    """A part of a batch without clips does not run the video encoder: its layers must not wait for other processes."""
    sharding = Path(recipe_module.__file__).with_name("fsdp.yaml").read_text()
    assert re.findall(r"cls_to_wrap: (.*)", sharding) == [DecoderLayer.__name__]


@pytest.mark.parametrize(
    "text, told",
    [
        ("preset = ", "is no recipe"),
        ('preset = "smol"', "lacks the field"),
        ('colour = "red"', "no field colour"),
        ("epochs = 0", "epochs is 0: use a number above 0"),
        ("epochs = -1", "epochs is -1"),
        ("epochs = nan", "epochs is nan"),
        ("epochs = inf", "epochs is inf"),
        ("epochs = true", "epochs is True: use a number"),
        ("context = -5", "context is -5"),
        ("context = 5.5", "context is 5.5: use a whole number"),
        ("stage1_records = -3", "stage1_records is -3"),
        ("stage2 = [1]", "stage2 is .*: use a list of strings"),
    ],
)
def test_broken_recipes_are_named(tmp_path, text, told):
    name = text.split(" = ")[0]
    whole = ['preset = "smol"'] + [f'{part} = "x"' for part in ("image_encoder", "video_encoder", "language_model")]
    whole = [line for line in [*whole, "stage1 = []", "stage2 = []"] if not line.startswith(f"{name} =")]
    (tmp_path / "mine.toml").write_text("\n".join([text] if name == "preset" else [*whole, text]))
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{told}"):
        read_recipe(tmp_path / "mine.toml")


def test_missing_media_is_listed_or_left_out(root):
    with pytest.raises(MediaError, match=r"1 files of stage1 are missing(.|\n)*gone\.mp4(.|\n)*--skip-missing"):
        stage_records(recipe(root), "stage1", root, 0)
    records, missing, _ = stage_records(recipe(root), "stage1", root, 0, "skip")
    assert len(records) == 5 and [path.endswith("valley/0/gone.mp4") for path in missing] == [True]
    part, *_ = stage_records(recipe(root, stage1_records=2), "stage1", root, 0, "skip")
    again, *_ = stage_records(recipe(root, stage1_records=2), "stage1", root, 0, "skip")
    assert len(part) == 2 and part["id"] == again["id"]
    with pytest.raises(DataError, match="nothing.json cannot be read"):
        stage_records(recipe(root, stage2=("nothing.json",)), "stage2", root, 0)


def test_records_of_the_real_files_are_read(root):
    records, *_ = stage_records(recipe(root), "stage2", root, 0)
    by_id = {row["id"]: row for row in records}
    assert by_id["identity_1"]["conversations"][0]["value"] == "Hello", "a beginning that is cut off is dropped"
    names = [path.rsplit("/", 1)[1] for path in by_id["both"]["visuals"]]
    assert names == ["red.mp4", "red.jpg", "blue.jpg"]
    assert by_id["2"]["conversations"][0]["value"] == "Which way?\n<video>", "placeholders stay where they are"


def test_long_records_are_cut_but_never_within_visual_tokens(root):
    records = load_records(root / "ft_json/nlp_tune.json", root)
    tokenizer = Tokenizer.from_pretrained(root / "parts/language")
    config = replace(preset("smol").model, language=replace(preset("smol").model.language, context=100))
    with pytest.raises(ContextLengthError, match="long"):
        ConversationDataset(records, tokenizer, config, None)
    data = ConversationDataset(records, tokenizer, config, None, cut=90)
    assert [len(ids) for ids in data.input_ids] == [len(data.input_ids[0]), 90]
    clips = load_records(root / "ft_json/videochatgpt_tune_.json", root)
    with pytest.raises(ContextLengthError, match="visual tokens beyond the first 90"):
        ConversationDataset(clips, tokenizer, config, None, cut=90)


@pytest.mark.parametrize("lora", [False, True])
def test_both_stages_train_from_the_command_line(root, tmp_path, monkeypatch, capsys, lora):
    if lora:
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    told = recipe(root)
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in vars(told).items())
    (tmp_path / "mine.toml").write_text(text)
    command = ["minivllava", "recipe", "mine.toml", "--root", str(root), "--skip-missing", "--device", "cpu"]
    command += ["--lora", "--set", "stage2.lora_rank=2"] if lora else []
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "1 missing file" in printed and "runs/mine/model" in printed
    first = VideoLLaVA.from_pretrained("runs/mine/stage1")
    model = VideoLLaVA.from_pretrained("runs/mine/model")
    before, after = first.state_dict(), model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"projector", "language_model"}
    log = json.loads((tmp_path / "runs/mine/log.json").read_text())
    assert [log[name][-1]["step"] for name in ("stage1", "model")] == [2, 2]
    assert model.config.template == "chat" and model.config.language.context == 128
    monkeypatch.setattr("minivllava.training.recipe.stage1", None)  # what is done is not done again
    train_recipe(told, root, "runs/mine", ("stage2.lora_rank=2",) if lora else (), lora, True, device="cpu")


def test_a_recipe_that_no_run_can_have_is_refused_before_anything_is_read_or_written(tmp_path):
    for change, told in (
        ("stage2.log_every=0", "stage2: log_every is 0"),
        ("stage2.learning_rate=0", "projector_learning_rate counts as a share of learning_rate, which is 0"),
        ("stage2.precision=bf16", r"stage1\.precision is no, stage2\.precision is bf16"),
    ):
        with pytest.raises(ConfigError, match=told):
            train_recipe(recipe(tmp_path), tmp_path / "nowhere", tmp_path / "run", (change,), lora=True)
        with pytest.raises(ConfigError, match=told):
            plan_recipe(recipe(tmp_path), tmp_path / "nowhere", (change,), lora=True)
    assert not (tmp_path / "run").exists()


def test_a_clip_that_cannot_be_decoded_stops_training_and_is_named(root, tmp_path):
    broken = root / "valley/0/gone.mp4"
    broken.write_bytes(b"no clip")
    try:
        with pytest.raises(MediaError, match=r"gone\.mp4"):
            train_recipe(recipe(root), root, tmp_path / "run", device="cpu", progress=False)
    finally:
        broken.unlink()


def test_the_plan_counts_and_estimates(root):
    told = replace(read_recipe("smol"), change=("stage1.batch_size=4",))
    plan = plan_recipe(told, root, skip_missing=True, tflops=100)
    assert round(plan.parameters["language_model"] / 1e6, 1) == 134.5
    assert (plan.image_tokens, plan.clip_tokens) == (256, 2048) and told.language_model in plan.elsewhere
    stage1, stage2 = plan.stages
    counts = stage1.records, stage1.images, stage1.clips, stage1.missing, stage1.steps, stage1.batch_size
    assert counts == (5, 4, 1, 1, 2, 4) and 256 < stage1.tokens < 1024
    assert stage1.hours == pytest.approx(stage1.flops / 1e14 / 3600)
    assert stage1.memory < stage2.memory, "the language model learns in stage 2 alone"
    again = plan_recipe(told, root, skip_missing=True, tflops=50).stages[0]
    assert again.hours == 2 * stage1.hours


def test_the_plan_charges_logits_at_learned_tokens_alone():
    """A question costs less than an answer of its length."""
    language = preset("tiny").model.language
    model = LanguageModel(language)
    asked, answered = (plan_module._language_flops(model, language, 100, learned, 2) for learned in (0, 10))
    assert answered - asked == 3 * 2 * 10 * language.width * language.vocab_size


def test_the_plan_counts_what_is_left_of_long_records(root):
    told = replace(recipe(root), stage2=("ft_json/nlp_tune.json",))
    cut, whole = (plan_recipe(replace(told, context=n), root).stages[1] for n in (60, 0))
    short = (5 + 6) / 4  # tokens of the first record: its characters, by four; the second one has 195
    assert cut.tokens == (short + 60) / 2 and whole.tokens == (short + 128) / 2, "the model's own context holds 128"
    assert cut.flops < whole.flops


def test_in_records_without_files_placeholders_are_words_and_broken_records_can_be_left_out(root, tmp_path):
    shutil.copytree(root, tmp_path / "root")
    file = tmp_path / "root/ft_json/nlp_tune.json"
    records = json.loads(file.read_text())
    asked, told = "<video> in HTML?", "Write <video>, then <source>."
    html = {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]}
    file.write_text(json.dumps([*records, html | {"id": "html"}]))
    text = replace(recipe(root), stage2=("ft_json/nlp_tune.json",))
    found, _, broken = stage_records(text, "stage2", tmp_path / "root", 0)
    assert len(found) == len(records) + 1 and not broken and found[-1]["words"]
    tokenizer = tiny_tokenizer()
    data = ConversationDataset(found, tokenizer, tiny_config(len(tokenizer)), load=None, cut=10_000)
    assert VISUAL not in data.input_ids[-1] and asked in tokenizer.decode(data.input_ids[-1].tolist())

    two = html["conversations"][:1] * 2
    file.write_text(json.dumps([*records, {"id": "a", "conversations": two}, {"id": "b", "conversations": []}]))
    with pytest.raises(DataError, match=r"(?s)2 records break the format:.*'a'.*turn 2.*'b'.*--skip-broken"):
        stage_records(text, "stage2", tmp_path / "root", 0)
    found, _, broken = stage_records(text, "stage2", tmp_path / "root", 0, skip_broken=True)
    assert len(found) == len(records) and len(broken) == 2


def test_steps_that_are_set_count_and_what_would_change_nothing_is_refused(root):
    told = recipe(root)
    usual, (first, second) = plan_recipe(told, root).stages, plan_recipe(told, root, ("stage2.steps=7",)).stages
    assert (first.steps, second.steps) == (usual[0].steps, 7) and usual[1].steps != 7
    assert plan_recipe(replace(told, change=(*told.change, "stage1.steps=5")), root).stages[0].steps == 5
    for unused in ("world.images=3", "images_first=0.5", "align_video.steps=3", "model.language.layers=3",
                   "model.image.activation=quick_gelu", "stage1.lora_rank=4"):  # fmt: skip
        with pytest.raises(ConfigError, match=unused.partition("=")[0] + " would change nothing"):
            recipe_preset(told, (unused,))


def test_the_plan_takes_the_sizes_of_parts_that_are_here(root):
    told = recipe(root)
    plan = plan_recipe(told, root)
    early = plan.stages[0]
    assert early.records == 6 and early.missing == 1, "the media need not be there yet"
    model = recipe_module._parts(told, recipe_preset(told))
    assert plan.parameters == {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in PARTS}
    assert plan.image_tokens == model.config.visual_tokens("image") and not plan.elsewhere
    fewer = replace(told, change=(*told.change, "model.video.frames=4"))
    assert plan_recipe(fewer, root).clip_tokens == plan.clip_tokens // 2
    other = replace(told, video_encoder="somebody/else")  # whose sizes are not known: the preset's for both
    assert "somebody/else" in plan_recipe(other, root).elsewhere


def test_the_plan_refuses_parts_that_training_would(root):
    image, video = (str(Path(__file__).parent / f"golden/LanguageBind_{kind}") for kind in ("Image", "Video_merge"))
    told = replace(recipe(root), image_encoder=image, video_encoder=video)
    plan_recipe(told, root)
    fewer = replace(told, change=(*told.change, "model.video.frames=4"))
    for wrong, message in (
        (fewer, "model.video.frames is 4, and the video encoder attends over 8"),
        (replace(told, video_encoder=image), "an encoder for image, and none for video"),
        (replace(told, image_encoder=video), "an encoder for video, and none for image"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_recipe(wrong, root)
        with pytest.raises(ConfigError, match=message):
            recipe_module._parts(wrong, recipe_preset(wrong))


def test_the_plan_is_printed_with_times_that_say_something(root):
    told = CliRunner().invoke(app, ["recipe", "smol", "--root", str(root), "--plan", "--skip-missing"])
    assert told.exit_code == 0, told.exception
    assert "stage1: 5 records, 4 images, 1 clips (1 files missing); 1 steps of" in told.output
    assert (
        "seconds at 300 TFLOP/s" in told.output and "GiB" in told.output and "sizes of the preset smol" in told.output
    )
    assert [_duration(hours) for hours in (2, 0.05, 0.001)] == ["2.0 hours", "3.0 minutes", "3.6 seconds"]


def test_what_stage_2_cannot_do_is_said_before_stage_1(root, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_module, "stage1", None)
    with pytest.raises(ConfigError, match="recompute_elementwise"):
        train_recipe(recipe(root), root, tmp_path / "run", ("stage2.recompute_elementwise=true",), skip_missing=True,
                     device="cpu", progress=False)  # fmt: skip


@pytest.mark.parametrize("stage, rank", [("stage1", 0), ("stage2", 0), ("stage2", 4)])
def test_the_planned_memory_is_that_of_the_tensors(stage, rank):
    """Weights, and gradient and two moments of those that learn, counted on a model that is opened as training does."""
    model = VideoLLaVA(preset("tiny").model)
    training = replace(preset("tiny").stage2, lora_rank=rank)
    planned = weight_memory(model, training, stage)
    freeze_all_but(model, model.projector, *([model.language_model] if stage == "stage2" and not rank else []))
    with lora(model.language_model, training) if rank else nullcontext():
        model.projector.requires_grad_(True)
        kept = [p.nbytes * (4 if p.requires_grad else 1) for p in model.parameters()]
    assert planned == sum(kept)


def test_images_are_padded_in_stage_2_alone(root, monkeypatch, tmp_path):
    """As in the original: stage 1 crops, stage 2 pads to a square."""
    from minivllava.training import stages

    seen = []
    usual = stages.load_pixels
    monkeypatch.setattr(
        stages,
        "load_pixels",
        lambda path, kind, config, frames: seen.append(config.aspect) or usual(path, kind, config, frames),
    )
    train_recipe(recipe(root), root, tmp_path / "run", skip_missing=True, device="cpu", progress=False)
    assert set(seen) == {"square", "pad"} and seen == sorted(seen, reverse=True), "square first, then pad"
    assert ModelConfig().stage1_aspect == "square"


def test_a_recipe_continues_however_its_root_is_spelled(root, monkeypatch, tmp_path):
    """Paths of records are spelled as at first: the states of a run are of these."""
    usual = {"skip_missing": True, "device": "cpu", "progress": False}
    train_recipe(recipe(root), root, tmp_path / "run", **usual)
    monkeypatch.chdir(root)
    train_recipe(recipe(root), ".", tmp_path / "run", **usual)
    assert as_before(tmp_path / "run", "root", "../" + root.name) == str(root)
    assert as_before(tmp_path / "run", "root", "..") == as_before(tmp_path / "new", "root", "..") == ".."


def test_a_run_from_before_a_field_was_there_continues(tmp_path):
    told = to_dict(training())
    before = {key: value for key, value in told.items() if not key.startswith("lora")}
    model = to_dict(ModelConfig())
    early = model | {"language": {key: value for key, value in model["language"].items() if key != "stop"}}
    first = {"training": before, "model": early, "stage1": before | {"records": 4}, "stage2": before | {"records": 4}}
    Run(tmp_path / "run", first).write_log("stage1", [])
    Run(tmp_path / "run", {"training": told, "model": model, "stage1": told | {"records": 4}})
    with pytest.raises(CheckpointError, match="another stage2"):
        Run(tmp_path / "run", {"stage2": told | {"records": 5}})
    with pytest.raises(CheckpointError, match="another training"):
        Run(tmp_path / "run", {"training": to_dict(training(lora_rank=2))})


@pytest.mark.parametrize(
    "change", ["checkpoint_every=9", "log_every=7", "recomputed_layers=2", "recompute_elementwise=true"]
)
def test_what_changes_no_result_may_change(tmp_path, monkeypatch, change):
    """After running out of memory, above all. `compiled` rounds otherwise."""
    monkeypatch.chdir(tmp_path)

    def described(change: str, parts: str) -> dict:
        base = override(preset("tiny"), f"stage2.{change}")
        return {
            "preset": to_dict(base), "training": to_dict(base.stage2), "stage2": to_dict(base.stage2) | {"records": 4},
            "start": parts, "recipe": {"preset": "tiny", "change": [f"stage2.{change}"]},
        }  # fmt: skip

    Run("run", described("seed=0", "parts")).write_log("stage1", [])
    Run("run", described(change, str(tmp_path / "parts")))
    with pytest.raises(CheckpointError, match="another preset, training, stage2, start:"):
        Run("run", described("compiled=true", "others"))
