"""Averages of models in weight space: EMA, SWA and soups.

Every function averages all floating leaves it is given, so pass batch
statistics along with the parameters. Sums run in float32 and come back in the
leaf's own dtype: keep a long-lived average in float32. Leaves that are no
floats (counters) are taken from the newest model. Letters: C checkpoints.

`merge` and `greedy_merge` read checkpoints one after another, from anything
with a length and `[c]`; the others take what fits into memory.
"""

from collections.abc import Callable, Iterable, Sequence
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
    lambda leaf: _cast(leaf / total, leaf) if is_float(leaf) else leaf, average
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
    if not is_float(leaf):
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


def merge(checkpoints: Sequence[Any], weights: ArrayLike) -> Any:
  """Returns `weighted_average` of checkpoints that are read one after another.

  Never more is held than the sum and one checkpoint. Those of weight 0 are not
  read, but for the last, whose counters are taken.

  Args:
    checkpoints: C pytrees of one structure, in time order: a list, or anything
      with a length and `[c]`, such as one that reads files.
    weights: [C], not negative, of sum 1.

  Returns:
    The pytree, with NumPy leaves; float64 leaves are summed as such.

  >>> merge([{"w": np.zeros(2)}, {"w": np.ones(2)}], [0.25, 0.75])["w"].tolist()
  [0.75, 0.75]
  """
  size = len(checkpoints)
  stacks.check_weights(weights, size)
  weights = np.asarray(weights, float)
  first, specs, totals = -1, {}, []
  for c in [*np.flatnonzero(weights[:-1]).tolist(), size - 1]:
    tree = checkpoints[c]
    named, structure = history.named_leaves(tree), jax.tree.structure(tree)
    del tree
    if first < 0:
      first = c
      specs = {
        name: jax.ShapeDtypeStruct(np.shape(leaf), _dtype(leaf))
        for name, leaf in named.items()
      }
      # None for what is not summed.
      totals = [
        np.zeros(spec.shape, np.promote_types(spec.dtype, np.float32))
        if is_float(spec)
        else None
        for spec in specs.values()
      ]
    history.check_same_leaves(
      specs, named, names=(f"checkpoint {first}", f"checkpoint {c}")
    )
    for total, leaf in zip(totals, named.values(), strict=True):
      if total is not None and weights[c]:
        _add_scaled(total, np.asarray(leaf), weights[c])
    last = list(named.values())
    del named
  for place, (total, spec) in enumerate(zip(totals, specs.values())):
    if total is not None:
      totals[place] = total.astype(spec.dtype, copy=False)
    else:
      totals[place] = np.asarray(last[place])
  return jax.tree.unflatten(structure, totals)


_BLOCK = 1 << 16  # numbers added at once: two rows of them stay in a cache


def _add_scaled(total: np.ndarray, leaf: np.ndarray, weight: float) -> None:
  """Adds weight * leaf in place, in the type of the total."""
  into, new = total.reshape(-1), leaf.reshape(-1)
  room = np.empty(min(_BLOCK, new.size), total.dtype)
  for start in range(0, new.size, _BLOCK):
    part = room[: new.size - start]
    np.copyto(part, new[start : start + _BLOCK])
    part *= total.dtype.type(weight)
    into[start : start + _BLOCK] += part


def decay_weights(gradient_weights: ArrayLike) -> np.ndarray:
  """Returns the weights that merge checkpoints as a decay would have trained.

  Checkpoints 0..k of training at a constant rate, so merged, are checkpoint 0
  and its k updates, the i-th scaled by w_i: c_0 = 1 - w_1, c_j = w_j - w_{j+1},
  c_k = w_k. Tian et al. 2025, "WSM: Decay-Free Learning Rate Schedule via
  Checkpoint Merging", arXiv 2507.17634, section 3.

  Args:
    gradient_weights: [C-1] w_1..w_k, from 1 down to 0, never rising.

  Returns:
    f32[C].

  >>> decay_weights([0.75, 0.25]).tolist()
  [0.25, 0.5, 0.25]
  """
  curve = np.asarray(gradient_weights, float)
  if curve.ndim != 1:
    raise ValueError(f"gradient_weights must be [C-1]; got {curve.shape}.")
  weights = -np.diff(curve, prepend=1, append=0)
  if not (weights >= 0).all():  # a nan fails as well
    raise ValueError(
      f"gradient_weights must fall from 1 to 0 without rising; got {curve}."
    )
  return weights.astype(np.float32)


def linear_decay(num_checkpoints: int) -> np.ndarray:
  """Returns the weights of a linear decay to 0, which are even ones.

  Args:
    num_checkpoints: C; the rate would be 0 one checkpoint after the last.

  Returns:
    f32[C].
  """
  return decay_weights(1 - _times(num_checkpoints))


def sqrt_decay(num_checkpoints: int) -> np.ndarray:
  """Returns the weights of a decay by 1 - sqrt(t), which favour early ones.

  Args:
    num_checkpoints: C; the rate would be 0 one checkpoint after the last.

  Returns:
    f32[C].

  >>> sqrt_decay(4).astype(float).round(3).tolist()
  [0.5, 0.207, 0.159, 0.134]
  """
  return decay_weights(1 - np.sqrt(_times(num_checkpoints)))


def exponential_decay(num_checkpoints: int, *, decay: float) -> np.ndarray:
  """Returns the weights of a rate that falls by a factor a checkpoint.

  Args:
    num_checkpoints: C.
    decay: the factor, in [0, 1].

  Returns:
    f32[C].

  >>> exponential_decay(3, decay=0.5).tolist()
  [0.5, 0.25, 0.25]
  """
  _check_decay(decay)
  return decay_weights(float(decay) ** np.arange(1, num_checkpoints))


def ema_weights(num_checkpoints: int, *, decay: float) -> np.ndarray:
  """Returns the weights of an EMA over checkpoints that begins at the first.

  Args:
    num_checkpoints: C.
    decay: in [0, 1], the share of the old average that stays.

  Returns:
    f32[C].

  >>> ema_weights(3, decay=0.5).tolist()
  [0.25, 0.25, 0.5]
  """
  _check_decay(decay)
  return decay_weights(
    1 - float(decay) ** np.arange(num_checkpoints - 1, 0, -1)
  )


def _times(num_checkpoints: int) -> np.ndarray:
  return np.arange(1, num_checkpoints) / num_checkpoints


def _check_decay(decay: float) -> None:
  if not 0 <= decay <= 1:
    raise ValueError(f"decay must lie in 0..1; got {decay}.")


def greedy_soup(
  stacked: Any,
  scores: ArrayLike,
  evaluate_fn: Callable[[Any], float],
) -> np.ndarray:
  """`greedy_merge` of a stack.

  Args:
    stacked: pytree with leaves [C, ...].
    scores: as there.
    evaluate_fn: as there.

  Returns:
    f32[C] weights, equal for those that stayed and 0 for the others.
  """
  return greedy_merge(_Stacked(stacked), scores, evaluate_fn)


class _Stacked(Sequence):
  """The checkpoints of a stack, one by one."""

  def __init__(self, stacked: Any):
    self._stacked = stacked
    self._size = history.num_checkpoints(stacked)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, c: Any) -> Any:
    return history.take_checkpoints(self._stacked, c)


def greedy_merge(
  checkpoints: Sequence[Any],
  scores: ArrayLike,
  evaluate_fn: Callable[[Any], float],
) -> np.ndarray:
  """Chooses models whose average scores well (Wortsman et al. 2022).

  From the best single model on, in order of score (ties: the latest first), a
  model stays in if the average's score does not fall. Checkpoints are read one
  at a time, and the best average is held beside the one that is tried.

  Args:
    checkpoints: C pytrees of one structure: a list, or anything with a length
      and `[c]`, such as one that reads files.
    scores: [C] score of each model alone, higher is better; nan comes last.
    evaluate_fn: variables -> score of an average, on the selection split.

  Returns:
    f32[C] weights, equal for those that stayed and 0 for the others.
  """
  size = len(checkpoints)
  if np.shape(scores) != (size,):
    raise ValueError(
      f"scores must have shape ({size},), one for each checkpoint; got "
      f"{np.shape(scores)}."
    )
  ranks = np.nan_to_num(np.asarray(scores, float), nan=-np.inf)
  order = np.argsort(ranks, kind="stable")[::-1].tolist()
  kept, first = order[:1], checkpoints[order[0]]
  best = float(evaluate_fn(first))
  soup, structure = jax.tree.flatten(first)
  dtypes = [jnp.result_type(leaf) for leaf in soup]
  del first
  soup = [  # in float32, or every mean would be rounded
    jnp.asarray(leaf, jnp.float32) if is_float(leaf) else leaf for leaf in soup
  ]
  for index in order[1:]:
    leaves = jax.tree.leaves(checkpoints[index])
    for place, old in enumerate(soup):  # leaf by leaf: no third network is held
      leaves[place] = running_mean(old, leaves[place], count=len(kept))
    average = [jnp.asarray(x, t) for x, t in zip(leaves, dtypes, strict=True)]
    score = float(evaluate_fn(jax.tree.unflatten(structure, average)))
    if score >= best:
      kept, soup, best = [*kept, index], leaves, score
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


def _step_towards(average: Any, new: Any, weight: jax.Array) -> Any:
  """Returns (1 - weight) * average + weight * new, leaf by leaf."""

  def mix(old, new):
    if not is_float(old):
      return new
    mixed = (1 - weight) * jnp.asarray(old, jnp.float32) + weight * new
    return _cast(mixed, old)

  return jax.tree.map(mix, average, new)


def _dtype(leaf: Any) -> Any:
  """Its own, not what JAX would make of it: float64 stays that in `merge`."""
  return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_float(leaf: Any) -> bool:
  """Whether an array, or what has its `dtype`, is averaged."""
  return jnp.issubdtype(_dtype(leaf), jnp.floating)


def _cast(values: jax.Array, like: ArrayLike) -> jax.Array:
  return values.astype(jnp.result_type(like))
