"""Augmentation against plain loops; keys, dtypes and device independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kfkd_jax.data import augment

KEY = jax.random.key(0)

# Compiled once a shape: much faster to test than one operation at a time.
_keys_for = jax.jit(augment.example_keys)
_pad_crop = jax.jit(augment.pad_crop, static_argnames=("pad", "mode"))
_random_flip = jax.jit(augment.random_flip)
_cut_out = jax.jit(augment.cut_out, static_argnames=("size",))
_augment = jax.jit(
  augment.augment, static_argnames=("pad", "flip", "cutout", "pad_mode")
)
MODES = ("constant", "reflect")


def _images(batch=6, height=8, width=10, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  shape = (batch, height, width, channels)
  return rng.integers(1, 256, shape, np.uint8)


def _keys(batch=6):
  return _keys_for(KEY, jnp.arange(batch))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 3, 5, 2), (4, 8, 8, 3)])
def test_channel_statistics_are_the_plain_ones(shape):
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  mean, std = augment.channel_statistics(images)
  assert mean.dtype == std.dtype == np.float32
  for channel in range(shape[-1]):
    values = images[..., channel].astype(np.float64) / 255
    np.testing.assert_allclose(mean[channel], values.mean(), rtol=1e-6)
    np.testing.assert_allclose(std[channel], values.std() or 1, rtol=1e-6)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_channels_divide_by_one(value):
  images = np.full((59, 1, 1, 1), value, np.uint8)  # 59 x 77 / 255 rounds
  mean, std = augment.channel_statistics(images)
  assert std == 1
  normalised = augment.normalise(images, mean, std)
  np.testing.assert_allclose(normalised, 0, atol=1e-6)


def test_normalise_gives_zero_mean_and_unit_deviation():
  images = _images(200)
  mean, std = augment.channel_statistics(images)
  normalised = augment.normalise(images, tuple(mean), tuple(std))
  assert normalised.dtype == jnp.float32
  np.testing.assert_allclose(normalised.mean((0, 1, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(normalised.std((0, 1, 2)), 1, atol=1e-4)
  pixel = (images[1, 2, 3, 1] / 255 - mean[1]) / std[1]
  np.testing.assert_allclose(normalised[1, 2, 3, 1], pixel, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pad,height,width", [(1, 8, 8), (7, 8, 11)])
def test_pad_crop_is_some_window_of_the_padded_image(mode, pad, height, width):
  images = _images(16, height, width)
  cropped = np.asarray(_pad_crop(_keys(16), images, pad=pad, mode=mode))
  assert cropped.dtype == np.uint8
  tops = []
  for image, result in zip(images, cropped):
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode)
    windows = {
      padded[top : top + height, left : left + width].tobytes(): (top, left)
      for top in range(2 * pad + 1)
      for left in range(2 * pad + 1)
    }
    assert result.tobytes() in windows
    tops.append(windows[result.tobytes()])
  assert len(set(tops)) > 3  # each example has its own window


def test_pad_crop_reaches_every_offset_equally():
  images = np.zeros((4000, 3, 3, 1), np.uint8)
  images[:, 1, 1] = 1
  cropped = np.asarray(_pad_crop(_keys(4000), images, pad=1))
  counts = cropped.sum(0)[..., 0]
  expected = 4000 / 9
  assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_reflecting_needs_a_smaller_border():
  with pytest.raises(ValueError, match=r"pad=8 must be smaller .* 8x10"):
    augment.pad_crop(_keys(), _images(), pad=8, mode="reflect")


def test_flip_mirrors_about_half_left_to_right():
  images = _images(400)
  flipped = np.asarray(_random_flip(_keys(400), images))
  count = 0
  for image, result in zip(images, flipped):
    mirrored = np.array_equal(result, image[:, ::-1])
    assert mirrored or np.array_equal(result, image)
    count += mirrored
  assert abs(count - 200) < 4 * np.sqrt(100)


@pytest.mark.parametrize("size", [1, 2, 3, 40])
def test_cutout_blanks_a_square_around_a_pixel(size):
  images = _images(32, 8, 10)
  cut = np.asarray(_cut_out(_keys(32), images, size=size))
  centres = set()
  for image, result in zip(images, cut):
    matches = []
    for row in range(8):
      for column in range(10):
        top, left = row - size // 2, column - size // 2
        expected = image.copy()
        expected[
          max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)
        ] = 0
        if np.array_equal(result, expected):
          matches.append((row, column))
    assert matches
    centres.add(matches[0])
  assert size == 40 or len(centres) > 8


@pytest.mark.parametrize("fill", [9, (1, 2, 3)])
def test_cutout_fills_with_what_was_asked(fill):
  images = np.full((3, 6, 6, 3), 200, np.uint8)
  cut = np.asarray(_cut_out(_keys(3), images, size=12, fill=fill))
  np.testing.assert_array_equal(cut, np.broadcast_to(fill, cut.shape))


def test_mixup_is_the_convex_combination():
  rng = np.random.default_rng(0)
  images, partners = rng.random((2, 3, 2, 2, 1), np.float32)
  targets, partner_targets = np.eye(4, dtype=np.float32)[[[0, 1, 2], [3, 1, 0]]]
  weights = np.array([0.0, 0.25, 1.0], np.float32)
  mixed = augment.mixup(images, partners, weights)
  mixed_targets = augment.mixup(targets, partner_targets, weights)
  for i, w in enumerate(weights):
    np.testing.assert_allclose(
      mixed[i], w * images[i] + (1 - w) * partners[i], rtol=1e-6
    )
    np.testing.assert_allclose(
      mixed_targets[i], w * targets[i] + (1 - w) * partner_targets[i]
    )
  np.testing.assert_allclose(mixed_targets.sum(1), 1)


def _view(key, positions, images):
  return augment.augment(
    key, positions, images, pad=2, flip=True, cutout=3, pad_mode="reflect"
  )


def test_augment_of_nothing_changes_nothing():
  images = _images()
  result = _augment(KEY, jnp.arange(6), images)
  np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize(
  "options",
  [
    {"pad": 2},
    {"flip": True},
    {"cutout": 4},
    {"pad": 2, "flip": True, "cutout": 4},
  ],
)
def test_augment_is_its_parts_in_order(options):
  images = _images(64)
  keys = jax.jit(jax.vmap(lambda k: jax.random.split(k, 3)))(_keys(64))
  expected = images
  if "pad" in options:
    expected = _pad_crop(keys[:, 0], expected, pad=options["pad"])
  if "flip" in options:
    expected = _random_flip(keys[:, 1], expected)
  if "cutout" in options:
    expected = _cut_out(keys[:, 2], expected, size=options["cutout"])
  result = _augment(KEY, jnp.arange(64), images, **options)
  assert result.dtype == jnp.uint8
  np.testing.assert_array_equal(result, expected)
  assert np.any(np.asarray(result) != images)


def test_parts_draw_independently():
  """Mirrored images are shifted no more to one side than others."""
  images = np.zeros((2000, 5, 5, 1), np.uint8)
  images[:, 2, 2] = 1
  images[:, 2, 0] = 2
  view = np.asarray(_augment(KEY, jnp.arange(2000), images, pad=1, flip=True))
  rows, columns = np.argwhere(view[..., 0] == 1)[:, 1:].T
  shown = [(i == 2).any() for i in view]
  mirrored = np.array(
    [
      np.argwhere(i[..., 0] == 2)[0, 1] > 2 if s else False
      for i, s in zip(view, shown)
    ]
  )
  assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.1
  assert abs(np.corrcoef(rows, mirrored)[0, 1]) < 0.1


def test_jit_equals_no_jit_and_keeps_float32():
  images, positions = _images(), jnp.arange(6)
  plain = _view(KEY, positions, images)
  np.testing.assert_array_equal(jax.jit(_view)(KEY, positions, images), plain)
  normalised = jax.jit(augment.normalise)(plain, jnp.ones(3), jnp.ones(3))
  assert normalised.dtype == jnp.float32
  floats = _view(KEY, positions, images.astype(np.float32))
  assert floats.dtype == jnp.float32
  np.testing.assert_array_equal(floats, plain)


def test_an_example_depends_on_its_position_only():
  images, positions = _images(), jnp.arange(6)
  view = jax.jit(_view)
  whole = np.asarray(view(KEY, positions, images))
  halves = [
    view(KEY, positions[h], images[h]) for h in (slice(0, 3), slice(3, 6))
  ]
  np.testing.assert_array_equal(np.concatenate(halves), whole)
  other = np.asarray(view(jax.random.key(1), positions, images))
  assert np.any(other != whole)
  same = np.repeat(images[:1], 32, 0)
  views = np.asarray(view(KEY, jnp.arange(32), same))
  assert len({view.tobytes() for view in views}) > 16


def test_eight_devices_equal_one():
  assert jax.device_count() == 8
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  images, positions = _images(16), jnp.arange(16)
  whole = jax.jit(_view)(KEY, positions, images)
  split = NamedSharding(mesh, PartitionSpec("data"))
  per_device = jax.jit(
    jax.shard_map(
      lambda p, x: _view(KEY, p, x),
      mesh=mesh,
      in_specs=PartitionSpec("data"),
      out_specs=PartitionSpec("data"),
      check_vma=False,
    )
  )
  np.testing.assert_array_equal(
    per_device(*jax.device_put((positions, images), split)), whole
  )
