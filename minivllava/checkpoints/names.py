"""The tensors of other people's checkpoints by our names: one table per part.

A row names a module or a parameter, ours first; `#` is the number of the layer. The original code and
`transformers` share these names, and differ in what they put before them (original.py, huggingface.py).
"""

import re
from collections.abc import Iterable

_LAYER = {  # CLIP's transformer layer
    "layers.#.norm1": "encoder.layers.#.layer_norm1",
    "layers.#.attention.query": "encoder.layers.#.self_attn.q_proj",
    "layers.#.attention.key": "encoder.layers.#.self_attn.k_proj",
    "layers.#.attention.value": "encoder.layers.#.self_attn.v_proj",
    "layers.#.attention.output": "encoder.layers.#.self_attn.out_proj",
    "layers.#.norm2": "encoder.layers.#.layer_norm2",
    "layers.#.mlp.up": "encoder.layers.#.mlp.fc1",
    "layers.#.mlp.down": "encoder.layers.#.mlp.fc2",
}
VISION = _LAYER | {
    "embedding.cls": "embeddings.class_embedding",
    "embedding.projection": "embeddings.patch_embedding",
    "embedding.position": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",  # so it is spelt
    "post_norm": "post_layernorm",
    # the video encoder's alone: what the port to transformers has no place for
    "layers.#.temporal_embedding": "encoder.layers.#.temporal_embedding",
    "layers.#.temporal_norm": "encoder.layers.#.temporal_layer_norm1",
    "layers.#.temporal_attention.query": "encoder.layers.#.temporal_attn.q_proj",
    "layers.#.temporal_attention.key": "encoder.layers.#.temporal_attn.k_proj",
    "layers.#.temporal_attention.value": "encoder.layers.#.temporal_attn.v_proj",
    "layers.#.temporal_attention.output": "encoder.layers.#.temporal_attn.out_proj",
}
TEXT = _LAYER | {
    "token_embedding": "embeddings.token_embedding",
    "position": "embeddings.position_embedding.weight",
    "post_norm": "final_layer_norm",
}
LLAMA = {
    "token_embedding": "model.embed_tokens",
    "layers.#.attention_norm": "model.layers.#.input_layernorm",
    "layers.#.attention.query": "model.layers.#.self_attn.q_proj",
    "layers.#.attention.key": "model.layers.#.self_attn.k_proj",
    "layers.#.attention.value": "model.layers.#.self_attn.v_proj",
    "layers.#.attention.output": "model.layers.#.self_attn.o_proj",
    "layers.#.mlp_norm": "model.layers.#.post_attention_layernorm",
    "layers.#.mlp.gate": "model.layers.#.mlp.gate_proj",
    "layers.#.mlp.up": "model.layers.#.mlp.up_proj",
    "layers.#.mlp.down": "model.layers.#.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def their_name(name: str, table: dict[str, str]) -> str:
    """`layers.3.mlp.up.weight` -> `encoder.layers.3.mlp.fc1.weight`, by the rows of a table."""
    number = re.search(r"(?<=layers\.)\d+", name)
    row = re.sub(r"(?<=layers\.)\d+", "#", name)
    module, _, leaf = row.rpartition(".")
    theirs = table[row] if row in table else f"{table[module]}.{leaf}"
    return theirs.replace("#", number[0]) if number else theirs


def names_under(ours: Iterable[str], prefix: str, their_prefix: str, table: dict[str, str]) -> dict[str, str]:
    """{our name: theirs} of all our names that begin with `prefix`."""
    found = (name.removeprefix(prefix) for name in ours if name.startswith(prefix))
    return {prefix + name: their_prefix + (their_name(name, table) if name else "") for name in found}
