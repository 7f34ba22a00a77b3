"""Rounds of self-distillation in a Hilbert space, with a constraint each.

Mobahi, Farajtabar and Bartlett 2020, "Self-Distillation Amplifies
Regularization in Hilbert Space". Round t finds the smoothest function whose
mean squared distance from the last round's values y_{t-1} is at most the
tolerance; that is ridge regression whose regulariser c_t follows from the
constraint. NumPy, float64. Letters: N examples, T rounds.

Work is in the eigenbasis of the Gram matrix g(x_j, x_k) / N; leading axes
hold independent problems. Several outputs share a constraint and a filter: give
the norm of each row of their coefficients.

>>> from kfkd_jax.theory import spectral
>>> system = spectral.eigensystem(np.diag([0.5, 0.1]))
>>> start = spectral.coefficients(system, [1.0, -1.0])
>>> rounds = distil_rounds(system.values, start, 0.2, num_rounds=4)
>>> np.isfinite(rounds.regularisers).tolist()  # collapsed in the third round
[True, True, False, False]
>>> spectral.fitted(system, rounds.filters, [1.0, -1.0]).shape
(5, 2)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Rounds(NamedTuple):
  """What T rounds do to each eigendirection.

  Attributes:
    regularisers: f64[..., T] c_t; infinite from the round on that collapses.
    filters: f64[..., T + 1, N] B_t, the products of d / (d + c_t): the values
      after t rounds are B_t times the first targets. B_0 is 1.
  """

  regularisers: np.ndarray
  filters: np.ndarray


def regulariser(
  values: ArrayLike, coefficients: ArrayLike, tolerance: float
) -> np.ndarray:
  """Returns the c at which the constraint holds with equality.

  Solves sum_j (c z_j / (c + d_j))^2 = N tolerance. As a function of 1 / c the
  inverse root of the left side is concave and rising, so Newton's method climbs
  to the solution from any point below it and cannot overshoot.

  Args:
    values: [..., N] eigenvalues d, not negative.
    coefficients: [..., N] targets z in the eigenbasis.
    tolerance: mean squared error the fit is allowed, above 0.

  Returns:
    f64[...]; infinite where the zero function is near enough: collapse.
  """
  values, coefficients = _checked(values, coefficients, tolerance)
  norm, radius = _norm_and_radius(coefficients, tolerance)
  collapsed = norm <= radius
  unreachable = np.linalg.norm(np.where(values > 0, 0, coefficients), axis=-1)
  if np.any(~collapsed & (unreachable >= radius)):
    raise ValueError(
      f"tolerance must be above the mean square of the targets' part without "
      f"kernel, {np.square(unreachable).max() / values.shape[-1]:.3g}; got "
      f"{tolerance}."
    )
  # A problem without any kernel left has collapsed, so 1 serves for it.
  top = np.where(collapsed, 1, values.max(axis=-1))
  # The largest c of `regulariser_bounds`, so 1 / c starts below the solution.
  inverse = np.maximum((norm - radius) / (top * radius), 0)
  for _ in range(100):
    step = _newton_step(values, coefficients, inverse, radius, collapsed)
    inverse = np.maximum(inverse + step, 0)
    if np.all(np.abs(step) <= 2e-16 * inverse):
      break
  with np.errstate(divide="ignore"):
    return 1 / inverse


def _newton_step(
  values: np.ndarray,
  coefficients: np.ndarray,
  inverse: np.ndarray,
  radius: float,
  collapsed: np.ndarray,
) -> np.ndarray:
  """Returns the step of 1 / c toward 1 / |z / (1 + d / c)| = 1 / radius."""
  stretch = 1 + inverse[..., None] * values
  squares = np.square(coefficients / stretch)
  total = squares.sum(axis=-1)
  slope = np.where(collapsed, 1, (squares * values / stretch).sum(axis=-1))
  step = (np.sqrt(total) / radius - 1) * total / slope
  return np.where(collapsed, 0, step)


def regulariser_bounds(
  values: ArrayLike, coefficients: ArrayLike, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns d_min r / (n - r) and d_max r / (n - r), between which c lies.

  Here n is the norm of the targets and r = sqrt(N tolerance).

  Args:
    values: [..., N].
    coefficients: [..., N].
    tolerance: above 0.

  Returns:
    Two f64[...]; infinite where the round collapses.
  """
  values, coefficients = _checked(values, coefficients, tolerance)
  norm, radius = _norm_and_radius(coefficients, tolerance)
  alive = norm > radius
  ratio = radius / np.where(alive, norm - radius, 1)
  low, high = values.min(axis=-1) * ratio, values.max(axis=-1) * ratio
  return np.where(alive, low, np.inf), np.where(alive, high, np.inf)


def distil_rounds(
  values: ArrayLike,
  coefficients: ArrayLike,
  tolerance: float,
  *,
  num_rounds: int,
) -> Rounds:
  """Solves the constrained problem again and again on its own solution.

  Args:
    values: [..., N] eigenvalues of the Gram matrix g / N.
    coefficients: [..., N] the first targets in its eigenbasis.
    tolerance: mean squared error each round is allowed.
    num_rounds: T, at least 1.

  Returns:
    Rounds; `spectral.fitted` and `spectral.predict` take its filters.
  """
  values, coefficients = _checked(values, coefficients, tolerance)
  if num_rounds < 1:
    raise ValueError(f"num_rounds must be at least 1; got {num_rounds}.")
  regularisers, filters = [], [np.ones_like(coefficients)]
  for _ in range(num_rounds):
    c = regulariser(values, filters[-1] * coefficients, tolerance)
    regularisers.append(c)
    filters.append(filters[-1] * (values / (values + c[..., None])))
  return Rounds(np.stack(regularisers, axis=-1), np.stack(filters, axis=-2))


class RoundBounds(NamedTuple):
  """How many rounds are sure not to collapse.

  Attributes:
    simple: f64[...] |y_0| / sqrt(N tolerance) - 1; a round moves the values by
      sqrt(N tolerance) exactly.
    quoted: f64[...] that over the condition number, the paper's proposition 4.
  """

  simple: np.ndarray
  quoted: np.ndarray


def round_bounds(
  values: ArrayLike, coefficients: ArrayLike, tolerance: float
) -> RoundBounds:
  """Bounds the number of rounds before collapse from below.

  Args:
    values: [..., N].
    coefficients: [..., N].
    tolerance: above 0.
  """
  values, coefficients = _checked(values, coefficients, tolerance)
  norm, radius = _norm_and_radius(coefficients, tolerance)
  simple = norm / radius - 1
  top = values.max(axis=-1)
  inverse_condition = values.min(axis=-1) / np.where(top > 0, top, 1)
  return RoundBounds(simple, simple * inverse_condition)


def sparsity_ratios(filters: ArrayLike) -> np.ndarray:
  """Returns B[k] / B[k + 1] of neighbouring directions; it grows with rounds.

  Theorem 5: the directions of small eigenvalues die out first.

  Args:
    filters: [..., N], of falling eigenvalues.

  Returns:
    f64[..., N - 1]; infinite where only the lesser direction is gone, nan where
    both are.

  >>> sparsity_ratios([0.5, 0.25, 0.0]).tolist()
  [2.0, inf]
  """
  filters = np.asarray(filters, np.float64)
  with np.errstate(divide="ignore", invalid="ignore"):
    return filters[..., :-1] / filters[..., 1:]


def single_fit_values(values: ArrayLike, regularisers: ArrayLike) -> np.ndarray:
  """Returns the eigenvalues of the kernel that does T rounds in one fit.

  With d' = 1 / (prod_t (d + c_t) / d - 1) plain ridge regression, regulariser
  1, is d' / (d' + 1) = B_T.

  Args:
    values: [..., N].
    regularisers: [..., T].

  Returns:
    f64[..., N].

  >>> single_fit_values([3.0], [1.0]).round(12).tolist()  # d / c
  [3.0]
  """
  values = np.asarray(values, np.float64)[..., None]
  regularisers = np.asarray(regularisers, np.float64)[..., None, :]
  # In logarithms: the product overflows with many rounds and small eigenvalues,
  # and less 1 it cancels where it is near 1.
  with np.errstate(divide="ignore", over="ignore"):
    growth = np.log1p(regularisers / values).sum(axis=-1)
    return 1 / np.expm1(growth)


class RoundChoice(NamedTuple):
  """Which round to keep, and whether to go on.

  Attributes:
    best: index of the round to keep.
    stop: whether `patience` rounds since brought nothing.
  """

  best: int
  stop: bool


def choose_round(
  losses: ArrayLike, *, patience: int = 1, num_errors: float = 0.0
) -> RoundChoice:
  """Chooses a round of self-distillation by held-out losses, in order.

  Risk over rounds is U-shaped (an inverted U in accuracy), so rounds go on
  while they help. A round replaces the best so far if its mean loss is lower by
  more than `num_errors` standard errors of the paired difference; nothing
  after the stop is looked at.

  Args:
    losses: [T, N] of the rounds so far on held-out examples, no nan.
    patience: rounds without a gain to wait for, at least 1.
    num_errors: standard errors a gain must exceed, not negative.

  >>> choose_round([[0.5], [0.4], [0.6], [0.1]])
  RoundChoice(best=1, stop=True)
  >>> choose_round([[0.5], [0.4]])
  RoundChoice(best=1, stop=False)
  """
  losses = np.asarray(losses, np.float64)
  if losses.ndim != 2 or not losses.size or np.isnan(losses).any():
    raise ValueError(
      f"losses must be [T, N], neither of them 0, without nan; got shape "
      f"{losses.shape} with {np.isnan(losses).sum()} nan."
    )
  if patience < 1:
    raise ValueError(f"patience must be at least 1; got {patience}.")
  if not num_errors >= 0:
    raise ValueError(f"num_errors must be at least 0; got {num_errors}.")
  best = 0
  for t in range(1, len(losses)):
    gain = losses[best] - losses[t]
    if gain.mean() > num_errors * gain.std() / np.sqrt(gain.size):
      best = t
    elif t - best >= patience:
      return RoundChoice(best, True)
  return RoundChoice(best, False)


def _checked(
  values: ArrayLike, coefficients: ArrayLike, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns values and coefficients of one shape [..., N]."""
  values = np.asarray(values, np.float64)
  coefficients = np.asarray(coefficients, np.float64)
  if values.ndim < 1 or values.shape[-1:] != coefficients.shape[-1:]:
    raise ValueError(
      f"values and coefficients must be [..., N] both; got shapes "
      f"{values.shape} and {coefficients.shape}."
    )
  if not (values >= 0).all():
    raise ValueError(f"values must not be negative; got {values.min()}.")
  if not tolerance > 0:
    raise ValueError(f"tolerance must be above 0; got {tolerance}.")
  shape = np.broadcast_shapes(values.shape, coefficients.shape)
  return np.broadcast_to(values, shape), np.broadcast_to(coefficients, shape)


def _norm_and_radius(
  coefficients: np.ndarray, tolerance: float
) -> tuple[np.ndarray, float]:
  norm = np.linalg.norm(coefficients, axis=-1)
  return norm, float(np.sqrt(coefficients.shape[-1] * tolerance))
