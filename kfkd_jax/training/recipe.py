"""How a network is trained, and from which random numbers."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import optax

from kfkd_jax.data import stream
from kfkd_jax.training import step as step_lib


class Recipe(NamedTuple):
  """How one network is trained, whatever it learns from.

  Attributes:
    module: the network, its `axis_name` that of the mesh.
    optimizer: an optax transformation.
    views: normalisation and augmentation.
    epochs: passes over the training set.
    batch_size: of all devices together; divides over them.
    average_decay: of a moving average of the weights; None keeps none.
    history_every: between kept checkpoints; the last is always kept.
    history_unit: of that, `epoch` or `step`.
    history_dtype: of the checkpoints before the last.
    history_keep: at most so many checkpoints, by what they remember on the
      split `select`; None keeps all.
    resume_every: epochs between full states.
    micro_batches: pieces in which a device learns its share of a batch.
    evaluation_batch: examples predicted at once, over all devices.
    prediction_dtype: of the stored probabilities.
    random_views: of images that are decoded for each step.
    workers: processes that decode them; 0: threads.
  """

  module: nn.Module
  optimizer: optax.GradientTransformation
  views: step_lib.Views
  epochs: int
  batch_size: int
  average_decay: float | None = None
  history_every: float = 1
  history_unit: str = "epoch"
  history_dtype: str = "float32"
  history_keep: int | None = None
  resume_every: int = 1
  micro_batches: int = 1
  evaluation_batch: int = 1024
  prediction_dtype: str = "float32"
  random_views: stream.RandomViews = stream.RandomViews()
  workers: int = 0


class Seeds(NamedTuple):
  """Separate random streams: changing one changes only what it names."""

  model: int
  order: int
  augment: int
