"""Mixture fusion: the weights under which the labels are most likely.

Letters: C checkpoints, N examples, K classes.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks
from kfkd_jax.fusion.rules import check_at_least

# The optimality gap of a mixture is known to about this much in float32.
_GAP_ROUNDING = 1e-5


def mixture_fusion(
  probs: Any,
  labels: ArrayLike,
  *,
  transition: ArrayLike | None = None,
  max_steps: int = 200,
  tolerance: float = 1e-3,
) -> np.ndarray:
  """Chooses the weights under which the labels are most likely.

  Maximises the mean log-likelihood of the mixture over the simplex; see
  `mixture_weights`. Labels with known noise are allowed for by `transition`.
  Examples to which every checkpoint gives probability 0 tell nothing and are
  left out.

  Args:
    probs: [C, N, K] on a selection split, read lazily.
    labels: int[N].
    transition: optional [K, K] with rows that sum to 1; [i, j] is the
      probability that an example of class i is labelled j.
    max_steps: at most so many steps.
    tolerance: how far below the optimum, in nats per example, is near enough.

  Returns:
    f32[C], a NumPy array.

  >>> probs = np.asarray([[[0.9, 0.1], [0.1, 0.9]], [[0.1, 0.9], [0.9, 0.1]]])
  >>> mixture_fusion(probs, [0, 1]).tolist()
  [1.0, 0.0]
  """
  likelihoods = label_likelihoods(probs, labels, transition=transition)
  peak = likelihoods.max(axis=0)
  if not peak.any():
    raise ValueError(
      "probs must give some label a probability above 0; every checkpoint "
      f"gives 0 to all {peak.size} labels."
    )
  # Scaled here because an accelerator may flush the smallest numbers to 0.
  scaled = likelihoods[:, peak > 0] / peak[peak > 0]
  weights = mixture_weights(scaled, max_steps=max_steps, tolerance=tolerance)
  gap = float(mixture_gap(scaled, weights))
  if gap > tolerance:
    raise ValueError(
      f"max_steps = {max_steps} steps ended at a gap of {gap:.2g}, above "
      f"tolerance = {tolerance}; raise one of the two."
    )
  return np.asarray(weights)


def label_likelihoods(
  probs: Any, labels: ArrayLike, *, transition: ArrayLike | None = None
) -> np.ndarray:
  """Returns the probability each checkpoint gives each label.

  Args:
    probs: [C, N, K], read lazily.
    labels: int[N].
    transition: optional [K, K]; with it, of the label as noise may have
      changed it, (probs[c] @ transition)[n, labels[n]].

  Returns:
    f32[C, N], a NumPy array.
  """
  num_checkpoints, labels = stacks.check(probs, labels)
  likelihoods = np.empty((num_checkpoints, labels.size), np.float32)
  columns = None
  for c in range(num_checkpoints):
    slab = stacks.slab_of(probs, c, stacks.shape_of(probs))
    if transition is not None and columns is None:
      # Once K is known. Copied, so that a label picks a row that is contiguous.
      columns = _checked_transition(transition, slab.shape[1]).T.copy()
    for rows in stacks.row_slices(*slab.shape):
      part, given = slab[rows], labels[rows]
      if columns is None:
        found = part[np.arange(given.size), given]
      else:
        found = np.einsum("nk,nk->n", stacks.as_float32(part), columns[given])
      likelihoods[c, rows] = found
    stacks.check_probabilities(likelihoods[c], c)
  return likelihoods


def mixture_weights(
  likelihoods: ArrayLike, *, max_steps: int = 200, tolerance: float = 1e-3
) -> jax.Array:
  """Maximises J(w) = mean_n log sum_c w[c] likelihoods[c, n] on the simplex.

  Starts from even weights. A step is a Newton step on J with a barrier, or
  the EM step where that one gains more; EM cannot lose, so J never falls. The
  barrier leaves crumbs of weight; in the end they are dropped where J does not
  suffer. A pure function, also under `jit` and `vmap`.

  Args:
    likelihoods: [C, N], not negative. Columns may carry any positive factor;
      columns of zeros are left out, which serves as a mask.
    max_steps: at most so many steps.
    tolerance: the largest `mixture_gap` to stop at.

  Returns:
    f32[C]; its gap is at most `tolerance` unless `max_steps` came first.

  >>> mixture_weights(np.asarray([[0.9, 0.8], [0.1, 0.2]])).tolist()
  [1.0, 0.0]
  """
  likelihoods = _checked_likelihoods(likelihoods)
  if not isinstance(max_steps, jax.core.Tracer):
    check_at_least("max_steps", max_steps, 0)
  if not isinstance(tolerance, jax.core.Tracer) and not tolerance > 0:
    raise ValueError(f"tolerance must be above 0; got {tolerance}.")
  return _solve_mixture(likelihoods, max_steps, tolerance)


def mixture_gap(likelihoods: ArrayLike, weights: ArrayLike) -> jax.Array:
  """Bounds how far J(weights) is below its optimum.

  The bound is max_c g_c - 1 with g_c = mean_n likelihoods[c, n] / (weights @
  likelihoods)[n], the optimality test of the concave J of `mixture_weights`.

  Args:
    likelihoods: [C, N], not negative; columns of zeros are left out.
    weights: [C] on the simplex.

  Returns:
    f32[]; infinite where an example gets likelihood 0.
  """
  likelihoods = _checked_likelihoods(likelihoods)
  weights = jnp.asarray(weights, jnp.float32)
  if weights.shape != likelihoods.shape[:1]:
    raise ValueError(
      f"weights must be [C] where likelihoods is [C, N]; got shapes "
      f"{weights.shape} and {likelihoods.shape}."
    )
  stacks.check_weights(weights, len(weights))
  return _gap_at(likelihoods, weights)


def _checked_transition(transition: ArrayLike, num_classes: int) -> np.ndarray:
  matrix = np.asarray(transition, np.float32)
  if matrix.shape != (num_classes, num_classes):
    raise ValueError(
      f"transition must be [K, K] with K = {num_classes} as in probs; got "
      f"shape {matrix.shape}."
    )
  sums = matrix.sum(axis=1)
  if not (matrix.min() >= 0 and np.abs(sums - 1).max() < 1e-3):
    raise ValueError(
      f"transition must have rows of probabilities that sum to 1; got a "
      f"minimum of {matrix.min():.3g} and sums {sums.min():.4g}.."
      f"{sums.max():.4g}."
    )
  return matrix


def _checked_likelihoods(likelihoods: ArrayLike) -> jax.Array:
  likelihoods = jnp.asarray(likelihoods, jnp.float32)
  if likelihoods.ndim != 2 or 0 in likelihoods.shape:
    raise ValueError(
      f"likelihoods must be [C, N], neither of them 0; got shape "
      f"{likelihoods.shape}."
    )
  return likelihoods


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


class _Point(NamedTuple):
  """The objective's surroundings at some weights.

  Attributes:
    weights: f32[C].
    ratios: f32[C, N] likelihoods over that of the mixture, q_c / (w @ q).
    gradient: f32[C] their means g.
  """

  weights: jax.Array
  ratios: jax.Array
  gradient: jax.Array

  @property
  def gap(self) -> jax.Array:
    return self.gradient.max() - 1


class _Mixture(NamedTuple):
  """The problem, each example scaled to 1 at its best checkpoint.

  Attributes:
    scaled: f32[C, N] likelihoods; 0 in examples that do not count.
    counted: bool[N].
  """

  scaled: jax.Array
  counted: jax.Array

  @classmethod
  def of(cls, likelihoods: jax.Array) -> "_Mixture":
    peak = likelihoods.max(axis=0)
    counted = peak > 0
    divisor = jnp.where(counted, peak, 1)
    return cls(likelihoods / divisor[None], counted)

  @property
  def num_counted(self) -> jax.Array:
    return jnp.maximum(self.counted.sum(), 1)

  def mean(self, values: jax.Array) -> jax.Array:
    """Returns the mean over the examples that count, [..., N] -> [...]."""
    return values.sum(axis=-1) / self.num_counted

  def at(self, weights: jax.Array) -> _Point:
    mixed = jnp.where(self.counted, _dot(weights, self.scaled), 1)
    # Or 0 / 0 where an example is impossible under these weights.
    ratios = jnp.where(self.scaled > 0, self.scaled / mixed[None], 0)
    return _Point(weights, ratios, self.mean(ratios))

  def gain(self, point: _Point, weights: jax.Array) -> jax.Array:
    """Returns J(weights) - J(point.weights), with little cancellation."""
    change = _dot(weights - point.weights, point.ratios)
    return self.mean(jnp.where(self.counted, jnp.log1p(change), 0))


@jax.jit
def _gap_at(likelihoods: jax.Array, weights: jax.Array) -> jax.Array:
  return _Mixture.of(likelihoods).at(weights).gap


@jax.jit
def _solve_mixture(
  likelihoods: jax.Array, max_steps: ArrayLike, tolerance: ArrayLike
) -> jax.Array:
  """Steps until the gap is well below the tolerance, then drops crumbs."""
  mixture = _Mixture.of(likelihoods)
  # Ten times nearer than asked, to leave room for dropping crumbs; but not
  # nearer than the gap is known.
  goal = jnp.minimum(tolerance, jnp.maximum(0.1 * tolerance, _GAP_ROUNDING))
  num_checkpoints = likelihoods.shape[0]
  start = jnp.full(num_checkpoints, 1 / num_checkpoints, jnp.float32)

  def unfinished(carry):
    step, point = carry
    return (step < max_steps) & (point.gap > goal)

  def advance(carry):
    step, point = carry
    return step + 1, mixture.at(_better_step(mixture, point))

  _, point = jax.lax.while_loop(unfinished, advance, (0, mixture.at(start)))
  sparse = _without_crumbs(mixture, point, tolerance)
  return jnp.where(point.gap <= goal, sparse, point.weights)


def _better_step(mixture: _Mixture, point: _Point) -> jax.Array:
  newton, em = _newton_step(mixture, point), point.weights * point.gradient
  em /= em.sum()
  # EM never makes the likelihood smaller; Newton, far from the end, may.
  better = mixture.gain(point, newton) >= mixture.gain(point, em)
  return jnp.where(better, newton, em)


def _newton_step(mixture: _Mixture, point: _Point) -> jax.Array:
  """Returns a Newton step on J(w) - sum(w) + mu sum(log w), then normalised.

  J grows by the log of a common factor, so the simplex is free: without the
  barrier this peaks at J's optimum, where the weights sum to 1. The barrier's
  curvature mu / w^2 is replaced by slack / w, with the slack 1 - g of the
  optimality test where that is larger (a primal-dual step); mu follows the
  gap. The scaled system is the identity plus a positive semidefinite matrix.
  """
  # EM can set a weight to 0; the floor lets the division by it stand.
  weights = jnp.maximum(point.weights, 1e-10)
  num_checkpoints = weights.size
  # mu is a tenth of what this gap would make it: the usual centring.
  barrier = 0.1 * point.gap / num_checkpoints / weights
  slope = point.gradient - 1
  scale = jnp.sqrt(weights / jnp.maximum(-slope, barrier))
  hessian = _dot(point.ratios, point.ratios.T) / mixture.num_counted
  system = jnp.eye(num_checkpoints) + scale[:, None] * hessian * scale[None]
  factor = jax.scipy.linalg.cho_factor(system)
  move = scale * jax.scipy.linalg.cho_solve(factor, scale * (slope + barrier))
  # Stops short of the nearest wall.
  length = 0.95 / jnp.maximum((-move / weights).max(), 0.95)
  moved = weights + length * move
  return moved / moved.sum()


def _without_crumbs(
  mixture: _Mixture, point: _Point, tolerance: ArrayLike
) -> jax.Array:
  """Drops the most small weights that leave J and the certificate in order."""
  weights = point.weights
  floors = jnp.asarray([0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 0.0])

  def drop(floor):
    kept = jnp.where(weights >= floor * weights.max(), weights, 0)
    kept = kept / kept.sum()
    fine = mixture.gain(point, kept) >= 0
    return kept, fine & (mixture.at(kept).gap <= tolerance - _GAP_ROUNDING)

  # One after another: under `vmap` each floor would hold ratios [C, N].
  kept, fine = jax.lax.map(drop, floors)
  # With a floor of 0 nothing is dropped, so the last one is always fine.
  return kept[jnp.argmax(fine.at[-1].set(True))]
