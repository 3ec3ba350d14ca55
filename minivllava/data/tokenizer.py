"""Text to token ids and back: this project's own byte-level BPE, and any tokenizer that `transformers` reads.

Ours (Hugging Face `tokenizers`) has tokens for any text, so nothing is out of vocabulary. Its special tokens
follow LLaMA: `<unk>` 0 (also the padding), `<s>` 1, `</s>` 2. The end-of-text token of the text encoder,
`<eot>`, has the largest id, as in CLIP, whose text encoder pools there.

Neither kind ever reads a special token out of a text: "</s>" in a question is four ordinary characters.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from minivllava.errors import CheckpointError, ConfigError


class Tokenizer:
    """Text to ids and back. `pad`, `bos`, `eos`, `eot` are ids. See PretrainedTokenizer for those of others."""

    def __init__(self, backend):
        self.backend = backend
        backend.encode_special_tokens = True  # as text, that is: like any other characters
        self.pad, self.bos, self.eos = (backend.token_to_id(t) for t in ("<unk>", "<s>", "</s>"))
        self.eot = backend.token_to_id("<eot>")
        # the same questions come up again and again
        self._encode = lru_cache(1 << 16)(lambda text: backend.encode(text, add_special_tokens=False).ids)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns at most `vocab_size` tokens (bytes and special tokens included) from texts."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_special_tokens(["<eot>"])
        return cls(backend)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Tokenizer":
        """The tokenizer of a folder: ours, or whatever `transformers.AutoTokenizer` reads.

        Raises CheckpointError when there is none, or none that can be read.
        """
        from minivllava.data.pretrained_tokenizer import PretrainedTokenizer, tokenizer_folder

        folder = tokenizer_folder(source)
        file = folder / "tokenizer.json"
        if file.is_file() and not (folder / "tokenizer_config.json").is_file():
            tokenizer = cls._read(file)
            if None not in (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.eot):
                return tokenizer
        return PretrainedTokenizer.read(folder)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json`, with the files beside it. Raises CheckpointError when it is missing or broken."""
        if not Path(path).is_file():
            raise CheckpointError(f"{path} is missing: a checkpoint folder needs its tokenizer.json.")
        return cls.from_pretrained(Path(path).parent) if Path(path).name == "tokenizer.json" else cls._read(path)

    @classmethod
    def _read(cls, path: str | Path) -> "Tokenizer":
        from tokenizers import Tokenizer as Backend

        try:
            return cls(Backend.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} is no tokenizer file ({error}): copy it again.") from error

    def save(self, path: str | Path):
        """Writes tokenizer.json, which `from_pretrained` reads again. path: that file, or its folder."""
        self.backend.save(str(Path(path) / "tokenizer.json" if Path(path).is_dir() else path))

    def encode(self, text: str) -> list[int]:
        """The ids of a text; nothing in it becomes a special token, and none are added."""
        return list(self._encode(text))

    def encode_run(self, texts: Sequence[tuple[str, bool]], after: int | None = None) -> list[tuple[list[int], bool]]:
        """The ids of texts that follow each other, each with its mark (is it learned).

        after: the id of the special token right before them. Ours encodes each text for itself; a tokenizer
        for which the neighbours matter encodes them together.
        """
        return [(self.encode(text), mark) for text, mark in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def render(self, messages: list[dict], prompt: bool) -> str:
        """Messages as the tokenizer's own chat template writes them. Raises ConfigError: ours has none."""
        raise ConfigError(
            "The tokenizer has no chat template of its own: train with v1 or short (--set model.template=v1)."
        )

    def pad_texts(self, texts: list[str], context: int) -> Tensor:
        """Texts for the text encoder: `<s>` text `<eot>`, right-padded, cut at `context`. (b, s) int64."""
        rows = [[self.bos, *self.encode(text)[: context - 2], self.eot] for text in texts]
        return pad_rows(rows, self.pad)


def pad_rows(rows: list[list[int]], value: int) -> Tensor:
    """Lists of different lengths as one right-padded int64 tensor (b, s)."""
    rows = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
