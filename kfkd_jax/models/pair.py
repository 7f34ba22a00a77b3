"""Two networks as one module, for objectives in which they teach each other."""

from __future__ import annotations

from collections.abc import Callable

import chex
import flax.linen as nn
import jax.numpy as jnp

from kfkd_jax.models import layers


class Pair(nn.Module):
  """Two networks of one kind, drawn apart; they share nothing but the images.

  In training the logits are `[B, 2, K]`. In evaluation they are `[B, K]`, those
  of the first network, whose variables `first_of` takes out.

  Attributes:
    num_classes: K.
    make: makes one of the networks.
  """

  num_classes: int
  make: Callable[[], nn.Module]

  def setup(self) -> None:
    self.first = self.make()
    self.second = self.make()

  @property
  def is_random(self) -> bool:
    """As for one of the two."""
    return getattr(self.make(), "is_random", False)

  def __call__(
    self, x: chex.Array, *, train: bool = False, keys: layers.Keys = None
  ) -> chex.Array:
    if not train and not self.is_initializing():
      return self.first(x, train=False)
    drawn = [
      {} if keys is None else {"keys": layers.layer_keys(keys, n)}
      for n in range(2)
    ]
    pair = [
      net(x, train=train, **more)
      for net, more in zip((self.first, self.second), drawn, strict=True)
    ]
    return jnp.stack(pair, axis=1) if train else pair[0]


def first_of(variables: dict[str, dict]) -> dict[str, dict]:
  """`{"params", "batch_stats"}` of the first network of a `Pair`."""
  return {name: tree.get("first", {}) for name, tree in variables.items()}
