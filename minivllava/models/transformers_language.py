"""A causal language model of `transformers` in the place of our decoder: its wrapper and its cache.

The wrapper has the interface of `LanguageModel`, so training, generation and evaluation need not know which of the two
they have. Its `CausalLMConfig` says which model it is, so a Video-LLaVA made with one is saved and loaded like any
other. backbones.py loads published ones.
"""

import inspect
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from minivllava.config import CausalLMConfig
from minivllava.errors import ConfigError, short_reason


class RowCache:
    """Keys and values by layer, written in place at each row's own positions; a `Cache` to `transformers`.

    Their own caches write all rows of a batch at one place. As with `KVCache`, a conversation that is shorter
    than its neighbours writes over what padding left, and position p of a row is always at place p.
    """

    is_compileable = False

    def __init__(self, batch: int, size: int):
        self.batch, self.size = batch, size
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # (b, k, s, e) each
        self.used = 0
        self.positions: Tensor | None = None  # (b, s) of the tokens that are being read

    def update(self, key: Tensor, value: Tensor, layer: int, *_, **__) -> tuple[Tensor, Tensor]:
        """Stores (b, k, s, e) at the rows' positions; returns all that is stored, (b, k, used, e)."""
        if layer not in self.layers:
            empty = [x.new_zeros(self.batch, x.shape[1], self.size, x.shape[3]) for x in (key, value)]
            self.layers[layer] = (empty[0], empty[1])
        rows = torch.arange(self.batch, device=key.device)[:, None]
        for stored, new in zip(self.layers[layer], (key, value), strict=True):
            stored[rows, :, self.positions] = rearrange(new, "b k s e -> b s k e")
        keys, values = self.layers[layer]
        return keys[:, :, : self.used], values[:, :, : self.used]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.used

    def mask(self, like: Tensor, window: int | None = None) -> Tensor:
        """What each token may attend to, as a sum to its scores: 0 or the smallest number. (b, 1, s, used)"""
        places = torch.arange(self.used, device=like.device)
        past = self.positions[:, None, :, None] - places
        seen = past >= 0
        if window is not None:
            seen = seen & (past < window)
        return like.new_zeros(seen.shape).masked_fill(~seen, torch.finfo(like.dtype).min)


class TransformersLanguageModel(nn.Module):
    """A causal language model of `transformers` with the interface of `LanguageModel`.

    Embeddings (b, s, d) -> hidden states (b, s, d); `logits` turns those into (b, s, v). model: one that is
    there already. Raises ConfigError for a config that `transformers` cannot build a model from.
    """

    def __init__(self, config: CausalLMConfig, model: nn.Module | None = None):
        super().__init__()
        from transformers import AutoConfig, AutoModelForCausalLM

        self.config = config
        if model is not None:
            self.model = model
            return
        card = dict(config.model)
        kind = card.pop("model_type")
        try:
            theirs = AutoConfig.for_model(kind, **card)
            self.model = built(lambda: AutoModelForCausalLM.from_config(theirs, dtype=torch.float32))
        except Exception as error:  # it raises many kinds
            reason = short_reason(error)
            raise ConfigError(f"transformers cannot build the language model {kind!r}: {reason}") from error

    @property
    def inner(self) -> nn.Module:
        """The model below its head."""
        return self.model.base_model

    @property
    def tied(self) -> dict[str, str]:
        """Weights that are other weights under a second name, as {name: first name}: a head, the token embedding."""
        return {f"model.{name}": f"model.{twin}" for name, twin in self.model.all_tied_weights_keys.items()}

    def tie(self):
        """Makes tied weights one again, after a checkpoint has put new tensors in."""
        self.model.tie_weights()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (b, s) -> embeddings (b, s, d)."""
        return self.model.get_input_embeddings()(ids)

    def new_cache(self, batch: int, size: int, like: Tensor) -> RowCache:
        """An empty cache of `batch` rows and positions 0 .. size - 1."""
        return RowCache(batch, size)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor | None = None,
        cache: RowCache | None = None,
        on_attention: Callable[[Tensor], None] | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Hidden states after the last norm, (b, s, d).

        positions (b, s) default to 0 .. s - 1. on_attention receives each layer's pattern, (b, k, s, s),
        from the first layer on; the model then computes attention step by step ("eager"). Raises ConfigError for
        `compiled`, and for models whose patterns cannot be looked at.
        """
        if compiled:
            raise ConfigError("compiled: only this package's own decoder can be; leave it out for another one.")
        if positions is None:
            positions = repeat(
                torch.arange(embeddings.shape[1], device=embeddings.device), "s -> b s", b=len(embeddings)
            )
        options = {"inputs_embeds": embeddings, "position_ids": positions, "use_cache": cache is not None}
        if cache is not None:
            cache.positions = positions
            cache.used = max(cache.used, int(positions.max()) + 1)
            newer = "cache" in inspect.signature(self.inner.forward).parameters  # its name before transformers 5.24:
            options |= {"cache" if newer else "past_key_values": cache}
            options |= {"attention_mask": self._masks(cache, embeddings)}
        if on_attention is None:
            return self.inner(**options).last_hidden_state
        usual = self.inner.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            output = self.inner(**options, output_attentions=True)
        finally:
            self.model.set_attn_implementation(usual)
        if any(pattern.triu(1).any() for pattern in output.attentions):
            raise ConfigError(f"The patterns of a {self.config.model['model_type']!r} model cannot be looked at.")
        for pattern in output.attentions:
            on_attention(pattern)
        return output.last_hidden_state

    def _masks(self, cache: RowCache, like: Tensor) -> Tensor | dict[str, Tensor]:
        """The cache's mask; by type of layer where some see only a window of the last tokens."""
        theirs = self.inner.config
        window = getattr(theirs, "sliding_window", None) if getattr(theirs, "use_sliding_window", True) else None
        kinds = set(getattr(theirs, "layer_types", None) or ())
        if not kinds:
            return cache.mask(like, window)
        return {kind: cache.mask(like, window if kind == "sliding_attention" else None) for kind in kinds}

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., v)."""
        logits = self.model.get_output_embeddings()(hidden)
        theirs = self.inner.config
        logits = logits * (getattr(theirs, "logit_scale", None) or 1.0)  # Cohere
        logits = logits / (getattr(theirs, "logits_scaling", None) or 1.0)  # Granite
        bound = getattr(theirs, "final_logit_softcapping", None)  # Gemma
        return logits if bound is None else bound * torch.tanh(logits / bound)


@torch.no_grad()
def check_interface(model: TransformersLanguageModel):
    """Raises ConfigError unless a model gives its own logits through the interface: with a cache and without, in a
    batch of different lengths. Models that are no decoders, or take no positions, do not."""
    check_vectors(model)
    if "local" in getattr(model.inner.config, "attention_layers", ()):  # GPT-Neo
        raise ConfigError(
            f"The language model {model.config.model['model_type']!r} has layers that see only the last tokens, and "
            "counts them from the end of a batch's longest conversation: name another one."
        )
    device = next(model.parameters()).device
    kind = model.config.model["model_type"]
    rows = rearrange(torch.arange(14, device=device), "(b s) -> b s", b=2) % model.config.vocab_size
    lengths = torch.tensor([3, 5], device=device)
    last = torch.arange(2, device=device), lengths - 1
    try:
        wanted = model.model(input_ids=rows, use_cache=False).logits
        found = [(wanted, model.logits(model(model.embed(rows))))]
        padded = rows.masked_fill(torch.arange(7, device=device) >= lengths[:, None], 0)[:, :5]
        cache = model.new_cache(2, 7, wanted)
        hidden = model(model.embed(padded), cache=cache)[last]
        for step in range(3):
            found.append((wanted[last[0], last[1] + step], model.logits(hidden)))
            positions = (lengths + step)[:, None]
            if step < 2:
                hidden = model(model.embed(rows.gather(1, positions)), positions, cache)[:, 0]
    except Exception as error:  # of many types
        raise ConfigError(f"The language model {kind!r} cannot be used here: {short_reason(error)}") from error
    worst = max((theirs.float() - ours.float()).abs().max().item() for theirs, ours in found)
    if not worst <= 1e-4 + 0.02 * wanted.abs().max().item():  # half precision rounds
        raise ConfigError(
            f"The language model {kind!r} gives other logits through this interface (by {worst:.2g}): its attention "
            "or its positions work in a way that is not supported."
        )


@torch.no_grad()
def check_vectors(model: TransformersLanguageModel):
    """Raises ConfigError unless a model reads vectors that are no token's, as visual tokens are, in its dtype."""
    like = next(model.parameters())
    vectors = torch.linspace(-1, 1, 3 * model.config.width, device=like.device).to(like.dtype)
    try:
        model.logits(model(rearrange(vectors, "(s d) -> 1 s d", s=3)))
    except Exception as error:  # of many types
        raise ConfigError(
            f"The language model {model.config.model['model_type']!r} cannot read visual tokens in {like.dtype}: "
            f"{short_reason(error)}"
        ) from error


def linear_layers(language_model: nn.Module) -> list[str]:
    """Names of a language model's linear layers, ours or another's, except the head."""
    head = getattr(language_model, "head", None) or language_model.model.get_output_embeddings()
    modules = language_model.named_modules()
    return [name for name, module in modules if isinstance(module, nn.Linear) and module is not head]


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds a model of `transformers`. On the meta device, all but the constants that no checkpoint holds (rotary
    frequencies, position ids): those are computed."""
    if torch.get_default_device().type != "meta":
        return build()
    from accelerate import init_empty_weights

    with torch.device("cpu"), init_empty_weights(include_buffers=False):
        return build()
