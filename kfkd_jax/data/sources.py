"""Image classification sets, by name, from TFDS, folders or the Hub."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from kfkd_jax.data import folders, hub, human_labels, originals, records
from kfkd_jax.data.builders import BUILDERS, SyntheticConfig
from kfkd_jax.data.dataset import Dataset, Examples, fingerprint
from kfkd_jax.data.stored import Files, Pixels, Records, Stored

Streaming = Literal["auto", "always", "never"]
STREAMING: tuple[Streaming, ...] = ("auto", "always", "never")
# ImageNet is prepared by TFDS where there is TensorFlow, and only read here.
NAMES = (*BUILDERS, *human_labels.BASES, *folders.NAMES, "imagenet2012")
_TEST_SPLITS = {"imagenet2012": "validation"}  # its test labels are secret


class FeatureKeys(NamedTuple):
  """The keys of the image and of its label among a set's features."""

  image: str
  label: str


def load(
  name: str,
  *,
  data_dir: epath.PathLike | None = None,
  manual_dir: epath.PathLike | None = None,
  train_split: str = "train",
  test_split: str | None = None,
  label_field: str | None = None,
  image_size: int | None = None,
  crop_share: float = 1.0,
  test_share: float = 0.2,
  skip_broken: bool = False,
  follow_links: bool = False,
  columns: hub.Columns = hub.BY_TYPE,
  stream: Streaming = "never",
  memory_limit: float = 4.0,
) -> Dataset:
  """Loads an image classification set, preparing it on first use.

  Args:
    name: one of `NAMES` (`synthetic` takes options, as in
      `synthetic/num_classes=100,num_train=5000`), any TFDS name, or a set of
      the Hugging Face Hub or folder like one, see `hub.read`.
    data_dir: where TFDS keeps data; None for TFDS's default, which follows
      the environment variable TFDS_DATA_DIR.
    manual_dir: where files fetched by hand lie: the folder of an image set,
      the files of MNIST, Fashion-MNIST or a CIFAR as published, and human
      labels, for which None is TFDS's `downloads/manual`.
    train_split: TFDS split to train on, slices such as `train[:80%]` included.
    test_split: TFDS split to test on; None for the one that has labels.
    label_field: a further label to read into `extra`: a class-label feature of
      the set (such as `coarse_label`) or a column of human labels (such as
      `worse_label` of `cifar10_n`; test examples have none).
    image_size: side of the centre square that is cut from every image and
      resized; None keeps the images.
    crop_share: of an image's short side that the square keeps.
    test_share: of the images of an `image_folder` or `hf:` set without splits.
    skip_broken: reads every image once and leaves out the broken ones.
    follow_links: reads images of a folder that links have elsewhere.
    columns: of an `hf:` set, where it has several of a kind.
    stream: "never" decodes all images into memory, "always" leaves them on
      disk as `Stored`, "auto" does so if they exceed `memory_limit`.
    memory_limit: GiB of decoded images.

  Returns:
    The `Dataset`.
  """
  view = {"size": image_size, "fraction": crop_share}

  def stays(images: Iterable[Stored]) -> bool:
    """Whether they are read from the disk batch by batch."""
    if stream != "auto":
      return stream == "always"
    return sum(part.nbytes for part in images) > memory_limit * 2**30

  if name in folders.NAMES:
    parts, class_names = _listed(
      name, manual_dir, label_field, test_share, follow_links, view
    )
  elif hub.is_of_hub(name):
    parts, class_names = hub.read(
      name,
      columns=columns,
      label_field=label_field,
      test_share=test_share,
      view=view,
    )
  elif (paths := _original_files(name, manual_dir, data_dir)) is not None:
    parts, class_names = _original(name, paths, manual_dir, label_field, view)
  else:
    source = prepare(human_labels.BASES.get(name, name), data_dir=data_dir)
    test_split = test_split or _TEST_SPLITS.get(name, "test")
    _check_splits(source, train_split=train_split, test_split=test_split)
    parts, class_names = _prepared(
      name,
      source,
      (train_split, test_split),
      manual_dir,
      label_field,
      view,
      stays,
    )
  if skip_broken:
    parts = [part.take(_stored(part).readable()) for part in parts]
  found = fingerprint(parts[0], parts[1], class_names)
  if not stays(map(_stored, parts)):
    parts = [part._replace(images=_stored(part).whole()) for part in parts]
  train, test = parts
  return Dataset(name, train, test, class_names, found)


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
  except ValueError as error:
    # Of a name that cannot be one TFDS explains the grammar of names.
    is_unknown = isinstance(error, tfds.core.DatasetNotFoundError)
    if not is_unknown and "Parsing builder name" not in str(error):
      raise ValueError(f"name={name!r} cannot be loaded: {error}") from error
    close = difflib.get_close_matches(name, NAMES, n=1)
    raise ValueError(
      f"name={name!r} is unknown to TFDS and none of ours: {', '.join(NAMES)}"
      f"{f'; did you mean {close[0]}?' if close else ''}"
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
    # Unless another process was the first to rename.
    if not source.data_path.exists():
      raise
    return builder(name, data_dir=data_dir)
  return source


def _listed(
  name: str,
  manual_dir: epath.PathLike | None,
  label_field: str | None,
  test_share: float,
  follow_links: bool,
  view: Mapping[str, Any],
) -> tuple[list[Examples], tuple[str, ...]]:
  """Training and test examples of a folder of images, and the class names."""
  root = folders.checked_root(name, manual_dir)
  found = folders.read(
    name,
    root,
    label_field=label_field,
    test_share=test_share,
    follow_links=follow_links,
  )
  parts = [
    Examples(Stored(Files(root, p.paths), **view), p.labels, p.ids, p.extra)
    for p in (found.train, found.test)
  ]
  return parts, found.class_names


def _original_files(
  name: str,
  manual_dir: epath.PathLike | None,
  data_dir: epath.PathLike | None,
) -> list[epath.Path] | None:
  """The published files of a set, where they are there and to be read."""
  base = human_labels.BASES.get(name, name)
  if base not in originals.NAMES:
    return None
  if manual_dir is not None:
    found = originals.find(base, manual_dir)
    if not found and base == name:
      raise ValueError(originals.missing(base, manual_dir))
    return found or None
  # What TFDS has prepared has another order, which runs here may rest on.
  folder = originals.FOLDERS.get(base)
  if folder is None or builder(base, data_dir=data_dir).data_path.exists():
    return None
  return originals.find(base, folder) or None


def _original(
  name: str,
  paths: list[epath.Path],
  manual_dir: epath.PathLike | None,
  label_field: str | None,
  view: Mapping[str, Any],
) -> tuple[list[Examples], tuple[str, ...]]:
  """Training and test examples of published files, and the class names."""
  base = human_labels.BASES.get(name, name)
  found = originals.read(base, paths)
  parts: list[Examples] = []
  for split, part in (("train", found.train), ("test", found.test)):
    columns = dict(part.labels)
    labels = columns.pop("label")
    if name != base and split == "train":
      human = human_labels.read_columns(epath.Path(manual_dir or ""), name)
      columns |= human_labels.align(human, labels, np.arange(len(labels)))
    if label_field is not None and split == "train":
      _check_field(name, label_field, columns)
    images = Stored(
      Pixels(part.images, f"{base} {split}"),
      channels=part.images.shape[-1],
      **view,
    )
    extra = None if label_field is None else columns.get(label_field)
    parts.append(Examples(images, labels, np.arange(len(labels)), extra))
  return parts, found.class_names


def _prepared(
  name: str,
  source: tfds.core.DatasetBuilder,
  splits: Sequence[str],
  manual_dir: epath.PathLike | None,
  label_field: str | None,
  view: Mapping[str, Any],
  stays: Callable[[Iterable[Stored]], bool],
) -> tuple[list[Examples], tuple[str, ...]]:
  """Training and test examples of TFDS splits, and the class names."""
  keys = _feature_keys(source.info)
  channels = source.info.features[keys.image].shape[-1] or 3

  def images_in(found, split):
    title = f"{source.info.full_name} {split}"
    return Stored(Records(found, keys.image, title), channels=channels, **view)

  opened = [records.opened(source, split, keys.image) for split in splits]
  on_disk = stays(map(images_in, opened, splits))
  parts: list[Examples] = []
  columns: list[dict[str, np.ndarray]] = []
  for split, found in zip(splits, opened, strict=True):
    if on_disk:
      found_columns = records.kept_label_columns(found, source, split)
    else:
      found = records.fetched(found)
      found_columns = records.label_columns(found, source.info)
    labels = found_columns.pop(keys.label)
    if labels.min() < 0:
      raise ValueError(
        f"{source.info.name} has examples without a label ({keys.label} < 0):"
        " choose another split"
      )
    if name in human_labels.BASES and not columns:  # training labels alone
      folder = manual_dir or source.data_dir_root / "downloads" / "manual"
      human = human_labels.read_columns(epath.Path(folder), name)
      # b"train_00042" was example 42 of the archive that was unpacked.
      place = [int(record["id"].rpartition(b"_")[2]) for record in found]
      found_columns |= human_labels.align(human, labels, np.array(place))
    images = images_in(found, split)
    parts.append(Examples(images, labels, np.arange(len(labels)), None))
    columns.append(found_columns)
  if label_field is not None:
    _check_field(name, label_field, columns[0])
    parts = [
      part._replace(extra=c.get(label_field)) for part, c in zip(parts, columns)
    ]
  return parts, tuple(source.info.features[keys.label].names)


def _stored(part: Examples) -> Stored:
  assert isinstance(part.images, Stored)
  return part.images


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
