"""Linear fits as filters on the eigenvalues of a kernel, in NumPy float64.

Letters: N training examples, Q other points, K outputs. With the Gram matrix
G = V diag(d) V^T every fit of this room is a filter s[N]: its values on the
training points are V diag(s) V^T y, and elsewhere g_x^T V diag(s / d) V^T y.
Leading axes of a filter (rounds, steps) lead the results.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Eigensystem(NamedTuple):
  """Eigenvalues and eigenvectors of a Gram matrix, the largest first.

  Attributes:
    values: f64[N], falling, none below 0.
    vectors: f64[N, N], one eigenvector per column.
  """

  values: np.ndarray
  vectors: np.ndarray


def eigensystem(gram: ArrayLike) -> Eigensystem:
  """Returns the eigensystem of a symmetric positive semidefinite matrix.

  Eigenvalues that rounding alone could have made become 0.

  Args:
    gram: [N, N].

  >>> eigensystem([[2.0, 0.0], [0.0, 3.0]]).values.tolist()
  [3.0, 2.0]
  """
  given = np.asarray(gram)
  if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size:
    raise ValueError(f"gram must be [N, N], N at least 1; got {given.shape}.")
  single = given.dtype.itemsize < 8 and given.dtype.kind == "f"
  # What eigenvalues can be trusted to depends on how gram was computed.
  unit = np.finfo(np.float32 if single else np.float64).eps
  matrix = given.astype(np.float64)
  size = np.abs(matrix).max()
  if not np.isfinite(size):
    raise ValueError("gram must be finite; got nan or inf in it.")
  if np.abs(matrix - matrix.T).max() > 100 * unit * size:
    raise ValueError(
      f"gram must be symmetric; entries differ from the transposed ones by up "
      f"to {np.abs(matrix - matrix.T).max():.2g}."
    )
  values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
  values, vectors = values[::-1], vectors[:, ::-1]
  resolution = len(values) * unit * np.abs(values).max()
  if values[-1] < -resolution:
    raise ValueError(
      f"gram must have no eigenvalue below 0; got {values[-1]:.2g}."
    )
  return Eigensystem(np.where(values > resolution, values, 0.0), vectors)


def coefficients(system: Eigensystem, targets: ArrayLike) -> np.ndarray:
  """Returns V^T y, the targets in the eigenbasis.

  Args:
    system: of N examples.
    targets: [N] or [N, K].

  Returns:
    f64[N] or f64[N, K].
  """
  targets = np.asarray(targets, np.float64)
  if targets.ndim not in (1, 2) or targets.shape[:1] != system.values.shape:
    raise ValueError(
      f"targets must be [N] or [N, K] with N = {system.values.size} as in "
      f"system; got shape {targets.shape}."
    )
  return system.vectors.T @ targets


def fitted(
  system: Eigensystem, filters: ArrayLike, targets: ArrayLike
) -> np.ndarray:
  """Returns the values of filtered fits on the training points.

  Args:
    system: of N examples.
    filters: [..., N].
    targets: [N] or [N, K].

  Returns:
    f64[..., N] or f64[..., N, K].
  """
  return _combine(
    system.vectors, _checked_filters(system, filters), system, targets
  )


def predict(
  system: Eigensystem,
  filters: ArrayLike,
  cross_gram: ArrayLike,
  targets: ArrayLike,
) -> np.ndarray:
  """Returns the values of filtered fits at other points.

  Args:
    system: of N examples.
    filters: [..., N].
    cross_gram: [Q, N], the kernel between other and training points, on the
      scale of the Gram matrix.
    targets: [N] or [N, K].

  Returns:
    f64[..., Q] or f64[..., Q, K].
  """
  rows = _checked_cross_gram(system, cross_gram) @ system.vectors
  return _combine(rows, _dual(system, filters), system, targets)


def expected_risk(
  system: Eigensystem,
  filters: ArrayLike,
  cross_gram: ArrayLike,
  clean_targets: ArrayLike,
  true_values: ArrayLike,
  *,
  noise_variance: float,
) -> np.ndarray:
  """Returns the mean squared error expected over noise in the targets.

  Args:
    system: of N examples.
    filters: [..., N], chosen without sight of the noise.
    cross_gram: [Q, N].
    clean_targets: [N]; independent noise of `noise_variance` is added to it.
    true_values: [Q], what predictions are compared with.
    noise_variance: of one target.

  Returns:
    f64[...]: squared bias and variance, averaged over the Q points.
  """
  bias = predict(system, filters, cross_gram, clean_targets) - np.asarray(
    true_values, np.float64
  )
  rows = _checked_cross_gram(system, cross_gram) @ system.vectors
  variance = np.square(_dual(system, filters)) @ np.square(rows).mean(axis=0)
  return np.square(bias).mean(axis=-1) + noise_variance * variance


def _combine(
  rows: np.ndarray,
  weights: np.ndarray,
  system: Eigensystem,
  targets: ArrayLike,
) -> np.ndarray:
  """Returns rows[Q, N] @ (weights[..., N] * V^T y)."""
  parts = coefficients(system, targets)
  if parts.ndim == 1:
    return (weights * parts) @ rows.T
  return rows @ (weights[..., None] * parts)


def _dual(system: Eigensystem, filters: ArrayLike) -> np.ndarray:
  """Returns filters / values; 0 where no kernel function has a part."""
  positive = system.values > 0
  scale = np.where(positive, 1 / np.where(positive, system.values, 1), 0)
  return _checked_filters(system, filters) * scale


def _checked_filters(system: Eigensystem, filters: ArrayLike) -> np.ndarray:
  filters = np.asarray(filters, np.float64)
  if filters.shape[-1:] != system.values.shape:
    raise ValueError(
      f"filters must be [..., N] with N = {system.values.size} as in system; "
      f"got shape {filters.shape}."
    )
  return filters


def _checked_cross_gram(
  system: Eigensystem, cross_gram: ArrayLike
) -> np.ndarray:
  cross_gram = np.asarray(cross_gram, np.float64)
  if cross_gram.ndim != 2 or cross_gram.shape[1:] != system.values.shape:
    raise ValueError(
      f"cross_gram must be [Q, N] with N = {system.values.size} as in system; "
      f"got shape {cross_gram.shape}."
    )
  return cross_gram
