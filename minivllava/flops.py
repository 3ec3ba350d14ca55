"""Floating-point operations (FLOPs) that a model cannot do without, counted from its config, and what decoding reads.

A multiplication and its addition are two FLOPs. Matrix products and attention (its causal half) are counted; norms,
activations and the optimiser are not. What activation checkpointing computes twice is counted once: the result does
not need it twice.
"""

from minivllava.config import LanguageConfig, ModelConfig, TextConfig, VisionConfig


def layer_weights(config: LanguageConfig) -> int:
    """Numbers in the matrices of one decoder layer."""
    keys = config.kv_heads * config.width // config.heads
    return 2 * config.width * (config.width + keys) + 3 * config.width * config.mlp_width


def decoder_weights(config: LanguageConfig) -> int:
    """Numbers that each decoding step reads: all layers and the head; of the embedding, one row."""
    return config.layers * layer_weights(config) + config.width * config.vocab_size


def cache_numbers(config: LanguageConfig, positions: int) -> int:
    """Numbers in the keys and values of this many positions."""
    return 2 * config.layers * positions * config.kv_heads * config.width // config.heads


def decoder_flops(
    config: LanguageConfig, tokens: float, logits: float, backward: float = 0, attention_backward: float = 0
) -> float:
    """FLOPs of one sequence of `tokens`, with logits at `logits` of its positions.

    backward: products of the backward pass for each product of the forward pass: 0 without a backward pass, 1 where
    the weights are frozen and only pass gradients on, 2 where they learn. attention_backward: the same for attention,
    which has no weights: 2 in both cases.
    """
    linear = 2 * tokens * config.layers * layer_weights(config) + 2 * logits * config.width * config.vocab_size
    attention = 2 * tokens**2 * config.width * config.layers
    return linear * (1 + backward) + attention * (1 + attention_backward)


def encoder_flops(config: VisionConfig, frames: int, layers: int) -> int:
    """FLOPs of the first `layers` layers of an encoder on a clip; frames = 1 is an image."""
    places, width = config.grid**2 + 1, config.width
    tokens = frames * places
    linear = 2 * tokens * (4 * width**2 + 2 * width * config.mlp_width)
    attention = 4 * frames * places**2 * width
    if config.temporal:
        linear += 2 * tokens * 4 * width**2
        attention += 4 * places * frames**2 * width
    patches = 2 * frames * config.grid**2 * 3 * config.patch_size**2 * width
    return patches + layers * (linear + attention)


def text_encoder_flops(config: TextConfig, tokens: int) -> int:
    """FLOPs of the text encoder on a text of `tokens`, attention not counted: texts are short."""
    return 2 * tokens * config.layers * (4 * config.width**2 + 2 * config.width * config.mlp_width)


def projector_flops(config: ModelConfig, visual_tokens: int, learns: bool = False) -> float:
    """FLOPs of the projector on the features of `visual_tokens`. learns: with its backward pass, in which the first
    layer has one product for its own gradient, and the second another one, for the first layer's."""
    first, second = config.image.width * config.language.width, config.language.width**2
    return 2 * visual_tokens * (first * (1 + learns) + second * (1 + 2 * learns))


def encoder_depth(encoder: VisionConfig, select_layer: int) -> int:
    """How many of an encoder's layers the projector's features need. select_layer: as in ModelConfig."""
    return select_layer if select_layer >= 0 else 1 + encoder.layers + select_layer


def clip_flops(config: ModelConfig, frames: int) -> float:
    """FLOPs from a clip's pixels to its visual tokens."""
    visual = config.visual_tokens("video", frames)
    return encoder_flops(config.video, frames, encoder_depth(config.video, config.select_layer)) + projector_flops(
        config, visual
    )


def prefill_flops(config: ModelConfig, frames: int, words: int) -> float:
    """FLOPs from a clip and a question of `words` tokens to the first logits."""
    tokens = config.visual_tokens("video", frames) + words
    return clip_flops(config, frames) + decoder_flops(config.language, tokens, 1)


def training_flops(config: ModelConfig, frames: int, words: int, learned: int, stage: int) -> float:
    """FLOPs of one sample, forward and backward: in stage 1 only the projector learns, in stage 2 the language
    model too; the encoders are frozen and run forward only."""
    visual = config.visual_tokens("video", frames)
    encoder = encoder_flops(config.video, frames, encoder_depth(config.video, config.select_layer))
    projector = projector_flops(config, visual, learns=True)
    decoder = decoder_flops(config.language, visual + words, learned, 1 if stage == 1 else 2, 2)
    return encoder + projector + decoder
