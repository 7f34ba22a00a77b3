"""RandAugment (Cubuk et al. 2019): a few random operations, one strength.

The fourteen operations and their ranges are those of the paper's table, which
AutoAugment (Cubuk et al. 2018) introduced. All of them grow with the magnitude,
as the paper says of it; in the authors' code `solarize` and `posterize` do most
at 0. A shift is AutoAugment's 150 pixels of 331 as a share of the side, where
that code has 100 pixels whatever the image: a small one would be pushed out.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
_GREY = 128  # fills what a shift or turn uncovers
_SHIFT = 150 / 331  # of the side, at full strength

Operation = Callable[[Image.Image, float, float], Image.Image]


def rand_augment(
  image: Image.Image,
  draw: Callable[[], float],
  *,
  num_ops: int,
  magnitude: float,
) -> Image.Image:
  """Applies `num_ops` random operations, each at the same magnitude.

  Args:
    image: grey or RGB.
    draw: gives the next random number in [0, 1); two an operation.
    num_ops: the paper's N.
    magnitude: the paper's M, 0 to `MAX_MAGNITUDE`.
  """
  strength = magnitude / MAX_MAGNITUDE
  # Both draws even where an operation has no sign: what comes later does not
  # depend on which operation came first.
  for _ in range(num_ops):
    operation = OPERATIONS[_NAMES[int(draw() * len(_NAMES))]]
    sign = 1.0 if draw() < 0.5 else -1.0
    image = operation(image, strength, sign)
  return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  fill = (_GREY,) * len(image.getbands())
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    Image.Resampling.BILINEAR,
    fillcolor=fill if len(fill) > 1 else _GREY,
  )


def _rotate(image, strength, sign):
  fill = (_GREY,) * len(image.getbands())
  return image.rotate(
    30 * strength * sign,
    Image.Resampling.BILINEAR,
    fillcolor=fill if len(fill) > 1 else _GREY,
  )


def _enhance(kind) -> Operation:
  def apply(image, strength, sign):
    return kind(image).enhance(1 + 0.9 * strength * sign)

  return apply


OPERATIONS: dict[str, Operation] = {
  "identity": lambda image, strength, sign: image,
  "auto_contrast": lambda image, strength, sign: ImageOps.autocontrast(image),
  "equalize": lambda image, strength, sign: ImageOps.equalize(image),
  "rotate": _rotate,
  "solarize": lambda image, strength, sign: ImageOps.solarize(
    image, 256 - round(256 * strength)
  ),
  "color": _enhance(ImageEnhance.Color),
  "posterize": lambda image, strength, sign: ImageOps.posterize(
    image, 8 - round(4 * strength)
  ),
  "contrast": _enhance(ImageEnhance.Contrast),
  "brightness": _enhance(ImageEnhance.Brightness),
  "sharpness": _enhance(ImageEnhance.Sharpness),
  "shear_x": lambda image, strength, sign: _affine(
    image, 1, 0.3 * strength * sign, 0, 0, 1, 0
  ),
  "shear_y": lambda image, strength, sign: _affine(
    image, 1, 0, 0, 0.3 * strength * sign, 1, 0
  ),
  "translate_x": lambda image, strength, sign: _affine(
    image, 1, 0, _SHIFT * strength * sign * image.width, 0, 1, 0
  ),
  "translate_y": lambda image, strength, sign: _affine(
    image, 1, 0, 0, 0, 1, _SHIFT * strength * sign * image.height
  ),
}
_NAMES = tuple(OPERATIONS)
