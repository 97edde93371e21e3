"""Small pictures inside a page, so that it opens without its folder."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError


def data_uri(path: Path, size_px: int) -> str | None:
    """A JPEG of at most `size_px` in width and height; None where the image does not open."""
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            image.thumbnail((size_px, size_px))
            stream = io.BytesIO()
            image.save(stream, format="JPEG", quality=88)
    except (OSError, UnidentifiedImageError):
        # The page is worth having without one of its pictures.
        return None
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
