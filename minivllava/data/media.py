"""From files to frames: images and clips, told apart, checked and read.

A clip goes through decord, as in the original; PyAV takes over where decord has no wheel, cannot read the
file (WebM without a duration) or would give wrong frames (edit lists); Pillow reads GIF, WebP and APNG.
Readers are opened and closed inside each call, so all of this is safe in forked and spawned workers.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from minivllava.config import FRAME_SAMPLINGS
from minivllava.data.containers import declared_size, decord_is_right
from minivllava.errors import ConfigError, MediaError, check_choice, short_reason

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
ANIMATION_SUFFIXES = (".gif", ".webp", ".apng")  # an image or a clip: only the content tells
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp", ".flv")
Chooser = Callable[[int], np.ndarray]  # a clip's number of frames -> which of them to take


def media_kind(path: str | Path) -> str:
    """Tell "image" from "video" by suffix; a GIF, WebP or APNG is opened: a video if it has several frames.

    Raises MediaError on an unknown suffix, or if a GIF, WebP or APNG cannot be opened.
    """
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in ANIMATION_SUFFIXES:
        with _opened_image(path) as image:
            return "video" if _is_animation(image) else "image"
    known = ", ".join(IMAGE_SUFFIXES + ANIMATION_SUFFIXES + VIDEO_SUFFIXES)
    raise MediaError(f"{path} has no suffix that says what it is: rename or convert it to one of {known}.")


def names_media(text: str) -> bool:
    """Whether a text without spaces ends as the name of an image or clip does, whether or not there is such a file."""
    return " " not in text and Path(text).suffix.lower() in IMAGE_SUFFIXES + ANIMATION_SUFFIXES + VIDEO_SUFFIXES


def read_image(path: str | Path) -> np.ndarray:
    """One image as uint8 (h, w, 3), turned upright by its EXIF orientation.

    Transparent pixels are laid on white (the original's `convert("RGB")` shows the colour hidden beneath)
    and 16-bit greys keep their upper 8 bits (`convert` would clip nearly all to white). Raises MediaError on
    anything but a whole image; an animation is refused rather than cut to its first frame.
    """
    with _opened_image(path) as image:
        if _is_animation(image):
            raise MediaError(
                f"{path} is an animation of {image.n_frames} frames: use it as a video "
                f"(.gif, .webp or .apng), or save the frame you mean as a PNG."
            )
        return _to_rgb(ImageOps.exif_transpose(image))


def frame_indices(total: int, frames: int, sampling: str = "linspace") -> np.ndarray:
    """Which of `total` frames to take: int64 (frames,), uniform.

    sampling: "linspace", from first to last, as the original; "arange", equal steps from the first, as the port
    to `transformers` is used; "opencv", from the first to the fifth from the end, as the original's other reader.
    A clip with fewer frames than asked repeats some of them; a one-frame clip gives `frames` zeros.
    """
    if total < 1:
        raise MediaError("It has no frames: export the clip again.")
    if frames < 1:
        raise ConfigError(f"frames={frames}: ask for at least 1 frame.")
    check_choice("sampling", sampling, FRAME_SAMPLINGS)
    if sampling == "arange":
        return np.arange(0, total, total / frames)[:frames].astype(np.int64)
    last = total - 1 if sampling == "linspace" else max(0, total - 5)
    return np.linspace(0, last, frames, dtype=np.int64)


def read_video(
    path: str | Path, frames: int | None = 8, backend: str | None = None, sampling: str = "linspace"
) -> np.ndarray:
    """Uniformly sampled frames of one clip as uint8 (t, h, w, 3), upright; `frames=None` reads all of them.

    `backend` "decord", "pyav" or "pil" forces one reader. All give the same pixels, except for chroma
    interpolation in clips of odd height or more than 8 bits. `sampling` is that of `frame_indices`. Raises
    MediaError on anything but a whole clip.
    """
    readers = {"decord": _read_decord, "pyav": _read_pyav, "pil": _read_pil}
    check_choice("backend", backend, (*readers, None))
    if frames is not None and frames < 1:
        raise ConfigError(f"frames={frames}: ask for at least 1 frame, or None for all.")
    check_choice("sampling", sampling, FRAME_SAMPLINGS)  # an error of the caller, not of a reader

    def choose(total: int) -> np.ndarray:
        return frame_indices(total, total if frames is None else frames, sampling)

    file = _checked(path)
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        raise MediaError(f"{path} is an image, not a clip: give it as an image, or name a clip.")
    reasons = []
    for name in (backend,) if backend else _choose_readers(file):
        try:
            return readers[name](file, choose)
        except Exception as error:  # decord raises bare Exceptions, PyAV and Pillow many types
            reasons.append(f"{name}: {_reason(error)}")
    raise MediaError(
        f"{path} cannot be read as a video ({'; '.join(reasons)}): "
        f"check that a player shows it, then download it or export it as H.264 MP4 again."
    )


def probe_media(path: str | Path, kind: str | None = None) -> None:
    """Decode an image, or 8 frames from first to last of a clip; raise MediaError if that fails.

    kind: "image" or "video", what the file is used as; by default what it is.
    """
    if (kind or media_kind(path)) == "image":
        read_image(path)
    else:
        read_video(path)


def _checked(path: str | Path) -> str:
    """The absolute path (ffmpeg cannot take it for a URL) of a file that is there, not empty, not cut off."""
    try:
        if Path(path).is_dir():
            raise MediaError(f"{path} is a folder: name a file inside it.")
        if not Path(path).is_file():
            raise MediaError(f"{path}: no such file: check the path and the media folder.")
        size, declared = Path(path).stat().st_size, declared_size(path)
    except OSError as error:
        raise MediaError(f"{path} cannot be opened ({error.strerror}): check its permissions.") from error
    if size == 0:
        raise MediaError(f"{path} is empty (0 bytes): download or export it again.")
    if declared > size:
        raise MediaError(f"{path} is cut off ({size:,} of {declared:,} bytes): download or export it again.")
    return os.path.abspath(path)


@contextmanager
def _opened_image(path: str | Path) -> Iterator[Image.Image]:
    """The image, open; everything that Pillow raises on it, here or inside the block, becomes MediaError."""
    try:
        with Image.open(_checked(path)) as image:
            yield image
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: save it smaller.") from error
    except Exception as error:
        raise MediaError(
            f"{path} cannot be read as an image ({_reason(error)}): "
            "check that a viewer shows it, then download it or save it as PNG again."
        ) from error


def _is_animation(image: Image.Image) -> bool:
    # not the pages of a TIFF, nor the preview that a phone packs beside its JPEG
    return image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, not 8")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _choose_readers(file: str) -> tuple[str, ...]:
    """Which readers to try on a clip, in order."""
    import av

    if Path(file).suffix.lower() in ANIMATION_SUFFIXES:
        return ("pil",)
    try:
        with _container(file) as container:
            return ("decord", "pyav") if decord_is_right(container) else ("pyav",)
    except av.FFmpegError:  # decord's older ffmpeg opens nothing more, and complains on stderr
        return ("pyav",)


def _container(file: str):
    """A clip as PyAV opens it. What its metadata say, and in which encoding, is none of our business."""
    import av

    lenient = int(av.__version__.partition(".")[0]) >= 19  # by itself, and without an option for it
    return av.open(file) if lenient else av.open(file, metadata_errors="ignore")


def _read_decord(file: str, choose: Chooser) -> np.ndarray:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(file, num_threads=1)
    wanted, places = _wanted(len(reader), choose)
    return reader.get_batch(wanted).asnumpy()[places]


def _read_pyav(file: str, choose: Chooser) -> np.ndarray:
    with _container(file) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream")
        if container.format.name.endswith("_pipe"):  # how ffmpeg reads a single PNG, JPEG, ...
            raise ValueError("it holds an image, whose name should say so")
        # headers miscount: 0 in MKV, 2,400 for 32 frames in AVI
        total = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
    while True:
        wanted, places = _wanted(total, choose)
        kept, decoded = _decode_pyav(file, set(wanted.tolist()))
        if decoded == total:
            return np.stack(kept)[places]
        total = decoded  # not one frame for each packet: once more, now that the number is known


def _decode_pyav(file: str, wanted: set[int]) -> tuple[list[np.ndarray], int]:
    """The wanted frames, upright, and how many the clip has; no others are kept, which bounds the memory."""
    from av.video.reformatter import VideoReformatter

    kept, count = [], 0
    convert = VideoReformatter().reformat  # one for all frames: ten times as fast as frame.to_ndarray()
    with _container(file) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for count, frame in enumerate(container.decode(stream), start=1):
            if count == 1:
                width, height = frame.width, frame.height  # should it change on the way, decord scales too
            if count - 1 in wanted:
                image = convert(frame, width, height, "rgb24").to_ndarray()
                kept.append(np.rot90(image, round(frame.rotation / 90)))  # upright, as decord gives it
    return kept, count


def _read_pil(file: str, choose: Chooser) -> np.ndarray:
    with Image.open(file) as image:
        wanted, places = _wanted(getattr(image, "n_frames", 1), choose)
        kept = []
        for index in wanted.tolist():
            image.seek(index)
            kept.append(_to_rgb(image))
    return np.stack(kept)[places]


def _wanted(total: int, choose: Chooser) -> tuple[np.ndarray, np.ndarray]:
    """The frames to decode, each once and in order, and where each of the clip's frames finds its own."""
    return np.unique(choose(total), return_inverse=True)


def _reason(error: Exception) -> str:
    """A reader's complaint in a few words, without paths, source lines and stack."""
    if isinstance(error, ImportError):
        return "not installed"
    if isinstance(error, Image.UnidentifiedImageError):
        return "in no format that Pillow knows"
    text = getattr(error, "strerror", None) or short_reason(error).partition(" Stack trace")[0]
    text = re.sub(r"\[[\d:]+\] \S+: |Check failed: .*?\(\S+ vs\. \S+\) ", "", text)
    return text.strip(" .")[:80] or type(error).__name__
