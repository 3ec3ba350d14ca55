"""Operations and bytes that a model cannot do without, counted from its config.

A multiplication and its addition are two operations. Counted are matrix products and attention (the causal half of
it), not norms, activations and the optimiser. What activation checkpointing computes twice is counted once: it is
not work that the result needs.
"""

from minivllava.config import LanguageConfig, ModelConfig, VisionConfig


def layer_weights(config: LanguageConfig) -> int:
    """Numbers in the matrices of one decoder layer."""
    keys = config.kv_heads * config.width // config.heads
    return 2 * config.width * (config.width + keys) + 3 * config.width * config.mlp_width


def decoder_weights(config: LanguageConfig) -> int:
    """Numbers that each decoding step reads: all layers and the head; of the embedding, one row."""
    return config.layers * layer_weights(config) + config.width * config.vocab_size


def cache_numbers(config: LanguageConfig, positions: int) -> int:
    """Numbers in the keys and values of so many positions."""
    return 2 * config.layers * positions * config.kv_heads * config.width // config.heads


def decoder_work(config: LanguageConfig, tokens: int, logits: int, backward: float = 0, attention_backward: float = 0):
    """Operations on one sequence of `tokens`, with logits at so many positions.

    backward: products of the backward pass per product of the forward pass, 2 where weights learn and 1 where they
    only pass gradients on; attention_backward: the same of attention, which has no weights, 2 in both cases.
    """
    linear = 2 * tokens * config.layers * layer_weights(config) + 2 * logits * config.width * config.vocab_size
    attention = 2 * tokens**2 * config.width * config.layers
    return linear * (1 + backward) + attention * (1 + attention_backward)


def encoder_work(config: VisionConfig, frames: int, layers: int) -> int:
    """Operations of the first `layers` layers of an encoder on a clip; frames = 1 is an image."""
    places, width = config.grid**2 + 1, config.width
    tokens = frames * places
    linear = 2 * tokens * (4 * width**2 + 2 * width * config.mlp_width)
    attention = 4 * frames * places**2 * width
    if config.temporal:
        linear += 2 * tokens * 4 * width**2
        attention += 4 * places * frames**2 * width
    patches = 2 * frames * config.grid**2 * 3 * config.patch_size**2 * width
    return patches + layers * (linear + attention)


def projector_work(config: ModelConfig, visual_tokens: int, backward: float = 0) -> float:
    """Operations of the projector on so many features; backward: as of `decoder_work`."""
    width = config.language.width
    return 2 * visual_tokens * (config.image.width * width + width**2) * (1 + backward)


def encoder_depth(config: ModelConfig) -> int:
    """How many of the encoder's layers the projector's features take."""
    return range(1 + config.video.layers)[config.select_layer]


def clip_work(config: ModelConfig, frames: int) -> float:
    """Operations from a clip's pixels to its visual tokens."""
    visual = config.visual_tokens("video", frames)
    return encoder_work(config.video, frames, encoder_depth(config)) + projector_work(config, visual)


def prefill_work(config: ModelConfig, frames: int, words: int) -> float:
    """Operations from a clip and a question of `words` tokens to the first logits."""
    tokens = config.visual_tokens("video", frames) + words
    return clip_work(config, frames) + decoder_work(config.language, tokens, 1)


def training_work(config: ModelConfig, frames: int, words: int, learned: int, stage: int) -> float:
    """Operations of one sample, forward and backward: in stage 1 only the projector learns, in stage 2 the language
    model too; the encoders are frozen and run forward only."""
    visual = config.visual_tokens("video", frames)
    encoder = encoder_work(config.video, frames, encoder_depth(config))
    projector = projector_work(config, visual, backward=1)  # its first layer passes no gradient on
    decoder = decoder_work(config.language, visual + words, learned, 1 if stage == 1 else 2, 2)
    return encoder + projector + decoder
