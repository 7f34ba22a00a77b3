"""How well scores tell the wrong labels, where the truth is known."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from kfkd_jax import stacks


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
