"""Optimisers: plain values in, an optax transformation and its schedule out."""

from __future__ import annotations

from typing import Any

import jax
import optax

SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("sgd", "adamw")


def make_schedule(
  name: str,
  learning_rate: float,
  total_steps: int,
  *,
  warmup_steps: int = 0,
  boundaries: tuple[float, ...] = (0.5, 0.75),
  decay: float = 0.1,
) -> optax.Schedule:
  """The learning rate as a function of the step.

  Args:
    name: `constant`, `cosine` (to zero) or `step`.
    learning_rate: the peak value.
    total_steps: the length of the run; `cosine` ends there.
    warmup_steps: steps of linear increase from zero, part of the total.
    boundaries: for `step`: shares of the run after which the rate is multiplied
      by `decay`.
    decay: for `step`.
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
  else:
    raise ValueError(f"schedule {name!r} is unknown; choose from {SCHEDULES}")
  if not warmup_steps:
    return main
  rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([rise, main], [warmup_steps])


def decay_mask(params: Any) -> Any:
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
  return optax.chain(*parts)
