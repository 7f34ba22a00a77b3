"""ConvNeXt (Liu et al. 2022)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from kfkd_jax.models import layers

_gelu = functools.partial(jax.nn.gelu, approximate=False)


class Block(nn.Module):
  """A depthwise 7x7 convolution, then an MLP on each pixel, scaled, added."""

  dtype: jnp.dtype
  layer_scale: float
  drop_path: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    width = x.shape[-1]
    y = layers.Conv(
      width,
      (7, 7),
      padding=3,
      feature_group_count=width,
      dtype=self.dtype,
      kernel_init=layers.linear_init,
      name="conv_dw",
    )(x)
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm")(y)
    y = layers.Mlp(_gelu, self.dtype, name="mlp")(y)
    first = nn.initializers.constant(self.layer_scale)
    gamma = self.param("gamma", first, (width,))
    y = y * jnp.asarray(gamma, self.dtype).reshape(1, 1, 1, -1)
    return x + layers.skip(y, keys, self.drop_path)


class ConvNeXt(layers.Dropping):
  """A stem, four stages, mean pooling.

  The stem is a 4x4 convolution with stride 4 (`imagenet`) or a 3x3 one without
  (`cifar`). `width` channels in the first stage, twice as many in each next.
  `remat` computes a block's inner activations anew in the backward pass.
  `layer_scale` is what the factors of a block's output begin with, `dropout`
  that of what the classifier reads. There is no BatchNorm, so `axis_name` and
  `norm_momentum` change nothing.
  """

  stage_sizes: Sequence[int] = (3, 3, 9, 3)
  width: int = 96
  stem: str = "imagenet"
  remat: bool = False
  layer_scale: float = 1e-6

  @nn.compact
  def __call__(
    self, x: chex.Array, *, train: bool = False, keys: layers.Keys = None
  ) -> chex.Array:
    self._check(x.shape)
    conv = functools.partial(
      layers.Conv, dtype=self.dtype, kernel_init=layers.linear_init
    )
    norm = functools.partial(nn.LayerNorm, 1e-6, dtype=self.dtype)
    block = nn.remat(Block) if self.remat else Block
    small = self.stem == "cifar"
    kernel, strides, padding = ((3, 3), 1, 1) if small else ((4, 4), 4, 0)
    x = x.astype(self.dtype)
    x = conv(self.width, kernel, strides, padding, name="stem.0")(x)
    x = norm(name="stem.1")(x)
    number, rates = 0, self.path_rates(sum(self.stage_sizes))
    for stage, size in enumerate(self.stage_sizes):
      prefix = f"stages.{stage}"
      if stage:
        x = norm(name=f"{prefix}.downsample.0")(x)
        features = self.width * 2**stage
        x = conv(features, (2, 2), 2, 0, name=f"{prefix}.downsample.1")(x)
      for b in range(size):
        x = block(
          self.dtype,
          self.layer_scale,
          rates[number],
          name=f"{prefix}.blocks.{b}",
        )(x, layers.layer_keys(keys, number))
        number += 1
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    x = nn.LayerNorm(1e-6, dtype=jnp.float32, name="head.norm")(x)
    self.sow("intermediates", "features", x)
    x = layers.drop(x, layers.layer_keys(keys, number), self.dropout)
    return layers.Linear(self.num_classes, dtype=jnp.float32, name="head.fc")(x)

  def _check(self, shape: tuple[int, ...]) -> None:
    layers.check_stem(self.stem)
    smallest = 2 ** (len(self.stage_sizes) - 1)
    smallest *= 1 if self.stem == "cifar" else 4
    if min(shape[1:3]) < smallest:
      raise ValueError(
        f"images {shape[1]}x{shape[2]} are too small for ConvNeXt with stem "
        f"{self.stem!r}, which needs {smallest}x{smallest} or more"
      )


ConvNeXtTiny = functools.partial(ConvNeXt, stage_sizes=(3, 3, 9, 3), width=96)
ConvNeXtSmall = functools.partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=96)
ConvNeXtBase = functools.partial(ConvNeXt, stage_sizes=(3, 3, 27, 3), width=128)
ConvNeXtLarge = functools.partial(
  ConvNeXt, stage_sizes=(3, 3, 27, 3), width=192
)
