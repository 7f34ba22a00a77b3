"""Rounds of self-distillation of ridge regression, and how much of it is best.

Borup and Andersen 2021, "Even your Teacher Needs Guidance"; Das and Sanghavi
2023, "Understanding Self-Distillation in the Presence of Label Noise"; Jeong
and Chung 2025 on rounds that average labels over similar inputs. NumPy,
float64. Letters: N examples, T rounds, Q held-out points, K classes.
"""

import math

import numpy as np
from numpy.typing import ArrayLike


def ridge_filters(
  values: ArrayLike,
  *,
  ridge: float,
  num_rounds: int,
  alpha: ArrayLike = 0.0,
) -> np.ndarray:
  """Returns the filters of rounds fitted to alpha y + (1 - alpha) y_{t-1}.

  With A = d / (d + ridge) a round is s_t = A (alpha_t + (1 - alpha_t)
  s_{t-1}), from s_0 = 1. Without labels (alpha 0) that is A^t and all
  contracts to 0; otherwise to `fixed_point_filter`, by (1 - alpha) A a round.

  Args:
    values: [..., N] eigenvalues d of the Gram matrix.
    ridge: regulariser on the scale of the Gram matrix, above 0.
    num_rounds: T, at least 0.
    alpha: weight of the labels, one or [T]. The first fit is on labels whatever
      its alpha. Das and Sanghavi's xi is 1 - alpha and may exceed 1.

  Returns:
    f64[..., T + 1, N] for `spectral.fitted` and `spectral.predict`.

  >>> ridge_filters([1.0], ridge=1.0, num_rounds=3).ravel().tolist()
  [1.0, 0.5, 0.25, 0.125]
  """
  shrink = _shrink(values, ridge)
  if num_rounds < 0:
    raise ValueError(f"num_rounds must be at least 0; got {num_rounds}.")
  alpha = np.asarray(alpha, np.float64)
  if alpha.shape not in ((), (num_rounds,)):
    raise ValueError(
      f"alpha must be one number or [T] with T = num_rounds = {num_rounds}; "
      f"got shape {alpha.shape}."
    )
  filters = [np.ones_like(shrink)]
  for weight in np.broadcast_to(alpha, num_rounds):
    filters.append(shrink * (weight + (1 - weight) * filters[-1]))
  return np.stack(filters, axis=-2)


def fixed_point_filter(
  values: ArrayLike, *, ridge: float, alpha: float
) -> np.ndarray:
  """Returns the filter that rounds with labels end at.

  It is plain ridge regression with the regulariser ridge / alpha.

  Args:
    values: [..., N].
    ridge: above 0.
    alpha: weight of the labels, 0 to 1; 0 ends at the zero function.

  Returns:
    f64[..., N].
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"alpha must lie in 0..1; got {alpha}.")
  if alpha == 0:
    return np.zeros_like(_shrink(values, ridge))
  return _shrink(values, ridge / alpha)


def best_alpha(
  first_fit: ArrayLike, refit: ArrayLike, held_out_targets: ArrayLike
) -> float:
  """Returns the weight of the labels that is best on held-out targets.

  The fit to alpha y + (1 - alpha) y_{t-1} is alpha first_fit + (1 - alpha)
  refit, so the best alpha is a least squares problem in one unknown.

  Args:
    first_fit: [Q, ...] predictions of the fit to the labels alone.
    refit: [Q, ...] predictions of the fit to the last round's values alone.
    held_out_targets: [Q, ...].

  Returns:
    alpha, not clipped to 0..1; 1 where the two fits are equal.

  >>> best_alpha([1.0, 0.0], [0.0, 0.0], [0.25, 1.0])
  0.25
  """
  arrays = [
    np.asarray(x, np.float64) for x in (first_fit, refit, held_out_targets)
  ]
  if len({x.shape for x in arrays}) > 1:
    raise ValueError(
      f"first_fit, refit and held_out_targets must have one shape; got "
      f"{', '.join(str(x.shape) for x in arrays)}."
    )
  first, again, targets = arrays
  step = first - again
  length = np.square(step).sum()
  return float((step * (targets - again)).sum() / length) if length else 1.0


def best_xi(
  values: ArrayLike,
  signal: ArrayLike,
  *,
  noise_variance: float,
  ridge: float,
) -> float:
  """Returns the weight of the teacher that minimises the parameters' error.

  Das and Sanghavi 2023. The student is fitted to xi teacher + (1 - xi) labels
  with the teacher's regulariser; in direction j the least squares estimate has
  mean theta_j and variance noise_variance / d_j. Much noise makes the best xi
  exceed 1, little noise may make it negative.

  Args:
    values: [N] eigenvalues d, above 0.
    signal: [N] true parameters theta.
    noise_variance: of one label.
    ridge: above 0.

  Returns:
    xi; the labels' weight alpha is 1 - xi.
  """
  values = np.asarray(values, np.float64)
  signal = np.asarray(signal, np.float64)
  if values.shape != signal.shape or not (values > 0).all():
    raise ValueError(
      f"values and signal must be [N] both and values above 0; got shapes "
      f"{values.shape} and {signal.shape}, smallest value {values.min()}."
    )
  shrink = _shrink(values, ridge)
  variance = noise_variance / values
  lost = shrink * (1 - shrink)
  gain = lost * (shrink * variance - (1 - shrink) * np.square(signal))
  cost = np.square(lost) * (np.square(signal) + variance)
  return float(gain.sum() / cost.sum())


def class_gram(
  num_classes: int, class_size: int, *, within: float, across: float
) -> np.ndarray:
  """Returns the Gram matrix of K classes of inputs that look alike.

  Args:
    num_classes: K.
    class_size: examples per class, classes one after the other.
    within: similarity of two examples of a class; 1 is that with itself.
    across: similarity of examples of two classes.

  Returns:
    f64[N, N]. Its eigenvalues are 1 - within (inside a class), that plus
    class_size (within - across) (between classes), and that plus
    N across (the constant).
  """
  blocks = np.full((num_classes, num_classes), float(across))
  np.fill_diagonal(blocks, within)
  gram = np.kron(blocks, np.ones((class_size, class_size)))
  np.fill_diagonal(gram, 1.0)
  return gram


def rounds_to_correct(
  class_size: int,
  *,
  within: float,
  across: float,
  ridge: float,
  margin: float,
) -> int:
  """Returns the first round in which every training label is corrected.

  For `class_gram` and symmetric noise that hits all wrong classes evenly: the
  first round t > log((1 + margin) / margin) / log(r_2 / r_1), with r = l / (l +
  ridge) of the eigenvalues inside (1) and between (2) classes.

  Args:
    class_size: examples per class.
    within: similarity inside a class, below 1.
    across: similarity between classes, below `within`.
    ridge: on the scale of the Gram matrix.
    margin: share of a class with its true label minus that with each wrong one.
  """
  if not across < within < 1:
    raise ValueError(
      f"across must be below within and within below 1; got {across} and "
      f"{within}."
    )
  if not 0 < margin <= 1:
    raise ValueError(f"margin must be above 0 and at most 1; got {margin}.")
  inside = 1 - within
  kept = _shrink([inside, inside + class_size * (within - across)], ridge)
  bound = np.log((1 + margin) / margin) / np.log(kept[1] / kept[0])
  return math.floor(bound) + 1


def _shrink(values: ArrayLike, ridge: float) -> np.ndarray:
  """Returns d / (d + ridge)."""
  values = np.asarray(values, np.float64)
  if values.ndim < 1 or not (values >= 0).all():
    raise ValueError(
      f"values must be [..., N], none negative; got shape {values.shape}."
    )
  if not ridge > 0:
    raise ValueError(f"ridge must be above 0; got {ridge}.")
  return values / (values + ridge)
