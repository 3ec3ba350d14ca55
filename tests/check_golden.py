"""Compares this package with figures of the original code: `python tests/check_golden.py DIR`.

DIR holds `golden.safetensors`, `cases.json` and checkpoint folders in the original's layout, as `tests/golden`
does; sizes, frame counts and cases may be others. Prints the largest error of every tensor, and exits with 1
when one is above the tolerance or is compared with nothing.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minivllava import VideoLLaVA
from minivllava.data.conversation import IGNORE, VISUAL
from minivllava.data.tokenizer import pad_rows
from minivllava.errors import MinivllavaError
from minivllava.models.languagebind import LanguageBind, info_nce

TOLERANCE = 1e-4
INPUTS = ("pixels", "ids", "mask", "input_ids", "labels")  # the last part of what is no result


class Golden:
    """A folder of figures, and the models that must give them."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.stored = load_file(self.folder / "golden.safetensors")
        self.cases = json.loads((self.folder / "cases.json").read_text())
        self.bound, self.vllava = {}, None
        for file in sorted(self.folder.glob("*/config.json")):
            kind = json.loads(file.read_text())["model_type"]
            if kind == "llava":
                self.vllava = VideoLLaVA.from_pretrained(file.parent, **self.switches())
            else:
                model = LanguageBind.from_pretrained(file.parent)
                self.bound |= dict.fromkeys(model.encoders, model)

    def switches(self) -> dict[str, bool]:
        """Whether the stored visual tokens have a CLS: the code of 2023 dropped that of clips, later code keeps it."""
        return {
            f"keep_cls_{kind}": self.stored[f"{kind}.projected"].shape[-2] == self.stored[f"{kind}.hidden.0"].shape[-2]
            for kind in ("image", "video")
            if f"{kind}.projected" in self.stored
        }

    def pixels(self, kind: str) -> Tensor:
        """Images (b, c, h, w) or clips (b, t, c, h, w); the original puts a clip's channels before its frames."""
        name = "image.pixels" if kind == "depth" and "depth.pixels" not in self.stored else f"{kind}.pixels"
        pixels = self.stored[name]
        return rearrange(pixels, "b c t h w -> b t c h w") if pixels.ndim == 5 else pixels

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """The largest error of every stored result: infinite where the shapes differ, nan where one of them has a
        nan or nothing was compared."""
        errors: dict[str, list[float]] = {name: [] for name in self.stored if name.split(".")[-1] not in INPUTS}
        for name, ours, theirs in self.compared():
            errors[name].append((ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf)
        return {name: max(found, key=lambda e: (e != e, e), default=math.nan) for name, found in errors.items()}

    def compared(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, ours, theirs) of everything there is to compare."""
        for kind, model in self.bound.items():
            yield from self.of_encoder(kind, model.encoders[kind])
            yield from self.result(f"{kind}.embed", lambda kind=kind, model=model: model.embed(kind, self.pixels(kind)))
        if "video" in self.bound:
            yield from self.result("text.embed", lambda: self.bound["video"].embed_text(self.stored["text.ids"]))
            yield from self.result("contrastive.loss", self.contrastive_loss)
        if self.vllava is not None:
            for kind in ("image", "video"):
                yield from self.of_encoder(kind, getattr(self.vllava, f"{kind}_encoder"))
                yield from self.result(f"{kind}.projected", lambda kind=kind: self.projected(kind))
            for case in self.cases:
                yield from self.of_case(case)

    def result(self, name: str, compute) -> Iterator[tuple[str, Tensor, Tensor]]:
        if name in self.stored:
            yield name, compute(), self.stored[name]

    def of_encoder(self, kind: str, encoder) -> Iterator[tuple[str, Tensor, Tensor]]:
        if f"{kind}.hidden.0" in self.stored:
            for number, hidden in enumerate(encoder(self.pixels(kind)).hidden):
                yield from self.result(f"{kind}.hidden.{number}", lambda hidden=hidden: hidden)

    def contrastive_loss(self) -> Tensor:
        """Of the videos against as many texts."""
        model, clips = self.bound["video"], self.pixels("video")
        texts = model.embed_text(self.stored["text.ids"][: len(clips)])
        return info_nce(model.embed("video", clips), texts, model.logit_scale)[None]

    def projected(self, kind: str) -> Tensor:
        tokens = self.vllava.projector(self.vllava.features(self.pixels(kind)))
        frames = self.pixels("video").shape[1]
        return rearrange(tokens, "b (t n) d -> b t n d", t=frames) if kind == "video" else tokens

    def of_case(self, case: str) -> Iterator[tuple[str, Tensor, Tensor]]:
        rows, visuals = self.encoded(case)
        ids = pad_rows([ids for ids, _ in rows], 0)
        labels = pad_rows([labels for _, labels in rows], IGNORE)
        theirs = self.stored.get(f"{case}.logits", ())
        for ours, row, (real, _) in zip(self.vllava(ids, visuals), theirs, rows, strict=len(theirs) > 0):
            yield f"{case}.logits", ours[: len(real)], row[: len(real)]
        loss = self.vllava(ids, visuals, labels)
        yield from self.result(f"{case}.loss", lambda: (loss.total / loss.tokens)[None])

    def encoded(self, case: str) -> tuple[list[tuple[list[int], list[int]]], list[Tensor]]:
        """(ids, labels) of each row, and the visuals: the original's one -200 for an image or a frame becomes one
        for each of its visual tokens."""
        config, chosen = self.vllava.config, [tuple(choice) for choice in self.cases[case]]
        visuals = [self.pixels(kind)[number] for kind, number in chosen]
        frames = self.pixels("video").shape[1] if "video.pixels" in self.stored else 1
        one_frame = {"image": config.visual_tokens("image"), "video": config.visual_tokens("video", 1)}
        runs = [one_frame[kind] for kind, _ in chosen for _ in range(frames if kind == "video" else 1)]
        rows = []
        for number, mask in enumerate(self.stored[f"{case}.mask"]):
            ids, targets = [], []
            row, labels = (self.stored[f"{case}.{name}"][number][mask.bool()] for name in ("input_ids", "labels"))
            for token, label in zip(row.tolist(), labels.tolist(), strict=True):
                run = runs.pop(0) if token == VISUAL else 1
                ids += [token] * run
                targets += [label] * run
            rows.append((ids, targets))
        return rows, visuals


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        errors = Golden(sys.argv[1]).errors()
    except (OSError, ValueError, SafetensorError, MinivllavaError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    except (LookupError, TypeError) as error:
        sys.exit(f"{sys.argv[1]}: it is not laid out as the golden figures are ({type(error).__name__}: {error})")
    for name, error in errors.items():
        print(f"{name:<24} {error:.1e}{'' if error <= TOLERANCE else '  TOO LARGE, OR COMPARED WITH NOTHING'}")
    wrong = [name for name, error in errors.items() if not error <= TOLERANCE]
    print(f"{len(errors) - len(wrong)} of {len(errors)} tensors within {TOLERANCE:g}.")
    sys.exit(1 if wrong or not errors else 0)


if __name__ == "__main__":
    main()
