"""The data of an experiment: read, split, labels made wrong as configured."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import data as data_lib
from kfkd_jax import files
from kfkd_jax.data import augment, corrections, splits
from kfkd_jax.run import streams
from kfkd_jax.training import evaluation

_NUM_MEASURED = 1024  # images on disk whose statistics stand for all


_MOST_SELECT = 400  # where selection.num says nothing


class Fold(NamedTuple):
  """Which stored predictions select and which test.

  Attributes:
    select_split: the store whose rows select.
    select_rows: `[S]` rows of it.
    test_rows: `[N]` rows of the `test` store, none of them selected on.
    number: its own, from 0.
  """

  select_split: str
  select_rows: np.ndarray
  test_rows: np.ndarray
  number: int = 0


class Task(NamedTuple):
  """The data of an experiment, noise included.

  Attributes:
    name: of the data set.
    class_names: K names.
    images: `u8[N, H, W, Ch]` training images, in memory or `Stored`.
    given: `i32[N]` their labels as the network sees them.
    trust: `f32[N]` what each of these counts in the loss, 0 to 1; None where
      all count whole.
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
  trust: np.ndarray | None = None

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def taught(self, rows: Any = slice(None)) -> dict[str, np.ndarray]:
    """The labels of some training points, and what they count, as a step reads.

    Args:
      rows: their places; all.
    """
    if self.trust is None:
      return {"label": self.given[rows]}
    return {"label": self.given[rows], "trust": self.trust[rows]}


def load_task(config: ml_collections.ConfigDict) -> Task:
  """Reads the data set, splits it and corrupts its labels as configured."""
  keys = ("seed", "seeds", "data", "noise", "selection", "augment")
  read = ml_collections.ConfigDict({key: config[key] for key in keys})
  # Networks that are trained otherwise have the same data, read once.
  read.train = {"batch_size": config.train.batch_size}
  return _load_task(config_lib.to_json(read))  # text, to be a cache's key


@functools.lru_cache(maxsize=2)
def _load_task(config_json: str) -> Task:
  config = ml_collections.ConfigDict(json.loads(config_json))
  dataset = load_dataset(config)
  parts = _parts(config, dataset)
  _check_fits(config, parts["train"].images)
  # Before labels are corrected: points that are dropped then are not left over.
  used = [parts[name].ids for name in ("train", "select") if name in parts]
  left = ~np.isin(dataset.train.ids, np.concatenate(used))
  rest = dataset.train.take(np.flatnonzero(left)).images
  ledger, transition = _corrupted(config, dataset, parts)
  fingerprint, trust = dict(dataset.fingerprint), None
  if config.noise.corrections is not None:
    parts["train"], ledger, trust, fingerprint["corrections"] = _corrected(
      config, parts["train"], ledger, len(dataset.class_names)
    )
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
    rest=rest,
    fingerprint=fingerprint,
    trust=trust,
  )


def load_dataset(config) -> data_lib.Dataset:
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
    columns=data_lib.Columns(
      config.data.image_column, config.data.label_column
    ),
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
      seed=streams.stream(config, "selection"),
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
  wrong = f"{round(100 * rate, 1):g} % of the training labels"
  made = "" if kind == "field" or not rate else kind
  if config.noise.corrections is None:
    return f"{wrong} were made wrong ({kind})" if made else ""
  done = f"corrected by {config.noise.corrections} ({config.noise.correct})"
  return f"{wrong} are wrong ({kind}), {done}" if made else f"labels {done}"


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
  key = jax.random.key(streams.stream(config, "noise"))
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
      # What an image is mistaken for does not depend on the part it is in.
      projections=jax.random.fold_in(key, 0),
    )
    rows.append((part.ids, part.labels, given, np.full(len(given), name)))
  columns = [np.concatenate(c) for c in zip(*rows, strict=True)]
  return splits.NoiseLedger(*columns), transition


def _corrected(
  config, train: data_lib.Examples, ledger: splits.NoiseLedger, num_classes: int
) -> tuple[data_lib.Examples, splits.NoiseLedger, np.ndarray | None, str]:
  """The training part and the ledger once labels are corrected.

  Returns:
    Both, what labels count, and a digest of the corrections.
  """
  path = epath.Path(config.noise.corrections).expanduser()
  way = config.noise.correct
  found = corrections.read(path, num_classes, way)
  rows = np.flatnonzero(ledger.split == "train")
  here = corrections.places(path, found, train.ids, ledger.given[rows])
  digest = files.digest(files.read_bytes(path))
  if way == "weight":
    trust = np.ones(len(rows), np.float32)
    trust[here] = found.weights
    if not trust.any():
      raise config_lib.ConfigError(
        f"noise.corrections={config.noise.corrections} gives all {len(rows)} "
        "training points a weight of 0"
      )
    return train, ledger, trust, digest
  if way == "relabel":
    given = ledger.given.copy()
    given[rows[here]] = found.suggested
    if config.noise.kind != "none":
      return train, dataclasses.replace(ledger, given=given), None, digest
    # Nothing is known that is truer than the corrected labels.
    ledger = dataclasses.replace(ledger, given=given, clean=given)
    return train._replace(labels=given[rows]), ledger, None, digest
  if len(here) == len(rows):
    raise config_lib.ConfigError(
      f"noise.corrections={config.noise.corrections} drops all {len(rows)} "
      "training points"
    )
  kept = np.setdiff1d(np.arange(len(rows)), here)
  left = np.setdiff1d(np.arange(len(ledger.split)), rows[here])
  columns = (v[left] for v in vars(ledger).values())
  return train.take(kept), splits.NoiseLedger(*columns), None, digest


def _folds(config, parts) -> tuple[Fold, ...]:
  if "select" in parts:
    select_rows = np.arange(len(parts["select"].labels))
    return (Fold("select", select_rows, np.arange(len(parts["test"].labels))),)
  test = parts["test"]
  halves = [
    splits.halve_test(test.labels, test.ids, fold=fold)
    for fold in range(config.selection.halvings)
  ]
  return tuple(Fold("test", *half, n) for n, half in enumerate(halves))
