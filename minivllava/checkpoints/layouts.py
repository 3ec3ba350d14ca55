"""Which kind of model a config.json describes, and in whose layout its folder is."""

from typing import NamedTuple

FORMAT = "minivllava/1"  # our own layout, as its config.json says
LLAMAS = ("llama", "mistral")  # model types of `transformers` that are our decoder


class Layout(NamedTuple):
    """What a checkpoint holds, and who wrote it."""

    kind: str | None  # "video-llava", "languagebind" or "language"; else what its config.json calls it
    writer: str | None  # "minivllava", "original", "transformers"; None: nothing here reads it


def layout_of(card: dict) -> Layout:
    """The layout of the folder with this config.json, told by its `kind` or `model_type` alone.

    The original's Video-LLaVA and a LLaVA of `transformers`, which sees images alone, are both of type "llava"; only
    the latter has its language model's fields apart, in `text_config`.
    """
    model_type = card.get("model_type")
    if "format" in card or "kind" in card:
        return Layout(card.get("kind"), "minivllava")
    if str(model_type).startswith("LanguageBind"):
        return Layout("languagebind", "original")
    if model_type == "llava" and not isinstance(card.get("text_config"), dict):
        return Layout("video-llava", "original")
    if model_type == "video_llava":
        return Layout("video-llava", "transformers")
    if model_type in LLAMAS:
        return Layout("language", "transformers")
    return Layout(model_type, None)
