"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class Block(nn.Module):
  """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut."""

  features: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    y = nn.relu(self.norm(name="bn1")(x))
    if x.shape[-1] != self.features:
      # A projection sees what the convolution sees, not the raw input.
      x = self.conv(self.features, (1, 1), self.strides, name="convShortcut")(y)
    y = self.conv(self.features, (3, 3), self.strides, 1, name="conv1")(y)
    y = nn.relu(self.norm(name="bn2")(y))
    return x + self.conv(self.features, (3, 3), 1, 1, name="conv2")(y)


class WideResNet(layers.Classifier):
  """A 3x3 stem of 16 channels and three stages of `depth` blocks.

  `width` channels in the first stage: 160 is "ten times as wide". `remat`
  computes a block's inner activations anew in the backward pass.
  """

  depth: int = 4
  width: int = 160
  remat: bool = False

  @nn.compact
  def __call__(self, x: chex.Array, *, train: bool = False) -> chex.Array:
    conv, norm = layers.conv(self), layers.batch_norm(self, train=train)
    block = nn.remat(Block) if self.remat else Block
    x = conv(16, (3, 3), 1, 1, name="conv1")(x.astype(self.dtype))
    for stage in range(3):
      for b in range(self.depth):
        strides = 2 if stage and not b else 1
        features = self.width * 2**stage
        name = f"block{stage + 1}.layer.{b}"
        x = block(features, strides, conv, norm, name=name)(x)
    x = nn.relu(norm(name="bn1")(x))
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    self.sow("intermediates", "features", x)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="fc")(x)


WideResNet28x10 = functools.partial(WideResNet, depth=4, width=160)
