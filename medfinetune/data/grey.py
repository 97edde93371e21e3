"""Grey values of any depth to 8 bits."""

import numpy as np

_FULL_SCALES = (255, 1023, 4095, 16383, 65535)


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scales `(H, W)` grey values by their value; none is clipped.

    255 stands for the full scale, which is the smallest of 1 (fractions only), 255, 1023, 4095, 16383 and 65535 that
    holds the largest value, or that value itself where it is larger still; where values are negative, the smallest is
    first moved to 0.

    Raises:
        ValueError: A value is infinite or not a number.
    """
    scaled = values.astype(np.float64)
    if not np.isfinite(scaled).all():
        raise ValueError("holds values that are no finite numbers")
    scaled -= min(scaled.min(), 0.0)
    largest = scaled.max()
    scales = (1, *_FULL_SCALES) if np.issubdtype(values.dtype, np.floating) else _FULL_SCALES
    full_scale = next((scale for scale in scales if largest <= scale), largest)
    return np.rint(scaled * (255.0 / full_scale)).astype(np.uint8)
