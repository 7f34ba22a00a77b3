"""Averages of models in weight space: EMA, SWA and soups.

Every function averages all floating leaves it is given, so pass batch
statistics along with the parameters. Sums run in float32 and come back in the
leaf's own dtype: keep a long-lived average in float32. Leaves that are no
floats (counters) are taken from the newest model. Letters: C checkpoints.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import history, stacks


def ema_update(average: Any, new: Any, *, decay: ArrayLike) -> Any:
  """Returns decay * average + (1 - decay) * new.

  Args:
    average: pytree.
    new: pytree of the same structure.
    decay: in [0, 1], the share of the old average that stays.
  """
  return _step_towards(average, new, 1 - jnp.asarray(decay, jnp.float32))


def ema_debias(average: Any, *, decay: ArrayLike, count: ArrayLike) -> Any:
  """Returns an EMA that began at zeros, scaled so that its weights sum to 1.

  Args:
    average: pytree, after `count` calls of `ema_update` from zeros.
    decay: the decay of those updates.
    count: their number, at least 1.
  """
  total = 1 - jnp.asarray(decay, jnp.float32) ** count
  return jax.tree.map(
    lambda leaf: _cast(leaf / total, leaf) if _is_float(leaf) else leaf, average
  )


def running_mean(average: Any, new: Any, *, count: ArrayLike) -> Any:
  """Adds one model to an equal-weight average (SWA, Izmailov et al. 2018).

  Args:
    average: pytree, the mean of `count` models; any finite values where
      count is 0.
    new: pytree of the same structure.
    count: number of models already in `average`.
  """
  return _step_towards(average, new, 1 / (jnp.asarray(count) + 1))


def weighted_average(stacked: Any, weights: ArrayLike) -> Any:
  """Returns the weighted sum of stacked models (uniform weights: a soup).

  A model of weight 0 is left out even where it is not finite.

  Args:
    stacked: pytree with leaves [C, ...].
    weights: [C], not negative, of sum 1 (not looked at where traced).

  Returns:
    The pytree without the leading axis.
  """
  size = history.num_checkpoints(stacked)
  stacks.check_weights(weights, size)
  weights = jnp.asarray(weights, jnp.float32)

  def average(leaf):
    if not _is_float(leaf):
      return leaf[-1]
    used = weights.reshape(-1, *[1] * (np.ndim(leaf) - 1)) != 0
    total = jnp.einsum(
      "c,c...->...",
      weights,
      jnp.where(used, leaf, 0),
      precision=jax.lax.Precision.HIGHEST,
    )
    return _cast(total, leaf)

  return jax.tree.map(average, stacked)


def greedy_soup(
  stacked: Any,
  scores: ArrayLike,
  evaluate_fn: Callable[[Any], float],
) -> np.ndarray:
  """Chooses models whose average scores well (Wortsman et al. 2022).

  From the best single model on, in order of score (ties: the latest first), a
  model stays in if the average's score does not fall.

  Args:
    stacked: pytree with leaves [C, ...].
    scores: [C] score of each model alone, higher is better; nan comes last.
    evaluate_fn: variables -> score of an average, on the selection split.

  Returns:
    f32[C] weights, equal for those that stayed and 0 for the others.
  """
  size = history.num_checkpoints(stacked)
  if np.shape(scores) != (size,):
    raise ValueError(
      f"scores must have shape ({size},), one for each stacked checkpoint; "
      f"got {np.shape(scores)}."
    )
  ranks = np.nan_to_num(np.asarray(scores, float), nan=-np.inf)
  order = np.argsort(ranks, kind="stable")[::-1]
  kept = [order[0]]
  soup = history.take_checkpoints(stacked, order[0])
  best = float(evaluate_fn(soup))
  for index in order[1:]:
    member = history.take_checkpoints(stacked, index)
    candidate = running_mean(soup, member, count=len(kept))
    score = float(evaluate_fn(candidate))
    if score >= best:
      kept, soup, best = [*kept, index], candidate, score
  weights = np.zeros(size, np.float32)
  weights[kept] = 1 / len(kept)
  return weights


def reestimate_batch_stats(
  batch_stats_fn: Callable[[Any, Any], Any],
  variables: Any,
  batches: Iterable[Any],
) -> Any:
  """Returns batch statistics for averaged parameters, from one pass over data.

  An average of networks has activations of its own, to which the average of
  their statistics does not belong.

  Args:
    batch_stats_fn: (variables, batch) -> the statistics of that batch alone.
      Variances stay those of the batches, over B as Flax has them in training:
      the mean of them is below that of all examples by what lies between the
      batches' means, about 1/B.
    variables: passed to `batch_stats_fn`.
    batches: pytrees with leaves [B, ...]; B may vary and weights each batch.

  Returns:
    The mean of the batches' statistics.
  """
  average, total = None, 0
  for batch in batches:
    size = len(jax.tree.leaves(batch)[0])
    total += size
    stats = batch_stats_fn(variables, batch)
    if average is None:
      average = stats
    else:
      average = _step_towards(average, stats, jnp.float32(size / total))
  if average is None:
    raise ValueError("batches must hold at least one batch; got none.")
  return average


def _step_towards(average: Any, new: Any, share: jax.Array) -> Any:
  """Returns (1 - share) * average + share * new, leaf by leaf."""

  def mix(old, new):
    if not _is_float(old):
      return new
    mixed = (1 - share) * jnp.asarray(old, jnp.float32) + share * new
    return _cast(mixed, old)

  return jax.tree.map(mix, average, new)


def _is_float(leaf: ArrayLike) -> bool:
  return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _cast(values: jax.Array, like: ArrayLike) -> jax.Array:
  return values.astype(jnp.result_type(like))
