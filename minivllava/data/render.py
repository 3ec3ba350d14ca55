"""From a scene to pixels: colour images and clips, and depth maps.

Each shape is a signed distance function: negative inside, zero on the outline, positive outside, in canvas
sides. A pixel is covered by `0.5 - distance in pixels`, clipped to 0..1: smooth edges at any size. Only sums,
products and square roots are used, so the pixels are the same on every machine.
"""

import numpy as np

from minivllava.data.world import Scene, Thing

RGB = {
    "red": (225, 40, 45),
    "green": (45, 170, 60),
    "blue": (50, 90, 235),
    "yellow": (245, 220, 45),
    "purple": (165, 65, 205),
    "orange": (245, 130, 25),
    "cyan": (60, 215, 225),
    "white": (242, 242, 242),
}


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw a scene `size` pixels wide: uint8 (h, w, 3) for an image, (t, h, w, 3) for a clip."""
    canvas = np.repeat(_background(scene, size)[None], scene.frames, axis=0)  # t h w c
    for thing in scene.things:
        rows, columns = _window(thing, scene.frames, size)
        cover = coverage(thing, scene.frames, size, rows, columns)[..., None]
        part = canvas[:, rows, columns]
        part += cover * (np.array(RGB[thing.colour], np.float32) - part)
    return _to_bytes(canvas, scene)


def render_depth(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw nearness, near bright, over a gentle ramp of floor: uint8 (h, w), for a clip (t, h, w)."""
    ramp = np.linspace(15, 75, size, dtype=np.float32)
    canvas = np.broadcast_to(ramp[:, None], (scene.frames, size, size))
    for thing in scene.things:
        cover = coverage(thing, scene.frames, size)
        canvas = canvas + cover * (110 + 140 * np.float32(thing.z) - canvas)
    return _to_bytes(canvas, scene)


def coverage(
    thing: Thing, frames: int, size: int, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """Share of each pixel that a thing covers: float32 (t, h, w) in 0..1; (1, h, w) if it stays still.

    Only `rows` and `columns` of the canvas are drawn, by default all of it.
    """
    track = thing.track(frames if thing.acts else 1)
    x, y, radius, visible = (np.asarray(values, np.float32)[:, None, None] for values in track)  # t 1 1
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size
    distance = DISTANCE[thing.shape](pixel[None, None, columns] - x, pixel[None, rows, None] - y, radius)
    return np.clip(0.5 - distance * size, 0, 1) * visible


def _window(thing: Thing, frames: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of all pixels that a thing may touch: the rest of the canvas need not be drawn."""
    x, y, radius, _ = thing.track(frames)
    sides = ((int(np.min(v - radius) * size) - 1, int(np.max(v + radius) * size) + 2) for v in (y, x))
    rows, columns = (slice(max(start, 0), stop) for start, stop in sides)
    return rows, columns


def _background(scene: Scene, size: int) -> np.ndarray:
    """Dark grey of a slightly different shade in each scene, with a faint texture: float32 (h, w, 3)."""
    rng = np.random.default_rng(scene.seed)
    shade = rng.integers(26, 50) + rng.integers(-3, 4, 3)
    return (shade + rng.integers(-3, 4, (size, size, 1))).astype(np.float32)


def _to_bytes(canvas: np.ndarray, scene: Scene) -> np.ndarray:
    canvas = (canvas + np.float32(0.5)).astype(np.uint8)
    return canvas if scene.is_clip else canvas[0]


def _disc(x, y, radius):
    return np.sqrt(x * x + y * y) - radius


def _box(x, y, half_width, half_height):
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
    return outside + np.minimum(np.maximum(dx, dy), 0)


def _circle(x, y, r):
    return _disc(x, y, 0.92 * r)


def _square(x, y, r):
    return _box(x, y, 0.76 * r, 0.76 * r)


def _triangle(x, y, r):
    side = (1.75 * np.abs(x) - (y + 0.95 * r)) / np.float32(np.sqrt(1 + 1.75**2))
    return np.maximum(side, y - 0.71 * r)


def _cross(x, y, r):
    return np.minimum(_box(x, y, 0.95 * r, 0.30 * r), _box(x, y, 0.30 * r, 0.95 * r))


def _ring(x, y, r):
    return np.abs(_disc(x, y, 0.70 * r)) - 0.22 * r


def _moon(x, y, r):
    return np.maximum(_disc(x, y, 0.94 * r), -_disc(x - 0.50 * r, y, 0.78 * r))


DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
}
