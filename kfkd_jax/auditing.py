"""Which labels are wrong, by what a network said of them while it learned.

Networks learn right labels before wrong ones, so the history of what was said
of a point tells whether its label belongs there. All scores here read
predictions of the training points with their given labels: no clean label, no
noise rate. A higher score is a more suspect label.

`audit` reads a whole history `[C, N, K]`, a checkpoint at a time. In a loop of
your own, `audit_init`, `audit_update` and `audit_finish` do the same with no
more than two arrays `[N, K]`. Letters: C epochs in time order, N examples, K
classes.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks

# The least that float16 holds: the same scores whatever kept the predictions.
_LEAST = 2.0**-24
_EARLY = 10  # epochs whose errors make EL2N

KINDS = ("trusted", "never learnt", "learnt late", "forgotten", "contested")


class AuditSums(NamedTuple):
  """What an audit keeps of the epochs so far; a pytree.

  Attributes:
    labels: i32[N] as given.
    num_epochs: i32[] so far.
    probs: f32[N, K] sum of the probabilities.
    early: f32[N, K] sum of the probabilities, weighted by epoch.
    weight: f32[] sum of the epochs' weights.
    learnt: f32[] sum over the epochs of what they gave the labels above chance.
    deviation: f32[N] squared deviations of the label's probability, summed.
    margin: f32[N] sum of the label's probability less the best other one.
    log_margin: f32[N] the same of log-probabilities.
    loss: f32[N] sum of -log p(label).
    last_loss: f32[N] of the newest epoch.
    error: f32[N] sum of the first epochs' distances to the one-hot label.
    num_right: i32[N] epochs that had the label.
    first_right: i32[N] the first of them, counted from 1; 0 for none.
    num_forgotten: i32[N] times that the label was had and lost at once.
    is_right: bool[N] at the newest epoch.
  """

  labels: Any
  num_epochs: Any
  probs: Any
  early: Any
  weight: Any
  learnt: Any
  deviation: Any
  margin: Any
  log_margin: Any
  loss: Any
  last_loss: Any
  error: Any
  num_right: Any
  first_right: Any
  num_forgotten: Any
  is_right: Any


class Scores(NamedTuple):
  """What others have proposed, each higher for a more suspect label.

  Attributes:
    last_loss: f32[N] -log p(label) at the last epoch.
    loss: f32[N] the same, mean over the epochs.
    aum: f32[N] minus the area under the margin (Pleiss et al. 2020), between
      log-probabilities, which differ by what logits differ by.
    margin: f32[N] minus the mean margin between probabilities.
    confidence: f32[N] minus the mean probability of the label (dataset
      cartography, Swayamdipta et al. 2020).
    variability: f32[N] its standard deviation; nan with one epoch.
    mean_margin: f32[N] minus the log-margin of the mean probabilities.
    class_margin: f32[N] minus the margin of the mean probabilities, each less
      its class's threshold (confident learning, Northcutt et al. 2021).
    first_learnt: f32[N] the first epoch that had the label, C + 1 if none had
      (Toneva et al. 2019); nan with one epoch.
    forgotten: f32[N] how often the label was had and lost again, C if it was
      never had (Toneva et al. 2019); nan with one epoch.
    el2n: f32[N] mean distance to the one-hot label over the first 10 epochs
      (Paul et al. 2021).
  """

  last_loss: np.ndarray
  loss: np.ndarray
  aum: np.ndarray
  margin: np.ndarray
  confidence: np.ndarray
  variability: np.ndarray
  mean_margin: np.ndarray
  class_margin: np.ndarray
  first_learnt: np.ndarray
  forgotten: np.ndarray
  el2n: np.ndarray


NEED_MORE_EPOCHS = ("variability", "first_learnt", "forgotten")


class Audit(NamedTuple):
  """What a history says of every label.

  Attributes:
    score: f32[N] higher for a more suspect label: the log of how much more
      another class is believed than the given one.
    suggested: i32[N] where the label is accused, the class of the highest mean
      probability beside it, each divided by its mean over the points given as
      that class; the given one elsewhere.
    accused: bool[N] the labels called wrong, those of the highest scores.
    kind: i8[N] places in `KINDS`: how an accused label stands out.
    other: f32[N] mean probability of `suggested`, or of the best other class.
    num_right: i32[N] epochs that had the given label.
    num_epochs: C.
    noise_matrix: f64[K, K] share of each suggested class, down, by given class.
    confident_joint: f64[K, K] share of the points of a true and a given class,
      by confident learning from mean probabilities (Northcutt et al. 2021).
    scores: of others, to compare with.
  """

  score: np.ndarray
  suggested: np.ndarray
  accused: np.ndarray
  kind: np.ndarray
  other: np.ndarray
  num_right: np.ndarray
  num_epochs: int
  noise_matrix: np.ndarray
  confident_joint: np.ndarray
  scores: Scores


def audit(probs: Any, labels: ArrayLike) -> Audit:
  """Finds the labels that the history of a training run speaks against.

  The score is our own. An epoch that gives the labels a mean probability m has
  learnt l = m - 1/K, and weighs l (1 - m), divided by .02 and the sum of l up
  to it: it says nothing before it has learnt, nor once it has memorised, and
  less the more was learnt before. The weighted mean of the predictions is what
  the history believes; n_k is its class k divided by the mean of that over the
  points given as k, so that easy classes and hard ones are asked alike.
  Counting argmax n against the given labels makes a noise matrix T
  (`noise_of`). A point given as j scores

    max_{k != j} log(n_k T_kj) - log(n_j T_jj).

  How many labels are accused is another question. A share d of them differs
  from argmax n, also where the network had not learnt enough; but then it was
  unsure. So d counts in full where the surer half of the points of each class
  differs by d / 2 or more, not at all where it does by .3 d or less, and in
  proportion between. As many are accused, and no fewer than the plain mean of
  all predictions, divided alike, differs in. They are few where nothing is
  wrong, and too few where wrong labels are memorised nearly as soon as right
  ones are learnt. One epoch tells no early from late: as many are accused as
  confident learning's joint has of another class.

  Args:
    probs: [C, N, K] predictions of the training points, an array, a memory map,
      a list of C arrays [N, K], or an object with `shape` and `[c]`, of which
      one checkpoint at a time is read.
    labels: int[N] as given.

  Returns:
    Audit of arrays [N] and [K, K].

  >>> likely, unlikely = [0.9, 0.1], [0.2, 0.8]
  >>> found = audit(
  ...   [np.asarray([likely] * 4 + [unlikely] * 5)], [0] * 5 + [1] * 4
  ... )
  >>> np.flatnonzero(found.accused).tolist(), found.suggested.tolist()
  ([4], [0, 0, 0, 0, 1, 1, 1, 1, 1])
  """
  return audit_finish(_summed(probs, labels))


def _summed(probs: Any, labels: ArrayLike) -> AuditSums:
  num_epochs, labels = stacks.check(probs, labels)
  shape = stacks.checked_shape(probs)
  sums = audit_init(labels, shape[2])
  for c in range(num_epochs):
    _add(sums, stacks.slab_of(probs, c, shape), f"probs[{c}]")
  return sums


def audit_init(labels: ArrayLike, num_classes: int) -> AuditSums:
  """Begins an audit inside a training loop.

  Args:
    labels: int[N] as given, in the order of the predictions to come.
    num_classes: K.

  Returns:
    AuditSums, a pytree of NumPy arrays [N] and [N, K].

  >>> audit_init([0, 1, 1], 2).probs.shape
  (3, 2)
  """
  labels = np.asarray(labels)
  if num_classes < 2 or not labels.size:
    raise ValueError(
      f"an audit needs labels and at least 2 classes; got {labels.size} labels "
      f"and num_classes={num_classes}."
    )
  num = len(labels)
  stacks.check_labels(labels, (num, num_classes))
  stacks.check_classes(labels, num_classes)
  numbers = {k: np.zeros(num, np.float32) for k in _NUMBERS}
  counts = {k: np.zeros(num, np.int32) for k in _COUNTS}
  return AuditSums(
    labels=labels.astype(np.int32),
    num_epochs=np.zeros((), np.int32),
    probs=np.zeros((num, num_classes), np.float32),
    early=np.zeros((num, num_classes), np.float32),
    weight=np.zeros((), np.float32),
    learnt=np.zeros((), np.float32),
    is_right=np.zeros(num, bool),
    **numbers,
    **counts,
  )


_NUMBERS = ("deviation", "margin", "log_margin", "loss", "last_loss", "error")
_COUNTS = ("num_right", "first_right", "num_forgotten")


def audit_update(sums: AuditSums, probs: ArrayLike) -> AuditSums:
  """Adds what was said of the training points after one more epoch.

  Works under `jit` as well, where nothing is checked.

  Args:
    sums: of the epochs before, which stay as they are.
    probs: [N, K] probabilities, of the points in the order of the labels.

  Returns:
    AuditSums, a pytree of arrays [N] and [N, K] like those given.

  >>> sums = audit_update(audit_init([0, 1], 2), np.asarray([[1, 0.0]] * 2))
  >>> sums.num_right.tolist(), int(sums.num_epochs)
  ([1, 0], 1)
  """
  if np.shape(probs) != np.shape(sums.probs):
    raise ValueError(
      f"probs must be [N, K] as at the start, {np.shape(sums.probs)}; got "
      f"shape {np.shape(probs)}."
    )
  if isinstance(probs, jax.core.Tracer):
    probs = jnp.asarray(probs, jnp.float32)
    labels = jnp.asarray(sums.labels)[:, None]
    told = jnp.take_along_axis(probs, labels, axis=1).mean()
    return _added(sums, probs, _learnt(told, probs.shape[1], jnp), jnp)
  stacks.check_rows("probs", probs)
  fresh = AuditSums(*(np.array(part) for part in sums))
  _add(fresh, np.asarray(probs), "probs")
  return fresh


def _add(sums: AuditSums, probs: np.ndarray, name: str) -> None:
  """Adds an epoch to NumPy arrays, in place and some rows at a time."""
  told = probs[np.arange(len(probs)), sums.labels].mean(dtype=np.float64)
  learnt = _learnt(np.float32(told), probs.shape[1], np)
  for rows in stacks.row_slices(*probs.shape):
    part = stacks.as_float32(probs[rows])
    before = AuditSums(*(x[rows] if np.ndim(x) else x for x in sums))
    after = _added(before, part, learnt, np)
    if np.isnan(after.margin).any():
      raise ValueError(f"{name} must hold probabilities; it holds nan.")
    for old, new in zip(before, after, strict=True):
      if np.ndim(old):
        old[...] = new
  for old, new in zip(sums, after, strict=True):
    if not np.ndim(old):
      old[...] = new


def _learnt(told: Any, num_classes: int, xp: Any) -> Any:
  """How far an epoch that gives the labels so much is above chance, above 0."""
  return xp.maximum(told - 1 / num_classes, 1e-3)


def _added(sums: AuditSums, probs: Any, learnt: Any, xp: Any) -> AuditSums:
  """The sums and one epoch more, in NumPy or in JAX.

  Args:
    sums: so far.
    probs: f32[N, K].
    learnt: by the epoch, of all points.
    xp: `numpy` or `jax.numpy`.
  """
  epoch = sums.num_epochs + 1
  unlearnt = xp.maximum(1 - 1 / probs.shape[1] - learnt, 1e-4)
  weight = learnt * unlearnt / (0.02 + sums.learnt + learnt)
  column = sums.labels[:, None]
  own = xp.take_along_axis(probs, column, axis=1)[:, 0]
  is_own = xp.arange(probs.shape[1])[None] == column
  others = xp.where(is_own, -1, probs)
  other, best = others.max(axis=1), others.argmax(axis=1)
  right = (own > other) | ((own == other) & (sums.labels < best))
  # Welford's sum of squares, which loses nothing where all values are alike.
  before = xp.take_along_axis(sums.probs, column, axis=1)[:, 0]
  count = xp.float32(epoch)
  mean = before / xp.maximum(count - 1, 1)
  after = (before + own) / count
  loss = -xp.log(xp.maximum(own, _LEAST))
  error = xp.sqrt(xp.maximum((probs**2).sum(axis=1) - 2 * own + 1, 0))
  starts = right & (sums.first_right == 0)
  return AuditSums(
    labels=sums.labels,
    num_epochs=epoch,
    probs=sums.probs + probs,
    early=sums.early + weight * probs,
    weight=sums.weight + weight,
    learnt=sums.learnt + learnt,
    deviation=sums.deviation + (own - mean) * (own - after),
    margin=sums.margin + own - other,
    log_margin=sums.log_margin - loss - xp.log(xp.maximum(other, _LEAST)),
    loss=sums.loss + loss,
    last_loss=loss,
    error=sums.error + xp.where(epoch <= _EARLY, error, 0),
    num_right=sums.num_right + right,
    first_right=xp.where(starts, epoch, sums.first_right),
    num_forgotten=sums.num_forgotten + (sums.is_right & ~right),
    is_right=right,
  )


def audit_finish(sums: AuditSums) -> Audit:
  """Judges the labels by the epochs that were added.

  Args:
    sums: of `audit_update`, at least one epoch; arrays [N] and [N, K].

  Returns:
    Audit of NumPy arrays [N] and [K, K].

  >>> sums = audit_update(audit_init([0, 1], 2), np.asarray([[1, 0.0]] * 2))
  >>> audit_finish(sums).score.argmax()
  np.int64(1)
  """
  sums = AuditSums(*(np.asarray(part) for part in sums))
  num_epochs, labels = int(sums.num_epochs), sums.labels
  if not num_epochs:
    raise ValueError("nothing was added to this audit; audit_update adds.")
  num_classes = sums.probs.shape[1]
  levels = _class_means(sums.early, labels, float(sums.weight))
  believed, is_sure = _beliefs(sums.early, levels)
  noise = noise_of(_counted(believed, labels, num_classes))
  log_odds = np.log(noise) - np.log(levels)[:, None]
  means = _class_means(sums.probs, labels, num_epochs)
  score = np.empty(len(labels), np.float32)
  suggested, other = np.empty_like(labels), np.empty_like(score)
  for rows in stacks.row_slices(*sums.probs.shape):
    given = labels[rows]
    each = np.arange(len(given))
    beliefs = np.log(np.maximum(sums.early[rows] / sums.weight, _LEAST))
    beliefs += log_odds.T[given]
    own = beliefs[each, given]
    beliefs[each, given] = -np.inf
    score[rows] = beliefs.max(axis=1) - own
    told = sums.probs[rows] / means
    told[each, given] = -1
    suggested[rows] = best = told.argmax(axis=1)
    other[rows] = sums.probs[rows][each, best] / num_epochs
  joint = _confident_joint(sums, num_epochs)
  if num_epochs == 1:
    share = 1 - float(np.trace(joint))
  else:
    plain, _ = _beliefs(sums.probs, means)
    share = _share_wrong(believed != labels, is_sure, plain != labels)
  accused = np.zeros(len(labels), bool)
  first = np.argsort(-score, kind="stable")
  accused[first[: round(share * len(labels))]] = True
  suggested = np.where(accused, suggested, labels)
  return Audit(
    score=score,
    suggested=suggested,
    accused=accused,
    kind=_kinds(sums, accused),
    other=other,
    num_right=sums.num_right,
    num_epochs=num_epochs,
    noise_matrix=_rows_of(_counted(suggested, labels, num_classes)),
    confident_joint=joint,
    scores=_scores(sums, num_epochs),
  )


def estimated_noise(probs: Any, labels: ArrayLike) -> np.ndarray:
  """Returns the noise of labels as the history of their points tells it.

  Args:
    probs: [C, N, K], as for `audit`.
    labels: int[N] as given.

  Returns:
    f64[K, K] share of each right class, down, that was given each class, drawn
    towards even noise as `noise_of` does; nothing is 0. The right class is told
    by the plain mean of the predictions, divided as in `audit`.

  >>> told = estimated_noise(
  ...   [np.asarray([[0.9, 0.1]] * 9 + [[0.1, 0.9]] * 9)], [0] * 8 + [1] * 10
  ... )
  >>> told.argmax(axis=1).tolist()
  [0, 1]
  """
  sums = _summed(probs, labels)
  means = _class_means(sums.probs, sums.labels, int(sums.num_epochs))
  believed, _ = _beliefs(sums.probs, means)
  return noise_of(_counted(believed, sums.labels, len(means)))


def noise_of(counts: np.ndarray) -> np.ndarray:
  """Returns the noise that counts of believed and given classes speak of.

  The matrix is drawn towards even noise of the same rate by twice the share of
  its spread that chance alone would make: mistakes of the history itself spread
  it as well. One point of each class counts as right and one as wrong before
  any is seen, so that nothing is impossible.

  Args:
    counts: [K, K] points of each believed class, down, by given class.

  Returns:
    f64[K, K], rows sum to 1, nothing is 0.
  """
  num_classes = len(counts)
  apart = ~np.eye(num_classes, dtype=bool)
  mean, spread = counts[apart].mean(), counts[apart].var()
  drawn = min(1.0, 2 * mean / spread) if spread else 1.0
  prior = np.where(apart, 1 / (num_classes - 1), 1.0)
  rate = (counts[apart].sum() + num_classes) / (counts.sum() + 2 * num_classes)
  even = np.where(apart, rate / (num_classes - 1), 1 - rate)
  return drawn * even + (1 - drawn) * _rows_of(counts + prior)


def _rows_of(counts: np.ndarray) -> np.ndarray:
  """Rows as shares; a class that nobody believes in keeps its label."""
  total = counts.sum(axis=1, keepdims=True)
  return np.where(total > 0, counts / np.maximum(total, 1), np.eye(len(counts)))


def _counted(
  believed: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  cells = np.asarray(believed, np.int64) * num_classes + labels
  counts = np.bincount(cells, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def _class_means(
  probs: np.ndarray, labels: np.ndarray, weight: float
) -> np.ndarray:
  """Mean of a class's column over the points given as it, f64[K], above 0.

  Args:
    probs: [N, K] a sum over epochs.
    labels: int[N].
    weight: of the epochs together.

  Returns:
    Means of the epochs' mean; a class that nobody is given as has the largest.
  """
  num_classes = probs.shape[1]
  own = np.take_along_axis(probs, labels[:, None], axis=1)[:, 0]
  sizes = np.bincount(labels, minlength=num_classes)
  sums = np.bincount(labels, own, minlength=num_classes)
  means = sums / np.maximum(sizes, 1) / weight
  return np.maximum(np.where(sizes > 0, means, means.max()), _LEAST)


def _beliefs(
  probs: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The classes highest above their levels, and the surer half of each.

  Args:
    probs: [N, K] a sum over epochs.
    levels: f64[K] above 0.

  Returns:
    i32[N] the classes, and bool[N] the points whose class has no smaller share
    of all classes than the median point of that class.
  """
  num, num_classes = probs.shape
  best, share = np.empty(num, np.int32), np.empty(num, np.float32)
  for rows in stacks.row_slices(num, num_classes):
    told = probs[rows] / levels
    best[rows] = told.argmax(axis=1)
    share[rows] = told.max(axis=1) / told.sum(axis=1)
  order = np.lexsort((share, best))
  ends = np.cumsum(np.bincount(best, minlength=num_classes))
  middles = (ends - 1 + np.append(0, ends[:-1])) // 2
  # A class that nobody believes in has another's middle, which nobody asks.
  medians = share[order][np.clip(middles, 0, num - 1)]
  return best, share >= medians[best]


def _share_wrong(
  early: np.ndarray, is_sure: np.ndarray, plain: np.ndarray
) -> float:
  """The share of the labels to accuse, as `audit` says.

  Args:
    early: bool[N] the points that early beliefs have in another class.
    is_sure: bool[N] the surer half of all points.
    plain: bool[N] the points that the plain mean has in another class.
  """
  differs, sure = early.mean(), early[is_sure].mean()
  return max(min(differs, 5 * sure - 1.5 * differs), plain.mean())


def _confident_joint(sums: AuditSums, num_epochs: int) -> np.ndarray:
  """Confident learning's joint of true and given classes, f64[K, K].

  A point counts for the most likely of the classes that reach their threshold,
  the mean over the points given as such; counts of a given class are scaled to
  its size.
  """
  labels, num_classes = sums.labels, sums.probs.shape[1]
  levels = _class_means(sums.probs, labels, num_epochs)
  counts = np.zeros((num_classes, num_classes))
  for rows in stacks.row_slices(*sums.probs.shape):
    part, given = sums.probs[rows] / num_epochs, labels[rows]
    # Half a rounding error, or a class of one would miss its own mean.
    reached = np.where(part >= levels * (1 - 1e-6), part, -1)
    sure = reached.max(axis=1) >= 0
    best = reached.argmax(axis=1)
    counts += _counted(best[sure], given[sure], num_classes)
  sizes = np.bincount(labels, minlength=num_classes)
  found = counts.sum(axis=0)
  counts = np.where(found > 0, counts, np.eye(num_classes))
  joint = counts / np.maximum(counts.sum(axis=0), 1) * sizes
  return joint / joint.sum()


def _scores(sums: AuditSums, num_epochs: int) -> Scores:
  """What others have proposed, from the same sums."""
  labels, several = sums.labels, num_epochs > 1
  own = np.take_along_axis(sums.probs, labels[:, None], axis=1)[:, 0]
  levels = _class_means(sums.probs, labels, num_epochs)
  mean_margin, class_margin = np.empty_like(own), np.empty_like(own)
  for rows in stacks.row_slices(*sums.probs.shape):
    part = sums.probs[rows] / num_epochs
    mine = own[rows] / num_epochs
    level = levels[labels[rows]]
    above = part - levels.astype(np.float32)
    each = np.arange(len(part))
    part[each, labels[rows]] = above[each, labels[rows]] = -np.inf
    other = np.log(np.maximum(part.max(axis=1), _LEAST))
    mean_margin[rows] = other - np.log(np.maximum(mine, _LEAST))
    class_margin[rows] = above.max(axis=1) - (mine - level)

  def where_several(values: np.ndarray) -> np.ndarray:
    return np.where(several, values, np.nan).astype(np.float32)

  never = sums.first_right == 0
  spread = np.sqrt(np.maximum(sums.deviation, 0) / num_epochs)
  lost = np.where(never, num_epochs, sums.num_forgotten)
  first = np.where(never, num_epochs + 1, sums.first_right)
  return Scores(
    last_loss=sums.last_loss,
    loss=sums.loss / num_epochs,
    aum=-sums.log_margin / num_epochs,
    margin=-sums.margin / num_epochs,
    confidence=-own / num_epochs,
    variability=where_several(spread),
    mean_margin=mean_margin,
    class_margin=class_margin,
    first_learnt=where_several(first),
    forgotten=where_several(lost),
    el2n=sums.error / min(num_epochs, _EARLY),
  )


def _kinds(sums: AuditSums, accused: np.ndarray) -> np.ndarray:
  """How an accused label stands out: the first that holds."""
  mostly = sums.num_right * 2 > sums.num_epochs
  stories = [
    ~accused,
    sums.num_right == 0,
    sums.is_right & ~mostly,
    ~sums.is_right,
  ]
  return np.select(stories, range(4), default=4).astype(np.int8)


def trust(found: Audit) -> np.ndarray:
  """What each given label is believed beside the suggested one, 0 to 1.

  Returns:
    f32[N] the mean probability of the given label, divided by that of the two;
    1 where it is not accused.

  >>> found = audit(
  ...   [np.asarray([[0.9, 0.1]] * 9 + [[0.1, 0.9]] * 9)],
  ...   [0] * 9 + [1] * 8 + [0],
  ... )
  >>> (trust(found)[-2:] < 1).tolist()
  [False, True]
  """
  own = -found.scores.confidence
  share = own / np.maximum(own + found.other, _LEAST)
  return np.where(found.accused, share, 1).astype(np.float32)


class Judged(NamedTuple):
  """How well scores tell wrong labels, where it is known which are wrong.

  Attributes:
    auroc: chance that a wrong label scores above a right one; ties count half.
    average_precision: mean over the wrong labels of the share of wrong ones
      among all that score as high or higher.
    missed: share of the wrong labels that are not among as many of the highest
      scores as labels are wrong.
  """

  auroc: float
  average_precision: float
  missed: float


def judge(scores: ArrayLike, wrong: ArrayLike) -> Judged:
  """Compares scores with the truth; nan where none or all are wrong.

  Args:
    scores: [N] higher for a more suspect label.
    wrong: bool[N].
  """
  scores = np.asarray(scores, np.float64)
  wrong = np.asarray(stacks.as_booleans("wrong", wrong))
  if scores.ndim != 1 or scores.shape != wrong.shape:
    raise ValueError(
      f"scores and wrong must both be [N]; got shapes {scores.shape} and "
      f"{wrong.shape}."
    )
  if wrong.all() or not wrong.any() or np.isnan(scores).any():
    return Judged(np.nan, np.nan, np.nan)
  num = np.count_nonzero(wrong)
  _, place, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
  found = np.bincount(place, wrong)  # wrong labels by score, highest first
  above = np.cumsum(found) - found
  named = np.cumsum(sizes)
  ordered = (sizes - found) * (above + found / 2)
  first = np.argsort(-scores, kind="stable")[:num]
  return Judged(
    auroc=float(ordered.sum() / (num * (len(wrong) - num))),
    average_precision=float((found * np.cumsum(found) / named).sum() / num),
    missed=float(1 - wrong[first].mean()),
  )
