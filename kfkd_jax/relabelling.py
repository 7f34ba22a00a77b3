"""Which labels to believe, and what the neighbours say instead.

Label propagation over the features of a network: labels that look clean spread
along a graph of nearest neighbours and replace the others. All on the host.
Letters: N examples, K classes, F features, G neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse import linalg

from kfkd_jax import extras


def clean_probabilities(values: ArrayLike) -> np.ndarray:
  """Returns how likely each example's label is clean, by its loss alone.

  Networks fit clean labels first, so losses are a mixture of small ones and
  large ones. Two normal distributions are fitted to them by EM, and the one
  with the smaller mean is called clean. No noise rate has to be known.

  Args:
    values: [N] losses with the given labels.

  Returns:
    f64[N]; all 1 where the losses are all the same.
  """
  with extras.named():
    from sklearn import mixture

  given = np.asarray(values, np.float64)
  if given.ndim != 1 or not given.size or not np.isfinite(given).all():
    raise ValueError(
      f"values must be [N] finite losses, N at least 1; got shape "
      f"{given.shape}."
    )
  spread = np.ptp(given)
  if spread == 0:
    return np.ones(len(given))
  scaled = ((given - given.min()) / spread)[:, None]
  fitted = mixture.GaussianMixture(
    2,
    # A floor on the variance: one part must not vanish on a single value.
    reg_covar=1e-3,
    weights_init=[0.5, 0.5],
    means_init=[[0.0], [1.0]],
    precisions_init=np.full((2, 1, 1), 1 / scaled.var()),
  ).fit(scaled)
  lower = np.argmin(fitted.means_)
  clean = fitted.predict_proba(scaled)[:, lower]
  # The wider part would win again far below the smaller mean.
  below = scaled[:, 0] <= fitted.means_[lower]
  return np.where(below, clean.max(), clean)


def neighbour_graph(
  features: ArrayLike, *, num_neighbours: int = 20, power: float = 3.0
) -> sparse.csr_array:
  """Returns the normalised graph of nearest neighbours by cosine.

  An edge weighs max(cosine, 0)^power; edges go both ways, no example is its own
  neighbour, and D^-1/2 (A + A^T) D^-1/2 is returned. Examples without any
  neighbour of positive cosine stay alone.

  Args:
    features: [N, F].
    num_neighbours: G, fewer where there are fewer other examples.
    power: sharpens the weights.

  Returns:
    Sparse f64[N, N], symmetric, eigenvalues in -1..1.
  """
  with extras.named():
    from sklearn import neighbors

  rows = np.asarray(features, np.float32)
  if rows.ndim != 2 or not rows.size:
    raise ValueError(f"features must be [N, F]; got shape {rows.shape}.")
  if num_neighbours < 1:
    raise ValueError(f"num_neighbours must be at least 1; got {num_neighbours}")
  num, count = len(rows), min(num_neighbours, len(rows) - 1)
  if not count:
    return sparse.csr_array((num, num), dtype=np.float64)
  search = neighbors.NearestNeighbors(n_neighbors=count, metric="cosine")
  edges = search.fit(rows).kneighbors_graph(mode="distance")
  edges.data = np.maximum(1 - edges.data.astype(np.float64), 0) ** power
  edges = sparse.csr_array(edges + edges.T)
  degrees = np.asarray(edges.sum(axis=1)).ravel()
  scale = np.where(
    degrees > 0, 1 / np.sqrt(np.where(degrees > 0, degrees, 1)), 0
  )
  scaling = sparse.dia_array((scale[None], [0]), shape=(num, num))
  return sparse.csr_array(scaling @ edges @ scaling)


def propagate(
  graph: sparse.csr_array,
  seeds: ArrayLike,
  *,
  decay: float = 0.99,
  tolerance: float = 1e-6,
) -> np.ndarray:
  """Returns what the seeds' labels become along the graph.

  Solves (I - decay S) Z = Y by conjugate gradients, a column at a time (Zhou
  et al. 2004; Iscen et al. 2019), and divides rows by their sums.

  Args:
    graph: S of `neighbour_graph`, [N, N].
    seeds: Y, [N, K], rows of zeros for labels that are not believed.
    decay: below 1; how far labels reach.
    tolerance: of the solution, relative to the right-hand side.

  Returns:
    f32[N, K] probabilities; even ones where no seed reaches.
  """
  seeds = np.asarray(seeds, np.float64)
  if seeds.ndim != 2 or graph.shape != (len(seeds), len(seeds)):
    raise ValueError(
      f"graph must be [N, N] where seeds is [N, K]; got shapes {graph.shape} "
      f"and {seeds.shape}."
    )
  if not 0 <= decay < 1:
    raise ValueError(f"decay must be in 0..1, below 1; got {decay}.")
  system = sparse.eye_array(len(seeds), format="csr") - decay * graph
  columns = []
  for column in seeds.T:
    found, failed = linalg.cg(system, column, rtol=tolerance, maxiter=1000)
    if failed:
      raise FloatingPointError(
        f"label propagation does not converge with decay={decay}; lower it"
      )
    columns.append(np.maximum(found, 0))
  spread = np.stack(columns, axis=1)
  total = spread.sum(axis=1, keepdims=True)
  even = np.full_like(spread, 1 / seeds.shape[1])
  return np.where(
    total > 0, spread / np.where(total > 0, total, 1), even
  ).astype(np.float32)
