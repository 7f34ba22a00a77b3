"""How to fuse a training history: rules that choose weights over checkpoints.

An ensemble over the checkpoints of one run is a vector of convex weights, so
every rule here returns `weights[C]` and `fuse` is all that is left to do with
them. Rules that look at predictions take probabilities of a selection split
as `probs[C, N, K]`: a NumPy or JAX array, a memory map of any float type, a
list of C arrays [N, K], or any object with `shape` and `[c]`. Those are read
one checkpoint at a time, some rows at a time.

Letters: C checkpoints in time order (the last is the final network), N
examples, B batch, K classes, M members, G values of epsilon.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import forgetting

# Numbers handled at once, few enough to stay in a core's cache (1 MiB).
_CHUNK = 1 << 18

# Rounding in float32 moves the difference of two mixed probabilities by less
# than 6.2 * 2**-24; a lead of this much is safe from it.
_SAFE_LEAD = 2.0**-20

# The optimality gap of a mixture is known to about this much in float32.
_GAP_ROUNDING = 1e-5


class Fusion(NamedTuple):
  """What Knowledge Fusion chose.

  Attributes:
    weights: f32[C] the equivalent convex weights.
    members: i32[M] centres of the chosen windows, in the order of choice.
    epsilons: f32[M] the weight each member got when it was mixed in.
    window: checkpoints averaged on either side of a member.
  """

  weights: np.ndarray
  members: np.ndarray
  epsilons: np.ndarray
  window: int


class BestEpsilon(NamedTuple):
  """The best mixing weight and the accuracy it reaches."""

  epsilon: float
  accuracy: float


def knowledge_fusion(
  probs: Any,
  labels: ArrayLike,
  *,
  window: int = 1,
  num_epsilons: int = 101,
  max_members: int = 20,
) -> Fusion:
  """Mixes in, one by one, the checkpoints that know what the fusion forgot.

  Stern, Yaacoby, Weinshall, AAAI 2025, Alg. 1. Starts at the last checkpoint.
  The candidate is the checkpoint that is right most often where the fusion is
  wrong (ties: the latest); its window's mean is mixed in with the weight of
  an even grid over [0, 1] that gives the best accuracy (ties: the smallest).
  Stops at the first candidate that gains nothing. Runs on the host.

  Args:
    probs: [C, N, K] on a selection split, read lazily.
    labels: int[N].
    window: checkpoints averaged on either side, clipped at both ends.
    num_epsilons: G, the size of the grid.
    max_members: at most so many; 1 is the one-step variant.

  Returns:
    Fusion; M = 0 and the final network alone where nothing is gained.

  >>> probs = np.asarray([[[0.9, 0.1], [0.2, 0.8]], [[0.4, 0.6], [0.1, 0.9]]])
  >>> knowledge_fusion(probs, [0, 1], window=0, num_epsilons=3).weights
  array([0.5, 0.5], dtype=float32)
  """
  num_checkpoints, labels = _checked(probs, labels)
  _check_at_least("window", window, 0)
  _check_at_least("num_epsilons", num_epsilons, 2)
  _check_at_least("max_members", max_members, 1)
  right = np.asarray(forgetting.correctness(probs, labels))
  grid = np.linspace(0, 1, num_epsilons, dtype=np.float32)
  fused = _window_mean(probs, num_checkpoints - 1, 0)
  members: list[int] = []
  epsilons: list[float] = []
  while len(members) < max_members:
    member = _remembers_most(right, fused.argmax(axis=1) != labels)
    if member is None:
      break
    candidate = _window_mean(probs, member, window)
    counts = right_counts(fused, candidate, labels, grid)
    best = counts.argmax()
    if best == 0:  # epsilon 0 leaves the fusion as it is
      break
    members.append(member)
    epsilons.append(float(grid[best]))
    for rows in _row_slices(*fused.shape):
      fused[rows] = _mix(fused[rows], candidate[rows], grid[best])
  weights = equivalent_weights(
    members, epsilons, window=window, num_checkpoints=num_checkpoints
  )
  return Fusion(
    weights=weights,
    members=np.asarray(members, np.int32),
    epsilons=np.asarray(epsilons, np.float32),
    window=window,
  )


def equivalent_weights(
  members: ArrayLike | Sequence[int],
  epsilons: ArrayLike | Sequence[float],
  *,
  window: int,
  num_checkpoints: int,
) -> np.ndarray:
  """Writes repeated mixing as one vector of convex weights.

  Member i carries epsilon_i * prod_{j > i} (1 - epsilon_j), spread evenly
  over its window; the last checkpoint carries prod_j (1 - epsilon_j) as well.

  Args:
    members: int[M] centres of windows, in the order of mixing.
    epsilons: [M].
    window: checkpoints on either side, clipped at both ends.
    num_checkpoints: C.

  Returns:
    f32[C], a NumPy array.

  >>> equivalent_weights([1], [0.75], window=1, num_checkpoints=4).tolist()
  [0.25, 0.25, 0.25, 0.25]
  """
  members, epsilons = np.asarray(members), np.asarray(epsilons, np.float64)
  if members.ndim != 1 or members.shape != epsilons.shape:
    raise ValueError(
      f"members and epsilons must both be [M]; got shapes {members.shape} and "
      f"{epsilons.shape}."
    )
  _check_at_least("num_checkpoints", num_checkpoints, 1)
  if members.size and not 0 <= members.min() <= members.max() < num_checkpoints:
    raise ValueError(
      f"members must lie in 0..{num_checkpoints - 1} for num_checkpoints = "
      f"{num_checkpoints}; got {members.tolist()}."
    )
  weights = np.zeros(num_checkpoints)
  weights[-1] = 1
  for member, epsilon in zip(members, epsilons):
    covered = slice(max(0, member - window), member + window + 1)
    weights *= 1 - epsilon
    weights[covered] += epsilon / weights[covered].size
  return weights.astype(np.float32)


def right_counts(
  fused: np.ndarray,
  candidate: np.ndarray,
  labels: np.ndarray,
  epsilons: ArrayLike,
) -> np.ndarray:
  """Counts the right argmaxes of each epsilon * candidate + (1-eps) * fused.

  Equal to doing just that in float32 with ties to the first class. But the
  epsilons at which an example is right form an interval, so its two ends are
  computed instead, and only what lies within rounding of an end is mixed.

  Args:
    fused: f32[N, K] probabilities.
    candidate: f32[N, K] probabilities.
    labels: int[N].
    epsilons: [G] in [0, 1].

  Returns:
    i64[G], a NumPy array.
  """
  fused, candidate, labels = _checked_pair(fused, candidate, labels)
  epsilons = np.asarray(epsilons, np.float32)
  counts = np.zeros(epsilons.size, np.int64)
  width = max(fused.shape[1], epsilons.size)
  for rows in _row_slices(len(fused), width):
    counts += _chunk_counts(
      fused[rows], candidate[rows], labels[rows], epsilons
    )
  return counts


def best_epsilon_exact(
  fused: np.ndarray, candidate: np.ndarray, labels: np.ndarray
) -> BestEpsilon:
  """Finds the best epsilon in [0, 1], not only on a grid.

  Accuracy changes only at the ends of the examples' winning intervals, so one
  sweep over at most 2N points finds the optimum. It bounds what any grid can
  reach, up to rounding. Returned is the middle of the first of the best
  stretches, or a single point where only that is best.

  Args:
    fused: f32[N, K] probabilities.
    candidate: f32[N, K] probabilities.
    labels: int[N].

  >>> fused = np.asarray([[0.4, 0.6], [0.3, 0.7]], np.float32)
  >>> candidate = np.asarray([[0.9, 0.1], [0.8, 0.2]], np.float32)
  >>> best_epsilon_exact(fused, candidate, np.asarray([0, 1])).accuracy
  1.0
  """
  fused, candidate, labels = _checked_pair(fused, candidate, labels)
  parts = [
    _winning_intervals(fused[rows], candidate[rows], labels[rows])
    for rows in _row_slices(*fused.shape)
  ]
  low, high, low_open, high_open = (np.concatenate(p) for p in zip(*parts))
  some = (low < high) | ((low == high) & ~low_open & ~high_open)
  low, high, low_open, high_open = (
    x[some] for x in (low, high, low_open, high_open)
  )
  # Place 2i is the i-th end itself, place 2i + 1 the gap between it and the
  # next one; an open end starts or stops one place further in.
  ends, place = np.unique(
    np.concatenate([low, high, [0.0, 1.0]]), return_inverse=True
  )
  first = 2 * place[: low.size] + low_open
  last = 2 * place[low.size : 2 * low.size] - high_open
  size = 2 * ends.size
  steps = np.bincount(first, minlength=size) - np.bincount(
    last + 1, minlength=size
  )
  covered = np.cumsum(steps)
  gaps = np.where(np.arange(size) % 2, covered, -1)
  best = int((covered if gaps.max() < covered.max() else gaps).argmax())
  epsilon = (ends[best // 2] + ends[(best + 1) // 2]) / 2
  return BestEpsilon(float(epsilon), float(covered[best] / labels.size))


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
  num_checkpoints, labels = _checked(probs, labels)
  likelihoods = np.empty((num_checkpoints, labels.size), np.float32)
  columns = None
  for c in range(num_checkpoints):
    slab = _slab(probs, c, labels.size)
    if transition is not None and columns is None:
      columns = _checked_transition(transition, slab.shape[1]).T.copy()
    for rows in _row_slices(*slab.shape):
      part, given = slab[rows], labels[rows]
      if columns is None:
        found = part[np.arange(given.size), given]
      else:
        found = np.einsum("nk,nk->n", _as_float32(part), columns[given])
      likelihoods[c, rows] = found
    _check_probabilities(likelihoods[c], c)
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
    _check_at_least("max_steps", max_steps, 0)
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
  return _gap_at(likelihoods, weights)


def final_only(num_checkpoints: int) -> np.ndarray:
  """Returns all weight on the last of C checkpoints, f32[C]."""
  return horizontal(num_checkpoints, 1)


def best_checkpoint(accuracy: ArrayLike) -> np.ndarray:
  """Returns all weight on the most accurate checkpoint, ties to the latest.

  Args:
    accuracy: [C] on a selection split.

  Returns:
    f32[C], a NumPy array.

  >>> best_checkpoint([0.5, 0.75, 0.75, 0.6]).tolist()
  [0.0, 0.0, 1.0, 0.0]
  """
  values = np.asarray(accuracy)
  if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
    raise ValueError(
      f"accuracy must be [C] without nan, C at least 1; got {accuracy}."
    )
  latest = values.size - 1 - values[::-1].argmax()
  return _uniform_over([latest], values.size)


def horizontal(num_checkpoints: int, num_members: int) -> np.ndarray:
  """Returns even weights over the last M of C checkpoints, f32[C].

  >>> horizontal(4, 2).tolist()
  [0.0, 0.0, 0.5, 0.5]
  """
  _check_members(num_checkpoints, num_members)
  return _uniform_over(
    range(num_checkpoints - num_members, num_checkpoints), num_checkpoints
  )


def fixed_jumps(num_checkpoints: int, num_members: int) -> np.ndarray:
  """Returns even weights over M of C checkpoints at even distances, f32[C].

  The last checkpoint is one of them, the first one only where M = C.

  >>> fixed_jumps(4, 2).tolist()
  [0.0, 0.5, 0.0, 0.5]
  """
  _check_members(num_checkpoints, num_members)
  stops = np.arange(1, num_members + 1) * num_checkpoints // num_members
  return _uniform_over(stops - 1, num_checkpoints)


def random_checkpoints(
  key: jax.Array, num_checkpoints: int, num_members: int
) -> jax.Array:
  """Returns even weights over M different checkpoints drawn of C, f32[C]."""
  _check_members(num_checkpoints, num_members)
  drawn = jax.random.permutation(key, num_checkpoints)[:num_members]
  return jnp.zeros(num_checkpoints, jnp.float32).at[drawn].set(1 / num_members)


def fuse(probs: Any, weights: ArrayLike) -> jax.Array | np.ndarray:
  """Returns the weighted mean of the checkpoints' probabilities.

  JAX arrays (and lists of them) are fused by one product that works under
  `jit`, `vmap` and `grad`. Of anything else, only the checkpoints with weight
  are read, one at a time.

  Args:
    probs: [C, ..., K], or a list of C arrays, or an object with `shape`, `[c]`.
    weights: [C].

  Returns:
    f32[..., K], a JAX array where the product was used, else a NumPy array.

  >>> fuse(np.asarray([[0.0, 1.0], [0.5, 0.5]]), horizontal(2, 2)).tolist()
  [0.25, 0.75]
  """
  shape = _stack_shape(probs)
  if len(shape) < 2 or np.shape(weights) != shape[:1]:
    raise ValueError(
      f"weights must be [C] where probs is [C, ..., K]; got shapes "
      f"{np.shape(weights)} and {shape}."
    )
  if isinstance(probs, Sequence) and isinstance(probs[0], jax.Array):
    probs = jnp.stack(probs)
  if isinstance(probs, jax.Array) or isinstance(weights, jax.core.Tracer):
    return jnp.tensordot(
      jnp.asarray(weights, jnp.float32),
      jnp.asarray(probs, jnp.float32),
      axes=1,
      precision=jax.lax.Precision.HIGHEST,
    )
  weights = np.asarray(weights, np.float32)
  total = np.zeros(shape[1:], np.float32)
  for c in np.flatnonzero(weights):
    slab = probs[int(c)]
    for rows in _row_slices(shape[1], int(np.prod(shape[2:]))):
      total[rows] += weights[c] * _as_float32(slab[rows])
  return total


# Reading histories.


def _stack_shape(probs: Any) -> tuple[int, ...]:
  if isinstance(probs, Sequence):
    return (len(probs), *(np.shape(probs[0]) if len(probs) else ()))
  return tuple(probs.shape)


def _checked(probs: Any, labels: ArrayLike) -> tuple[int, np.ndarray]:
  """Returns C and the labels after checking that both arguments fit."""
  shape, labels = _stack_shape(probs), np.asarray(labels)
  if len(shape) != 3 or 0 in shape:
    raise ValueError(
      f"probs must be [C, N, K], none of them 0; got shape {shape}."
    )
  if labels.shape != shape[1:2] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be int[N] where probs is [C, N, K]; got {labels.dtype} of "
      f"shape {labels.shape} for probs of shape {shape}."
    )
  if labels.min() < 0 or labels.max() >= shape[2]:
    raise ValueError(
      f"labels must lie in 0..{shape[2] - 1} for probs of shape {shape}; got "
      f"{labels.min()}..{labels.max()}."
    )
  return shape[0], labels


def _slab(probs: Any, c: int, num_examples: int) -> Any:
  """Returns checkpoint c as [N, K], not yet converted."""
  slab = probs[c]
  if isinstance(slab, jax.Array):
    slab = np.asarray(slab)  # else every slice would be a program of its own
  if np.ndim(slab) != 2 or len(slab) != num_examples:
    raise ValueError(
      f"every checkpoint of probs must be [N, K] with N = {num_examples}; "
      f"probs[{c}] has shape {np.shape(slab)}."
    )
  return slab


def _row_slices(num_rows: int, width: int) -> Iterator[slice]:
  """Yields slices over rows of `width` numbers, a chunk each."""
  step = max(1, _CHUNK // width)
  for start in range(0, num_rows, step):
    yield slice(start, start + step)


@functools.cache
def _half_values() -> np.ndarray:
  """Returns f32[65536], the numbers that float16's bit patterns stand for."""
  with np.errstate(invalid="ignore"):  # some of them are nan
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype("f4")


def _as_float32(values: Any) -> np.ndarray:
  values = np.asarray(values)
  if values.dtype != np.float16:
    return values.astype(np.float32, copy=False)
  # Ten times as fast as a conversion, which is slow at subnormal numbers, and
  # most probabilities of many classes are.
  return _half_values().take(values.view(np.uint16))


def _window_mean(probs: Any, center: int, window: int) -> np.ndarray:
  """Returns the mean of probs[center - window : center + window + 1]."""
  num_checkpoints, num_examples, num_classes = _stack_shape(probs)
  stop = min(num_checkpoints, center + window + 1)
  covered = range(max(0, center - window), stop)
  mean = np.zeros((num_examples, num_classes), np.float32)
  for c in covered:
    slab = _slab(probs, c, num_examples)
    for rows in _row_slices(*mean.shape):
      part = _as_float32(slab[rows])
      _check_probabilities(part, c)
      mean[rows] += part
  mean /= np.float32(len(covered))
  return mean


def _check_probabilities(values: np.ndarray, c: int) -> None:
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= 1.01):  # a nan fails as well
    raise ValueError(
      f"probs must hold probabilities; probs[{c}] holds values in "
      f"{low:.3g}..{high:.3g}."
    )


# Knowledge Fusion.


def _remembers_most(right: np.ndarray, wrong: np.ndarray) -> int | None:
  """Returns the latest checkpoint with the largest F, None where F is 0."""
  remembered = np.count_nonzero(right[:, wrong], axis=1)
  latest = remembered.size - 1 - int(remembered[::-1].argmax())
  return latest if remembered[latest] else None


def _mix(
  fused: np.ndarray, candidate: np.ndarray, epsilon: np.ndarray
) -> np.ndarray:
  return epsilon * candidate + (np.float32(1) - epsilon) * fused


def _checked_pair(
  fused: ArrayLike, candidate: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  fused, candidate = (np.asarray(x, np.float32) for x in (fused, candidate))
  if candidate.shape != fused.shape:
    raise ValueError(
      f"candidate must have the shape of fused, {fused.shape}; got "
      f"{candidate.shape}."
    )
  _, labels = _checked(fused[None], labels)
  return fused, candidate, labels


def _chunk_counts(
  fused: np.ndarray,
  candidate: np.ndarray,
  labels: np.ndarray,
  epsilons: np.ndarray,
) -> np.ndarray:
  """Does `right_counts` for rows that fit in the cache."""
  always, open_ = _triage(fused, candidate, labels)
  counts = np.full(epsilons.size, np.count_nonzero(always))
  fused, candidate, labels = fused[open_], candidate[open_], labels[open_]
  surely, perhaps = (
    _inside(_winning_intervals(fused, candidate, labels, lead), epsilons)
    for lead in (_SAFE_LEAD, -_SAFE_LEAD)
  )
  counts += np.count_nonzero(surely, axis=0)
  examples, places = np.nonzero(perhaps & ~surely)
  for part in _row_slices(examples.size, fused.shape[1]):
    n, g = examples[part], places[part]
    mixed = _mix(fused[n], candidate[n], epsilons[g, None])
    won = mixed.argmax(axis=1) == labels[n]
    counts += np.bincount(g[won], minlength=epsilons.size)
  return counts


def _triage(
  fused: np.ndarray, candidate: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Says which rows are right at every epsilon, and which may change.

  A lead that is safe at 0 and at 1 is safe between. So is being behind one
  and the same class; the strongest rival at either end is tried.
  """
  rows = np.arange(labels.size)
  ends = (fused, candidate)
  leads = np.empty((2, 2, labels.size), np.float32)  # [rival of, at, row]
  for i, rival_of in enumerate(ends):
    others = rival_of.copy()
    others[rows, labels] = -np.inf
    rival = others.argmax(axis=1)
    for j, at in enumerate(ends):
      leads[i, j] = at[rows, labels] - at[rows, rival]
  always = (leads[0, 0] > _SAFE_LEAD) & (leads[1, 1] > _SAFE_LEAD)
  never = (leads < -_SAFE_LEAD).all(axis=1).any(axis=0)
  return always, ~always & ~never


class _Intervals(NamedTuple):
  """Where in [0, 1] each row's label wins; low > high where nowhere."""

  low: np.ndarray
  high: np.ndarray
  low_open: np.ndarray
  high_open: np.ndarray


def _winning_intervals(
  fused: np.ndarray,
  candidate: np.ndarray,
  labels: np.ndarray,
  lead: float = 0.0,
) -> _Intervals:
  """Returns the epsilons at which the label leads all classes by `lead`.

  The lead over one class is affine in epsilon, so it holds on a half-line
  that begins or ends where it crosses zero. It may be zero over a later
  class, not over an earlier one: argmax takes the first.
  """
  rows = np.arange(labels.size)[:, None]
  label = labels[:, None]
  at0, at1 = (
    x[rows, label].astype(np.float64) - x - lead for x in (fused, candidate)
  )
  at0[rows, label] = at1[rows, label] = 1  # no rival of itself
  strict = np.arange(fused.shape[1])[None] < label
  behind0 = (at0 < 0) | (strict & (at0 == 0))
  behind1 = (at1 < 0) | (strict & (at1 == 0))
  change = at0 - at1
  crossing = at0 / np.where(behind0 != behind1, change, 1)
  lows = np.where(behind0, np.where(behind1, np.inf, crossing), 0)
  highs = np.where(behind1 & ~behind0, crossing, 1)
  low, high = lows.max(axis=1), highs.min(axis=1)
  at_low = strict & behind0 & (lows == low[:, None])
  at_high = strict & behind1 & ~behind0 & (highs == high[:, None])
  return _Intervals(low, high, at_low.any(axis=1), at_high.any(axis=1))


def _inside(intervals: _Intervals, epsilons: np.ndarray) -> np.ndarray:
  """Returns bool[N, G], ends included."""
  low, high = intervals.low[:, None], intervals.high[:, None]
  return (low <= epsilons) & (epsilons <= high)


# Mixture fusion.


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
  newton, em = _newton_step(mixture, point), _em_step(point)
  better = mixture.gain(point, newton) >= mixture.gain(point, em)
  return jnp.where(better, newton, em)


def _em_step(point: _Point) -> jax.Array:
  weights = point.weights * point.gradient
  return weights / weights.sum()


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

  kept, fine = jax.lax.map(drop, floors)
  # With a floor of 0 nothing is dropped, so the last one is always fine.
  return kept[jnp.argmax(fine.at[-1].set(True))]


# The simple rules.


def _uniform_over(members: Any, num_checkpoints: int) -> np.ndarray:
  members = np.asarray(members)
  weights = np.zeros(num_checkpoints, np.float32)
  weights[members] = 1 / members.size
  return weights


def _check_at_least(name: str, value: int, least: int) -> None:
  if value < least:
    raise ValueError(f"{name} must be at least {least}; got {value}.")


def _check_members(num_checkpoints: int, num_members: int) -> None:
  _check_at_least("num_checkpoints", num_checkpoints, 1)
  if not 1 <= num_members <= num_checkpoints:
    raise ValueError(
      f"num_members must lie in 1..{num_checkpoints} for num_checkpoints = "
      f"{num_checkpoints}; got {num_members}."
    )
