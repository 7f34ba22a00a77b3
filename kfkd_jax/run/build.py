"""What a configuration trains: its network, its recipe, its views."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kfkd_jax import models, optim, parallel
from kfkd_jax.data.stream import RandomViews
from kfkd_jax.models import pretrained
from kfkd_jax.run import objectives
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.training import evaluation, loop
from kfkd_jax.training.step import Views, eval_apply


def make_module(space: Workspace) -> nn.Module:
  """The configured network, ready for the sharded step."""
  options = model_options(space.config)
  return models.create(
    options.pop("name"),
    space.task.num_classes,
    **{**options, "dtype": jnp.dtype(space.config.model.dtype)},
    axis_name=parallel.DATA_AXIS,
  )


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What `models.create` must be told to build the configured network."""
  options = {
    "name": config.model.name,
    "width": config.model.width,
    "stem": config.model.stem,
    "patch": config.model.patch,
    "layer_scale": config.model.layer_scale,
    # These are the defaults where there is the option, and refused elsewhere.
    "remat": config.model.remat or None,
    "drop_path": config.model.drop_path or None,
    "dropout": config.model.dropout or None,
    "dtype": config.model.dtype,
  }
  return {k: v for k, v in options.items() if v is not None}


class Size(NamedTuple):
  """What a network takes.

  Attributes:
    compute: floating point operations of a forward pass, as XLA counts them.
    storage: parameters.
  """

  compute: float
  storage: float


SAME_SIZE = Size(1.0, 1.0)  # in networks like the teacher's


def network_size(space: Workspace) -> Size:
  """What the configured network takes to run on an image and to keep."""
  return _network_size(make_module(space), space.task.images.shape[1:])


@functools.lru_cache(maxsize=8)
def _network_size(module: nn.Module, shape: tuple[int, ...]) -> Size:
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), np.zeros((1, *shape)))
  )
  # An accelerator's compiler counts only what it has compiled, or not at all.
  with jax.default_device(parallel.cpu()):
    lowered = jax.jit(eval_apply(module)).lower(variables, image)
    cost: Any = lowered.cost_analysis()
  return Size(float(cost["flops"]), models.num_parameters(variables))


def initial_variables(
  space: Workspace, seeds: loop.Seeds
) -> dict[str, Any] | None:
  """What training starts from: a pretrained file's weights, None if fresh.

  What the file does not decide, such as a head for other classes, is drawn
  from the model's stream.
  """
  if space.config.model.pretrained is None:
    return None
  fresh = models.init(
    make_module(space), jax.random.key(seeds.model), space.task.images[:1]
  )
  return pretrained.load(
    space.config.model.pretrained, fresh, name=space.config.model.name
  )


def make_recipe(
  space: Workspace,
  *,
  keep_history: bool = False,
  num_train: int | None = None,
) -> loop.Recipe:
  """How the config trains a network on the task's data.

  Args:
    space: configuration and data.
    keep_history: keep checkpoints as `history` says, not only the last.
    num_train: examples of an epoch; None: the task's.
  """
  epochs = space.config.train.epochs
  steps = -(
    -(num_train or len(space.task.given)) // space.config.train.batch_size
  )
  schedule = optim.make_schedule(
    space.config.optim.schedule,
    space.config.optim.learning_rate,
    epochs * steps,
    warmup_steps=space.config.optim.warmup_epochs * steps,
    boundaries=tuple(space.config.optim.boundaries),
    decay=space.config.optim.decay,
    cycle_steps=space.config.optim.cycle and space.config.optim.cycle * steps,
    low=space.config.optim.low,
    hold=space.config.optim.hold,
  )
  optimizer = optim.make_optimizer(
    space.config.optim.name,
    schedule,
    momentum=space.config.optim.momentum,
    nesterov=space.config.optim.nesterov,
    weight_decay=space.config.optim.weight_decay,
    clip_norm=space.config.optim.clip_norm,
    decay_everything=space.config.optim.decay_everything,
    head=pretrained.head_mask,
    backbone_rate=space.config.optim.backbone_rate,
    head_steps=space.config.optim.head_epochs * steps,
  )
  return loop.Recipe(
    module=make_module(space),
    optimizer=optimizer,
    views=make_views(space),
    random_views=make_random_views(space.config),
    workers=space.config.data.workers,
    epochs=epochs,
    batch_size=space.config.train.batch_size,
    average_decay=space.config.train.average_decay,
    # Without its history a network is kept once, at its end and in full.
    history_every=space.config.history.every if keep_history else epochs,
    history_unit=space.config.history.unit if keep_history else "epoch",
    history_dtype=space.config.history.dtype if keep_history else "float32",
    history_keep=space.config.history.keep if keep_history else None,
    resume_every=space.config.history.resume_every,
    micro_batches=space.config.train.micro_batches,
    evaluation_batch=space.config.predictions.batch_size,
    prediction_dtype=space.config.predictions.dtype,
  )


def epochs_at(space: Workspace, ticks: Sequence[int]) -> list[int | float]:
  """Finished epochs at the teacher's checkpoints, by their numbers."""
  recipe = make_recipe(space, keep_history=True)
  clock = loop.make_clock(recipe, len(space.task.given))
  return [clock.epochs(tick) for tick in ticks]


def make_views(space: Workspace) -> Views:
  """Normalisation by the training images, augmentation by the config."""
  mean, std = space.task.statistics
  return Views(
    mean=tuple(float(m) for m in mean),
    std=tuple(float(s) for s in std),
    pad=space.config.augment.pad,
    flip=space.config.augment.flip,
    cutout=space.config.augment.cutout,
    mixup=objectives.mixing(space.config),
  )


def make_random_views(config: ml_collections.ConfigDict) -> RandomViews:
  """Augmentation of images that are decoded batch by batch."""
  c = config.augment
  return RandomViews(
    crop_scale=None if c.crop_scale is None else tuple(c.crop_scale),
    crop_ratio=tuple(c.crop_ratio),
    rand_ops=c.rand_ops,
    rand_magnitude=c.rand_magnitude,
  )


def predicted_splits(space: Workspace) -> dict[str, evaluation.Split]:
  """What a run predicts at each epoch's end."""
  skip = () if space.config.predictions.train else ("train",)
  return {k: v for k, v in space.task.splits.items() if k not in skip}
