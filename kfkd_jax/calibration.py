"""Temperature scaling of probabilities (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike
from scipy import optimize

_LOWEST, _HIGHEST = 0.02, 50.0


def fit_temperature(probs: ArrayLike, labels: ArrayLike) -> float:
  """The temperature T at which `p^(1/T)`, renormalised, is most likely.

  Args:
    probs: [N, K] of a selection split.
    labels: int[N].

  Returns:
    T between 0.02 and 50.

  >>> round(fit_temperature([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], [0, 0, 1]), 2)
  3.17
  """
  probs = np.asarray(probs, np.float64)
  labels = np.asarray(labels)
  if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
    raise ValueError(
      "probs must be [N, K] and labels [N], N at least 1; got shapes "
      f"{probs.shape} and {labels.shape}."
    )
  logs = np.log(np.maximum(probs, np.finfo(np.float32).tiny))
  true = np.take_along_axis(logs, labels[:, None], 1)[:, 0]

  def loss(log_temperature: float) -> float:
    scaled = logs / np.exp(log_temperature)
    peak = scaled.max(1)
    total = peak + np.log(np.exp(scaled - peak[:, None]).sum(1))
    return float(np.mean(total - true / np.exp(log_temperature)))

  # The loss is convex in 1/T, so it has one minimum in log T.
  found = optimize.minimize_scalar(
    loss, bounds=(np.log(_LOWEST), np.log(_HIGHEST)), method="bounded"
  )
  return float(np.exp(found.x))
