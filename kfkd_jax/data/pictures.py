"""Encoded pictures into arrays: decoding, the fixed view, random views."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

_FORMATS = ("JPEG", "PNG")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BILINEAR = Image.Resampling.BILINEAR
_ATTEMPTS = 10  # to fit a random crop into a picture

# Pillow warns of what it then reads all the same (many pixels, an odd palette,
# an EXIF part cut short). For good: threads, which decode, share the filters.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenImageError(ValueError):
  """A file or record that is no picture, or only part of one."""


def decode(encoded: bytes, channels: int, *, name: str) -> Image.Image:
  """A picture, upright, with this many channels.

  Turned as its EXIF orientation says. Grey, palette and CMYK pictures become
  RGB; transparency is dropped; 16 bits are cut to their upper 8.

  Args:
    encoded: a JPEG or PNG file.
    channels: 1 (grey), 3 (RGB) or 4 (with transparency).
    name: for errors.

  Raises:
    BrokenImageError: it cannot be read to its end.
  """
  try:
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
      image.load()
      return _converted(_turned(image), _MODES[channels])
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise broken(
      name, "it is no JPEG or PNG" if "cannot identify" in str(e) else e
    ) from None


def is_grey(encoded: bytes) -> bool:
  """Whether a picture says that it has no colours; it is not read further."""
  try:
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
      return image.mode in ("1", "L", "LA", "I", "I;16")
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    return False


def broken(name: str, reason: object) -> BrokenImageError:
  """The error for an image that cannot be read."""
  return BrokenImageError(
    f"{name} cannot be read: {reason}; repair or remove it, or set"
    " data.skip_broken=True to leave out all such images"
  )


def fitted(
  image: Image.Image, size: int, *, fraction: float = 1.0
) -> Image.Image:
  """The centre square of a picture at `size`, which evaluation sees.

  Args:
    image: any size.
    size: side of the result.
    fraction: of the short side that the square keeps (0.875 keeps 224 of 256).
  """
  side = min(image.size) * fraction
  left, top = ((length - side) / 2 for length in image.size)
  if (size, size) == image.size and fraction == 1:
    return image
  # With fractions of a pixel: resizing from a box needs no crop before.
  box = (left, top, left + side, top + side)
  return image.resize((size, size), _BILINEAR, box=box)


def random_resized_crop(
  image: Image.Image,
  size: tuple[int, int],
  draw: Callable[[], float],
  *,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> Image.Image:
  """A random part of a picture, stretched to `size` (Szegedy et al. 2015).

  The part has a share of the area drawn evenly from `scale` and a ratio of
  width to height drawn log-evenly from `ratio`. Where ten draws do not fit, it
  is the largest centre part within `ratio`.

  Args:
    image: any size.
    size: (width, height) of the result.
    draw: gives the next random number in [0, 1).
    scale: lowest and highest share.
    ratio: lowest and highest ratio.
  """
  width, height = image.size
  low, high = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(_ATTEMPTS):
    # Two draws for the shape, two more where it fits: never over 22 in all.
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draw())
    aspect = math.exp(low + (high - low) * draw())
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left = int((width - w + 1) * draw())
      top = int((height - h + 1) * draw())
      break
  else:
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
  return image.resize(size, _BILINEAR, box=(left, top, left + w, top + h))


def to_array(image: Image.Image) -> np.ndarray:
  """uint8[H, W, Ch]."""
  pixels = np.asarray(image)
  return pixels if pixels.ndim == 3 else pixels[..., None]


def _turned(image: Image.Image) -> Image.Image:
  try:
    return ImageOps.exif_transpose(image)
  except Exception:  # whatever a damaged EXIF part does; the pixels are read
    return image


def _converted(image: Image.Image, mode: str) -> Image.Image:
  if image.mode == mode:
    return image
  if image.mode.startswith("I"):  # 16 bits, which `convert` would clip
    grey = np.asarray(image).astype(np.int64) >> 8
    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
  if image.mode == "P" and "transparency" in image.info:
    image = image.convert("RGBA")
  return image.convert(mode)
