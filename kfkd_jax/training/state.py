"""What a run carries from step to step: arrays only."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax.numpy as jnp
import optax

from kfkd_jax import models


class TrainState(NamedTuple):
  """Everything a resumed run needs.

  Attributes:
    step: `i32[]` finished steps.
    params: the network's parameters.
    batch_stats: its BatchNorm statistics, `{}` without BatchNorm.
    opt_state: the optimiser's state.
    average: exponential moving average of `{"params", "batch_stats"}`, `{}`
      when none is kept.
  """

  step: chex.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  average: Any

  @property
  def variables(self) -> dict[str, Any]:
    """The network's `{"params", "batch_stats"}`."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  key: chex.PRNGKey,
  images: chex.Array,
  *,
  keep_average: bool = False,
) -> TrainState:
  """A fresh state for inputs shaped like `images[1, ...]`."""
  variables = models.init(module, key, images)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimizer.init(variables["params"]),
    average=variables if keep_average else {},
  )
