"""Keyed, batched augmentation, to run inside the training step.

Every example has its own key, derived from its position in the global batch:
results do not depend on how many devices share the batch.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

PadMode = Literal["constant", "reflect"]


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel, pixels counted as 0 to 1.

  Args:
    images: uint8[N, H, W, Ch].

  Returns:
    (mean float32[Ch], std float32[Ch]); a channel of one value has std 1.
  """
  values = np.arange(256) / 255
  mean, std = [], []
  for channel in np.moveaxis(images, -1, 0):
    counts = np.bincount(channel.ravel(), minlength=256)  # exact, whole numbers
    average = counts @ values / counts.sum()
    variance = counts @ (values - average) ** 2 / counts.sum()
    mean.append(average)
    std.append(np.sqrt(variance) if np.count_nonzero(counts) > 1 else 1.0)
  return np.array(mean, np.float32), np.array(std, np.float32)


def normalise(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
  """uint8[B, H, W, Ch] -> float32[B, H, W, Ch]: (pixel / 255 - mean) / std.

  Args:
    images: uint8[B, H, W, Ch].
    mean: [Ch], as from `channel_statistics`.
    std: [Ch].
  """
  mean, std = _per_channel(mean), _per_channel(std)
  return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def augment(
  key: jax.Array,
  positions: jax.Array,
  images: jax.Array,
  *,
  pad: int = 0,
  flip: bool = False,
  cutout: int = 0,
  pad_mode: PadMode = "constant",
  fill: ArrayLike = 0,
) -> jax.Array:
  """One random view of each image: cropped, mirrored, cut out.

  Args:
    key: PRNG key of this step.
    positions: int[B] places in the global batch.
    images: [B, H, W, Ch], before `normalise`.
    pad: border for random crops, 0 for none.
    flip: mirror half of the images left to right.
    cutout: side of the square hole, 0 for none.
    pad_mode: "constant" (0, which is black) or "reflect".
    fill: value of the hole, for all channels or [Ch].

  Returns:
    [B, H, W, Ch], same dtype.
  """
  # Split for all three, used or not: turning one off leaves the others as they
  # are.
  keys = jax.vmap(lambda k: jax.random.split(k, 3))(
    example_keys(key, positions)
  )
  if pad:
    images = pad_crop(keys[:, 0], images, pad=pad, mode=pad_mode)
  if flip:
    images = random_flip(keys[:, 1], images)
  if cutout:
    images = cut_out(keys[:, 2], images, size=cutout, fill=fill)
  return images


def example_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
  """One key an example, from its place in the global batch: keys[B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, positions)


def pad_crop(
  keys: jax.Array,
  images: jax.Array,
  *,
  pad: int,
  mode: PadMode = "constant",
) -> jax.Array:
  """Pads each image and crops it back to its size at a random place.

  Args:
    keys: keys[B].
    images: [B, H, W, Ch].
    pad: border on each side.
    mode: "constant" pads with 0, "reflect" mirrors without the edge pixel.

  Returns:
    [B, H, W, Ch], same dtype.
  """
  height, width = images.shape[1:3]
  if mode == "reflect" and pad >= min(height, width):
    raise ValueError(
      f"pad={pad} must be smaller than the images, {height}x{width}, to reflect"
    )
  borders = ((0, 0), (pad, pad), (pad, pad), (0, 0))
  padded = jnp.pad(images, borders, mode=mode)
  offset = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * pad + 1))(keys)
  # Two gathers by rows and columns beat a vmapped dynamic slice.
  rows = offset[:, :1] + jnp.arange(height)[None]
  columns = offset[:, 1:] + jnp.arange(width)[None]
  padded = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1)
  return jnp.take_along_axis(padded, columns[:, None, :, None], axis=2)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability 1/2.

  Args:
    keys: keys[B].
    images: [B, H, W, Ch].

  Returns:
    [B, H, W, Ch], same dtype.
  """
  mirrored = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def cut_out(
  keys: jax.Array,
  images: jax.Array,
  *,
  size: int,
  fill: ArrayLike = 0,
) -> jax.Array:
  """Blanks a square of each image, centred anywhere (DeVries & Taylor 2017).

  Args:
    keys: keys[B].
    images: [B, H, W, Ch].
    size: side of the square, less where it reaches over an edge.
    fill: its value, for all channels or [Ch].

  Returns:
    [B, H, W, Ch], same dtype.
  """
  height, width = images.shape[1:3]
  # Its centre, not its corner, is inside: the paper lets holes reach over
  # edges.
  limits = jnp.array([height, width])
  centre = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, limits))(keys)
  corner = centre - size // 2
  row = _within(corner[:, 0], height, size)
  column = _within(corner[:, 1], width, size)
  hole = row[:, :, None] & column[:, None, :]
  blank = jnp.broadcast_to(jnp.asarray(fill, images.dtype), images.shape[-1])
  return jnp.where(hole[..., None], blank.reshape(1, 1, 1, -1), images)


def mixup(
  values: jax.Array, partners: jax.Array, weight: ArrayLike
) -> jax.Array:
  """Convex combinations of examples, images or targets (Zhang et al. 2018).

  The caller pairs the examples over the global batch (such as with the next
  one), so that pairs do not depend on the number of devices.

  Args:
    values: float[B, ...].
    partners: [B, ...] the other of each pair.
    weight: share of the first of the two, a scalar or [B].

  Returns:
    [B, ...].
  """
  weight = jnp.asarray(weight)
  weight = weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
  return weight * values + (1 - weight) * partners


def _within(start: jax.Array, length: int, size: int) -> jax.Array:
  """bool[B, length]: start <= place < start + size."""
  place = jnp.arange(length)[None] - start[:, None]
  return (place >= 0) & (place < size)


def _per_channel(values: ArrayLike) -> jax.Array:
  return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
