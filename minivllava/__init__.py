"""minivllava: Video-LLaVA from scratch. Images and clips, aligned before one shared projector.

    from minivllava import VideoLLaVA
    model = VideoLLaVA.from_pretrained("data/pretrained/tiny")
    model.chat("What does the red circle do?", videos=["clip.mp4"])
"""

import warnings

__version__ = "0.1.0"

# In a notebook, progress bars fall back to plain text where ipywidgets is missing: no reason for a warning.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str):
    # torch is imported only when a model is asked for, so that `minivllava --help` is quick
    if name == "VideoLLaVA":
        from minivllava.models.vllava import VideoLLaVA

        return VideoLLaVA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
