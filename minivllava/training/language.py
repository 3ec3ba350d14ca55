"""Language pre-training, on text alone: the part that Vicuna plays in the paper.

The text-only conversations describe scenes in words and ask about them, so the language model knows how to
answer from a description before it ever sees a visual token.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from minivllava.data.conversation import IGNORE
from minivllava.data.dataset import ConversationDataset, collate
from minivllava.data.tokenizer import Tokenizer
from minivllava.errors import DataError
from minivllava.models.vllava import VideoLLaVA
from minivllava.run_config import TrainingConfig
from minivllava.training.loop import Task, freeze_all_but, shuffled_batches, train

TOKENIZER_TEXTS = 5000  # conversations that the tokenizer is made from


def train_tokenizer(records, vocab_size: int) -> Tokenizer:
    """Byte-level BPE on the first TOKENIZER_TEXTS conversations of a text-only set."""
    rows = records.select(range(min(TOKENIZER_TEXTS, len(records))))
    texts = (f" {turn['value']} USER: ASSISTANT:" for row in rows for turn in row["conversations"])
    return Tokenizer.train(texts, vocab_size)


def conversation_task(dataset: ConversationDataset, config: TrainingConfig, decodes: bool = False) -> Task:
    """Next-token prediction of the answers in a set of conversations.

    decodes: whether loading a visual decodes its file, which is done in threads, and for the next batch ahead.
    """
    read = ThreadPoolExecutor().map if decodes else map

    def loss(model: nn.Module, batch) -> Tensor:
        return model(batch.input_ids, batch.visuals, batch.labels).total

    return Task(
        sampler=shuffled_batches(len(dataset), config.batch_size, config.seed),
        collate=lambda indices: collate(list(read(dataset.__getitem__, indices.tolist()))),
        count=lambda batch: int((batch.labels[:, 1:] != IGNORE).sum()),
        loss=loss,
        lengths=torch.tensor([len(ids) for ids in dataset.input_ids]).numpy(),
        ahead=decodes,
        data=dataset.fingerprint(),
    )


def pretrain_language(
    model: VideoLLaVA, records, config: TrainingConfig, folder: str | Path, device: str | None = None,
    progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Trains `model.language_model` on text-only records; everything else stays as it is. Returns the log.

    folder, device, progress: as `train` takes them. Raises DataError when a record holds a visual.
    """

    def no_visual(path: str, kind: str):
        raise DataError(f"{path}: language pre-training reads text alone; leave records with media out.")

    dataset = ConversationDataset(records, model.tokenizer, model.config, no_visual)
    freeze_all_but(model, model.language_model)
    return train(model, conversation_task(dataset, config), config, folder, "language", device, progress)
