"""Every drawing: each function takes data and returns a matplotlib Figure; none trains, none shows.

A figure is 9 inches wide, at 100 pixels each, and for a light page. Some take another `width` in inches; those of the
report suit a phone (4) and a dark page (`dark`), too.

    style.py        colours, a page to write on, clean axes
    frames.py       images and clips, plain or under heat
    tables.py       small tables of numbers; shares beside chance
    world.py        the embedded world; questions with answers
    patches.py      one image inside the image encoder
    clips.py        clips beside each other; attention through time; what reversing changes
    alignment.py    similarity matrices, retrieval, maps of the joint space
    training.py     loss curves
    evaluation.py   accuracies beside baselines
    port.py         what the port to `transformers` lost
    attention.py    where a model looks
    tokens.py       sequences token by token: sources, labels, the splice
    decoder.py      the language model inside
    studies.py      a study: seeds, intervals, claims beside the paper's
"""

from minivllava.figures.alignment import (
    circle_pull,
    joint_maps,
    recall_curves,
    scored_pairs,
    similarity_matrices,
)
from minivllava.figures.attention import attention_overlay, frame_bars, head_maps, numbered_patches, overlap_chart
from minivllava.figures.clips import attention_reach, clip_strips, spreads, time_patterns
from minivllava.figures.decoder import (
    cache_work,
    decoder_layer,
    gate_curves,
    norm_before_after,
    parameter_shares,
    relative_scores,
    rotation_dials,
    time_per_token,
)
from minivllava.figures.evaluation import BASELINES, KINDS, LABELS, accuracy_by_type, intervals, type_label
from minivllava.figures.frames import frame_strip
from minivllava.figures.patches import (
    attention_spread,
    patch_sequence,
    place_similarity,
    token_similarity,
)
from minivllava.figures.port import port_lost
from minivllava.figures.studies import study_figure
from minivllava.figures.style import DARK, LIGHT, Inks, chart_png
from minivllava.figures.tables import amounts, number_tables, shares
from minivllava.figures.tokens import (
    attention_matrix,
    batch_strips,
    embedding_rows,
    token_boxes,
    token_budget,
    token_words,
)
from minivllava.figures.training import TITLES, compare_runs, duration, loss_curves
from minivllava.figures.world import example_sheet, gallery

__all__ = [
    "BASELINES",
    "DARK",
    "KINDS",
    "LABELS",
    "LIGHT",
    "TITLES",
    "Inks",
    "accuracy_by_type",
    "amounts",
    "attention_matrix",
    "attention_overlay",
    "attention_reach",
    "attention_spread",
    "batch_strips",
    "cache_work",
    "chart_png",
    "circle_pull",
    "clip_strips",
    "compare_runs",
    "decoder_layer",
    "duration",
    "embedding_rows",
    "example_sheet",
    "frame_bars",
    "frame_strip",
    "gallery",
    "gate_curves",
    "head_maps",
    "intervals",
    "joint_maps",
    "loss_curves",
    "norm_before_after",
    "number_tables",
    "numbered_patches",
    "overlap_chart",
    "parameter_shares",
    "patch_sequence",
    "place_similarity",
    "port_lost",
    "recall_curves",
    "relative_scores",
    "rotation_dials",
    "scored_pairs",
    "shares",
    "similarity_matrices",
    "spreads",
    "study_figure",
    "time_patterns",
    "time_per_token",
    "token_boxes",
    "token_budget",
    "token_similarity",
    "token_words",
    "type_label",
]
