"""What several runs of the same methods say: intervals and tests.

A run is one seed. Runs share their test points, so an honest interval lets
both vary: the seeds that were drawn and the points that were measured. All of
it runs on the host, in NumPy. Letters: R quantities, S runs, N examples, M
methods.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

# Bootstrap draws, or signs of runs, held in memory at once.
_CHUNK = 1 << 22


class Intervals(NamedTuple):
  """Percentile intervals.

  Attributes:
    low: f64[R].
    high: f64[R].
  """

  low: np.ndarray
  high: np.ndarray


def run_means(totals: ArrayLike, counts: ArrayLike) -> np.ndarray:
  """Returns every run's mean over the examples, f64[R, S].

  Args:
    totals: [R, S, N] an example's score, summed over its measurements.
    counts: [R, N] how often it was measured; each row holds some.
  """
  totals, counts = _checked(totals, counts)
  return totals.sum(-1) / counts.sum(-1)[:, None]


def bootstrap_runs(
  seed: int,
  totals: ArrayLike,
  counts: ArrayLike,
  *,
  num_samples: int = 2000,
  level: float = 0.95,
) -> Intervals:
  """Bootstraps runs and examples of the mean over runs of `run_means`.

  Each sample draws S runs, then N examples, with replacement; since the runs
  share their examples, all drawn runs are read at the same drawn examples. It
  is the same sample for all quantities: of gains, the interval is paired. A
  sample without any measured example of a quantity (which needs a small N) is
  left out for that quantity.

  Args:
    seed: of the samples.
    totals: [R, S, N] an example's score, or gain over another method, summed
      over its measurements.
    counts: [R, N] how often it was measured.
    num_samples: number of samples.
    level: probability mass inside an interval.

  Returns:
    Intervals of arrays [R].
  """
  totals, counts = _checked(totals, counts)
  if not 0 < level < 1:
    raise ValueError(f"level must lie between 0 and 1; got {level}.")
  if num_samples < 1:
    raise ValueError(f"num_samples must be at least 1; got {num_samples}.")
  means = _resampled_means(seed, totals, counts, num_samples)
  tails = [(1 - level) / 2, (1 + level) / 2]
  return Intervals(*np.nanquantile(means, tails, axis=0))


def _resampled_means(seed, totals, counts, num_samples) -> np.ndarray:
  """Returns f64[num_samples, R]; nan where nothing measured was drawn."""
  generator = np.random.default_rng(seed)
  num, num_runs, size = totals.shape
  flat = totals.reshape(num * num_runs, size).T
  chunk = max(1, _CHUNK // size)
  means = []
  for start in range(0, num_samples, chunk):
    rows = min(chunk, num_samples - start)
    runs = _draws(generator, rows, num_runs) / num_runs
    examples = _draws(generator, rows, size)
    sums = (examples @ flat).reshape(rows, num, num_runs)
    measured = examples @ counts.T
    measured[measured == 0] = np.nan
    means.append(np.einsum("brs,bs->br", sums, runs) / measured)
  return np.concatenate(means)


def _draws(generator, num_samples: int, size: int) -> np.ndarray:
  """How often each of `size` things is drawn, f64[num_samples, size]."""
  drawn = generator.integers(size, size=(num_samples, size))
  drawn += size * np.arange(num_samples)[:, None]
  counts = np.bincount(drawn.ravel(), minlength=num_samples * size)
  return counts.reshape(num_samples, size).astype(np.float64)


def sign_flip_p_value(
  seed: int,
  gains: ArrayLike,
  *,
  max_exact: int = 16,
  num_samples: int = 100_000,
) -> float:
  """Tests that a method gains nothing, from its paired gains over the runs.

  If it gains nothing, each run's gain could as well have had the other sign.
  The p-value is the share of all 2**S choices of signs whose mean is at least
  as far from 0 as the one that was seen (two-sided). It cannot be below
  2**(1 - S): five runs never reach 0.05.

  Args:
    seed: of the sampled signs, where S is above `max_exact`.
    gains: [S], one number a run.
    max_exact: up to so many runs all signs are tried.
    num_samples: choices of signs that are sampled above that; what was seen
      counts as one of them, so that the p-value is never 0.

  Returns:
    The p-value.

  >>> sign_flip_p_value(0, [0.1, 0.2, 0.3])
  0.25
  """
  from scipy import stats  # takes longer to load than all of this package

  gains = np.asarray(gains, np.float64)
  if gains.ndim != 1 or gains.size == 0 or not np.isfinite(gains).all():
    raise ValueError(f"gains must be [S], finite, S at least 1; got {gains}.")
  most = np.abs(gains).max()
  if most == 0 or gains.size == 1:
    return 1.0
  exact = gains.size <= max_exact
  found = stats.permutation_test(
    (gains / most,),
    # Rounded: sums of the same numbers in another order count as equal.
    lambda flipped, axis: np.round(np.abs(flipped.sum(axis)), 9),
    permutation_type="samples",
    n_resamples=np.inf if exact else num_samples,
    alternative="greater",
    vectorized=True,
    batch=max(1, _CHUNK // gains.size),
    random_state=np.random.default_rng(seed),
  )
  return float(found.pvalue)


def holm(p_values: ArrayLike) -> np.ndarray:
  """Returns p-values corrected for their number, f64[M], after Holm (1979).

  The smallest is multiplied by M, the next one by M - 1, and so on, and none
  becomes smaller than one before it. Below a level a, the corrected values
  are all right at once with probability 1 - a, whatever their dependence.

  >>> holm([0.01, 0.04, 0.03]).tolist()
  [0.03, 0.06, 0.06]
  """
  p_values = np.asarray(p_values, np.float64)
  if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
    raise ValueError(f"p_values must be [M], each in [0, 1]; got {p_values}.")
  ascending = np.argsort(p_values, kind="stable")
  factors = np.arange(p_values.size, 0, -1)
  corrected = np.empty_like(p_values)
  corrected[ascending] = np.minimum(
    np.maximum.accumulate(factors * p_values[ascending]), 1
  )
  return corrected


def fewest_runs(num_methods: int, *, level: float = 0.95) -> int:
  """From how many runs on any of so many methods can be found to differ.

  Before, `sign_flip_p_value` of even the clearest gain, corrected by `holm`,
  is above 1 - level, whatever the numbers are.

  >>> fewest_runs(1), fewest_runs(20)
  (6, 10)
  """
  runs = 1
  while num_methods * 2.0 ** (1 - runs) > 1 - level:
    runs += 1
  return runs


def _checked(totals, counts) -> tuple[np.ndarray, np.ndarray]:
  totals = np.asarray(totals, np.float64)
  counts = np.asarray(counts, np.float64)
  fits = totals.ndim == 3 and counts.shape == (
    *totals.shape[:1],
    *totals.shape[2:],
  )
  if not fits or 0 in totals.shape:
    raise ValueError(
      f"totals must be [R, S, N], none of them 0, and counts [R, N]; got "
      f"shapes {totals.shape} and {counts.shape}."
    )
  if (counts < 0).any() or (counts.sum(-1) == 0).any():
    raise ValueError(
      "counts must not be negative, and each row must hold a measured example."
    )
  return totals, counts
