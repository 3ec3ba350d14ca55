"""A byte-level BPE tokenizer (Hugging Face `tokenizers`): any text has tokens, so nothing is out of vocabulary.

Special tokens follow LLaMA: `<unk>` 0 (also the padding), `<s>` 1, `</s>` 2. The end-of-text token of the
text encoder, `<eot>`, has the largest id, as in CLIP, whose text encoder pools there.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from minivllava.errors import CheckpointError


class Tokenizer:
    """Text to ids and back. `pad`, `bos`, `eos`, `eot` are ids."""

    def __init__(self, backend):
        self.backend = backend
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
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads `tokenizer.json`. Raises CheckpointError when it is missing or broken."""
        from tokenizers import Tokenizer as Backend

        if not Path(path).is_file():
            raise CheckpointError(f"{path} is missing: a checkpoint folder needs its tokenizer.json.")
        try:
            return cls(Backend.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} is no tokenizer file ({error}): copy it again.") from error

    def save(self, path: str | Path):
        self.backend.save(str(path))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        return list(self._encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def pad_texts(self, texts: list[str], context: int) -> Tensor:
        """Texts for the text encoder: `<s>` text `<eot>`, right-padded, cut at `context`. (b, s) int64."""
        rows = [[self.bos, *self.encode(text)[: context - 2], self.eot] for text in texts]
        return pad_rows(rows, self.pad)


def pad_rows(rows: list[list[int]], value: int) -> Tensor:
    """Lists of different lengths as one right-padded int64 tensor (b, s)."""
    rows = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
