"""Knowledge Fusion: mix in the checkpoints that know what the fusion forgot.

Letters: C checkpoints in time order (the last is the final network), N
examples, K classes, M members, G values of epsilon.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kfkd_jax import forgetting, stacks
from kfkd_jax.fusion.rules import check_at_least

# Rounding in float32 moves the difference of two mixed probabilities by less
# than 6.2 * 2**-24; a lead of this much is safe from it.
_SAFE_LEAD = 2.0**-20


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
  num_checkpoints, labels = stacks.check(probs, labels)
  check_at_least("window", window, 0)
  check_at_least("num_epsilons", num_epsilons, 2)
  check_at_least("max_members", max_members, 1)
  # Read once: who is right does not depend on what is fused, only who is wrong.
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
    # In place and in slices: the float32 steps are those that were counted, so
    # the accuracy of the result is the one that was chosen for.
    for rows in stacks.row_slices(*fused.shape):
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
  check_at_least("num_checkpoints", num_checkpoints, 1)
  if members.size and not 0 <= members.min() <= members.max() < num_checkpoints:
    raise ValueError(
      f"members must lie in 0..{num_checkpoints - 1} for num_checkpoints = "
      f"{num_checkpoints}; got {members.tolist()}."
    )
  weights = np.zeros(num_checkpoints)
  weights[-1] = 1
  for member, epsilon in zip(members, epsilons):
    covered = slice(max(0, member - window), member + window + 1)
    # Mixing shrinks all that came before, the last checkpoint among it.
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
  for rows in stacks.row_slices(len(fused), width):
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
    for rows in stacks.row_slices(*fused.shape)
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
  # A gap is safer than a point, which rounding may miss.
  gaps = np.where(np.arange(size) % 2, covered, -1)
  best = int((covered if gaps.max() < covered.max() else gaps).argmax())
  epsilon = (ends[best // 2] + ends[(best + 1) // 2]) / 2
  return BestEpsilon(float(epsilon), float(covered[best] / labels.size))


def _window_mean(probs: Any, center: int, window: int) -> np.ndarray:
  """Returns the mean of probs[center - window : center + window + 1]."""
  shape = stacks.shape_of(probs)
  num_checkpoints, num_examples, num_classes = shape
  stop = min(num_checkpoints, center + window + 1)
  covered = range(max(0, center - window), stop)
  mean = np.zeros((num_examples, num_classes), np.float32)
  for c in covered:
    slab = stacks.slab_of(probs, c, shape)
    for rows in stacks.row_slices(*mean.shape):
      part = stacks.as_float32(slab[rows])
      stacks.check_probabilities(part, c)
      mean[rows] += part
  mean /= np.float32(len(covered))
  return mean


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
  _, labels = stacks.check(fused[None], labels)
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
  found = []
  for lead in (_SAFE_LEAD, -_SAFE_LEAD):
    wins = _winning_intervals(fused, candidate, labels, lead)
    found.append(
      (wins.low[:, None] <= epsilons) & (epsilons <= wins.high[:, None])
    )
  surely, perhaps = found  # bool[N, G]; between them rounding decides
  counts += np.count_nonzero(surely, axis=0)
  examples, places = np.nonzero(perhaps & ~surely)
  for part in stacks.row_slices(examples.size, fused.shape[1]):
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
  # In float64: a crossing divides by the difference of two leads, which may be
  # close to each other.
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
