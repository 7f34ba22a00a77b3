"""Image classification sets, by name, from TFDS into arrays: no TensorFlow."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from kfkd_jax.data import human_labels
from kfkd_jax.data.builders import BUILDERS, SyntheticConfig

_TFRECORD = tfds.core.FileFormat.TFRECORD
_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

NAMES = (*BUILDERS, *human_labels.BASES)


class FeatureKeys(NamedTuple):
  """The keys of the image and of its label among a set's features."""

  image: str
  label: str


class Examples(NamedTuple):
  """One split, in memory.

  Attributes:
    images: uint8[N, H, W, Ch].
    labels: int32[N].
    ids: int64[N] position of each example in the TFDS split.
    extra: int32[N] the further label that was asked for, else None.
  """

  images: np.ndarray
  labels: np.ndarray
  ids: np.ndarray
  extra: np.ndarray | None

  def take(self, index: np.ndarray) -> Examples:
    """The examples at these positions."""
    extra = None if self.extra is None else self.extra[index]
    return Examples(
      self.images[index], self.labels[index], self.ids[index], extra
    )


class Dataset(NamedTuple):
  """A data set, in memory.

  Attributes:
    name: as it was asked for.
    train: its training `Examples`.
    test: its test `Examples`.
    class_names: K names.
  """

  name: str
  train: Examples
  test: Examples
  class_names: tuple[str, ...]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def load(
  name: str,
  *,
  data_dir: epath.PathLike | None = None,
  manual_dir: epath.PathLike | None = None,
  train_split: str = "train",
  test_split: str = "test",
  label_field: str | None = None,
  image_size: int | None = None,
) -> Dataset:
  """Loads an image classification set, preparing it on first use.

  Args:
    name: one of `NAMES` (`synthetic` takes options, as in
      `synthetic/num_classes=100,num_train=5000`) or any TFDS name.
    data_dir: where TFDS keeps data; None for TFDS's default, which follows
      the environment variable TFDS_DATA_DIR.
    manual_dir: where files fetched by hand lie; None for TFDS's
      `downloads/manual` under data_dir.
    train_split: TFDS split to train on, slices such as `train[:80%]` included.
    test_split: TFDS split to test on.
    label_field: a further label to read into `extra`: a class-label feature of
      the set (such as `coarse_label`) or a column of human labels (such as
      `worse_label` of `cifar10_n`; test examples have none).
    image_size: resizes every image to a square of this side; None keeps them.

  Returns:
    The `Dataset`.
  """
  source = prepare(human_labels.BASES.get(name, name), data_dir=data_dir)
  _check_splits(source, train_split=train_split, test_split=test_split)
  keys = _feature_keys(source.info)
  parts, columns = [], []
  for split in (train_split, test_split):
    records = read_records(source, split, keys.image)
    images = _decode_images(records, source.info, keys.image, image_size)
    columns.append(_label_columns(records, source.info, keys.label))
    labels = columns[-1].pop(keys.label)
    parts.append(Examples(images, labels, np.arange(len(labels)), None))
    if name in human_labels.BASES and split == train_split:
      folder = manual_dir or source.data_dir_root / "downloads" / "manual"
      columns[-1] |= _human_columns(epath.Path(folder), name, labels, records)
  train, test = parts
  if label_field is not None:
    _check_field(name, label_field, columns[0])
    train = train._replace(extra=columns[0][label_field])
    test = test._replace(extra=columns[1].get(label_field))
  names = source.info.features[keys.label].names
  return Dataset(name, train, test, tuple(names))


def builder(
  name: str, *, data_dir: epath.PathLike | None = None
) -> tfds.core.DatasetBuilder:
  """The TFDS builder for a name: this package's own first, then TFDS's.

  Ours carry TFDS's names and versions, so what TFDS has prepared under
  `data_dir` is found by them.
  """
  family, _, options = name.partition("/")
  data_dir = None if data_dir is None else epath.Path(data_dir).expanduser()
  if family == "synthetic":
    config = _synthetic_config(options)
    return BUILDERS[family](config=config, data_dir=data_dir)
  if name in BUILDERS:
    return BUILDERS[name](data_dir=data_dir)
  try:
    return tfds.builder(name, data_dir=data_dir, try_gcs=False)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(
      f"name={name!r} is unknown to TFDS and none of ours: {', '.join(NAMES)}"
    ) from error
  except (AssertionError, ImportError) as error:  # a version, a missing package
    raise ValueError(f"name={name!r} cannot be loaded: {error}") from error


def prepare(
  name: str, *, data_dir: epath.PathLike | None = None
) -> tfds.core.DatasetBuilder:
  """The builder for a name, its data on disk (array_record if new).

  TFDS writes to a directory of its own and renames it, so several processes
  may prepare the same set at once: the first to finish wins.
  """
  source = builder(name, data_dir=data_dir)
  if source.data_path.exists():
    return source
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  try:
    source.download_and_prepare(file_format="array_record")
  except ImportError as error:
    if "tensorflow" not in str(error):
      raise
    raise ValueError(
      f"name={name!r}: TFDS needs TensorFlow to unpack this set. Prepare it"
      " once where TensorFlow is installed, with"
      f" tfds.builder({name!r}, file_format='array_record')"
      ".download_and_prepare(), and pass that data_dir"
    ) from error
  except OSError:
    if not source.data_path.exists():
      raise
    return builder(name, data_dir=data_dir)
  return source


def read_records(
  source: tfds.core.DatasetBuilder, split: str, image_key: str
) -> list[Mapping[str, Any]]:
  """All records of a split in TFDS's order, images still encoded."""
  decoders = {image_key: tfds.decode.SkipDecoding()}
  info = source.info
  if info.file_format == _TFRECORD and not info.alternative_file_formats:
    features = info.features
    return [
      features.deserialize_example_np(record, decoders=decoders)
      for record in _read_tfrecords(info.splits[split])
    ]
  data = source.as_data_source(split, decoders=decoders)
  return data.__getitems__(range(len(data)))


def _read_tfrecords(split_info) -> Iterator[bytes]:
  """The records of a split or slice; TFRECORD needs no TensorFlow to read."""
  for part in split_info.file_instructions:
    with epath.Path(part.filename).open("rb") as f:
      for position in range(part.skip + part.take):
        # Little-endian length and its 4-byte checksum, data and another.
        length = int.from_bytes(f.read(12)[:8], "little")
        record = f.read(length)
        if len(record) != length or len(f.read(4)) != 4:
          raise ValueError(f"{part.filename} ends inside record {position}")
        if position >= part.skip:
          yield record


def _decode_images(
  records: Sequence[Mapping[str, Any]],
  info: tfds.core.DatasetInfo,
  image_key: str,
  image_size: int | None,
) -> np.ndarray:
  """uint8[N, H, W, Ch] of the records' images."""
  channels = info.features[image_key].shape[-1]
  images: list[np.ndarray] = []
  for record in records:
    image = _decode(record[image_key], channels, image_size)
    if images and image.shape != images[0].shape:
      raise ValueError(
        f"{info.name} has images of differing sizes ({images[0].shape} and"
        f" {image.shape}), but they must fit into one array: set image_size"
      )
    images.append(image)
  return np.stack(images)


def _label_columns(
  records: Sequence[Mapping[str, Any]],
  info: tfds.core.DatasetInfo,
  label_key: str,
) -> dict[str, np.ndarray]:
  """int32[N] of every class-label feature."""
  columns = {
    key: np.array([record[key] for record in records], np.int32)
    for key, feature in info.features.items()
    if isinstance(feature, tfds.features.ClassLabel)
  }
  if columns[label_key].min() < 0:
    raise ValueError(
      f"{info.name} has examples without a label ({label_key} < 0): choose"
      " another split"
    )
  return columns


def _decode(
  encoded: bytes, channels: int | None, image_size: int | None
) -> np.ndarray:
  """uint8[H, W, Ch] from PNG or JPEG bytes."""
  image: Image.Image = Image.open(io.BytesIO(encoded))
  mode = _PIL_MODES[channels or 3]
  if image.mode != mode:
    image = image.convert(mode)
  if image_size is not None and image.size != (image_size, image_size):
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
  pixels = np.asarray(image)
  return pixels if pixels.ndim == 3 else pixels[..., None]


def _feature_keys(info: tfds.core.DatasetInfo) -> FeatureKeys:
  """The image and the label: the supervised pair, the usual or only keys."""
  wanted = [info.supervised_keys or (), ("image", "label")]
  keys = []
  for place, kind in enumerate((tfds.features.Image, tfds.features.ClassLabel)):
    found = [k for k, f in info.features.items() if isinstance(f, kind)]
    named = [pair[place] for pair in wanted if pair and pair[place] in found]
    if not named and len(found) != 1:
      raise ValueError(
        f"{info.name} is no image classification set: it has no single"
        f" {kind.__name__} among its features {sorted(info.features)}"
      )
    keys.append((named or found)[0])
  return FeatureKeys(*keys)


def _check_field(name: str, label_field: str, columns: Mapping) -> None:
  if label_field not in columns:
    raise ValueError(
      f"label_field={label_field!r} is no further label of {name}, which has"
      f" {', '.join(sorted(columns)) or 'none'}"
    )


def _check_splits(source: tfds.core.DatasetBuilder, **splits: str) -> None:
  for argument, split in splits.items():
    if split.partition("[")[0] not in source.info.splits:
      raise ValueError(
        f"{argument}={split!r} is not a split of {source.name}, which has"
        f" {', '.join(source.info.splits)}"
      )


def _synthetic_config(options: str) -> SyntheticConfig:
  """`num_classes=10,seed=1` -> SyntheticConfig."""
  pairs = [option.partition("=") for option in options.split(",") if option]
  known = ("num_classes", "num_train", "num_test", "seed")
  for key, _, value in pairs:
    if key not in known or not value.isdigit():
      raise ValueError(
        f"synthetic/{options}: {key}={value!r} is not one of"
        f" {', '.join(known)} with a whole number"
      )
  return SyntheticConfig(**{key: int(value) for key, _, value in pairs})


def _human_columns(
  folder: epath.Path,
  name: str,
  labels: np.ndarray,
  records: Sequence[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
  """int32[N] of every column of human labels, in the order of the records."""
  columns = human_labels.read_columns(folder, name)
  # b"train_00042" was example 42 of the archive that was unpacked.
  place = [int(record["id"].rpartition(b"_")[2]) for record in records]
  return human_labels.align(columns, labels, np.array(place))
