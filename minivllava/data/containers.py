"""What a container tells before anything is decoded: is the file whole, and can decord find its way in it?"""

from pathlib import Path


def declared_size(path: str | Path) -> int:
    """How many bytes the file should at least have according to its container; 0 if that does not say.

    Decoders stop in silence at the end of a truncated MKV, WebM or AVI file, as if the clip were shorter.
    """
    with open(path, "rb") as file:
        head = file.read(128)
        if head[:4] == b"RIFF":  # AVI, WebP: one little-endian size
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska, WebM: a short header, then one Segment holds the rest
            length, start = _ebml_size(head, 4)
            if head[start + length : start + length + 4] != b"\x18\x53\x80\x67":
                return 0
            length, start = _ebml_size(head, start + length + 4)
            return start + length
        if head[4:8] not in (b"ftyp", b"wide", b"mdat", b"moov"):
            return 0
        start = end = 0
        while True:  # MP4, QuickTime: a row of boxes
            file.seek(start)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:
                length = int.from_bytes(box[8:], "big")
            if length < 8:  # past the last box, or one that runs up to the end of the file
                return end
            start += length
            if box[4:8] in (b"moov", b"mdat", b"moof"):  # other names may be junk after the last box
                end = start


def _ebml_size(head: bytes, start: int) -> tuple[int, int]:
    """An EBML size at `start` and where it ends; 0 if it is unknown, as in a live recording."""
    width = 9 - head[start].bit_length() if start < len(head) else 1
    ones = (1 << 7 * width) - 1
    size = int.from_bytes(head[start : start + width], "big") & ones
    return (0 if size == ones else size), start + width


def decord_is_right(container) -> bool:
    """Whether decord finds its way in an `av` input container; where not, it gives other frames in silence.

    It repeats the last frame for those that an edit list hides (`ffmpeg -ss 2 -c copy`), and miscounts after
    jumping to a keyframe in open groups of pictures, in other containers and codecs, where times repeat, and
    where the first frames cannot be decoded for want of a keyframe.
    """
    if container.format.name not in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"):
        return False
    if len(container.streams.video) != 1:  # of two, decord and PyAV may choose different ones
        return False
    stream = container.streams.video[0]
    codec = stream.codec_context.name
    if codec not in ("h264", "vp8", "vp9"):
        return False
    setup = (stream.codec_context.extradata or b"") + bytes(5)
    prefix, times = 1 + (setup[4] & 3), set()  # how many bytes tell the length of each unit of H.264
    for packet in container.demux(stream):
        if packet.size == 0:  # marks the end
            continue
        if packet.is_discard or packet.pts is None or packet.pts in times:
            return False
        if not times and not packet.is_keyframe:
            return False
        if codec == "h264" and packet.is_keyframe and not _closes_group(bytes(packet), prefix):
            return False
        times.add(packet.pts)
    return True


def _closes_group(packet: bytes, prefix: int) -> bool:
    """Whether an H.264 keyframe is an IDR picture: nothing after it refers to anything before it."""
    start = 0
    while start + prefix < len(packet):
        kind = packet[start + prefix] & 31
        if kind in (1, 5):  # a slice, of another picture or of an IDR picture; headers stand before it
            return kind == 5
        start += prefix + int.from_bytes(packet[start : start + prefix], "big")
    return False
