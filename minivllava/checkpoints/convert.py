"""Checkpoints written for others: in our layout from any that can be read, or in those of `transformers`.

A language model becomes a LLaMA. A Video-LLaVA becomes the port, which has no place for some of what is here: temporal
attention, clips without CLS, other projectors. Such a model is written only when the caller means the loss.
"""

import copy
import json
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from minivllava.checkpoints import huggingface
from minivllava.checkpoints.devices import as_dtype
from minivllava.checkpoints.hub import Source
from minivllava.checkpoints.layouts import layout_of
from minivllava.checkpoints.loading import load_language, load_languagebind, load_vllava, vllava_config
from minivllava.checkpoints.saving import save_model
from minivllava.checkpoints.storage import gathered, save_shards, write_folder
from minivllava.checkpoints.weights import Weights
from minivllava.config import LanguageConfig, ModelConfig, VisionConfig
from minivllava.data.pretrained_tokenizer import save_backend
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, ConfigError, check_choice
from minivllava.models.language import LanguageModel
from minivllava.models.vllava import VideoLLaVA

LAYOUTS = ("minivllava", "huggingface")


@dataclass
class Report:
    """What a conversion did."""

    kind: str
    tensors: int
    lost: list[str] = field(default_factory=list)  # sentences


def convert(
    source: str | Path, out: str | Path, layout: str = "minivllava", dtype: str | None = None, lossy: bool = False,
    **options,
) -> Report:  # fmt: skip
    """Writes a checkpoint, in whatever layout it is, as safetensors in another one.

    layout: "minivllava", or "huggingface" for `VideoLlavaForConditionalGeneration` and, of a language model alone,
    `LlamaForCausalLM`. dtype: by default the one that most of the weights are stored in. lossy: drop what the layout
    has no place for. options: those of `load_vllava`. Raises CheckpointError for a checkpoint that cannot be read, or
    not be written without a loss.
    """
    check_choice("layout", layout, LAYOUTS)
    if Path(out).exists():
        raise ConfigError(f"{out} is there already: name a new folder, or delete that one.")
    found = Source.find(source)
    kind, writer = layout_of(found.card)
    if writer is None:
        raise CheckpointError(
            f"{found.folder / 'config.json'} describes a {kind!r} checkpoint, and none that can be converted: a "
            "Video-LLaVA, a LanguageBind, or a language model of LLaMA's kind."
        )
    if kind == "languagebind" and layout != "minivllava":
        raise ConfigError(f"{source} holds bound encoders: only a Video-LLaVA or a language model has that layout.")
    if kind != "video-llava" and options:
        raise ConfigError(f"{source} is a {kind} checkpoint: only a whole Video-LLaVA takes {', '.join(options)}.")
    if layout == "huggingface" and kind == "language":
        lost = _window(found.card)
        _refuse_losses("LlamaForCausalLM", lost, lossy)
    elif layout == "huggingface":  # save_port asks again, but weights take long to read
        described = {name: value for name, value in options.items() if name not in ("device", "quantize")}
        _refuse_losses("The port to transformers", losses(vllava_config(source, **described)), lossy)
    numbers = as_dtype(dtype) if dtype else stored_dtype(found)
    if kind == "video-llava":
        model = load_vllava(source, dtype=numbers, **options)
        tokenizer = model.tokenizer
    else:
        model, tokenizer = (load_languagebind if kind == "languagebind" else load_language)(source, dtype=numbers)
    try:
        if layout == "huggingface" and kind == "language":
            return replace(save_llama(model, out, tokenizer), lost=lost)
        if layout == "huggingface":
            return save_port(model, out, lossy=lossy)
        save_model(model, out, kind, tokenizer=tokenizer, notes={"converted_from": str(source)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out} cannot be written ({error}): name another folder, or make room.") from error
    return Report(kind, len(model.state_dict()))


def stored_dtype(source: Source) -> torch.dtype:
    """The dtype of most of a checkpoint's numbers."""
    sizes: dict[torch.dtype, int] = {}
    for entry in Weights(source.weights_folder()).entries.values():
        if entry.dtype is not None:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + torch.Size(entry.shape).numel()
    return max(sizes, key=sizes.get, default=torch.float32)


def losses(config: ModelConfig) -> list[str]:
    """What the port has no place for, in words. Raises CheckpointError for what it could not run at all."""
    image, video = config.image, config.video
    ours = [isinstance(part, VisionConfig) for part in (image, video)] + [isinstance(config.language, LanguageConfig)]
    if not all(ours):
        raise CheckpointError("The port is of CLIP and LLaMA: a model with parts of transformers cannot be converted.")
    same = huggingface.vision_card(image, 0) == huggingface.vision_card(video, 0)
    if not same or image.temporal or image.masked or video.masked:
        raise CheckpointError("The port has one size for both encoders, and these differ: they cannot be converted.")
    if config.projector != "mlp":
        raise CheckpointError(f"The port has no projector but the paper's: {config.projector!r} cannot be converted.")
    lost = []
    if video.temporal:
        lost.append(f"the video encoder's temporal attention ({11 * video.layers} tensors)")
    if config.aspect == "pad":
        lost.append("images padded to a square (it crops them)")
    if not config.antialias:
        lost.append("images resized without antialiasing (it antialiases)")
    if config.clip_resize != "bicubic":
        lost.append("clips resized by bilinear interpolation (its is bicubic and antialiased)")
    if config.frame_sampling != "arange":
        lost.append(f"the frames that {config.frame_sampling!r} takes of a clip (its example takes those of 'arange')")
    if config.template != "short":
        lost.append(f"the prompts of the template {config.template!r} (it is read as 'short')")
    if not config.keep_cls_video:
        lost.append(
            "clips without CLS (it gives the language model one token a frame more than this model has learned)"
        )
    return lost


def save_port(model: VideoLLaVA, path: str | Path, lossy: bool = False) -> Report:
    """Writes a Video-LLaVA as the port to `transformers`, all or nothing; with its tokenizer, if it has one.

    The port needs placeholder tokens. Those of `<image>`, `<video>` and `<pad>` that the vocabulary lacks are added,
    with the mean of all rows of embedding and head: such a token is never the likeliest.

    Raises CheckpointError when something would be lost, unless `lossy`.
    """
    config, lost = model.config, losses(model.config)
    _refuse_losses("The port to transformers", lost, lossy)
    tokens = _placeholders(config, model.tokenizer)
    language = config.language
    vocabulary = max(language.vocab_size, *(number + 1 for number in tokens.values()))
    tensors = {name: t for name, t in gathered(model.state_dict()).items() if "temporal" not in name}
    if language.tie_embeddings:
        del tensors["language_model.head.weight"]
    for name in ("language_model.token_embedding.weight", "language_model.head.weight"):
        if name in tensors:
            tensors[name] = _with_rows(tensors[name], vocabulary)
    names = huggingface.names(tensors, tower="vision_model.")
    card = huggingface.port_card(config, vocabulary, tokens, next(model.parameters()).dtype)
    ends = _ends(model.tokenizer, language.stop)
    card["text_config"] |= ends
    files = {"config": card, "generation_config": ends} | huggingface.processor_cards(config)
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    _write(path, renamed, files, model.tokenizer and port_tokenizer(model.tokenizer, tokens))
    return Report("video-llava", len(tensors), lost)


def _refuse_losses(layout: str, lost: list[str], lossy: bool):
    if lost and not lossy:
        raise CheckpointError(
            f"{layout} has no place for {'; nor for '.join(lost)}. Say --lossy (lossy=True) to convert all the same, "
            "or keep the layout minivllava."
        )


def _window(card: dict) -> list[str]:
    """What is lost of a language model whose tokens see a window of the last ones: all that is longer, in words."""
    window, context = card.get("sliding_window"), card.get("max_position_embeddings") or 0
    longer = layout_of(card).writer == "transformers" and window and window < context
    return [f"a sliding window (texts of {window} to {context} tokens)"] if longer else []


def save_llama(model: LanguageModel, path: str | Path, tokenizer: Tokenizer | None = None) -> Report:
    """Writes a language model as `LlamaForCausalLM`, all or nothing; with its tokenizer, if it has one."""
    tensors = {name: t for name, t in gathered(model.state_dict()).items() if name not in model.tied}
    names = huggingface.language_names(tensors)
    dtype_name = str(next(model.parameters()).dtype).removeprefix("torch.")
    ends = _ends(tokenizer, model.config.stop)
    card = huggingface.language_card(model.config, model.config.vocab_size) | ends
    card |= {"architectures": ["LlamaForCausalLM"], "dtype": dtype_name, "torch_dtype": dtype_name}
    files = {"config": card, "generation_config": ends}
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    _write(path, renamed, files, tokenizer and port_tokenizer(tokenizer, {}))
    return Report("language", len(tensors))


def _ends(tokenizer: Tokenizer | None, stop: tuple[int, ...]) -> dict:
    """The ids that begin a sequence and end an answer; more than one of the latter is a list."""
    bos, eos = (tokenizer.bos, tokenizer.eos) if tokenizer else (1, 2)
    ends = list(dict.fromkeys((eos, *stop)))
    return {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else eos}


def _write(path: str | Path, tensors: dict[str, Tensor], files: dict[str, dict], tokenizer):
    """Tensors, JSON files and a tokenizer of `transformers`, as one folder that is whole or not there."""

    def write(folder: Path):
        save_shards(tensors, folder, alias=False)
        for name, values in files.items():
            (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
        if tokenizer is not None:
            save_backend(tokenizer, folder)

    write_folder(path, write)


def _placeholders(config: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, int]:
    """{"<image>": id, "<video>": id, "<pad>": id}; those that the vocabulary does not have yet come behind it."""
    if config.image_token is not None and config.video_token is not None:
        return {"<image>": config.image_token, "<video>": config.video_token}
    first = config.language.vocab_size if tokenizer is None else len(tokenizer)
    known = {} if tokenizer is None else tokenizer.backend.get_vocab()
    texts = ("<image>", "<video>", "<pad>")
    new = count(first)
    return {text: known[text] if text in known else next(new) for text in texts}


def _with_rows(weight: Tensor, rows: int) -> Tensor:
    """(v, d) -> (rows, d), the new rows being the mean of the old ones."""
    new = weight.detach().float().mean(0, keepdim=True).to(weight).expand(rows - len(weight), -1)
    return torch.cat([weight.detach(), new]) if len(new) else weight


def port_tokenizer(tokenizer: Tokenizer, tokens: dict[str, int]):
    """The tokenizer as `transformers` reads it, with the placeholders. Raises CheckpointError."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if hasattr(tokenizer.backend, "save_pretrained"):
        written = copy.deepcopy(tokenizer.backend)
    else:
        backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos)])
        written = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        )  # fmt: skip
    written.add_tokens([text for text in tokens], special_tokens=True)
    if tokens:  # the port's: an answer begins right after its prompt, in every row of a batch
        written.padding_side = written.init_kwargs["padding_side"] = "left"
    if "<pad>" in tokens:
        written.pad_token = "<pad>"
    wrong = [text for text, number in tokens.items() if written.convert_tokens_to_ids(text) != number]
    if wrong:
        raise CheckpointError(f"The tokenizer has {', '.join(wrong)} under another id than the model.")
    return written
