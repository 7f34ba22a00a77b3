"""The objectives that need no teacher, as a configuration means them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from kfkd_jax import config as config_lib
from kfkd_jax.catalogue import METHODS
from kfkd_jax.training import self_taught
from kfkd_jax.training.objective import (
  Objective,
  early_learning,
  generalised,
  supervised,
  symmetric,
)

OBJECTIVES: dict[str, Callable[[ml_collections.ConfigDict], Objective]] = {
  "ce": lambda c: supervised(label_smoothing=c.train.label_smoothing),
  "label_smoothing": lambda c: supervised(
    label_smoothing=c.baselines.label_smoothing
  ),
  "mixup": lambda c: supervised(),
  "gce": lambda c: generalised(c.baselines.gce_q),
  "sce": lambda c: symmetric(c.baselines.sce_weights),
  "elr": lambda c: early_learning(
    c.baselines.elr_weight, c.baselines.elr_decay
  ),
  "air": lambda c: self_taught.air(share=c.strategy.air_share),
  "air_soft": lambda c: self_taught.air(hard=False, share=c.strategy.air_share),
  "air_previous": lambda c: self_taught.air(
    hard=False, previous=True, share=c.strategy.air_share
  ),
  "ps_kd": lambda c: self_taught.past_predictions(
    c.train.epochs, last_share=c.strategy.ps_kd_share
  ),
  "self_adaptive": lambda c: self_taught.self_adaptive(
    round(c.strategy.self_adaptive_start * c.train.epochs),
    decay=c.strategy.self_adaptive_decay,
  ),
}


# What a row trains is the same whatever the teacher and its students learn.
PLAIN = {"train.objective": "ce", "distill.label_loss": "ce"}


def changes(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
  """Configuration that an objective's own row needs otherwise, by dotted key.

  The row gives its objective and the options of it apart.
  """
  if name == "mixup":
    return {**PLAIN, "augment.mixup": config.baselines.mixup}
  # What is said of a mixed image is said of none of the two it is made of.
  remembers = name in METHODS and "memory" in METHODS[name].needs
  return {**PLAIN, "augment.mixup": 0.0} if remembers else PLAIN


def mixing(config: ml_collections.ConfigDict) -> float:
  """How images are mixed while they are learnt from: see `augment.mixup`."""
  of_objective = config.train.objective == "mixup"
  return config.baselines.mixup if of_objective else config.augment.mixup


def inputs(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
  """The values of the keys that a method alone reads, by their last names."""
  return {
    key.rpartition(".")[2]: config_lib.get(config, key)
    for key in METHODS[name].keys
  }
