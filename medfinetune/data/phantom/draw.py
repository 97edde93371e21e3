"""Draws findings: a chest above, a knee and a patch of skin below, varied in place, size, contrast and noise."""

import math
from collections.abc import Collection

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from medfinetune.data.phantom.findings import PARTS, Findings

_SKIN = {"brown": (128, 74, 36), "black": (34, 26, 24), "red": (196, 48, 52)}
_OVERSAMPLING = 2

Point = tuple[float, float]


def draw(
    findings: Findings, rng: np.random.Generator, size_px: int = 96, parts: Collection[str] = tuple(PARTS)
) -> Image.Image:
    """Draws one image.

    Args:
        findings: A value for each attribute that the drawn parts show.
        rng: Decides place, size, contrast and noise.
        size_px: Width and height.
        parts: Which of `PARTS` to draw; the rest stays dark.

    Returns:
        An RGB image.
    """
    size = size_px * _OVERSAMPLING
    image = Image.new("RGB", (size, size), (int(rng.integers(4, 26)),) * 3)
    pen = ImageDraw.Draw(image)
    if "chest" in parts:
        _chest(_Frame(pen, size, rng, centre=(0.5, 0.34), extent=0.66), findings, rng)
    if "knee" in parts:
        _knee(_Frame(pen, size, rng, centre=(0.24, 0.82), extent=0.32), findings, rng)
    if "skin" in parts:
        _skin(_Frame(pen, size, rng, centre=(0.74, 0.80), extent=0.43), findings, rng)
    image = image.resize((size_px, size_px), Image.Resampling.BOX)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.6))))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = (pixels - 110) * rng.uniform(0.8, 1.15) + 110 + rng.uniform(-14, 14)
    pixels += rng.normal(0, rng.uniform(2, 8), size=(size_px, size_px, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


class _Frame:
    """A box with its own place, size and tilt, in which shapes are given by coordinates of -0.5 to 0.5."""

    def __init__(self, pen: ImageDraw.ImageDraw, size: int, rng: np.random.Generator, centre: Point, extent: float):
        self._pen = pen
        self._x = (centre[0] + rng.uniform(-0.03, 0.03)) * size
        self._y = (centre[1] + rng.uniform(-0.02, 0.02)) * size
        self._scale = extent * size * rng.uniform(0.88, 1.02)
        self._tilt = math.radians(rng.uniform(-5, 5))

    def place(self, points: list[Point]) -> list[Point]:
        cos, sin = math.cos(self._tilt), math.sin(self._tilt)
        turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in points]
        return [(self._x + x * self._scale, self._y + y * self._scale) for x, y in turned]

    def polygon(self, points: list[Point], fill: int | tuple[int, int, int]) -> None:
        self._pen.polygon(self.place(points), fill=_colour(fill))

    def line(self, points: list[Point], fill: int, width: float) -> None:
        self._pen.line(self.place(points), fill=_colour(fill), width=max(1, round(width * self._scale)), joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: int | tuple[int, int, int]) -> None:
        angles = [2 * math.pi * i / 28 for i in range(28)]
        self.polygon([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], fill)


def _colour(fill: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (fill, fill, fill) if isinstance(fill, int) else fill


def _chest(frame: _Frame, findings: Findings, rng: np.random.Generator) -> None:
    # An oblique view narrows the patient's right lung, slants the spine and shows one shoulder lower.
    slant = 0.0 if findings["view"] == "frontal" else 0.16
    frame.polygon([(-0.50, -0.34), (0.50, -0.34 + slant), (0.44, 0.46), (-0.44, 0.46)], 96)
    lungs = {"right": (-0.24 + slant / 2, 0.17 - slant / 2), "left": (0.24, 0.17)}
    for x, rx in lungs.values():
        frame.ellipse(x, 0.08, rx, 0.32, 36)
        for rib in (-0.10, 0.05, 0.20):
            frame.line([(x - rx * 0.8, rib + 0.03), (x, rib), (x + rx * 0.8, rib + 0.03)], 58, 0.012)
    frame.line([(slant, -0.40), (0.0, 0.05), (-slant, 0.46)], 150, 0.05)
    enlarged = findings["heart"] == "enlarged"
    radius = (0.215 if enlarged else 0.115) * rng.uniform(0.94, 1.06)
    frame.ellipse(0.055, 0.20, radius, radius * 0.85 + 0.02, 168)
    if findings["effusion"] != "none":
        x, rx = lungs[findings["effusion"]]
        top = rng.uniform(0.14, 0.20)
        frame.polygon(
            [(x - rx, top - 0.03), (x, top + 0.03), (x + rx, top - 0.03), (x + rx, 0.44), (x - rx, 0.44)], 196
        )
    for side, sign in (("right", -1), ("left", 1)):
        y = -0.33 + (slant if sign > 0 else 0)
        inner, outer = (sign * 0.06, y + 0.05), (sign * 0.46, y - 0.03)
        if findings["fracture"] != side:
            frame.line([inner, outer], 226, 0.075)
        else:
            drop = 0.13 * rng.uniform(0.9, 1.15)
            frame.line([inner, (sign * 0.17, y + 0.03)], 226, 0.075)
            frame.line([(sign * 0.25, y + drop), (sign * 0.46, y + drop + 0.05)], 226, 0.075)
    if findings["device"] == "pacemaker":
        x, y = rng.choice([-1, 1]) * rng.uniform(0.24, 0.32), rng.uniform(-0.16, -0.10)
        frame.line([(x, y), (0.02, y - 0.02), (0.05, 0.2)], 250, 0.02)
        frame.polygon([(x - 0.12, y - 0.1), (x + 0.12, y - 0.1), (x + 0.12, y + 0.1), (x - 0.12, y + 0.1)], 255)


def _knee(frame: _Frame, findings: Findings, rng: np.random.Generator) -> None:
    grade = int(findings["knee_grade"])
    # The joint space narrows by grade and spurs grow at the margins, as in Kellgren and Lawrence's scale.
    gap = (0.30, 0.21, 0.14, 0.07, 0.0)[grade] + rng.uniform(-0.012, 0.012) * (grade < 4)
    spur = (0.0, 0.03, 0.08, 0.12, 0.16)[grade]
    half = rng.uniform(0.27, 0.31)
    for sign in (-1, 1):
        edge = sign * gap / 2
        shaft, flare = (half * 0.62, sign * 0.5), (half, edge + sign * 0.12)
        outline = [shaft, flare, (half + spur, edge)]
        frame.polygon(outline + [(-x, y) for x, y in reversed(outline)], 176)
        if grade >= 3:
            frame.line([(-half - spur, edge + sign * 0.03), (half + spur, edge + sign * 0.03)], 246, 0.05)


def _skin(frame: _Frame, findings: Findings, rng: np.random.Generator) -> None:
    tone = rng.uniform(0.82, 1.05)
    frame.polygon([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], tuple(int(c * tone) for c in (226, 182, 152)))
    x, y, radius = rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07), rng.uniform(0.31, 0.37)
    shade = rng.uniform(0.85, 1.1)
    colour = tuple(int(c * shade) for c in _SKIN[findings["lesion_colour"]])
    stretch = rng.uniform(0.85, 1.1)
    if findings["lesion_border"] == "regular":
        frame.ellipse(x, y, radius, radius * stretch, colour)
        return
    num_spikes = int(rng.integers(6, 9))
    points, start = [], rng.uniform(0, 2 * math.pi)
    for i in range(2 * num_spikes):
        r = radius * (rng.uniform(1.2, 1.4) if i % 2 else rng.uniform(0.42, 0.55))
        angle = start + math.pi * i / num_spikes
        points.append((x + r * math.cos(angle), y + r * stretch * math.sin(angle)))
    frame.polygon(points, colour)
