"""Images on disk that are read like an array and decoded on the way."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from PIL import Image

from kfkd_jax import files
from kfkd_jax.data import pictures

_MAX_THREADS = 16
_SHOWN = 20  # names in a message


class Source(Protocol):
  """Encoded images by their place."""

  def __len__(self) -> int: ...

  def read(self, place: int) -> bytes:
    """The encoded image."""

  def name(self, place: int) -> str:
    """Where it lies, for errors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
  """Image files.

  Attributes:
    folder: in which they lie.
    paths: `str[N]` relative to it, an array because a list of a million would
      be slow to hand to a worker.
  """

  folder: str
  paths: np.ndarray

  def __len__(self) -> int:
    return len(self.paths)

  def read(self, place: int) -> bytes:
    return files.read_bytes(self.name(place))

  def name(self, place: int) -> str:
    return os.path.join(self.folder, str(self.paths[place]))


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """Images among the features of records.

  Attributes:
    records: mappings by place.
    key: of the encoded image.
    title: of the records, for errors.
  """

  records: Sequence[Mapping[str, Any]]
  key: str
  title: str

  def __len__(self) -> int:
    return len(self.records)

  def read(self, place: int) -> bytes:
    return self.records[place][self.key]

  def name(self, place: int) -> str:
    return f"{self.title}, example {place}"


class Stored:
  """Looks like `uint8[N, H, W, Ch]`; every read decodes.

  An integer gives one image, a slice or an array of places a batch of them:
  the fixed view that evaluation sees.
  """

  def __init__(
    self,
    source: Source,
    *,
    channels: int = 3,
    size: int | None = None,
    share: float = 1.0,
    places: np.ndarray | None = None,
  ):
    """Says what to read and how to show it.

    Args:
      source: the encoded images.
      channels: of each.
      size: side of the square that is cut from the centre; None keeps the
        images, which must have one size.
      share: of the short side that the square keeps.
      places: int[N] in the source; None for all.
    """
    self._source = source
    self._channels = channels
    self._size = size
    self._share = share
    self._places = np.arange(len(source)) if places is None else places
    self._shape: tuple[int, ...] | None = None

  def __len__(self) -> int:
    return len(self._places)

  @property
  def shape(self) -> tuple[int, ...]:
    """(N, H, W, Ch); without a size it takes a look at the first image."""
    if self._shape is None:
      if self._size is None:
        width, height = self.picture(0).size
      else:
        width = height = self._size
      self._shape = (height, width, self._channels)
    return (len(self), *self._shape)

  @property
  def nbytes(self) -> int:
    """Bytes of all of them once decoded."""
    return int(np.prod(self.shape, dtype=np.int64))

  def name(self, row: int) -> str:
    """Where an image lies."""
    return self._source.name(self._places[row])

  def picture(self, row: int) -> Image.Image:
    """One image as it is, upright."""
    place = int(self._places[row])
    encoded = self._source.read(place)
    return pictures.decode(
      encoded, self._channels, name=self._source.name(place)
    )

  def take(self, rows: np.ndarray) -> Stored:
    """These images, none of them decoded."""
    taken = Stored(
      self._source,
      channels=self._channels,
      size=self._size,
      share=self._share,
      places=self._places[rows],
    )
    taken._shape = self._shape
    return taken

  def __getitem__(self, rows: Any) -> np.ndarray:
    """uint8[H, W, Ch], or uint8[B, H, W, Ch] for several."""
    if isinstance(rows, (int, np.integer)):
      return self._checked(int(rows), self._view(int(rows)))
    return self.batch(np.arange(len(self))[rows], self._view)

  def batch(
    self,
    rows: np.ndarray,
    view: Callable[..., np.ndarray],
    *columns: Any,
  ) -> np.ndarray:
    """uint8[B, H, W, Ch] of `view(row, *column)`.

    Decoding runs outside Python's lock, so that threads serve it well.

    Args:
      rows: int[B].
      view: makes one image.
      *columns: arrays or lists of more arguments for it, B of each.
    """
    num_threads = _num_threads()
    images = np.empty((len(rows), *self.shape[1:]), np.uint8)

    def fill(places):
      for place in places:
        row = int(rows[place])
        more = (column[place] for column in columns)
        images[place] = self._checked(row, view(row, *more))

    parts = np.array_split(np.arange(len(rows)), 4 * num_threads)
    if num_threads == 1 or len(rows) < 2:
      fill(range(len(rows)))
    else:
      with futures.ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(fill, parts):
          pass  # raises what a thread raised
    return images

  def whole(self) -> np.ndarray:
    """All of them, in memory."""
    return self[:]

  def readable(self) -> np.ndarray:
    """Rows of the images that can be read to their end; lists the others."""

    def complaint(row):
      try:
        self.picture(row)
      except pictures.BrokenImageError:
        return self.name(row)
      return None

    with futures.ThreadPoolExecutor(_num_threads()) as pool:
      found = list(pool.map(complaint, range(len(self))))
    broken = [name for name in found if name is not None]
    if broken:
      more = f" and {len(broken) - _SHOWN} more" if broken[_SHOWN:] else ""
      print(f"skipped {len(broken)} broken images:", *broken[:_SHOWN], more)
    return np.flatnonzero([name is None for name in found])

  def fitted(self, picture: Image.Image) -> Image.Image:
    """The fixed view of a picture, which evaluation sees."""
    if self._size is None:
      return picture
    return pictures.fitted(picture, self._size, share=self._share)

  def _view(self, row: int) -> np.ndarray:
    return pictures.to_array(self.fitted(self.picture(row)))

  def _checked(self, row: int, image: np.ndarray) -> np.ndarray:
    shape = self.shape[1:]
    if image.shape != shape:
      raise ValueError(
        f"{self.name(row)} has the size {image.shape} and {self.name(0)} "
        f"{shape}, but a batch holds one size: set data.image_size"
      )
    return image


def take(images: np.ndarray | Stored, rows: np.ndarray) -> np.ndarray | Stored:
  """These images, in memory or on disk as they were."""
  return images.take(rows) if isinstance(images, Stored) else images[rows]


def _num_threads() -> int:
  """One a processor; one in a worker process, for there are others."""
  if multiprocessing.parent_process() is not None:
    return 1
  return min(_MAX_THREADS, os.cpu_count() or 1)
