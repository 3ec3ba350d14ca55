"""Presets and overrides."""

import math
from dataclasses import replace

import pytest

from minivllava.ablations.questions import questions
from minivllava.ablations.settings import Mixture, base_settings
from minivllava.ablations.study import Arm, load_study
from minivllava.config import (
    ACTIVATIONS,
    TEMPLATES,
    CausalLMConfig,
    LanguageConfig,
    ModelConfig,
    RopeScaling,
    TextConfig,
    VisionConfig,
    VisionTowerConfig,
)
from minivllava.data import conversation
from minivllava.errors import ConfigError
from minivllava.models import layers
from minivllava.models.generate import Sampling
from minivllava.models.languagebind import LanguageBindConfig
from minivllava.overrides import from_dict, override, to_dict
from minivllava.presets import PRESETS, preset
from minivllava.run_config import Preset, TrainingConfig, WorldConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert from_dict(Preset, to_dict(preset(name))) == preset(name)


def test_override_changes_one_field():
    changed = override(preset("tiny"), "stage2.steps=7", "model.template=v1", "language.betas=[0.9, 0.95]")
    assert (changed.stage2.steps, changed.model.template, changed.language.betas) == (7, "v1", (0.9, 0.95))
    assert changed.stage1 == preset("tiny").stage1


@pytest.mark.parametrize(
    "assignment, told",
    [
        ("stage2.step=7", "choose one of steps"),
        ("stage9.steps=7", "stage9"),
        ("stage2.steps.x=7", "'stage2.steps' has no fields"),
        ("stage2.steps", "FIELD=VALUE"),
        ("stage2.steps=many", "does not fit"),
        ("stage2.steps=1.5", "does not fit a field that holds"),
        ("stage2.steps=true", "does not fit"),
        ("stage2.steps*=Infinity", "does not fit"),
        ("stage2.seed=-1", "stage2: seed is -1: use a whole number from 0"),
        ("stage2.betas=[0.9]", r"stage2: betas is \(0.9,\): use a list of 2 numbers"),
        ("stage2.betas=[0.9, 2]", r"stage2: betas is \(0.9, 2\): use two numbers from 0 to less than 1"),
        ("model.keep_cls_video=1", "holds false"),
        ("language.betas=0.9", r"holds \[0.9, 0.98\]"),
        ("model.image.patch_size=7", "multiple"),
        ("model.image.activation=relu", "no activation 'relu'; choose one of gelu, quick_gelu"),
        ("model.text.activation=relu", "no activation 'relu'"),
        ("model.template=v7", "no template 'v7'; choose one of v1, llava_v1, short, plain, chat"),
        ("model.stage1_template=v7", "no stage1_template 'v7'"),
        ("model.select_layer=-9", "select_layer is -9 and the image encoder has 4 layers: choose from -5 to 4"),
        ("model.select_layer=5", "select_layer is 5"),
    ],
)
def test_bad_overrides_say_what_is_wrong(assignment, told):
    with pytest.raises(ConfigError, match=told):
        override(preset("tiny"), assignment)


TOWER = VisionTowerConfig(
    {"model_type": "siglip_vision_model", "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_attention_heads": 2}
)


@pytest.mark.parametrize(
    "config, field, value, use",
    [
        (ModelConfig(), "keep_cls_video", "no", "true or false"),
        (ModelConfig(), "antialias", "x", "true or false"),
        (ModelConfig(), "image_token", "7", "a whole number"),
        (ModelConfig(), "template", ["v1"], "a string"),
        (ModelConfig(), "select_layer", -2.0, "a whole number"),
        (ModelConfig(), "language", {}, "a LanguageConfig or a CausalLMConfig"),
        (LanguageConfig(), "rope_theta", math.inf, "a number"),
        (LanguageConfig(), "rope_theta", math.nan, "a number"),
        (LanguageConfig(), "tie_embeddings", 1, "true or false"),
        (LanguageConfig(), "stop", 2, "a list of whole numbers"),
        (LanguageConfig(), "stop", (True,), "a list of whole numbers"),
        (VisionConfig(), "temporal", None, "true or false"),
        (VisionConfig(), "width", True, "a whole number"),
        *(
            (sizes, "layers", 10**8, "a whole number from 1 to")
            for sizes in (VisionConfig(), TextConfig(), LanguageConfig())
        ),
        (TOWER, "tower", 3, "a JSON object"),
        (TOWER, "mean", "abc", "a list of numbers"),
        (TextConfig(), "width", 8.0, "a whole number"),
        (RopeScaling("linear", 2.0), "factor", "2", "a number"),
        (CausalLMConfig({"model_type": "x"}, 8, 8, 8), "model", 3, "a JSON object"),
        (CausalLMConfig({"model_type": "x"}, 8, 8, 8), "vocab_size", "a", "a whole number"),
        (CausalLMConfig({"model_type": "x"}, 8, 8, 8), "width", None, "a whole number"),
        (CausalLMConfig({"model_type": "x"}, 8, 8, 8), "context", -1, "a whole number of at least 1"),
        (LanguageBindConfig({}, TextConfig(), 8), "encoders", {"image": TextConfig()}, "a JSON object"),
        (LanguageBindConfig({}, TextConfig(), 8), "embed_dim", 0, "a whole number of at least 1"),
        (TrainingConfig(), "compiled", "no", "true or false"),
        (TrainingConfig(), "seed", 1.5, "a whole number"),
        (TrainingConfig(), "seed", 10**11, "a whole number from 0 to"),
        (TrainingConfig(), "betas", ("a", 0.9), "a list of 2 numbers"),
        (WorldConfig(), "images", "8", "a whole number"),
        (WorldConfig(), "clips", -1, "a whole number of at least 0"),
        (preset("tiny"), "images_first", "a", "a number"),
        (preset("tiny"), "images_first", 2, "a number from 0 to 1"),
        (preset("tiny"), "world", None, "a WorldConfig"),
        (base_settings("tiny"), "temporal", "no", "true or false"),
        (base_settings("tiny"), "depth_tuning", -1.0, "a number from 0 to 1"),
        (Mixture(), "images", "all", "a number"),
        (Sampling(), "max_new_tokens", 1.5, "a whole number"),
        (Sampling(), "generator", 3, "a Generator"),
        (Arm("a"), "set", "temporal=false", "a list of strings"),
        (load_study("ratio"), "claims", (3,), "a list of Claims"),
        (questions()[1], "question", 3, "a string"),
        (questions()[1], "verdicts", {"ratio": 3}, "a JSON object"),
    ],
)
def test_values_that_do_not_fit_a_field_are_named(config, field, value, use):
    with pytest.raises(ConfigError, match=f"^{field} is .*: use {use}"):
        replace(config, **{field: value})


@pytest.mark.parametrize("config, field", [(TOWER, "tower"), (CausalLMConfig({"model_type": "x"}, 8, 8, 8), "model")])
def test_more_layers_than_any_model_has(config, field):
    with pytest.raises(ConfigError, match="num_hidden_layers is 100000000: use 10000 at most"):
        replace(config, **{field: getattr(config, field) | {"num_hidden_layers": 10**8}})


def test_whole_numbers_are_numbers_too():
    assert replace(TrainingConfig(), learning_rate=1, betas=(0, 0.5)).betas == (0, 0.5)
    assert from_dict(TrainingConfig, {"betas": [0.9, 0.95]}).betas == (0.9, 0.95)


def test_choices_are_those_there_are():
    assert (set(ACTIVATIONS), set(TEMPLATES)) == (set(layers.ACTIVATIONS), set(conversation.TEMPLATES))
    for layer in (-5, 4):
        assert override(preset("tiny"), f"model.select_layer={layer}").model.select_layer == layer


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="tiny, small, smol, paper"):
        preset("huge")


def test_unknown_fields_are_refused():
    with pytest.raises(ConfigError, match="colour"):
        from_dict(ModelConfig, {"colour": "red"})


def test_visual_tokens_of_the_paper_and_of_the_code_since_2024():
    config = preset("paper").model
    assert (config.visual_tokens("image"), config.visual_tokens("video", 8)) == (256, 2048)
    kept = override(preset("paper"), "model.keep_cls_video=true").model
    assert kept.visual_tokens("video", 8) == 2056
