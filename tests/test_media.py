"""Every way in which a file can be odd, each reader on its own, and the pixels that come out."""

import importlib.util
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minivllava.data import media
from minivllava.data.media import (
    frame_indices,
    media_kind,
    probe_media,
    read_image,
    read_video,
)
from minivllava.data.preprocess import CLIP_MEAN, CLIP_STD, preprocess_image, preprocess_video
from minivllava.data.write_media import write_image, write_video
from minivllava.errors import ConfigError, MediaError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "media"
HAS_DECORD = importlib.util.find_spec("decord") is not None
READERS = (["decord"] if HAS_DECORD else []) + ["pyav", None]


def numbered(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A frame that shows its number: two rows of four cells, lit where the binary digit is 1."""
    frame = np.full((height, width, 3), 30, np.uint8)
    for digit in range(8):
        row, column = divmod(digit, 4)
        if number >> digit & 1:
            rows = slice(row * height // 2, (row + 1) * height // 2)
            frame[rows, column * width // 4 : (column + 1) * width // 4] = (230, 200, 60)
    return frame


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames (t, h, w, 3) show."""
    height, width = frames.shape[1:3]
    rows, columns = [height // 4, height // 2 + height // 4], [width * (2 * c + 1) // 8 for c in range(4)]
    lit = frames[:, rows][:, :, columns, 0].reshape(len(frames), 8) > 128
    return (lit * 2 ** np.arange(8)).sum(axis=1).tolist()


def encode(
    path: Path,
    frames: int = 32,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size=(64, 64),
    options: dict | None = None,
    muxer: dict | None = None,
    times: list[int] | None = None,
) -> Path:
    """A clip of numbered frames; `times` in milliseconds gives it a variable frame rate."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=8, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def edited(path: Path, entries: list[tuple[int, int]]) -> Path:
    """Replace the edit list of an MP4 whose `moov` stands last: (milliseconds, media time) for each entry."""
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") - 4
    length = struct.unpack_from(">I", data, start)[0]
    body = struct.pack(">4sII", b"elst", 0, len(entries))
    body += b"".join(struct.pack(">iiI", *entry, 0x10000) for entry in entries)
    data[start : start + length] = struct.pack(">I", 4 + len(body)) + body
    for name in (b"moov", b"trak", b"edts"):
        box = data.index(name) - 4
        struct.pack_into(">I", data, box, struct.unpack_from(">I", data, box)[0] + 4 + len(body) - length)
    path.write_bytes(data)
    return path


def turned(path: Path, quarters: int) -> Path:
    """Ask players to turn an MP4 by quarters clockwise, as phones do."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    data = bytearray(path.read_bytes())
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, *matrix)
    path.write_bytes(data)
    return path


def animation(path: Path, frames: int, **options) -> Path:
    images = [Image.fromarray(numbered(number)) for number in range(frames)]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def refuse(*_, **__):
    raise AssertionError("this reader must not be asked")


# Kinds


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.png", "image"),
        ("a.JPG", "image"),
        ("a.jpeg", "image"),
        ("a.mp4", "video"),
        ("a.MOV", "video"),
        ("a.webm", "video"),
    ],
)
def test_suffix_tells_the_kind_without_opening_the_file(name, kind):
    assert media_kind(Path("nowhere") / name) == kind


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_content_tells_images_from_animations(tmp_path, suffix):
    assert media_kind(animation(tmp_path / f"one{suffix}", 1)) == "image"
    assert media_kind(animation(tmp_path / f"three{suffix}", 3)) == "video"
    with pytest.raises(MediaError, match="no such file"):
        media_kind(tmp_path / f"none{suffix}")


def test_unknown_suffix_is_refused_with_the_known_ones():
    with pytest.raises(MediaError, match=r"notes\.txt.*\.png.*\.gif.*\.mp4"):
        media_kind("notes.txt")


# Images


def test_image_goes_out_and_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    write_image(tmp_path / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    first = (tmp_path / "a.png").read_bytes()
    write_image(tmp_path / "a.png", image)
    assert (tmp_path / "a.png").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_exif_orientation_turns_the_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by a quarter clockwise
    Image.fromarray(numbered(5, 32, 64)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(numbered(5, 32, 64), -1))


def test_transparent_pixels_become_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2] = (10, 20, 30, 255)
    Image.fromarray(image, "RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(image, "RGBA").quantize(4).save(tmp_path / "palette.png")
    for name in ("rgba.png", "palette.png"):
        read = read_image(tmp_path / name)
        assert (read[:2] == (10, 20, 30)).all() and (read[2:] == 255).all(), name


def test_grey_and_16_bit_images_become_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "depth.png")
    for name in ("grey.png", "depth.png"):
        assert np.array_equal(read_image(tmp_path / name), np.stack([grey] * 3, axis=-1)), name


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng"])
def test_animation_is_not_taken_for_its_first_frame(tmp_path, name):
    with pytest.raises(MediaError, match="animation of 3 frames: use it as a video"):
        read_image(animation(tmp_path / name, 3))


def test_a_phone_image_with_its_preview_is_a_image(tmp_path):
    large, preview = Image.fromarray(numbered(9)), Image.fromarray(numbered(3, 16, 16))
    large.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    assert numbers(read_image(tmp_path / "a.jpg")[None]) == [9]


# Sampling


def test_frames_are_sampled_as_the_original_samples_them():
    assert frame_indices(32, 8).tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert frame_indices(1, 8).tolist() == [0] * 8
    assert frame_indices(3, 8).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert frame_indices(32, 1).tolist() == [0]
    assert frame_indices(32, 8).dtype == np.int64
    with pytest.raises(MediaError):
        frame_indices(0, 8)
    with pytest.raises(ConfigError):
        frame_indices(8, 0)


CLIPS = {
    "plain": ("a.mp4", {}),
    "many_b_frames": ("a.mp4", dict(frames=64, options={"bf": "8", "b-pyramid": "strict"})),
    "short_groups": ("a.mp4", dict(options={"g": "5"})),
    "one_frame": ("a.mp4", dict(frames=1)),
    "fewer_than_asked": ("a.mp4", dict(frames=3)),
    "variable_rate": ("a.mp4", dict(times=[40 * n * (n + 5) for n in range(32)])),
    "odd_444": ("a.mp4", dict(pixels="yuv444p", size=(63, 65))),
    "full_range": ("a.mp4", dict(pixels="yuvj420p")),
    "fragmented": ("a.mp4", dict(muxer={"movflags": "frag_keyframe+empty_moov"}, options={"g": "8"})),
    "mov": ("a.mov", {}),
    "mkv": ("a.mkv", dict(options={"g": "8"})),
    "webm_vp8": ("a.webm", dict(codec="libvpx", options={"g": "8"})),
    "webm_vp9": ("a.webm", dict(codec="libvpx-vp9", options={"g": "8"})),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_every_reader_gives_the_same_true_frames(tmp_path, clip):
    name, settings = CLIPS[clip]
    path, total = encode(tmp_path / name, **settings), settings.get("frames", 32)
    read = [read_video(path, 8, reader) for reader in READERS]
    assert read[0].dtype == np.uint8 and read[0].shape == (8, *settings.get("size", (64, 64)), 3)
    for reader, frames in zip(READERS, read, strict=True):
        assert numbers(frames) == frame_indices(total, 8).tolist(), reader
        assert np.array_equal(frames, read[0]), reader
        assert numbers(read_video(path, None, reader)) == list(range(total)), reader


@pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel here")
@pytest.mark.parametrize("clip", CLIPS)
def test_decord_is_asked_first(tmp_path, monkeypatch, clip):
    path = encode(tmp_path / CLIPS[clip][0], **CLIPS[clip][1])
    monkeypatch.setattr(media, "_read_pyav", refuse)
    assert np.array_equal(read_video(path), read_video(path, backend="decord"))


@pytest.mark.parametrize(
    "name, settings",
    [
        ("open_groups.mp4", dict(frames=64, options={"g": "12", "bf": "3", "x264-params": "open-gop=1"})),
        ("open_groups.mkv", dict(frames=64, options={"g": "12", "bf": "3", "x264-params": "open-gop=1"})),
        ("mpeg4.mp4", dict(codec="mpeg4", options={"bf": "2"})),
        ("mpeg2.mpg", dict(codec="mpeg2video")),
        ("mpeg4.avi", dict(codec="mpeg4", options={"bf": "2"})),
        ("h264.avi", {}),
        ("stream.ts", {}),
        ("flash.flv", {}),
        ("motion_jpeg.mov", dict(codec="mjpeg", pixels="yuvj420p")),
        ("same_times.mkv", dict(times=[n // 2 * 100 + n % 2 for n in range(32)])),
    ],
)
def test_clips_in_which_decord_loses_its_way_give_their_true_frames(tmp_path, monkeypatch, name, settings):
    asked = []
    monkeypatch.setattr(media, "_read_decord", lambda *_: asked.append(name))
    path, total = encode(tmp_path / name, **settings), settings.get("frames", 32)
    for frames in (3, 5, 7, 8, 11):
        assert numbers(read_video(path, frames)) == frame_indices(total, frames).tolist()
    assert numbers(read_video(path, None)) == list(range(total))
    assert not asked


@pytest.mark.parametrize(
    "name, settings",
    [("odd.webm", dict(codec="libvpx-vp9", size=(63, 65))), ("ten_bits.mp4", dict(pixels="yuv420p10le"))],
)
def test_readers_differ_only_in_chroma_on_odd_and_10_bit_clips(tmp_path, name, settings):
    path = encode(tmp_path / name, **settings)
    read = [read_video(path, 8, reader) for reader in READERS]
    for frames in read:
        assert numbers(frames) == frame_indices(32, 8).tolist()
        assert np.abs(frames.astype(int) - read[0]).mean() < 4


def test_without_decord_pyav_takes_over(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    assert numbers(read_video(path)) == frame_indices(32, 8).tolist()
    with pytest.raises(MediaError, match="decord: not installed"):
        read_video(path, backend="decord")


@pytest.mark.parametrize(
    "name, settings",
    [
        ("av1.mp4", dict(codec="libsvtav1")),
        ("recorded.webm", dict(codec="libvpx", muxer={"live": "1"})),
        ("tiny.mp4", dict(size=(16, 16))),
    ],
)
def test_pyav_takes_over_what_decord_cannot_read(tmp_path, monkeypatch, name, settings):
    if settings.get("codec", "libx264") not in av.codecs_available:
        pytest.skip("no such encoder here")
    monkeypatch.setenv("SVT_LOG", "0")
    path = encode(tmp_path / name, **settings)
    if HAS_DECORD:
        with pytest.raises(MediaError, match="decord: "):
            read_video(path, backend="decord")
    assert numbers(read_video(path)) == frame_indices(32, 8).tolist()


@pytest.mark.parametrize("name, options", [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.apng", {})])
def test_animations_are_read_by_pillow(tmp_path, name, options):
    path = animation(tmp_path / name, 12, **options)
    assert numbers(read_video(path)) == frame_indices(12, 8).tolist()
    assert np.array_equal(read_video(path, None, "pil"), [numbered(number) for number in range(12)])
    if name != "a.webp":  # ffmpeg knows no animated WebP
        assert np.array_equal(read_video(path, 8, "pyav"), read_video(path, 8, "pil"))


def test_a_still_gif_is_a_clip_of_one_frame(tmp_path):
    assert numbers(read_video(animation(tmp_path / "a.gif", 1), 4)) == [0, 0, 0, 0]


FRAME = 2048  # media time of one frame at 8 a second; the first frame of these files stands at 2 * FRAME


@pytest.mark.parametrize(
    "entries, expected",
    [
        ([(4000, 2 * FRAME)], range(32)),
        ([(500, -1), (4000, 2 * FRAME)], range(32)),
        ([(2000, 15 * FRAME)], range(13, 29)),
        ([(1000, 2 * FRAME)], range(8)),
        ([(1000, 18 * FRAME), (1000, 2 * FRAME)], [*range(16, 24), *range(8)]),
    ],
    ids=["encoder_delay", "late_start", "cut_inside_a_group", "cut_at_the_end", "two_cuts"],
)
def test_edit_lists_give_their_true_frames(tmp_path, entries, expected):
    path = edited(encode(tmp_path / "a.mp4", options={"g": "8"}), entries)
    assert numbers(read_video(path, None)) == list(expected)
    assert numbers(read_video(path, 8)) == np.array(expected)[frame_indices(len(expected), 8)].tolist()


@pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel here")
def test_the_encoder_delay_of_b_frames_still_goes_to_decord(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", options={"bf": "3"})
    assert b"elst" in path.read_bytes()
    monkeypatch.setattr(media, "_read_pyav", refuse)
    assert numbers(read_video(path, None)) == list(range(32))


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("reader", READERS)
def test_rotation_metadata_is_honoured_by_each_reader(tmp_path, quarters, reader):
    path = encode(tmp_path / "a.mp4", frames=6, size=(64, 96))
    flat = read_video(path, 4, reader)
    upright = read_video(turned(path, quarters), 4, reader)
    assert np.array_equal(upright, np.rot90(flat, -quarters, axes=(1, 2)))


def test_of_two_video_streams_the_same_is_read_with_and_without_decord(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        streams = {32: container.add_stream("libx264", rate=8), 64: container.add_stream("libx264", rate=8)}
        for side, stream in streams.items():
            stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
        for side, stream in streams.items():
            frame = av.VideoFrame.from_ndarray(numbered(side, side, side), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    assert np.array_equal(read_video(tmp_path / "a.mp4"), read_video(tmp_path / "a.mp4", backend="pyav"))


def test_tags_in_another_encoding_do_no_harm(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    assert numbers(read_video(path)) == numbers(read_video(path, 8, "pyav")) == frame_indices(32, 8).tolist()

    def newer(file, mode="r", opened=av.open):  # PyAV 19 has no `metadata_errors`
        return opened(file, mode, metadata_errors="ignore")

    monkeypatch.setattr(av, "__version__", "19.0.2")
    monkeypatch.setattr(av, "open", newer)
    assert numbers(read_video(path, 8, "pyav")) == frame_indices(32, 8).tolist()


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_a_recording_that_begins_between_keyframes_starts_at_the_first(tmp_path, suffix):
    whole, late = encode(tmp_path / f"whole{suffix}", options={"g": "8"}), tmp_path / f"late{suffix}"
    with av.open(str(whole)) as source, av.open(str(late), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.size and number >= 3:
                packet.stream = stream
                target.mux(packet)
    assert numbers(read_video(late, None)) == list(range(8, 32))
    assert numbers(read_video(late)) == (8 + frame_indices(24, 8)).tolist()


class Clips(torch.utils.data.Dataset):
    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 2

    def __getitem__(self, _):
        return read_video(self.path)


def test_a_forked_worker_reads_after_its_parent_did(tmp_path):
    path = encode(tmp_path / "a.mp4")
    here = read_video(path)
    for batch in DataLoader(Clips(path), num_workers=1, timeout=30, multiprocessing_context="fork"):
        assert np.array_equal(batch[0].numpy(), here)


# Bad files


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def damaged(path: Path) -> Path:
    data = bytearray(encode(path).read_bytes())
    data[60:-1500] = bytes(len(data) - 1560)
    path.write_bytes(data)
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def image(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return path


BAD = {
    "missing clip": (lambda d: d / "a.mp4", "no such file"),
    "missing image": (lambda d: d / "a.png", "no such file"),
    "folder": (lambda d: (d / "a.mp4").mkdir() or d / "a.mp4", "is a folder"),
    "empty clip": (lambda d: written(d / "a.mp4", b""), r"is empty \(0 bytes\): download or export it again"),
    "empty image": (lambda d: written(d / "a.png", b""), r"is empty \(0 bytes\)"),
    "text clip": (lambda d: written(d / "a.mp4", b"hello\n" * 50), "cannot be read as a video"),
    "text image": (lambda d: written(d / "a.png", b"hello\n" * 50), "cannot be read as an image"),
    "noise clip": (lambda d: written(d / "a.webm", np.random.default_rng(0).bytes(5000)), "cannot be read"),
    "image as gif": (lambda d: written(d / "a.gif", b"GIF89a" + bytes(20)), "cannot be read"),
    "audio only": (lambda d: audio_only(d / "a.mp4"), "no video stream"),
    "no frames": (lambda d: no_frames(d / "a.mp4"), "cannot be read as a video"),
    "damaged clip": (lambda d: damaged(d / "a.mp4"), "cannot be read as a video"),
    "cut mp4, index lost": (lambda d: cut(encode(d / "a.mp4"), 0.6), "is cut off"),
    "cut mp4": (lambda d: cut(encode(d / "a.mp4", muxer={"movflags": "faststart"}), 0.8), "is cut off"),
    "cut fragmented mp4": (lambda d: cut(encode(d / "a.mp4", **CLIPS["fragmented"][1]), 0.6), "is cut off"),
    "cut mkv": (lambda d: cut(encode(d / "a.mkv"), 0.7), "is cut off"),
    "cut webm": (lambda d: cut(encode(d / "a.webm", codec="libvpx-vp9"), 0.7), "is cut off"),
    "cut avi": (lambda d: cut(encode(d / "a.avi"), 0.7), "is cut off"),
    "cut gif": (lambda d: cut(animation(d / "a.gif", 8), 0.6), "cannot be read"),
    "cut webp": (lambda d: cut(animation(d / "a.webp", 8), 0.6), "is cut off"),
    "cut apng": (lambda d: cut(animation(d / "a.apng", 8), 0.6), "cannot be read"),
    "cut png": (lambda d: cut(image(d / "a.png"), 0.6), "cannot be read as an image"),
    "cut jpeg": (lambda d: cut(image(d / "a.jpg"), 0.6), "cannot be read as an image"),
    "image as mp4": (lambda d: image(d / "a.png").rename(d / "a.mp4"), "it holds an image"),
    "unknown suffix": (lambda d: written(d / "a.xyz", b"hello"), "has no suffix"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_sentence_with_its_name_and_the_fix(tmp_path, capfd, case):
    make, complaint = BAD[case]
    path = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(MediaError, match=complaint) as caught:
        probe_media(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and message.endswith(".")
    assert ": " in message.removeprefix(str(path)) and len(message) < len(str(path)) + 300
    assert capfd.readouterr().err == ""


def test_a_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MediaError, match=r"a\.png has more than 2,000 pixels: save it smaller"):
        read_image(image(tmp_path / "a.png"))


def test_kinds_are_not_mixed_up(tmp_path):
    for name, kind, reason in (("b.png", "video", "is an image, not a clip"), ("b.gif", "image", "use it as a video")):
        path = image(tmp_path / name) if kind == "video" else animation(tmp_path / name, 8)
        probe_media(path)
        with pytest.raises(MediaError, match=reason):
            probe_media(path, kind)
    with pytest.raises(MediaError, match="is an image, not a clip"):
        read_video(image(tmp_path / "a.png"))
    with pytest.raises(MediaError, match="cannot be read as an image"):
        read_image(encode(tmp_path / "a.mp4"))
    with pytest.raises(ConfigError, match="choose one of decord, pyav, pil"):
        read_video(tmp_path / "a.mp4", backend="opencv")
    with pytest.raises(ConfigError, match="at least 1"):
        read_video(tmp_path / "a.mp4", frames=0)


# Writing


def test_clip_goes_out_and_back_with_the_same_bytes_each_time(tmp_path):
    clip = np.stack([numbered(number) for number in range(16)])
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, clip, fps=8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert b"Lav" not in (tmp_path / "a.mp4").read_bytes()  # no library version
    read = read_video(tmp_path / "a.mp4", None)
    assert read.shape == clip.shape and np.abs(read.astype(int) - clip).mean() < 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path, clip = tmp_path / "a.mp4", np.zeros((2, 32, 32, 3), np.uint8)
    write_video(path, clip)
    before = path.read_bytes()
    monkeypatch.setattr(media.os, "replace", refuse)
    with pytest.raises(AssertionError):
        write_video(path, clip + 200)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (2, 31, 32, 3), (2, 32, 33, 3), (32, 32, 3), (2, 3, 8, 8)])
def test_frames_that_h264_cannot_hold_are_refused(tmp_path, shape):
    with pytest.raises(MediaError, match="a.mp4"):
        write_video(tmp_path / "a.mp4", np.zeros(shape, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_writing_needs_the_folder_and_bytes(tmp_path):
    with pytest.raises(MediaError, match="is not a folder"):
        write_image(tmp_path / "none" / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(MediaError, match="float64"):
        write_image(tmp_path / "a.png", np.zeros((4, 4, 3)))


# Pixels


def restored(pixels: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: (..., 3, h, w) in grey levels."""
    return (pixels * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]) * 255


@pytest.mark.parametrize(
    "shape, size",
    [
        ((63, 65), 32),
        ((97, 131), 32),
        ((131, 97), 56),
        ((33, 47), 64),
        ((64, 64), 32),
        ((32, 35), 32),
        ((224, 301), 224),
    ],
)
def test_image_pixels_equal_those_of_transformers(shape, size):
    processor = pytest.importorskip("transformers.models.video_llava.image_processing_video_llava")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    sizes = dict(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    theirs = processor.VideoLlavaImageProcessor(**sizes)(Image.fromarray(image), return_tensors="pt")
    expected = next(iter(theirs.values()))[0]  # the key depends on the version
    pixels = preprocess_image(image, size)
    assert pixels.shape == (3, size, size) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected.float(), atol=1e-5, rtol=0)


def test_clip_pixels_of_the_port_are_those_of_its_image_processor_frame_by_frame():
    processor = pytest.importorskip("transformers.models.video_llava.image_processing_video_llava")
    clip = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    frames = [Image.fromarray(frame) for frame in clip]
    theirs = processor.VideoLlavaImageProcessor(**sizes)(frames, return_tensors="pt")
    pixels = next(value for name, value in theirs.items() if name.startswith("pixel_values"))
    ours = preprocess_video(clip, 32, resize="bicubic")
    torch.testing.assert_close(ours, pixels.reshape(ours.shape), rtol=0, atol=1e-5)
    assert (ours - preprocess_video(clip, 32)).abs().mean() > 0.05, "the original's are others"


def test_image_is_cropped_at_the_centre_or_padded_with_the_mean_colour():
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 16:48] = 200
    assert torch.allclose(restored(preprocess_image(image, 32)), torch.tensor(200.0), atol=1e-3)
    padded = preprocess_image(np.full((32, 64, 3), 200, np.uint8), 64, "pad")
    assert padded[:, :16].abs().max() < 0.02 and padded[:, 48:].abs().max() < 0.02
    assert torch.allclose(restored(padded)[:, 16:48], torch.tensor(200.0), atol=1e-3)
    with pytest.raises(ConfigError, match="choose one of square, pad"):
        preprocess_image(image, 32, "stretch")


@pytest.mark.parametrize("aspect, becomes", [("pad", "60,000 x 60,000"), ("square", "6,720,000 x 112")])
def test_a_very_narrow_image_is_refused_before_it_takes_the_memory(aspect, becomes):
    with pytest.raises(MediaError, match=f"60000 x 1 pixels would become one of {becomes}: crop it"):
        preprocess_image(np.zeros((1, 60_000, 3), np.uint8), 112, aspect)


def test_image_pixels_equal_those_of_the_original():
    """ToTensor, Resize, CenterCrop, Normalize of torchvision 0.15, whose Resize of a tensor is this interpolation."""
    image = np.random.default_rng(0).integers(0, 256, (67, 101, 3), np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(tensor, size=(32, 48), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    expected = (resized[0, :, :, 8:40] - mean) / std
    torch.testing.assert_close(preprocess_image(image, 32, antialias=False), expected, atol=1e-5, rtol=0)
    assert (preprocess_image(image, 32) - expected).abs().max() > 0.1, "of noise, antialiasing leaves less"


def test_clip_is_halved_by_plain_bilinear_interpolation():
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    pixels = preprocess_video(frames, 32)
    assert pixels.shape == (3, 3, 32, 32) and pixels.dtype == torch.float32
    means = frames.reshape(3, 32, 2, 32, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    torch.testing.assert_close(restored(pixels), torch.tensor(means, dtype=torch.float32), atol=1e-3, rtol=0)


def test_clip_is_not_antialiased():
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    frames[:, ::4] = 255  # a quarter of the lines, each between the lines that a scale of 1/4 looks at
    assert restored(preprocess_video(frames, 16)).abs().max() < 1e-3


@pytest.mark.parametrize("width, left", [(35, 2), (37, 2), (36, 2), (39, 4)])
def test_clip_is_cropped_where_torchvision_crops(width, left):
    frames = np.broadcast_to(np.arange(width, dtype=np.uint8)[:, None], (2, 32, width, 3))
    columns = restored(preprocess_video(frames, 32))[1, 0, 0].round().int().tolist()
    assert columns == list(range(left, left + 32))  # in order too: never flipped
    tall = restored(preprocess_video(frames.transpose(0, 2, 1, 3), 32))[1, 0, :, 0].round().int().tolist()
    assert tall == columns


def test_a_reversed_clip_gives_reversed_pixels():
    frames = np.stack([numbered(number) for number in range(4)])
    assert torch.equal(preprocess_video(frames[::-1], 32), preprocess_video(frames, 32).flip(0))


# Real files


REAL = sorted(path for folder in ("clips", "odd") for path in SHARED.glob(f"{folder}/*"))


@pytest.mark.skipif(not REAL, reason="no shared media here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_are_read_if_valid_and_refused_if_not(path):
    if path.name == "corrupted.mp4":
        with pytest.raises(MediaError, match=r"corrupted\.mp4.*pyav: Invalid data"):
            probe_media(path)
        return
    probe_media(path)
    if media_kind(path) == "image":
        assert read_image(path).shape[2] == 3
        return
    frames = read_video(path)
    assert frames.shape[0] == 8
    assert np.array_equal(frames, read_video(path, backend="pyav"))


@pytest.mark.skipif(not REAL, reason="no shared media here")
def test_real_rotated_clips_come_out_upright():
    for turn, shape in {0: (320, 568), 90: (568, 320), 180: (320, 568), 270: (568, 320)}.items():
        assert read_video(SHARED / "odd" / f"video_{turn}.mov", 1).shape[1:3] == shape


def test_a_clip_has_the_same_bytes_whatever_lay_in_memory():
    """glibc fills new memory with the value of MALLOC_PERTURB_: what reads it before writing it is found out."""
    code = """
import hashlib, tempfile
from minivllava.data.write_media import write_video
from minivllava.data.render import render
from minivllava.data.world import sample_scene
path = tempfile.mkdtemp() + "/clip.mp4"
for i in range(3, 11):
    write_video(path, render(sample_scene(0, "train", i, True), 64))
    print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""
    told = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"MALLOC_PERTURB_": value},
        ).stdout
        for value in ("1", "255")
    ]  # fmt: skip
    assert told[0] == told[1] and len(set(told[0].split())) == 8
