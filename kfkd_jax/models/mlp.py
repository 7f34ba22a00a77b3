"""A multi-layer perceptron on flattened inputs."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class MLP(layers.Classifier):
  """`depth` hidden layers of `width` units with BatchNorm, then the classes."""

  width: int = 256
  depth: int = 2

  @nn.compact
  def __call__(self, x: chex.Array, *, train: bool = False) -> chex.Array:
    x = x.reshape(x.shape[0], -1).astype(self.dtype)
    norm = layers.batch_norm(self, train=train)
    for _ in range(self.depth):
      x = nn.Dense(self.width, dtype=self.dtype)(x)
      x = nn.relu(norm()(x))
    self.sow("intermediates", "features", x)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)
