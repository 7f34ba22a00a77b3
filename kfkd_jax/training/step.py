"""One training step and one prediction step, written for a single device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from kfkd_jax import averaging
from kfkd_jax.data import augment
from kfkd_jax.parallel import DATA_AXIS
from kfkd_jax.training.objective import Batch, Objective
from kfkd_jax.training.state import TrainState


class Views(NamedTuple):
  """How stored images become the network's input.

  Attributes:
    mean: per channel, of images scaled to 0..1.
    std: likewise.
    pad: pixels of padding before a random crop to the old size; 0: no crop.
    flip: mirror half of the images.
    cutout: side of a square that is blanked; 0: none.
    mixup: mixing concentration of the Beta distribution; 0: no mixing.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  pad: int = 0
  flip: bool = False
  cutout: int = 0
  mixup: float = 0.0

  def clean(self, images: chex.Array) -> chex.Array:
    """Normalised float images, as the network sees them in evaluation."""
    mean, std = np.asarray(self.mean), np.asarray(self.std)
    return augment.normalise(images, mean, std)


class StepMetrics(NamedTuple):
  """Sums over the global batch; divide once, at the end of the epoch.

  Attributes:
    loss: of the real rows.
    correct: real rows whose given label was predicted.
    count: real rows.
    broken: devices whose loss or new network is not finite.
  """

  loss: chex.Array
  correct: chex.Array
  count: chex.Array
  broken: chex.Array


def make_train_step(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  views: Views,
  *,
  average_decay: float | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Builds `step(state, frozen, resident, rows, seed)` for one device.

  `resident` holds the training set's arrays on the device, `rows` this device's
  share of the batch: `index`, `weight`, `position` (and the examples' own
  arrays if they are not resident). The loss is the mean over the real rows of
  the global batch, so any number of devices takes the same step.
  """

  def step(state, frozen, resident, rows, seed):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    batch = _gather(resident, rows)
    batch = _augmented(key, batch, views)
    if views.mixup:
      batch = _mixed(key, batch, views.mixup, module.num_classes)
    batch = objective.targets(frozen, batch["image"], batch)
    # Per device, so that the mean over devices is the mean over real rows.
    share = lax.pmean(jnp.sum(batch["weight"]), DATA_AXIS)

    def loss_fn(params):
      logits, updates = module.apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch["image"],
        train=True,
        mutable=["batch_stats"],
      )
      per_example = objective.loss(logits, batch)
      total = jnp.sum(per_example * batch["weight"])
      return total / share, (total, logits, updates.get("batch_stats", {}))

    grads, (total, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
      state.params
    )
    grads = lax.pmean(grads, DATA_AXIS)
    batch_stats = lax.pmean(batch_stats, DATA_AXIS)
    state = _updated(state, optimizer, grads, batch_stats, average_decay)
    sums = _sums(total, logits, batch, state.variables)
    return state, lax.psum(sums, DATA_AXIS)

  return step


def make_predict_step(
  apply_fn: Callable[[Any, chex.Array], chex.Array], views: Views
) -> Callable[[Any, chex.Array, chex.Array], chex.Array]:
  """Builds `predict(variables, images, index) -> probs` for one device."""

  def predict(variables, images, index):
    logits = apply_fn(variables, views.clean(images[index]))
    return jax.nn.softmax(logits.astype(jnp.float32))

  return predict


def eval_apply(module: nn.Module) -> Callable[[Any, chex.Array], chex.Array]:
  """`module` as a pure function `(variables, images) -> logits`, eval mode."""

  def apply_fn(variables, images):
    return module.apply(variables, images, train=False)

  return apply_fn


def _gather(resident: Batch, rows: Batch) -> Batch:
  return {**{k: v[rows["index"]] for k, v in resident.items()}, **rows}


def _augmented(key: chex.PRNGKey, batch: Batch, views: Views) -> Batch:
  images = augment.augment(
    key,
    batch["position"],
    batch["image"],
    pad=views.pad,
    flip=views.flip,
    cutout=views.cutout,
  )
  return {**batch, "image": views.clean(images)}


def _mixed(
  key: chex.PRNGKey, batch: Batch, concentration: float, num_classes: int
) -> Batch:
  """Mixes every row with the next one of the global batch (mixup).

  The batch's order is random already, so the neighbour is a random partner. One
  coefficient serves the whole batch, the same on every device. Labels become
  probabilities.
  """
  batch = {**batch, "label": jax.nn.one_hot(batch["label"], num_classes)}
  coefficient = jax.random.beta(
    jax.random.fold_in(key, 1), concentration, concentration
  )
  everyone = {
    name: lax.all_gather(value, DATA_AXIS, tiled=True)
    for name, value in batch.items()
    if name in ("image", "label", "teacher_probs")
  }
  size = everyone["image"].shape[0]
  partner = (batch["position"] + 1) % size
  mixed = {
    name: coefficient * batch[name] + (1 - coefficient) * value[partner]
    for name, value in everyone.items()
  }
  return {**batch, **mixed}


def _updated(state, optimizer, grads, batch_stats, average_decay):
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = state.average
  if average_decay is not None:
    average = averaging.ema_update(
      average,
      {"params": params, "batch_stats": batch_stats},
      decay=average_decay,
    )
  return TrainState(state.step + 1, params, batch_stats, opt_state, average)


def _sums(total, logits, batch, variables) -> StepMetrics:
  labels = batch["label"]
  if labels.ndim == logits.ndim:  # mixed labels count by their larger part
    labels = jnp.argmax(labels, -1)
  correct = (jnp.argmax(logits, -1) == labels) * batch["weight"]
  finite = jnp.stack(
    [jnp.isfinite(x).all() for x in jax.tree.leaves((total, variables))]
  ).all()
  return StepMetrics(
    total,
    jnp.sum(correct),
    jnp.sum(batch["weight"]),
    1.0 - finite.astype(jnp.float32),
  )
