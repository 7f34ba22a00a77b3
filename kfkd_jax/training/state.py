"""What a run carries from step to step: arrays only."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kfkd_jax import models, parallel


class TrainState(NamedTuple):
  """Everything a resumed run needs.

  Attributes:
    step: `i32[]` finished steps.
    params: the network's parameters.
    batch_stats: its BatchNorm statistics, `{}` without BatchNorm.
    opt_state: the optimiser's state.
    average: exponential moving average of `{"params", "batch_stats"}`, `{}`
      when none is kept.
    memory: what the objective remembers of every example, each leaf
      `[N', ...]` with rows shared out over the devices, `{}` for nothing.
  """

  step: chex.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  average: Any
  memory: Any

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
  memory: Any = None,
) -> TrainState:
  """A fresh state for inputs shaped like `images[1, ...]`."""
  variables = models.init(module, key, images)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimizer.init(variables["params"]),
    average=variables if keep_average else {},
    memory={} if memory is None else memory,
  )


SPECS = TrainState(
  step=parallel.REPLICATED,
  params=parallel.REPLICATED,
  batch_stats=parallel.REPLICATED,
  opt_state=parallel.REPLICATED,
  average=parallel.REPLICATED,
  memory=parallel.SHARDED,
)


def put(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
  """A state of host arrays on the devices."""
  # Apart: memory is shared out over the devices, all else is on each.
  parts = parallel.replicate(state._replace(memory={}), mesh)
  return parts._replace(memory=parallel.shard(state.memory, mesh))
