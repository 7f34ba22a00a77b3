"""Image sets of the Hugging Face Hub, and folders that lie like them.

The package `datasets` reads them, Parquet files above all; no code of theirs is
run.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kfkd_jax import extras
from kfkd_jax.data import human_labels, pictures, splits
from kfkd_jax.data.dataset import Examples
from kfkd_jax.data.stored import Records, Stored

PREFIX = "hf:"  # of a set's name
_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w.-]*))?")
_TEST_SPLITS = ("test", "validation")  # the first that has labels
_NUM_LOOKED_AT = 256  # pictures, to learn whether they are grey
# Where sets that are read from elsewhere lie on the Hub.
_PUBLISHED = {
  "mnist": "ylecun/mnist",
  "fashion_mnist": "zalando-datasets/fashion_mnist",
  "cifar10": "uoft-cs/cifar10",
  "cifar100": "uoft-cs/cifar100",
  "imagenet2012": "ILSVRC/imagenet-1k",
}


class Columns(NamedTuple):
  """What the columns of a set are called; None finds them by their type."""

  image: str | None = None
  label: str | None = None


BY_TYPE = Columns()


class Pictures(Sequence):
  """Rows of a table as records of encoded pictures."""

  def __init__(self, table: Any, key: str):
    self._table = table
    self._key = key

  def __len__(self) -> int:
    return len(self._table)

  def __getitem__(self, place):
    picture = self._table[int(place)][self._key] or {"bytes": b""}
    encoded = picture["bytes"]
    if encoded is None:  # a file of its own
      with open(picture["path"], "rb") as file:
        encoded = file.read()
    return {self._key: encoded}


def is_of_hub(name: str) -> bool:
  """Whether a set is to be read as the Hub has it."""
  return name.startswith(PREFIX)


def shown(name: str) -> str:
  """A set's name as others may see it: of a folder its last part alone."""
  folder = _folder(name)
  return name if folder is None else PREFIX + os.path.basename(folder)


def repository(name: str) -> str | None:
  """`OWNER/NAME` of a set on the Hub; None where it is not known to be there.

  >>> repository("mnist"), repository("hf:some/set/part"), repository("digits")
  ('ylecun/mnist', 'some/set', None)
  """
  if not is_of_hub(name):
    return _PUBLISHED.get(human_labels.BASES.get(name, name))
  match = _NAME.fullmatch(name.removeprefix(PREFIX))
  return match[1] if match and _folder(name) is None else None


def read(
  name: str,
  *,
  columns: Columns,
  label_field: str | None,
  test_share: float,
  view: Mapping[str, Any],
) -> tuple[list[Examples], tuple[str, ...]]:
  """The set `hf:OWNER/NAME`, `hf:OWNER/NAME/SUBSET` or `hf:FOLDER`.

  The columns of images and labels are found by their types, `Image` and
  `ClassLabel`; of several, those called `image` and `label`. The split `train`
  trains, `test` or `validation` tests; without them, always the same share of
  `train`. Images are grey where a sample of them is, and RGB elsewhere.

  Args:
    name: with its prefix.
    columns: which to take, where there are several.
    label_field: a further `ClassLabel` column to read into `extra`.
    test_share: of the images, where there is only `train`.
    view: how `Stored` shows an image.

  Returns:
    Training and test examples, and the class names.

  Raises:
    ValueError: it cannot be had, or is no image classification set.
  """
  tables = _tables(name)
  if "train" not in tables:
    raise ValueError(
      f"data.name={name!r} has no split train, only {', '.join(tables)}"
    )
  features = tables["train"].features
  image, label = _keys(name, features, columns)
  others = sorted(set(_of_type(features, "ClassLabel")) - {label})
  if label_field is not None and label_field not in others:
    raise ValueError(
      f"label_field={label_field!r} is no further label of {name}, which has "
      f"{', '.join(others) or 'none'}"
    )
  channels = 1 if _are_grey(Pictures(tables["train"], image), image) else 3

  def examples(split: str) -> Examples:
    table = tables[split]

    def numbers(key):
      return np.array([-1 if v is None else v for v in table[key][:]], np.int32)

    rows = Pictures(table.select_columns([image]), image)
    source = Records(rows, image, f"{shown(name)} {split}")
    return Examples(
      Stored(source, channels=channels, **view),
      numbers(label),
      np.arange(len(table)),
      None if label_field is None else numbers(label_field),
    )

  train = examples("train")
  if (unlabelled := np.sum(train.labels < 0)) or not len(train.labels):
    raise ValueError(
      f"data.name={name!r}: {unlabelled} of {len(train.labels)} training "
      f"examples have no {label}"
    )
  for split in _TEST_SPLITS:
    if split in tables and len(tables[split]):
      test = examples(split)
      if test.labels.min() >= 0:
        return [train, test], tuple(features[label].names)
  if len(tables) > 1:
    raise ValueError(
      f"data.name={name!r} has no split {' or '.join(_TEST_SPLITS)} with "
      f"labels; its splits: {', '.join(tables)}"
    )
  rows = splits.carve_test(train.labels, train.ids, test_share, where=name)
  return [train.take(part) for part in rows], tuple(features[label].names)


def _folder(name: str) -> str | None:
  """The folder that a name means, if it means one."""
  path = os.path.expanduser(name.removeprefix(PREFIX))
  is_one = is_of_hub(name) and os.path.isdir(path)
  return os.path.abspath(path) if is_one else None


def _tables(name: str) -> dict[str, Any]:
  """The tables by split, pictures left encoded."""
  folder = _folder(name)
  match = _NAME.fullmatch(name.removeprefix(PREFIX))
  if folder is not None:
    where: tuple[str | None, ...] = (folder,)
  elif match is not None:
    where = match.groups()
  else:
    raise ValueError(
      f"data.name={name!r} is neither {PREFIX}FOLDER nor {PREFIX}OWNER/NAME or "
      f"{PREFIX}OWNER/NAME/SUBSET of the Hugging Face Hub"
    )
  with extras.named():
    import datasets
  if not sys.stderr.isatty():
    datasets.disable_progress_bars()
  logger = logging.getLogger("huggingface_hub")
  level = logger.level
  logger.setLevel(logging.ERROR)  # without a network it warns at every try
  try:
    tables = datasets.load_dataset(*where)
  except Exception as error:  # of any of the packages that it reads with
    line = next(iter(str(error).splitlines()), type(error).__name__)
    raise ValueError(f"data.name={name!r} cannot be read: {line}") from error
  finally:
    logger.setLevel(level)
  found = {}
  for split, table in tables.items():
    for key in _of_type(table.features, "Image"):
      table = table.cast_column(key, datasets.Image(decode=False))
    found[str(split)] = table
  return found


def _keys(name: str, features: Mapping, wanted: Columns) -> list[str]:
  """The columns of the image and of its label."""
  keys = []
  for part, kind in (("image", "Image"), ("label", "ClassLabel")):
    there, asked = _of_type(features, kind), getattr(wanted, part)
    usual = [part] if part in there else there
    chosen = [key for key in there if key == asked] if asked else usual
    if len(chosen) != 1:
      listed = ", ".join(f"{key} ({_kind(f)})" for key, f in features.items())
      said = f"no {kind} column {asked!r}" if asked else f"no {kind} column"
      if part == "label":
        said += " (class_encode_column of datasets makes one)"
      if len(chosen) > 1:
        said = f"several {kind} columns, one to be named by data.{part}_column"
      raise ValueError(f"data.name={name!r} has {said}; its columns: {listed}")
    keys += chosen
  return keys


def _of_type(features: Mapping, kind: str) -> list[str]:
  return [key for key, feature in features.items() if _kind(feature) == kind]


def _kind(feature: Any) -> str:
  """`Image`, `ClassLabel`, ..., of a plain value its type, such as `int64`."""
  kind = type(feature).__name__
  return feature.dtype if kind == "Value" else kind


def _are_grey(rows: Pictures, key: str) -> bool:
  """Whether pictures spread over all rows are."""
  count = min(len(rows), _NUM_LOOKED_AT)
  places = np.linspace(0, len(rows) - 1, count).astype(int)
  return all(pictures.is_grey(rows[place][key]) for place in places)
