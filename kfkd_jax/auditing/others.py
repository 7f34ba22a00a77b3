"""The scores that others have proposed, from the same sums."""

from typing import NamedTuple

import numpy as np

from kfkd_jax import stacks
from kfkd_jax.auditing.noise import class_means
from kfkd_jax.auditing.sums import EARLY, LEAST, AuditSums


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


def scores_of(sums: AuditSums, num_epochs: int) -> Scores:
  """What others have proposed, from the same sums."""
  labels, several = sums.labels, num_epochs > 1
  own = np.take_along_axis(sums.probs, labels[:, None], axis=1)[:, 0]
  levels = class_means(sums.probs, labels, num_epochs)
  mean_margin, class_margin = np.empty_like(own), np.empty_like(own)
  for rows in stacks.row_slices(*sums.probs.shape):
    part = sums.probs[rows] / num_epochs
    mine = own[rows] / num_epochs
    level = levels[labels[rows]]
    above = part - levels.astype(np.float32)
    each = np.arange(len(part))
    part[each, labels[rows]] = above[each, labels[rows]] = -np.inf
    other = np.log(np.maximum(part.max(axis=1), LEAST))
    mean_margin[rows] = other - np.log(np.maximum(mine, LEAST))
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
    el2n=sums.error / min(num_epochs, EARLY),
  )
