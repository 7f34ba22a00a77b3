"""Dense networks (Huang et al. 2017), with stems for small and large images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class Layer(nn.Module):
  """A 1x1 and a 3x3 convolution; what they give is added as new channels."""

  growth: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  drop_path: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    y = nn.relu(self.norm(name="norm1")(x))
    y = self.conv(4 * self.growth, (1, 1), name="conv1")(y)
    y = nn.relu(self.norm(name="norm2")(y))
    y = self.conv(self.growth, (3, 3), 1, 1, name="conv2")(y)
    y = layers.skip(y, keys, self.drop_path)
    return jnp.concatenate([x, y], axis=-1)


class DenseNet(layers.Dropping):
  """A stem, four blocks with half of the channels and pixels kept between them.

  The stem is a 3x3 convolution (`cifar`) or a strided 7x7 one and a max pool
  (`imagenet`). `width` channels leave it, and a layer adds half as many.
  `remat` computes a layer's inner activations anew in the backward pass.
  `dropout` is that of what the classifier reads.
  """

  stage_sizes: Sequence[int] = (6, 12, 24, 16)
  width: int = 64
  stem: str = "imagenet"
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: chex.Array, *, train: bool = False, keys: layers.Keys = None
  ) -> chex.Array:
    conv, norm = layers.conv(self), layers.batch_norm(self, train=train)
    layer = functools.partial(
      nn.remat(Layer) if self.remat else Layer, self.width // 2, conv, norm
    )
    x = layers.residual_stem(
      self,
      x,
      norm,
      width=self.width,
      stem=self.stem,
      names=("features.conv0", "features.norm0"),
    )
    rates = self.path_rates(sum(self.stage_sizes))
    for stage, size in enumerate(self.stage_sizes):
      if stage:
        prefix = f"features.transition{stage}"
        x = nn.relu(norm(name=f"{prefix}.norm")(x))
        x = conv(x.shape[-1] // 2, (1, 1), name=f"{prefix}.conv")(x)
        x = nn.avg_pool(x, (2, 2), (2, 2))
      first = sum(self.stage_sizes[:stage])
      for b in range(size):
        name = f"features.denseblock{stage + 1}.denselayer{b + 1}"
        drawn = layers.layer_keys(keys, first + b)
        x = layer(rates[first + b], name=name)(x, drawn)
    x = nn.relu(norm(name="features.norm5")(x))
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    self.sow("intermediates", "features", x)
    drawn = layers.layer_keys(keys, sum(self.stage_sizes))
    x = layers.drop(x, drawn, self.dropout)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name="classifier")(x)


DenseNet121 = functools.partial(DenseNet, stage_sizes=(6, 12, 24, 16))
