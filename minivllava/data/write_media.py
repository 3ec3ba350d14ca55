"""From frames to files: images as PNG, clips as H.264 MP4."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from minivllava.errors import MediaError
from minivllava.files import replacing


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Writes uint8 (h, w, 3) as PNG; the file appears whole or not at all. Raises MediaError on another shape or dtype,
    or if the folder does not exist."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise MediaError(f"{path}: an image is uint8 (h, w, 3), not {image.dtype} {image.shape}.")
    _check_folder(path)
    with replacing(path) as part:
        Image.fromarray(image).save(part, format="PNG")


def write_video(path: str | Path, frames: np.ndarray, fps: float = 8) -> None:
    """Writes uint8 (t, h, w, 3) as H.264 yuv420p MP4 of `fps` frames a second; same frames, same bytes.

    The file appears whole or not at all. Raises MediaError if the folder does not exist, or on another shape or dtype:
    h and w must be even, since yuv420p keeps one colour for each 2 x 2 pixels.
    """
    import av

    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise MediaError(f"{path}: a clip is uint8 (t, h, w, 3), not {frames.dtype} {frames.shape}.")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise MediaError(f"{path}: H.264 needs even sides, not {frames.shape[1:3]}: pad by one pixel.")
    _check_folder(path)
    with replacing(path) as part:
        # bitexact leaves dates and library versions out of the file
        with av.open(str(part), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            # without the last, x264 reads memory that nobody wrote where frames are as small as these
            stream.options = {"crf": "15", "preset": "fast", "x264-params": "cpu-independent=1"}
            stream.codec_context.thread_count = 1  # x264's rate control depends on the number of threads
            for frame in np.ascontiguousarray(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def _check_folder(path: str | Path):
    if not Path(path).parent.is_dir():
        raise MediaError(f"{Path(path).parent} is not a folder: make it before writing {Path(path).name} there.")
