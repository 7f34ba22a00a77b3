"""MobileNetV3 (Howard et al. 2019), with stems for small and large images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class Kind(NamedTuple):
  """One block of the published tables.

  Attributes:
    kernel: side of the depthwise convolution.
    wide: channels that it sees.
    features: channels that leave the block.
    gated: whether channels are scaled by a gate computed from their means.
    hard: hard swish instead of ReLU.
    strides: of the depthwise convolution.
  """

  kernel: int
  wide: int
  features: int
  gated: bool
  hard: bool
  strides: int = 1


# By resolution; the networks differ in these and in the width of their head.
LARGE = (
  (Kind(3, 16, 16, False, False),),
  (Kind(3, 64, 24, False, False, 2), Kind(3, 72, 24, False, False)),
  (
    Kind(5, 72, 40, True, False, 2),
    *[Kind(5, 120, 40, True, False)] * 2,
  ),
  (
    Kind(3, 240, 80, False, True, 2),
    Kind(3, 200, 80, False, True),
    *[Kind(3, 184, 80, False, True)] * 2,
  ),
  (Kind(3, 480, 112, True, True), Kind(3, 672, 112, True, True)),
  (Kind(5, 672, 160, True, True, 2), *[Kind(5, 960, 160, True, True)] * 2),
)
SMALL = (
  (Kind(3, 16, 16, True, False, 2),),
  (Kind(3, 72, 24, False, False, 2), Kind(3, 88, 24, False, False)),
  (Kind(5, 96, 40, True, True, 2), *[Kind(5, 240, 40, True, True)] * 2),
  (Kind(5, 120, 48, True, True), Kind(5, 144, 48, True, True)),
  (Kind(5, 288, 96, True, True, 2), *[Kind(5, 576, 96, True, True)] * 2),
)


def _by_eights(channels: float) -> int:
  """The nearest multiple of 8, no less than nine tenths of what was asked."""
  nearest = max(8, int(channels + 4) // 8 * 8)
  return nearest if nearest >= 0.9 * channels else nearest + 8


class Block(nn.Module):
  """Wide, a depthwise convolution, gated, narrow again, added where it fits."""

  kind: Kind
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  dtype: jnp.dtype
  drop_path: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    kind = self.kind
    act = nn.hard_swish if kind.hard else nn.relu
    # The first block has no wider inside; its layers have other names there.
    flat = kind.wide == x.shape[-1]
    y = x
    if not flat:
      y = self.conv(kind.wide, (1, 1), name="conv_pw")(y)
      y = act(self.norm(name="bn1")(y))
    y = self.conv(
      kind.wide,
      (kind.kernel, kind.kernel),
      kind.strides,
      kind.kernel // 2,
      feature_group_count=kind.wide,
      name="conv_dw",
    )(y)
    y = act(self.norm(name="bn1" if flat else "bn2")(y))
    if kind.gated:
      y = layers.SqueezeExcite(
        _by_eights(kind.wide / 4),
        self.dtype,
        nn.relu,
        nn.hard_sigmoid,
        ("conv_reduce", "conv_expand"),
        name="se",
      )(y)
    y = self.conv(
      kind.features, (1, 1), name="conv_pw" if flat else "conv_pwl"
    )(y)
    y = self.norm(name="bn2" if flat else "bn3")(y)
    if x.shape != y.shape:
      return y
    return x + layers.skip(y, keys, self.drop_path)


class MobileNetV3(layers.Dropping):
  """A strided stem, blocks, a wide layer behind mean pooling, a head.

  The stem's convolution has stride 2 (`imagenet`) or 1 (`cifar`). `width` is
  that of the layer before the head. `dropout` is that of what the head reads.
  """

  blocks: tuple[tuple[Kind, ...], ...] = LARGE
  width: int = 1280
  stem: str = "imagenet"
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: chex.Array, *, train: bool = False, keys: layers.Keys = None
  ) -> chex.Array:
    layers.check_stem(self.stem)
    conv, norm = layers.conv(self), layers.batch_norm(self, train=train)
    block = nn.remat(Block) if self.remat else Block
    strides = 1 if self.stem == "cifar" else 2
    x = conv(16, (3, 3), strides, 1, name="conv_stem")(x.astype(self.dtype))
    x = nn.hard_swish(norm(name="bn1")(x))
    number, rates = 0, self.path_rates(sum(map(len, self.blocks)))
    for stage, kinds in enumerate(self.blocks):
      for b, kind in enumerate(kinds):
        x = block(
          kind,
          conv,
          norm,
          self.dtype,
          rates[number],
          name=f"blocks.{stage}.{b}",
        )(x, layers.layer_keys(keys, number))
        number += 1
    stage = len(self.blocks)
    x = conv(self.blocks[-1][-1].wide, (1, 1), name=f"blocks.{stage}.0.conv")(x)
    x = nn.hard_swish(norm(name=f"blocks.{stage}.0.bn1")(x))
    x = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    x = conv(self.width, (1, 1), use_bias=True, name="conv_head")(x)
    x = nn.hard_swish(x)[:, 0, 0].astype(jnp.float32)
    self.sow("intermediates", "features", x)
    x = layers.drop(x, layers.layer_keys(keys, number), self.dropout)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="classifier")(x)


MobileNetV3Large = functools.partial(MobileNetV3, blocks=LARGE, width=1280)
MobileNetV3Small = functools.partial(MobileNetV3, blocks=SMALL, width=1024)
