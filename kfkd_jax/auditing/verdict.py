"""Our score of every label, and how many of them are accused."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kfkd_jax import stacks
from kfkd_jax.auditing.noise import (
  believed_classes,
  class_means,
  confident_joint,
  counted,
  noise_of,
  rows_of,
)
from kfkd_jax.auditing.others import Scores, scores_of
from kfkd_jax.auditing.sums import LEAST, AuditSums, summed

KINDS = ("trusted", "never learnt", "learnt late", "forgotten", "contested")


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
  return audit_finish(summed(probs, labels))


def audit_finish(sums: AuditSums) -> Audit:
  """Judges the labels by the epochs that were added.

  Args:
    sums: of `audit_update`, at least one epoch; arrays [N] and [N, K].

  Returns:
    Audit of NumPy arrays [N] and [K, K].

  >>> from kfkd_jax import audit_init, audit_update
  >>> sums = audit_update(audit_init([0, 1], 2), np.asarray([[1, 0.0]] * 2))
  >>> audit_finish(sums).score.argmax()
  np.int64(1)
  """
  sums = AuditSums(*(np.asarray(part) for part in sums))
  num_epochs, labels = int(sums.num_epochs), sums.labels
  if not num_epochs:
    raise ValueError("nothing was added to this audit; audit_update adds.")
  num_classes = sums.probs.shape[1]
  levels = class_means(sums.early, labels, float(sums.weight))
  believed, is_sure = believed_classes(sums.early, levels)
  noise = noise_of(counted(believed, labels, num_classes))
  log_odds = np.log(noise) - np.log(levels)[:, None]
  means = class_means(sums.probs, labels, num_epochs)
  score = np.empty(len(labels), np.float32)
  suggested, other = np.empty_like(labels), np.empty_like(score)
  for rows in stacks.row_slices(*sums.probs.shape):
    given = labels[rows]
    each = np.arange(len(given))
    beliefs = np.log(np.maximum(sums.early[rows] / sums.weight, LEAST))
    beliefs += log_odds.T[given]
    own = beliefs[each, given]
    beliefs[each, given] = -np.inf
    score[rows] = beliefs.max(axis=1) - own
    told = sums.probs[rows] / means
    told[each, given] = -1
    suggested[rows] = best = told.argmax(axis=1)
    other[rows] = sums.probs[rows][each, best] / num_epochs
  joint = confident_joint(sums, num_epochs)
  if num_epochs == 1:
    share = 1 - float(np.trace(joint))
  else:
    plain, _ = believed_classes(sums.probs, means)
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
    noise_matrix=rows_of(counted(suggested, labels, num_classes)),
    confident_joint=joint,
    scores=scores_of(sums, num_epochs),
  )


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
  share = own / np.maximum(own + found.other, LEAST)
  return np.where(found.accused, share, 1).astype(np.float32)
