"""The presets `sample`, `demo`, `tiny`, `small`, `smol`, `paper`: sizes and recipes by name."""

import types
from dataclasses import replace as with_changes

from minivllava.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig
from minivllava.errors import check_choice
from minivllava.run_config import Preset, TrainingConfig, WorldConfig


def _tiny() -> Preset:
    """Two CPU cores: 32 px images in 4 x 4 patches, about 3.3 M parameters (3.8 M with the text encoder)."""
    image = VisionConfig(image_size=32, patch_size=8, width=128, layers=4, heads=4, mlp_width=512)
    return Preset(
        name="tiny",
        model=ModelConfig(
            image=image,
            video=with_changes(image, temporal=True, patch_dropout=0.1),
            text=TextConfig(vocab_size=1024, context=64, width=128, layers=2, heads=4, mlp_width=512),
            language=LanguageConfig(
                vocab_size=1024, context=1024, width=128, layers=5, heads=4, kv_heads=4, mlp_width=384
            ),
            embed_dim=128,
            template="short",
            aspect="square",
        ),
        world=WorldConfig(images=12_000, clips=8_000, align_images=24_000, align_clips=10_000, text_documents=40_000),
        language=TrainingConfig(steps=1200, batch_size=32, learning_rate=1e-3, weight_decay=0.01, accumulation=2),
        align_image=TrainingConfig(steps=1500, batch_size=256, learning_rate=1e-3, weight_decay=0.1),
        align_video=TrainingConfig(steps=800, batch_size=64, learning_rate=1e-3, weight_decay=0.1),
        stage1=TrainingConfig(steps=300, batch_size=48, learning_rate=3e-3, accumulation=2),
        stage2=TrainingConfig(steps=4000, batch_size=32, learning_rate=1e-3, accumulation=2),
        images_first=0.5,
    )


def _demo() -> Preset:
    """`make demo`: the tiny model, from the shipped parts, on less data and for fewer steps: minutes."""
    tiny = _tiny()
    return with_changes(
        tiny,
        name="demo",
        world=WorldConfig(
            images=12_000, clips=3_000, align_images=0, align_clips=0, text_documents=0,
            validation=0, test=100, compositional=60,
        ),
        stage1=with_changes(tiny.stage1, steps=150),
        stage2=with_changes(tiny.stage2, steps=1500, accumulation=4),
        images_first=0.0,
    )  # fmt: skip


def _sample() -> Preset:
    """The few scenes of `data/sample`; the tiny model for a few steps, to see that everything runs."""
    world = WorldConfig(
        images=6, clips=6, align_images=8, align_clips=4, text_documents=20, validation=1, test=2, compositional=1
    )
    few = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    return with_changes(
        _tiny(),
        name="sample",
        world=world,
        language=TrainingConfig(**few),
        align_image=TrainingConfig(**few),
        align_video=TrainingConfig(**few),
        stage1=TrainingConfig(**few),
        stage2=TrainingConfig(**few),
    )


def _small() -> Preset:
    """One GPU: 64 px images, 64 patches a frame, about 49 M parameters (52 M with the text encoder)."""
    image = VisionConfig(image_size=64, patch_size=8, width=384, layers=8, heads=6, mlp_width=1536)
    tiny = _tiny()
    return with_changes(
        tiny,
        name="small",
        model=with_changes(
            tiny.model,
            image=image,
            video=with_changes(image, temporal=True, patch_dropout=0.3),
            text=TextConfig(vocab_size=1024, context=77, width=256, layers=4, heads=4, mlp_width=1024),
            language=LanguageConfig(
                vocab_size=1024, context=2048, width=384, layers=8, heads=6, kv_heads=6, mlp_width=1024
            ),
            embed_dim=256,
            template="v1",
        ),
        language=with_changes(tiny.language, steps=10_000, batch_size=128, learning_rate=1e-3, precision="bf16"),
        align_image=with_changes(tiny.align_image, steps=10_000, batch_size=512, precision="bf16"),
        align_video=with_changes(tiny.align_video, steps=5_000, batch_size=256, precision="bf16"),
        stage1=with_changes(tiny.stage1, steps=1000, batch_size=128, learning_rate=1e-3, precision="bf16"),
        stage2=with_changes(tiny.stage2, steps=10_000, batch_size=128, learning_rate=3e-4, precision="bf16"),
    )


def _paper() -> Preset:
    """Video-LLaVA-7B and its recipe: stage 1 and 2 of Table 7, align_video of LanguageBind's Table 11. The paper trains
    neither the image encoder (OpenCLIP) nor the language model (Vicuna) itself: these two steps are stand-ins."""
    align = TrainingConfig(
        steps=75_500, batch_size=640, learning_rate=1e-4, weight_decay=0.2, warmup=2000 / 75_500, precision="bf16"
    )
    adamw = {"betas": (0.9, 0.999), "precision": "bf16"}
    return Preset(
        name="paper",
        model=ModelConfig(video=VisionConfig(temporal=True, patch_dropout=0.3), antialias=False),
        world=WorldConfig(),
        language=TrainingConfig(**adamw),
        align_image=align,
        align_video=align,
        stage1=TrainingConfig(steps=4922, batch_size=256, learning_rate=1e-3, **adamw),
        stage2=TrainingConfig(steps=5977, batch_size=128, learning_rate=2e-5, **adamw),
    )


def _smol() -> Preset:
    """One GPU and real data: the paper's encoders and SmolLM2-135M. recipes/smol.toml says the rest."""
    smollm2 = LanguageConfig(
        vocab_size=49152, context=8192, width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536,
        rope_theta=100_000.0, tie_embeddings=True,
    )  # fmt: skip
    paper = _paper()
    return with_changes(
        paper,
        name="smol",
        model=with_changes(paper.model, language=smollm2, template="chat"),
        stage1=with_changes(paper.stage1, steps=782),
        stage2=with_changes(paper.stage2, steps=1563, learning_rate=1e-4),
    )


PRESETS = types.MappingProxyType(
    {"sample": _sample, "demo": _demo, "tiny": _tiny, "small": _small, "smol": _smol, "paper": _paper}
)


def preset(name: str) -> Preset:
    """The preset called `name`. Raises ConfigError, listing the names there are."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]()
