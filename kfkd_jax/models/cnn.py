"""A small convolutional network, the default for the 8x8 digits."""

from __future__ import annotations

import functools

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class CNN(layers.Classifier):
  """Two stages of two 3x3 convolutions with BatchNorm, then global pooling.

  `width` channels in the first stage, twice as many in the second, which runs
  at half the resolution.
  """

  width: int = 16

  @nn.compact
  def __call__(self, x: chex.Array, *, train: bool = False) -> chex.Array:
    conv = functools.partial(layers.Conv, use_bias=False, dtype=self.dtype)
    norm = layers.batch_norm(self, train=train)
    x = x.astype(self.dtype)
    for stage, features in enumerate((self.width, 2 * self.width)):
      for layer in range(2):
        strides = (2, 2) if stage and not layer else (1, 1)
        x = nn.relu(norm()(conv(features, (3, 3), strides)(x)))
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    self.sow("intermediates", "features", x)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)
