"""What a config means: its data, its recipe, its networks.

Shared by the stages. Everything here is a function of the config alone, so any
stage can rebuild it and none has to trust another's memory.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kfkd_jax import config as config_lib
from kfkd_jax import data as data_lib
from kfkd_jax import models, optim, parallel
from kfkd_jax.data import augment, splits
from kfkd_jax.data.stream import RandomViews
from kfkd_jax.models import pretrained
from kfkd_jax.training import evaluation, loop
from kfkd_jax.training.step import Views, eval_apply

TEACHER = "teacher"
_NUM_MEASURED = 1024  # images on disk whose statistics stand for all
_MOST_SELECT = 400  # where selection.num says nothing


class Fold(NamedTuple):
  """Which stored predictions select and which test.

  Attributes:
    select_split: the store whose rows select.
    select_rows: `[S]` rows of it.
    test_rows: `[N]` rows of the `test` store, none of them selected on.
  """

  select_split: str
  select_rows: np.ndarray
  test_rows: np.ndarray


class Task(NamedTuple):
  """The data of an experiment, noise included.

  Attributes:
    name: of the data set.
    class_names: K names.
    images: `u8[N, H, W, Ch]` training images, in memory or `Stored`.
    given: `i32[N]` their labels as the network sees them.
    ledger: every noisy split's clean and given labels.
    statistics: mean and deviation of each channel of the training images.
    transition: `f32[K, K]` of the noise, None where it has no matrix.
    splits: examples to predict by split name, with clean labels.
    folds: who selects and who tests.
    rest: `u8[N, H, W, Ch]` training images that neither train nor select, in
      memory or `Stored`.
    fingerprint: of the data set as it was read.
  """

  name: str
  class_names: tuple[str, ...]
  images: np.ndarray | data_lib.Stored
  given: np.ndarray
  ledger: splits.NoiseLedger
  statistics: tuple[np.ndarray, np.ndarray]
  transition: np.ndarray | None
  splits: dict[str, evaluation.Split]
  folds: tuple[Fold, ...]
  rest: np.ndarray | data_lib.Stored
  fingerprint: Mapping[str, str] = types.MappingProxyType({})

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def seeds_for(config: ml_collections.ConfigDict, member: int = 0) -> loop.Seeds:
  """Random streams of the network number `member`; 0 is the teacher.

  Students share the teacher's streams; members of an ensemble differ in all.
  """
  streams = ("model", "order", "augment")
  return loop.Seeds(*(stream(config, s, member) for s in streams))


def stream(
  config: ml_collections.ConfigDict, name: str, member: int = 0
) -> int:
  """A 32-bit seed for one purpose, independent of those for the others."""
  names = tuple(config.seeds)
  root = config.seed if config.seeds[name] is None else config.seeds[name]
  sequence = np.random.SeedSequence((root, names.index(name), member))
  return int(sequence.generate_state(1)[0])


def load_task(config: ml_collections.ConfigDict) -> Task:
  """Reads the data set, splits it and corrupts its labels as configured."""
  keys = ("seed", "seeds", "data", "noise", "selection", "augment", "train")
  return _load_task(config_lib.to_json(_section(config, keys)))


def _section(config, keys) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({k: config[k] for k in keys})


@functools.lru_cache(maxsize=2)
def _load_task(config_json: str) -> Task:
  config = ml_collections.ConfigDict(json.loads(config_json))
  dataset = _load_dataset(config)
  parts = _parts(config, dataset)
  _check_fits(config, parts["train"].images)
  ledger, transition = _corrupted(config, dataset, parts)
  return Task(
    name=config.data.name,
    class_names=tuple(dataset.class_names),
    images=parts["train"].images,
    given=ledger.given[ledger.split == "train"],
    ledger=ledger,
    statistics=_statistics(parts["train"].images),
    transition=transition,
    splits={
      name: evaluation.Split(part.images, part.labels, part.ids)
      for name, part in parts.items()
    },
    folds=_folds(config, parts),
    rest=_rest(dataset, parts),
    fingerprint=dataset.fingerprint,
  )


def _load_dataset(config) -> data_lib.Dataset:
  views = config.augment.crop_scale is not None or config.augment.rand_ops > 0
  auto = config.data.stream == "auto"
  return data_lib.load(
    config.data.name,
    data_dir=config.data.dir,
    manual_dir=config.data.root,
    label_field=config.noise.field,
    image_size=config.data.image_size,
    crop_share=config.data.crop_share,
    test_share=config.data.test_share,
    skip_broken=config.data.skip_broken,
    follow_links=config.data.follow_links,
    stream="always" if auto and views else config.data.stream,
    memory_limit=config.data.memory_limit,
  )


def _statistics(images) -> tuple[np.ndarray, np.ndarray]:
  """Of all images in memory; on disk, of a thousand spread over them."""
  if isinstance(images, data_lib.Stored):
    count = min(len(images), _NUM_MEASURED)
    images = images[np.arange(count) * len(images) // count]
  return augment.channel_statistics(images)


def _parts(config, dataset) -> dict[str, Any]:
  """The data set's examples by the part they play."""
  from_train = config.selection.source == "train"
  total = len(dataset.train.labels)
  wanted, num = config.data.num_train, config.selection.num
  fifth = max(1, min(_MOST_SELECT, (wanted or total) // 5))
  num_select = 0 if not from_train else fifth if num is None else num
  try:
    train, select = splits.split_train(
      dataset.train.labels,
      dataset.train.ids,
      num_select=num_select,
      num_train=wanted,
      seed=stream(config, "selection"),
    )
  except ValueError as error:
    tip = f"selection.num={total // 5}"
    if wanted is not None and num_select < total:
      tip = f"data.num_train={total - num_select}"
    raise config_lib.ConfigError(
      f"data.num_train={wanted} and selection.num={num} do not fit the {total} "
      f"training examples of {config.data.name}; try {tip}"
    ) from error
  parts = {"train": dataset.train.take(train), "test": dataset.test}
  if from_train:
    parts["select"] = dataset.train.take(select)
  return parts


def first_line(config: ml_collections.ConfigDict, task: Task) -> str:
  """What a run begins with: who trains, selects and tests, and made noise."""
  parts = [f"{len(task.given)} train"]
  for name in ("select", "test"):
    if name in task.splits:
      parts.append(f"{len(task.splits[name].labels)} {name}")
  line = f"{task.name}: {', '.join(parts)}"
  if len(task.folds) > 1 or task.folds[0].select_split == "test":
    line += f", half of which selects, {len(task.folds)} times"
  made = made_noise(config, task.ledger)
  return f"{line}; {made}" if made else line


def made_noise(
  config: ml_collections.ConfigDict, ledger: splits.NoiseLedger
) -> str:
  """Says what was done to the training labels; nothing if nothing was."""
  rate, kind = ledger.realised_rate("train"), config.noise.kind
  if kind == "field" or not rate:
    return ""
  share = round(100 * rate, 1)
  return f"{share:g} % of the training labels were made wrong ({kind})"


def _rest(dataset, parts) -> np.ndarray | data_lib.Stored:
  """Images of the data set's training examples that play no part."""
  used = [parts[name].ids for name in ("train", "select") if name in parts]
  left = ~np.isin(dataset.train.ids, np.concatenate(used))
  return dataset.train.take(np.flatnonzero(left)).images


def extra_images(
  config: ml_collections.ConfigDict,
) -> np.ndarray | data_lib.Stored:
  """`u8[N, H, W, Ch]` images that students see without labels."""
  task, name = load_task(config), config.distill.extra
  if name == "rest":
    images = task.rest
    if not len(images):
      raise config_lib.ConfigError(
        f"distill.extra='rest' finds nothing: data.num_train="
        f"{config.data.num_train} leaves no image of {task.name} over"
      )
  else:
    other = ml_collections.ConfigDict(config.to_dict())
    other.data.name, other.noise.field = name, None
    if name not in data_lib.FOLDER_NAMES:  # the folder is the first set's
      other.data.root = None
    images = _load_dataset(other).train.images
  if images.shape[1:] != task.images.shape[1:]:
    raise config_lib.ConfigError(
      f"distill.extra={name!r} has images of shape {images.shape[1:]}, which "
      f"do not fit {task.images.shape[1:]} of data.name={task.name!r}"
    )
  on_disk = [isinstance(x, data_lib.Stored) for x in (images, task.images)]
  if config.distill.inputs == "both" and any(on_disk):
    raise config_lib.ConfigError(
      "distill.inputs='both' needs all images in memory, but those of "
      f"data.name={task.name!r} or distill.extra={name!r} stay on disk; see "
      "data.stream"
    )
  return images


def _check_fits(config, images: np.ndarray | data_lib.Stored) -> None:
  """Refuses what only the data shows to be impossible."""
  count, height, width, _ = images.shape
  name, side = config.data.name, min(height, width)
  for key, most in (("pad", side - 1), ("cutout", side)):
    if config.augment[key] > most:
      raise config_lib.ConfigError(
        f"augment.{key}={config.augment[key]} does not fit the {height}x"
        f"{width} images of data.name={name!r}; allowed: 0 to {most}"
      )
  on_disk = isinstance(images, data_lib.Stored)
  if on_disk and config.noise.kind == "instance":
    raise config_lib.ConfigError(
      "noise.kind='instance' reads all images at once, but those of data.name="
      f"{name!r} stay on disk; set data.stream='never' if they fit into memory"
    )
  if config.train.batch_size >= 2 * count:
    raise config_lib.ConfigError(
      f"train.batch_size={config.train.batch_size} is twice the {count} "
      f"training examples of data.name={name!r} or more; most of a batch would "
      "count for nothing"
    )


def _corrupted(config, dataset, parts):
  """Noise on every part that a label may be read from, as one ledger.

  Test labels are corrupted only for the half of them that selects, where the
  configuration asks for noisy selection; they are scored clean.
  """
  key = jax.random.key(stream(config, "noise"))
  names = ["train", "select" if "select" in parts else "test"]
  rows, transition = [], None
  for number, name in enumerate(names):
    part = parts[name]
    given, transition = splits.apply_noise(
      jax.random.fold_in(key, number),
      part.images,
      part.labels,
      kind=config.noise.kind,
      rate=config.noise.rate,
      num_classes=len(dataset.class_names),
      name=config.data.name,
      field_labels=part.extra,
    )
    rows.append((part.ids, part.labels, given, np.full(len(given), name)))
  columns = [np.concatenate(c) for c in zip(*rows, strict=True)]
  return splits.NoiseLedger(*columns), transition


def _folds(config, parts) -> tuple[Fold, ...]:
  if "select" in parts:
    select_rows = np.arange(len(parts["select"].labels))
    return (Fold("select", select_rows, np.arange(len(parts["test"].labels))),)
  test = parts["test"]
  halves = [
    splits.halve_test(test.labels, test.ids, fold=fold)
    for fold in range(config.selection.halvings)
  ]
  return tuple(Fold("test", *half) for half in halves)


def selection_labels(
  config: ml_collections.ConfigDict, task: Task, fold: Fold
) -> np.ndarray:
  """`i32[S]` labels of the selecting points, clean or noisy as configured."""
  ledger = task.ledger
  noisy = config.selection.labels == "noisy"
  labels = (ledger.given if noisy else ledger.clean)[
    ledger.split == fold.select_split
  ]
  return labels[fold.select_rows]


def selected_on(config: ml_collections.ConfigDict, fold: Fold) -> str:
  """Says which points chose, for tables: `select (clean labels)`."""
  half = " half" if fold.select_split == "test" else ""
  return f"{fold.select_split}{half} ({config.selection.labels} labels)"


def make_module(config: ml_collections.ConfigDict, task: Task) -> nn.Module:
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


def network_size(config: ml_collections.ConfigDict, task: Task) -> Size:
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
  config: ml_collections.ConfigDict, task: Task, seeds: loop.Seeds
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
  task: Task,
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
  config: ml_collections.ConfigDict, task: Task, ticks: Sequence[int]
) -> list[int | float]:
  """Finished epochs at the teacher's checkpoints, by their numbers."""
  recipe = make_recipe(config, task, keep_history=True)
  clock = loop.make_clock(recipe, len(task.given))
  return [clock.epochs(tick) for tick in ticks]


def make_views(config: ml_collections.ConfigDict, task: Task) -> Views:
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
  config: ml_collections.ConfigDict, task: Task
) -> dict[str, evaluation.Split]:
  """What a run predicts at each epoch's end."""
  skip = () if config.predictions.train else ("train",)
  return {k: v for k, v in task.splits.items() if k not in skip}
