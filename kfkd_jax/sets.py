"""Sets of classes that hold the label at a promised rate, and refusals.

Conformal prediction sets: APS (Romano, Sesia, Candès 2020) and RAPS
(Angelopoulos et al. 2021). Selective prediction: risk and coverage (Geifman,
El-Yaniv 2017). All of it runs on the host, in NumPy. Letters: N examples, K
classes.

The promise is for points that are exchangeable with those that calibrated: what
chose a fusion, or trained it, must do neither.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kfkd_jax import stacks


def set_scores(
  probs: ArrayLike,
  *,
  uniforms: ArrayLike | None = None,
  penalty: float = 0.0,
  num_free: int = 0,
) -> np.ndarray:
  """Scores every class of every example: the lower, the sooner in the set.

  A class scores the mass of all that are more probable, plus u times its own,
  plus `penalty` for each place of its rank after `num_free`. Among equal
  probabilities the lower class comes first, as in argmax. Without a penalty it
  is APS, else RAPS, whose sets hold at most num_free + threshold / penalty
  classes.

  Args:
    probs: [N, K].
    uniforms: [N] of u, drawn uniformly from [0, 1), one an example, which make
      the coverage exact; None takes 1, which can only make it larger.
    penalty: lambda, 0 or more.
    num_free: k_reg, the number of classes without penalty.

  Returns:
    f64[N, K].

  >>> set_scores([[0.5, 0.125, 0.375]]).tolist()
  [[0.5, 1.0, 0.875]]
  >>> set_scores([[0.5, 0.125, 0.375]], penalty=1, num_free=1).tolist()
  [[0.5, 3.0, 1.875]]
  """
  probs = _checked(probs)
  if not (0 <= penalty < math.inf and num_free >= 0):
    raise ValueError(
      f"penalty and num_free must be 0 or more; got {penalty} and {num_free}."
    )
  num, num_classes = probs.shape
  parts = np.ones(num) if uniforms is None else np.asarray(uniforms, float)
  if parts.shape != (num,) or not ((parts >= 0) & (parts <= 1)).all():
    raise ValueError(
      f"uniforms must be [N] = [{num}], each from 0 to 1; got shape "
      f"{parts.shape}{_range_of(parts)}."
    )
  penalties = penalty * np.maximum(np.arange(1, num_classes + 1) - num_free, 0)
  scores = np.empty((num, num_classes))
  for rows in stacks.row_slices(num, num_classes):
    order = np.argsort(-probs[rows], axis=1, kind="stable")
    own = np.take_along_axis(probs[rows], order, 1).astype(np.float64)
    # In double precision, lest all unlikely classes of a sure network tie at 1.
    before = np.cumsum(own, axis=1) - own
    ranked = before + parts[rows, None] * own + penalties
    np.put_along_axis(scores[rows], order, ranked, 1)
  return scores


def set_threshold(
  scores: ArrayLike, labels: ArrayLike, *, level: float = 0.9
) -> float:
  """The score up to which classes belong to a set: `scores <= threshold`.

  It is the ceil((n + 1) level)-th smallest score of the n labels. New examples
  then have their label in their set with a probability of at least `level`,
  and at most level + 1/(n + 1) unless scores are tied; ties are all let in.
  With n too small for the level, n < level / (1 - level), it is inf: every
  class.

  Args:
    scores: [n, K] of `set_scores`, for examples that chose and trained nothing.
    labels: int[n].
    level: the promised coverage, 1 - alpha.

  Returns:
    The threshold, for `scores[N, K]` of other examples made in the same way.

  >>> scores = set_scores([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]])
  >>> set_threshold(scores, [0, 0, 0], level=0.5)
  0.75
  """
  scores = np.asarray(scores)
  labels = np.asarray(labels)
  if scores.ndim != 2:
    raise ValueError(f"scores must be [n, K]; got shape {scores.shape}.")
  stacks.check_labels(labels, scores.shape)
  stacks.check_classes(labels, scores.shape[1])
  _check_level(level)
  own = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
  return _quantile(own, level)


class HalvedSets(NamedTuple):
  """What the sets of `halved_sets` are like.

  Attributes:
    coverage: share of labels that are in their set.
    size: mean number of classes in a set; one may be empty.
  """

  coverage: float
  size: float


def halved_sets(
  probs: ArrayLike,
  labels: ArrayLike,
  *,
  level: float = 0.9,
  num_splits: int = 10,
  seed: int = 0,
) -> HalvedSets:
  """Coverage and size of randomised APS sets, where all points only test.

  The points are halved at random, and each half calibrates the sets of the
  other, so that no point is judged by a threshold it helped to set; this is
  averaged over several halvings.

  Args:
    probs: [N, K], of what was chosen on other points.
    labels: int[N].
    level: the promised coverage.
    num_splits: number of halvings.
    seed: of the halvings and of what makes the sets random.
  """
  _check_level(level)
  if num_splits < 1:
    raise ValueError(f"num_splits must be at least 1; got {num_splits}.")
  generator = np.random.default_rng(seed)
  num = len(np.asarray(probs))
  scores = set_scores(probs, uniforms=generator.random(num))
  labels = np.asarray(labels)
  stacks.check_labels(labels, scores.shape)
  stacks.check_classes(labels, scores.shape[1])
  own = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
  covered, size = 0, 0
  for _ in range(num_splits):
    halves = np.array_split(generator.permutation(num), 2)
    for calibrate, rest in (halves, halves[::-1]):
      threshold = _quantile(own[calibrate], level)
      covered += int(np.count_nonzero(own[rest] <= threshold))
      inside = np.count_nonzero(scores <= threshold, axis=1)
      size += int(inside[rest].sum())
  total = num * num_splits
  return HalvedSets(covered / total, size / total)


class RiskCoverage(NamedTuple):
  """What answering only the surest questions costs.

  Attributes:
    coverage: f64[N] share of examples that are answered: 1/N, 2/N, ..., 1.
    risk: f64[N] share of wrong answers among them.
  """

  coverage: np.ndarray
  risk: np.ndarray

  @property
  def area(self) -> float:
    """The area under the curve (AURC), the mean risk."""
    return float(self.risk.mean())

  def at(self, coverage: ArrayLike) -> np.ndarray:
    """The risks where at least these shares of the examples are answered."""
    # Less than a rounding, lest 0.3 of 10 examples be four.
    places = np.searchsorted(self.coverage, np.asarray(coverage) - 1e-9)
    return self.risk[places]


def risk_coverage(
  probs: ArrayLike, labels: ArrayLike, *, confidence: ArrayLike | None = None
) -> RiskCoverage:
  """The risk of answering only the examples of the highest confidence.

  Examples of equal confidence are answered in no order: each counts as wrong
  by the share of them that is, which is the mean over all their orders.

  Args:
    probs: [N, K].
    labels: int[N].
    confidence: [N]; None takes the largest probability.

  Returns:
    RiskCoverage of arrays [N]; its `area` is the AURC.

  >>> curve = risk_coverage([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1])
  >>> curve.risk.round(3).tolist(), round(curve.area, 3)
  ([0.0, 0.0, 0.333], 0.111)
  """
  probs, labels = _checked(probs), np.asarray(labels)
  stacks.check_labels(labels, probs.shape)
  stacks.check_classes(labels, probs.shape[1])
  sure = probs.max(1) if confidence is None else np.asarray(confidence, float)
  if sure.shape != labels.shape or np.isnan(sure).any():
    raise ValueError(
      f"confidence must be [N] = [{len(labels)}] numbers; got shape "
      f"{sure.shape}{_range_of(sure)}."
    )
  wrong = probs.argmax(1) != labels
  _, group, count = np.unique(-sure, return_inverse=True, return_counts=True)
  rates = np.bincount(group, weights=wrong) / count
  answered = np.arange(1, len(labels) + 1)
  errors = np.cumsum(np.repeat(rates, count))
  return RiskCoverage(answered / len(labels), errors / answered)


def _quantile(scores: np.ndarray, level: float) -> float:
  # Less than a rounding: (99 + 1) * 0.55 is more than 55 in floating point.
  place = math.ceil((len(scores) + 1) * level - 1e-9)
  if place > len(scores):
    return math.inf
  return float(np.partition(scores, place - 1)[place - 1])


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f"level must lie between 0 and 1; got {level}.")


def _checked(probs: ArrayLike) -> np.ndarray:
  probs = np.asarray(probs)
  if probs.ndim != 2 or 0 in probs.shape:
    raise ValueError(
      f"probs must be [N, K], neither of them 0; got shape {probs.shape}."
    )
  stacks.check_rows("probs", probs)
  if np.isnan(probs).any():
    raise ValueError("probs must hold class probabilities; some are nan.")
  return probs


def _range_of(values: np.ndarray) -> str:
  return f", {values.min():.3g}..{values.max():.3g}" if values.size else ""
