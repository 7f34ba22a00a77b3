"""The records of a prepared TFDS split: any of them, without TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from kfkd_jax import files

_TFRECORD = tfds.core.FileFormat.TFRECORD
_NUM_THREADS = 16  # a label needs little work and a read

Record = Mapping[str, Any]


class TfRecords(Sequence):
  """A split in TFRECORD files, which TFDS reads through TensorFlow only."""

  def __init__(self, split_info: Any, features: Any, decoders: Any):
    """Finds where each record of a split or slice starts."""
    self._paths: list[str] = []
    self._features = features
    self._decoders = decoders
    places = []
    for number, part in enumerate(split_info.file_instructions):
      self._paths.append(str(part.filename))
      # From the file's start: records are found only by the lengths before
      # them.
      bounds = list(_bounds(part.filename, part.skip + part.take))
      places += [(number, *bound) for bound in bounds[part.skip :]]
    self._places = np.array(places, np.int64).reshape(-1, 3)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, place):
    number, start, length = self._places[place].tolist()
    with epath.Path(self._paths[number]).open("rb") as file:
      file.seek(start)
      content = file.read(length)
    return self._features.deserialize_example_np(
      content, decoders=self._decoders
    )


def opened(
  source: tfds.core.DatasetBuilder, split: str, image_key: str
) -> Sequence[Record]:
  """The records of a split by place, images left encoded."""
  decoders = {image_key: tfds.decode.SkipDecoding()}
  info = source.info
  if info.file_format == _TFRECORD and not info.alternative_file_formats:
    return TfRecords(info.splits[split], info.features, decoders)
  return source.as_data_source(split, decoders=decoders)


def fetched(records: Sequence[Record]) -> list[Record]:
  """All of the records, in memory."""
  if isinstance(records, TfRecords):
    return list(records)
  return records.__getitems__(range(len(records)))  # type: ignore[attr-defined]


def label_columns(
  records: Sequence[Record], info: tfds.core.DatasetInfo
) -> dict[str, np.ndarray]:
  """int32[N] of every class-label feature."""
  keys = [
    key
    for key, feature in info.features.items()
    if isinstance(feature, tfds.features.ClassLabel)
  ]

  def labels_in(places):
    found = [records[place] for place in places]
    return [[int(record[key]) for key in keys] for record in found]

  parts = np.array_split(np.arange(len(records)), _NUM_THREADS)
  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    rows = [row for part in pool.map(labels_in, parts) for row in part]
  columns = np.array(rows, np.int32).reshape(len(rows), len(keys)).T
  return dict(zip(keys, columns, strict=True))


def kept_label_columns(
  records: Sequence[Record], source: tfds.core.DatasetBuilder, split: str
) -> dict[str, np.ndarray]:
  """`label_columns`, noted beside the records where that is allowed.

  The labels of a set like ImageNet lie among its images, all of which must be
  read to find them; once is enough.
  """
  name = f"kfkd_labels_{files.digest(split)[:16]}.npz"
  note = epath.Path(source.data_path) / name
  with contextlib.suppress(FileNotFoundError, ValueError):
    columns = files.read_npz(note)
    if all(len(column) == len(records) for column in columns.values()):
      return columns
  print(f"{source.info.full_name}: reading the labels of {split}, once")
  columns = label_columns(records, source.info)
  with contextlib.suppress(OSError):  # data may lie where nobody writes
    files.write_npz(note, **columns)
  return columns


def _bounds(path: Any, count: int) -> Iterator[tuple[int, int]]:
  """(start, length) of the first `count` records of a TFRECORD file."""
  path = epath.Path(path)
  size = path.stat().length
  with path.open("rb") as file:
    start = 0
    for position in range(count):
      # Little-endian length and its 4-byte checksum, data and another.
      file.seek(start)
      length = int.from_bytes(file.read(12)[:8], "little")
      if start + 12 + length + 4 > size:
        raise ValueError(f"{path} ends inside record {position}")
      yield start + 12, length
      start += 12 + length + 4
