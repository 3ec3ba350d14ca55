"""Other people's tokenizers, with the interface of ours: those of Vicuna, Llama 3, SmolLM2, Qwen, CLIP, ...

What differs from ours: a beginning-of-sequence token is there only where the tokenizer itself adds one; texts
that follow each other are encoded together, since SentencePiece marks the beginning of a text; and a tokenizer
without padding pads with `<unk>` as the original code does for Vicuna, or else with its end of sequence.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path

from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import CheckpointError, short_reason

_ORIGIN = ("is_local", "local_files_only", "name_or_path")  # what transformers notes of where the files were found

_DATE = date(2024, 7, 26)
# `strftime_now("%d %b %Y")` in a template; transformers lets no keyword replace the function
_CALL_OF_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class PretrainedTokenizer(Tokenizer):
    """A `transformers` tokenizer. `pad`, `bos`, `eos`, `eot` are ids; all but `eos` may be None.

    `specials` maps the text of each special token to its id.
    """

    def __init__(self, tokenizer):
        self.backend = tokenizer
        self.eos = tokenizer.eos_token_id
        if self.eos is None:
            raise CheckpointError("The tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json.")
        if not tokenizer("a", add_special_tokens=False).input_ids:  # transformers makes one out of a config.json alone
            raise CheckpointError("The tokenizer has no vocabulary: copy tokenizer.json beside the model.")
        begins = tokenizer("").input_ids[:1]
        self.bos = tokenizer.bos_token_id if begins == [tokenizer.bos_token_id] else None
        candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, self.eos)
        self.pad = next(token for token in candidates if token is not None)
        self.eot = self.eos if self.eos == len(tokenizer) - 1 else None  # CLIP's text encoder pools at it
        # the same questions come up again and again
        self._encode = lru_cache(1 << 16)(self._encode_after)

    @classmethod
    def read(cls, folder: Path) -> "PretrainedTokenizer":
        """Reads a folder's tokenizer, whichever files it is made of. Raises CheckpointError."""
        from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

        file = folder / "tokenizer_config.json"
        try:
            card = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if (folder / "tokenizer.json").is_file():
                # It says everything. AutoTokenizer would take the class that is named beside it, and some of those
                # build parts of the tokenizer anew, as they think best: GPT2Tokenizer merges SmolLM2's digits.
                return cls(PreTrainedTokenizerFast.from_pretrained(folder))
            if (folder / "tokenizer.model").is_file() and card.get("tokenizer_class", "Llama").startswith("Llama"):
                # AutoTokenizer would choose by the *model's* type, which Video-LLaVA's config.json calls "llava", and
                # lose the leading space. A config that does not say so means the old handling, as in 2023.
                legacy = card.get("legacy", True)
                return cls(_marked(LlamaTokenizer.from_pretrained(folder, legacy=legacy), legacy))
            return cls(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        except ImportError as error:
            raise CheckpointError(
                f"{folder / 'tokenizer.model'} needs packages that are not here: pip install sentencepiece protobuf."
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(
                f"{folder} holds no tokenizer that can be read ({short_reason(error)}): copy it again."
            ) from error

    def __len__(self) -> int:
        return len(self.backend)

    @cached_property
    def specials(self) -> dict[str, int]:
        tokens = {token.content: number for number, token in self.backend.added_tokens_decoder.items()}
        return tokens | {self.backend.convert_ids_to_tokens(self.eos): self.eos}

    def special(self, token: int) -> str:
        """The text of a special token."""
        return self.backend.convert_ids_to_tokens(token)

    def save(self, path: str | Path):
        """Writes tokenizer.json and the files beside it. path: that file, or its folder."""
        save_backend(self.backend, Path(path).parent if Path(path).suffix == ".json" else Path(path))

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text))

    def encode_run(self, texts: Sequence[tuple[str, bool]], after: int | None = None) -> list[tuple[list[int], bool]]:
        runs = [("".join(text for text, _ in run), mark) for mark, run in groupby(texts, lambda pair: pair[1])]
        whole = self._encode("".join(text for text, _ in runs), after)
        encoded, place, text = [], 0, ""
        for part, mark in runs:
            text += part
            so_far = self._encode(text, after)
            if whole[: len(so_far)] != so_far:  # one token would span learned and unlearned text
                first, rest = runs[:1], runs[1:]
                return [(self._encode(part, after), mark) for part, mark in first] + [
                    (self._encode(part), mark) for part, mark in rest
                ]
            encoded.append((so_far[place:], mark))
            place = len(so_far)
        return encoded

    def _encode_after(self, text: str, after: int | None = None) -> list[int]:
        """The ids of a text that follows a special token: SentencePiece may treat its first word otherwise then."""
        if after is None or any(token in text for token in self.specials):
            return self.backend.encode(text, add_special_tokens=False, split_special_tokens=True)
        return self.backend.encode(self.special(after) + text, add_special_tokens=False)[1:]

    def decode(self, ids: Iterable[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def render(self, messages: list[dict], prompt: bool) -> str:
        """Messages (`role`, `content`) as the tokenizer's own chat template writes them; `prompt`: and the beginning
        of an answer. Raises ConfigError if it has none.

        A template that writes today's date gets the one that Llama's template falls back to: what a model was trained
        on, and a training that is continued, must not change overnight. Answers come without thinking.
        """
        if not self.backend.chat_template:
            return super().render(messages, prompt)
        chat = _CALL_OF_DATE.sub(lambda call: repr(_DATE.strftime(call[2])), self.backend.get_chat_template())
        return self.backend.apply_chat_template(
            messages, chat_template=chat, tokenize=False, add_generation_prompt=prompt,
            date_string=f"{_DATE:%d %b %Y}", enable_thinking=False,
        )  # fmt: skip


def _marked(tokenizer, legacy: bool):
    """A LlamaTokenizer that marks the beginning of a text as SentencePiece does: also before a space, where that of
    transformers 5 adds no mark, and so loses a token of " ASSISTANT:" behind a placeholder."""
    from tokenizers import Regex, normalizers

    backend = tokenizer.backend_tokenizer
    if legacy:  # what follows a special token is a text, too
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    else:
        backend.normalizer = normalizers.Replace(Regex(r"\A "), "  ")
    return tokenizer


def save_backend(tokenizer, folder: Path):
    """Writes a tokenizer of `transformers` so that its versions 4 and 5 read it, without where it was found."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    card = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key not in _ORIGIN}
    if tokenizer.is_fast:
        # tokenizer.json says everything; other classes would rebuild parts of it from options they do not save
        card["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(card, indent=2) + "\n")


def tokenizer_folder(source: str | Path) -> Path:
    """The folder that holds a tokenizer's files. Raises CheckpointError if it is none."""
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is no folder: name one that holds a tokenizer.")
    return folder
