"""What arms start from: shipped encoders and language model, and those that a study trains for itself, once.

Shipped are those of `data/results/parts`, or what `--parts` names; `data/pretrained/parts` were trained for longer.

image encoder   bound: LanguageBind's, shipped or trained here; contrastive: aligned to a text encoder of its own;
                mae: a masked autoencoder, which saw no words
depth encoder   bound: begun from the image encoder and bound to the frozen text encoder; mae: a masked
                autoencoder of depth maps; rgb: the image encoder as it is
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from minivllava.ablations.records import depth_captions
from minivllava.ablations.settings import VERSION, Settings, align_world, digest, text_world
from minivllava.checkpoints.loading import load_language, load_languagebind
from minivllava.checkpoints.storage import load_tensors, save_tensors, write_folder
from minivllava.config import ModelConfig, VisionConfig, check_same_vit
from minivllava.data import build
from minivllava.data.build import build_world
from minivllava.data.cache import VERSION as CACHE_VERSION
from minivllava.data.cache import cache_media, weights_fingerprint
from minivllava.data.records import load_records, unique_files
from minivllava.errors import ConfigError
from minivllava.models.languagebind import LanguageBind, LanguageBindConfig
from minivllava.models.projector import build_projector
from minivllava.models.vision import VideoEncoder
from minivllava.models.vllava import VideoLLaVA
from minivllava.provenance import environment
from minivllava.training.align import align_image, align_video, contrastive_task
from minivllava.training.language import pretrain_language
from minivllava.training.loop import freeze_all_but, train
from minivllava.training.mae import MaskedAutoencoder, pretrain_mae


class Parts:
    """The shipped parts of `folder` (`languagebind/`, `language/`), and trained ones, which are kept in `store`.

    device: "cpu" leaves an accelerator unused.
    """

    def __init__(self, folder: str | Path, store: str | Path, device: str | None = None, progress: bool = True):
        from accelerate import PartialState

        self.folder, self.store, self.progress = Path(folder), Path(store), progress
        self.options = {"device": device, "progress": progress}  # as `train` takes them
        self.device = PartialState(cpu=device == "cpu").device

    @cached_property
    def shipped_encoders(self):
        """(LanguageBind, its tokenizer)."""
        return load_languagebind(self.folder / "languagebind")

    @cached_property
    def shipped_language(self):
        """(language model, its tokenizer)."""
        return load_language(self.folder / "language")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the shipped weights and tokenizers. `check` compares their configs with the settings, which the
        keys of cells hash."""
        parts = (self.shipped_encoders, self.shipped_language)
        words = [(weights_fingerprint(model), tokenizer.backend.to_str()) for model, tokenizer in parts]
        return digest(words)

    def check(self, settings: Settings):
        """Raises ConfigError where a shipped part's config is not what the settings ask for, vocabularies aside."""
        self._config(settings)

    def model(self, settings: Settings, seed: int) -> VideoLLaVA:
        """A Video-LLaVA as it enters stage 1; the seed draws the projector, alike in arms that share its form.

        Raises ConfigError if a shipped part has other sizes than the settings ask for.
        """
        config = self._config(settings)
        model = VideoLLaVA(config, self.shipped_language[1])
        image, video = self._encoders(settings)
        if settings.image_encoder != "bound":
            image = self._image_encoder(settings)
        model.image_encoder.load_state_dict(image)
        model.video_encoder.load_state_dict(in_time(video, config.video))
        if not settings.temporal:
            silence_time(model.video_encoder)
        model.language_model.load_state_dict(self._language(settings))
        torch.manual_seed(seed)
        model.projector = build_projector(config)
        model.freeze_encoders()
        return model

    def depth_encoder(self, settings: Settings) -> dict[str, Tensor]:
        """The weights of what reads depth maps."""
        if settings.depth == "bound":
            return self._kept("depth", settings, partial(self._bind_depth, settings))
        if settings.depth == "mae":
            return self._kept("depth-mae", settings, partial(self._mae, settings, depth=True))
        return self._encoders(settings)[0]

    # the parts of one model

    def _config(self, settings: Settings) -> ModelConfig:
        """The settings' model with the vocabularies that the shipped parts came to have."""
        text, language = self.shipped_encoders[0].config.text, self.shipped_language[0].config
        wanted = replace(settings.model.language, vocab_size=language.vocab_size)
        config = replace(settings.model, text=text, language=wanted)
        if settings.language_model == "shipped" and wanted != language:
            raise ConfigError(
                f"The language model of {self.folder} is {language}, and this arm wants {wanted}: name parts of this "
                "preset with --parts, or give the arm language_model=trained."
            )
        wanted = replace(settings.model.text, vocab_size=text.vocab_size)
        if wanted != text:
            raise ConfigError(
                f"The text encoder of {self.folder} is {text}, and this arm wants {wanted}: name parts of this preset "
                "with --parts, or change model.text with --set."
            )
        for name, shipped in self.shipped_encoders[0].config.encoders.items():
            wanted = _shape(getattr(config, name))
            if settings.encoders == "shipped" and wanted != _shape(shipped):
                raise ConfigError(
                    f"The {name} encoder of {self.folder} is {_shape(shipped)}, and this arm wants {wanted}: name "
                    "parts of this preset with --parts, or give the arm encoders=trained."
                )
        if settings.encoders == "trained":
            check_same_vit(config.image, config.video)
        return config

    def _encoders(self, settings: Settings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights of the bound image encoder and video encoder."""
        if settings.encoders == "trained":
            found = self._kept("languagebind", settings, partial(self._align, settings))
        else:
            found = self.shipped_encoders[0].encoders.state_dict()
        return tuple(_under(found, name) for name in ("image", "video"))

    def _image_encoder(self, settings: Settings) -> dict[str, Tensor]:
        if settings.image_encoder == "contrastive":
            found = self._kept("contrastive", settings, partial(self._align, settings, separate=True))
            return _under(found, "image")
        return self._kept("mae", settings, partial(self._mae, settings))

    def _language(self, settings: Settings) -> dict[str, Tensor]:
        if settings.language_model == "shipped":
            return self.shipped_language[0].state_dict()
        return self._kept("language", settings, partial(self._pretrain, settings))

    # their training

    def _align(self, settings: Settings, folder: Path, separate: bool = False) -> dict[str, Tensor]:
        """Image and text encoder from nothing, then the video encoder; `separate`: images alone, another seed."""
        config, tokenizer = self._config(settings), self.shipped_encoders[1]
        world = build_world(align_world(settings.world), progress=self.progress)
        recipe = replace(settings.align_image, seed=settings.align_image.seed + separate)
        encoders = {"image": _shape(config.image)}
        encoders |= {} if separate else {"video": config.video}
        torch.manual_seed(recipe.seed)
        model = LanguageBind(LanguageBindConfig(encoders, config.text, config.embed_dim))
        images = load_records(world / "align_images.json")
        align_image(model, images, tokenizer, config, recipe, folder / "image", **self.options)
        if not separate:
            clips = load_records(world / "align_clips.json")
            align_video(model, clips, tokenizer, config, settings.align_video, folder / "video", **self.options)
        return model.encoders.state_dict()

    def _mae(self, settings: Settings, folder: Path, depth: bool = False) -> dict[str, Tensor]:
        """A masked autoencoder's encoder: the images (or depth maps), batches and steps of alignment."""
        if depth:
            records = depth_captions(settings.world, self.progress)
        else:
            world = build_world(align_world(settings.world), progress=self.progress)
            records = load_records(world / "align_images.json")
        torch.manual_seed(settings.align_image.seed)
        model = MaskedAutoencoder(_shape(settings.model.image))
        pretrain_mae(model, records, settings.model, settings.align_image, folder, **self.options)
        return model.encoder.state_dict()

    def _bind_depth(self, settings: Settings, folder: Path) -> dict[str, Tensor]:
        """A depth encoder, begun from the image encoder, bound to the frozen text encoder (LanguageBind, section 3.2).

        All of it learns, where LanguageBind tunes by LoRA.
        """
        config, recipe = self._config(settings), settings.align_image
        shipped, tokenizer = self.shipped_encoders
        records = depth_captions(settings.world, self.progress)
        model = LanguageBind(LanguageBindConfig({"depth": _shape(config.image)}, shipped.config.text, config.embed_dim))
        weights = {name.replace(".image.", ".depth."): tensor for name, tensor in shipped.state_dict().items()}
        model.load_state_dict({name: tensor for name, tensor in weights.items() if ".video." not in name})
        freeze_all_but(model, model.encoders["depth"], model.projections["depth"])
        model.logit_scale.requires_grad_(True)
        files = unique_files(records, "image")
        cache = cache_media(files, "image", config, dtype="float16", progress=self.progress)
        captions = [row["conversations"][-1]["value"] for row in records]
        task = contrastive_task(
            "depth", cache, [row["visuals"][0] for row in records], captions, records["family"], tokenizer,
            config.text.context, recipe,
        )  # fmt: skip
        train(model, task, recipe, folder, label="align depth", **self.options)
        return model.encoders["depth"].state_dict()

    def _pretrain(self, settings: Settings, folder: Path) -> dict[str, Tensor]:
        """A language model of the settings' size, with the shipped tokenizer."""
        world = build_world(text_world(settings.world), progress=self.progress)
        model = VideoLLaVA(self._config(settings), self.shipped_language[1])
        torch.manual_seed(settings.language.seed)  # now, so that the start does not depend on the other parts
        model.language_model.initialise()
        pretrain_language(model, load_records(world / "text.json"), settings.language, folder, **self.options)
        return model.language_model.state_dict()

    # keeping them

    def _kept(self, kind: str, settings: Settings, make: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Weights trained with these settings, before or now; one process trains them, and others wait for it."""
        key = part_key(kind, settings, self.fingerprint)
        path = self.store / "parts" / f"{kind}-{key}"
        (self.store / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.store / "locks" / f"{path.name}.lock"):
            if not path.exists():
                began = time.perf_counter()
                tensors = make(self.store / "unfinished" / path.name)
                card = {"kind": kind, "seconds": time.perf_counter() - began, "made_with": environment()}

                def write(folder: Path):
                    save_tensors(tensors, folder / "model.safetensors")
                    (folder / "part.json").write_text(json.dumps(card, indent=1) + "\n")

                write_folder(path, write)
        return load_tensors(path / "model.safetensors")


def part_key(kind: str, settings: Settings, weights: str) -> str:
    """The hash of all that a trained part follows from."""
    model, world = settings.model, settings.world
    read = (CACHE_VERSION, model.aspect, model.antialias, model.frame_sampling)  # how files become pixels
    if kind == "language":
        said = (model.language, model.template, text_world(world), settings.language)
    elif kind == "languagebind":
        said = (model.image, model.video, read, align_world(world), settings.align_image, settings.align_video)
    else:
        said = (_shape(model.image), read, align_world(world, depth=kind.startswith("depth")), settings.align_image)
    return digest(VERSION, build.VERSION, kind, said, model.embed_dim, weights)


def _shape(config: VisionConfig) -> VisionConfig:
    """An encoder's config as its weights see it: neither what is masked nor how many frames are shown."""
    return replace(config, masked=0.0, patch_dropout=0.0, frames=8)


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def in_time(weights: dict[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """A video encoder's weights for `config.frames` frames: its temporal embeddings are interpolated."""
    encoder = VideoEncoder(replace(config, frames=weights["layers.0.temporal_embedding"].shape[1]))
    encoder.load_state_dict(weights)
    for layer in encoder.layers:
        layer.temporal_embedding = nn.Parameter(layer.interpolated_embedding(config.frames))
    return encoder.state_dict()


def silence_time(encoder: VideoEncoder):
    """Takes away what the Hugging Face port lost: the encoder sees each frame alone, as the image encoder would."""
    with torch.no_grad():
        for layer in encoder.layers:
            layer.temporal_embedding.zero_()
            layer.temporal_attention.output.weight.zero_()
            layer.temporal_attention.output.bias.zero_()
