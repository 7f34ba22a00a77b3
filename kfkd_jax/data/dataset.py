"""What a data set is: images, in memory or on disk, and their labels."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from kfkd_jax import files
from kfkd_jax.data.stored import Stored, take


class Examples(NamedTuple):
  """One split.

  Attributes:
    images: uint8[N, H, W, Ch], or `Stored` and decoded when read.
    labels: int32[N].
    ids: int64[N] position of each example in the set's split.
    extra: int32[N] the further label that was asked for, else None.
  """

  images: np.ndarray | Stored
  labels: np.ndarray
  ids: np.ndarray
  extra: np.ndarray | None

  def take(self, index: np.ndarray) -> Examples:
    """The examples at these positions; none is decoded."""
    extra = None if self.extra is None else self.extra[index]
    images = take(self.images, index)
    return Examples(images, self.labels[index], self.ids[index], extra)


class Dataset(NamedTuple):
  """A data set.

  Attributes:
    name: as it was asked for.
    train: its training `Examples`.
    test: its test `Examples`.
    class_names: K names.
    fingerprint: what tells this data from other data, see `fingerprint`.
  """

  name: str
  train: Examples
  test: Examples
  class_names: tuple[str, ...]
  fingerprint: Mapping[str, str] = types.MappingProxyType({})

  @property
  def num_classes(self) -> int:
    return len(self.class_names)


def fingerprint(
  train: Examples, test: Examples, class_names: tuple[str, ...]
) -> dict[str, str]:
  """A digest or number for each part of a data set that may change.

  Args:
    train: with `Stored` images: they are digested as they lie, not decoded.
    test: likewise.
    class_names: K names.
  """
  found = {"class names": files.digest(class_names)}
  for name, part in (("training", train), ("test", test)):
    assert isinstance(part.images, Stored)
    columns = [c for c in (part.labels, part.extra) if c is not None]
    labels = np.stack(columns).astype("<i4").tobytes()
    found |= {
      f"number of {name} images": str(len(part.labels)),
      f"{name} labels": files.digest(labels),
      f"{name} images": part.images.digest(),
    }
  return found
