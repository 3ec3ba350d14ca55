"""Presets and overrides."""

import math

import pytest

from minivllava.config import (
    ACTIVATIONS,
    TEMPLATES,
    LanguageConfig,
    ModelConfig,
    Preset,
    TrainingConfig,
    VisionConfig,
    WorldConfig,
)
from minivllava.data import conversation
from minivllava.errors import ConfigError
from minivllava.models import layers
from minivllava.overrides import from_dict, override, to_dict
from minivllava.presets import PRESETS, preset


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


@pytest.mark.parametrize(
    "part, values",
    [
        (ModelConfig, {"keep_cls_video": "no"}),
        (ModelConfig, {"antialias": "x"}),
        (ModelConfig, {"image_token": "7"}),
        (LanguageConfig, {"rope_theta": math.inf}),
        (LanguageConfig, {"tie_embeddings": 1}),
        (LanguageConfig, {"stop": 2}),
        (VisionConfig, {"temporal": None}),
        (TrainingConfig, {"compiled": "no"}),
        (WorldConfig, {"images": "8"}),
    ],
)
def test_values_of_the_wrong_type_are_named(part, values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} is "):
        part(**values)


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
