"""Residual networks (He et al. 2016), with stems for small and large images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

  features: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    y = self.conv(self.features, (3, 3), self.strides, 1, name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.features, (3, 3), 1, 1, name="conv2")(y)
    y = self.norm(name="bn2")(y)
    return nn.relu(_shortcut(self, x, y) + y)


class Bottleneck(nn.Module):
  """A 3x3 convolution between two 1x1, the last four times as wide."""

  features: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    y = self.conv(self.features, (1, 1), name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.features, (3, 3), self.strides, 1, name="conv2")(y)
    y = nn.relu(self.norm(name="bn2")(y))
    y = self.conv(4 * self.features, (1, 1), name="conv3")(y)
    y = self.norm(name="bn3")(y)
    return nn.relu(_shortcut(self, x, y) + y)


def _shortcut(block, x: chex.Array, y: chex.Array) -> chex.Array:
  if x.shape == y.shape:
    return x
  conv = block.conv(y.shape[-1], (1, 1), block.strides, name="downsample.0")
  return block.norm(name="downsample.1")(conv(x))


class ResNet(layers.Classifier):
  """A stem, four stages of `block`, mean pooling.

  The stem is a 3x3 convolution (`cifar`) or a strided 7x7 one and a max pool
  (`imagenet`). `width` channels in the first stage, twice as many in each next.
  `remat` computes a block's inner activations anew in the backward pass.
  """

  block: type[nn.Module] = BasicBlock
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  stem: str = "cifar"
  remat: bool = False

  @nn.compact
  def __call__(self, x: chex.Array, *, train: bool = False) -> chex.Array:
    conv, norm = layers.conv(self), layers.batch_norm(self, train=train)
    block = nn.remat(self.block) if self.remat else self.block
    x = layers.residual_stem(
      self, x, norm, width=self.width, stem=self.stem, names=("conv1", "bn1")
    )
    for stage, size in enumerate(self.stage_sizes):
      for b in range(size):
        strides = 2 if stage and not b else 1
        features = self.width * 2**stage
        name = f"layer{stage + 1}.{b}"
        x = block(features, strides, conv, norm, name=name)(x)
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    self.sow("intermediates", "features", x)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="fc")(x)


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3))
ResNet50 = functools.partial(
  ResNet, block=Bottleneck, stage_sizes=(3, 4, 6, 3), stem="imagenet"
)
