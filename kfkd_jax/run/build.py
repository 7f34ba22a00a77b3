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
from kfkd_jax.run import tasks
from kfkd_jax.training import evaluation, loop
from kfkd_jax.training.step import Views, eval_apply


def make_module(
  config: ml_collections.ConfigDict, task: tasks.Task
) -> nn.Module:
  """The configured network, ready for the sharded step."""
  options = model_options(config)
  return models.create(
    options.pop("name"),
    task.num_classes,
    **{**options, "dtype": jnp.dtype(config.model.dtype)},
    axis_name=parallel.DATA_AXIS,
  )


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What `models.create` must be told to build the configured network."""
  options = {
    "name": config.model.name,
    "width": config.model.width,
    "stem": config.model.stem,
    "patch": config.model.patch,
    "remat": config.model.remat or None,
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


def network_size(config: ml_collections.ConfigDict, task: tasks.Task) -> Size:
  """What the configured network takes to run on an image and to keep."""
  return _network_size(make_module(config, task), task.images.shape[1:])


@functools.lru_cache(maxsize=8)
def _network_size(module: nn.Module, shape: tuple[int, ...]) -> Size:
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), np.zeros((1, *shape)))
  )
  lowered = jax.jit(eval_apply(module)).lower(variables, image)
  cost: Any = lowered.cost_analysis()
  return Size(float(cost["flops"]), models.num_parameters(variables))


def initial_variables(
  config: ml_collections.ConfigDict, task: tasks.Task, seeds: loop.Seeds
) -> dict[str, Any] | None:
  """What training starts from: a pretrained file's weights, None if fresh.

  What the file does not decide, such as a head for other classes, is drawn
  from the model's stream.
  """
  if config.model.pretrained is None:
    return None
  fresh = models.init(
    make_module(config, task), jax.random.key(seeds.model), task.images[:1]
  )
  return pretrained.load(config.model.pretrained, fresh, name=config.model.name)


def make_recipe(
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  *,
  keep_history: bool = False,
  num_train: int | None = None,
) -> loop.Recipe:
  """How the config trains a network on the task's data.

  Args:
    config: the configuration.
    task: its data.
    keep_history: keep checkpoints as `history` says, not only the last.
    num_train: examples of an epoch; None: the task's.
  """
  epochs = config.train.epochs
  steps = -(-(num_train or len(task.given)) // config.train.batch_size)
  schedule = optim.make_schedule(
    config.optim.schedule,
    config.optim.learning_rate,
    epochs * steps,
    warmup_steps=config.optim.warmup_epochs * steps,
    boundaries=tuple(config.optim.boundaries),
    decay=config.optim.decay,
    cycle_steps=config.optim.cycle and config.optim.cycle * steps,
    low=config.optim.low,
    hold=config.optim.hold,
  )
  optimizer = optim.make_optimizer(
    config.optim.name,
    schedule,
    momentum=config.optim.momentum,
    nesterov=config.optim.nesterov,
    weight_decay=config.optim.weight_decay,
    clip_norm=config.optim.clip_norm,
    decay_everything=config.optim.decay_everything,
  )
  return loop.Recipe(
    module=make_module(config, task),
    optimizer=optimizer,
    views=make_views(config, task),
    random_views=make_random_views(config),
    workers=config.data.workers,
    epochs=epochs,
    batch_size=config.train.batch_size,
    average_decay=config.train.average_decay,
    history_every=config.history.every if keep_history else epochs,
    history_unit=config.history.unit if keep_history else "epoch",
    history_dtype=config.history.dtype if keep_history else "float32",
    history_keep=config.history.keep if keep_history else None,
    resume_every=config.history.resume_every,
    micro_batches=config.train.micro_batches,
    evaluation_batch=config.predictions.batch_size,
    prediction_dtype=config.predictions.dtype,
  )


def epochs_at(
  config: ml_collections.ConfigDict, task: tasks.Task, ticks: Sequence[int]
) -> list[int | float]:
  """Finished epochs at the teacher's checkpoints, by their numbers."""
  recipe = make_recipe(config, task, keep_history=True)
  clock = loop.make_clock(recipe, len(task.given))
  return [clock.epochs(tick) for tick in ticks]


def make_views(config: ml_collections.ConfigDict, task: tasks.Task) -> Views:
  """Normalisation by the training images, augmentation by the config."""
  mean, std = task.statistics
  return Views(
    mean=tuple(float(m) for m in mean),
    std=tuple(float(s) for s in std),
    pad=config.augment.pad,
    flip=config.augment.flip,
    cutout=config.augment.cutout,
    mixup=config.augment.mixup,
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


def predicted_splits(
  config: ml_collections.ConfigDict, task: tasks.Task
) -> dict[str, evaluation.Split]:
  """What a run predicts at each epoch's end."""
  skip = () if config.predictions.train else ("train",)
  return {k: v for k, v in task.splits.items() if k not in skip}
