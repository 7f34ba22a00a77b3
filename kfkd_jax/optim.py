"""Optimisers: plain values in, an optax transformation and its schedule out."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

SCHEDULES = (
  "constant",
  "cosine",
  "step",
  "restarts",
  "triangular",
  "swa",
)
OPTIMIZERS = ("sgd", "adamw")


def make_schedule(
  name: str,
  learning_rate: float,
  total_steps: int,
  *,
  warmup_steps: int = 0,
  boundaries: tuple[float, ...] = (0.5, 0.75),
  decay: float = 0.1,
  cycle_steps: int | None = None,
  low: float = 0.1,
  hold: float = 0.75,
) -> optax.Schedule:
  """The learning rate as a function of the step.

  Args:
    name: `constant`, `cosine` (to zero), `step`, `restarts` (cosine to zero,
      again and again; Snapshot Ensembles), `triangular` (down to `low` in the
      middle of each cycle and up again; FGE) or `swa` (down to `low`, and held
      there or cycling above it; Stochastic Weight Averaging).
    learning_rate: the peak value.
    total_steps: the length of the run; `cosine` ends there.
    warmup_steps: steps of linear increase from zero, part of the total.
    boundaries: for `step`: shares of the run after which the rate is multiplied
      by `decay`.
    decay: for `step`.
    cycle_steps: for `restarts` and `triangular`, and `swa` if it cycles.
    low: the lowest rate of `triangular` and `swa`, as a share of the peak.
    hold: for `swa`: share of the run after which the rate is low.
  """
  rest = max(total_steps - warmup_steps, 1)
  if name == "constant":
    main = optax.constant_schedule(learning_rate)
  elif name == "cosine":
    main = optax.cosine_decay_schedule(learning_rate, rest)
  elif name == "step":
    # Shares count from the run's start, the schedule from the warm-up's end.
    steps = {round(b * total_steps) - warmup_steps: decay for b in boundaries}
    main = optax.piecewise_constant_schedule(learning_rate, steps)
  elif name in ("restarts", "triangular"):
    if cycle_steps is None:
      raise ValueError(f"schedule {name!r} needs cycle_steps; it is None")

    def main(step):
      done = (step % cycle_steps) / cycle_steps
      if name == "restarts":
        return learning_rate * ((1 + jnp.cos(jnp.pi * done)) / 2)
      return learning_rate * (1 - (1 - low) * (1 - jnp.abs(1 - 2 * done)))

  elif name == "swa":
    start = round(hold * total_steps) - warmup_steps
    main = _swa(learning_rate, start, low, cycle_steps)
  else:
    raise ValueError(f"schedule {name!r} is unknown; choose from {SCHEDULES}")
  if not warmup_steps:
    return main
  rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([rise, main], [warmup_steps])


def _swa(peak, start, low, cycle_steps) -> optax.Schedule:
  """Half of the way to `start` at the peak, a straight way down to nine tenths.

  As Izmailov et al. 2018 train before they average. From `start` on the rate
  stays low, or falls from the peak to `low` in every cycle.
  """

  def schedule(step):
    way = jnp.clip((step / max(start, 1) - 0.5) / 0.4, 0, 1)
    before = 1 - (1 - low) * way
    after = jnp.float32(low)
    if cycle_steps is not None:
      done = ((step - start) % cycle_steps + 1) / cycle_steps
      after = 1 - (1 - low) * done
    return peak * jnp.where(step < start, before, after)

  return schedule


def decay_mask(params: chex.ArrayTree) -> chex.ArrayTree:
  """True for matrices and kernels, False for biases and norm parameters."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def make_optimizer(
  name: str,
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  decay_everything: bool = False,
  head: Callable[[chex.ArrayTree], chex.ArrayTree] | None = None,
  backbone_rate: float = 1.0,
  head_steps: int = 0,
) -> optax.GradientTransformation:
  """SGD with momentum, or AdamW.

  Weight decay in `sgd` is added to the gradient before the momentum, as in the
  papers' recipes; in `adamw` it is decoupled.

  Args:
    name: `sgd` or `adamw`.
    schedule: from `make_schedule`.
    momentum: for `sgd`.
    nesterov: for `sgd`.
    weight_decay: its strength.
    clip_norm: gradients longer than this are shortened to it; None: never.
    decay_everything: also decay biases and norm parameters.
    head: True for the parameters of the last layer, False for the backbone;
      None: all are the last layer's.
    backbone_rate: what the backbone has of the learning rate.
    head_steps: in which the backbone stands still.
  """
  mask = None if decay_everything else decay_mask
  if name == "sgd":
    parts = [
      optax.add_decayed_weights(weight_decay, mask),
      optax.sgd(schedule, momentum, nesterov=nesterov),
    ]
  elif name == "adamw":
    parts = [optax.adamw(schedule, weight_decay=weight_decay, mask=mask)]
  else:
    raise ValueError(f"optimizer {name!r} is unknown; choose {OPTIMIZERS}")
  if clip_norm is not None:
    parts.insert(0, optax.clip_by_global_norm(clip_norm))
  if head is not None and (backbone_rate < 1 or head_steps):
    # Before as well, or momentum would gather while it stands still.
    parts = [
      _backbone_times(1.0, head_steps, head),
      *parts,
      _backbone_times(backbone_rate, head_steps, head),
    ]
  return optax.chain(*parts)


def _backbone_times(rate, head_steps, head) -> optax.GradientTransformation:
  """Multiplies the backbone's updates: by 0 at first, by `rate` then."""

  def backbone(params):
    return jax.tree.map(lambda is_head: not is_head, head(params))

  return optax.masked(
    optax.scale_by_schedule(lambda step: rate * (step >= head_steps)), backbone
  )
