"""Images on disk that are read like an array and decoded on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from PIL import Image

from kfkd_jax.data import pictures

_MAX_THREADS = 16
_SHOWN = 20  # names in a message
_MOST_DIGESTED = 2**28  # bytes of files that are read whole for a digest
_NUM_SAMPLED = 1024  # images of more


class Source(Protocol):
  """Images by their place."""

  def __len__(self) -> int: ...

  def picture(self, place: int, channels: int) -> Image.Image:
    """One of them."""

  def name(self, place: int) -> str:
    """Where it lies, for errors."""

  def digest(self, places: np.ndarray) -> str:
    """Changes with these images: with each of them, or with a sample."""


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

  def picture(self, place: int, channels: int) -> Image.Image:
    return pictures.decode(self._read(place), channels, name=self.name(place))

  def name(self, place: int) -> str:
    return os.path.join(self.folder, str(self.paths[place]))

  def digest(self, places: np.ndarray) -> str:
    """Of all names and sizes; where there is much, of a sample's content."""
    with futures.ThreadPoolExecutor(_num_threads()) as pool:
      sizes = list(pool.map(self._size, places.tolist()))
    whole = places if sum(sizes) <= _MOST_DIGESTED else _sample(places)
    found = hashlib.sha256("\n".join(self.paths[places]).encode())
    found.update(np.array(sizes, np.int64).tobytes())
    for place in whole:
      found.update(hashlib.sha256(self._read(place)).digest())
    return found.hexdigest()

  def _size(self, place: int) -> int:
    """Of an ordinary file: reading from a pipe would wait for ever."""
    try:
      status = os.stat(self.name(place))
    except OSError as error:
      raise pictures.broken(self.name(place), error.strerror) from None
    if not stat.S_ISREG(status.st_mode):
      raise pictures.broken(self.name(place), "it is no file")
    return status.st_size

  def _read(self, place: int) -> bytes:
    self._size(place)
    with open(self.name(place), "rb") as file:
      return file.read()


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

  def picture(self, place: int, channels: int) -> Image.Image:
    encoded = self.records[place][self.key]
    return pictures.decode(encoded, channels, name=self.name(place))

  def name(self, place: int) -> str:
    return f"{self.title}, example {place}"

  def digest(self, places: np.ndarray) -> str:
    """Of the title, which has the version, and of what is in memory."""
    found = hashlib.sha256(self.title.encode())
    whole = places if isinstance(self.records, list) else _sample(places)
    for place in whole.tolist():
      found.update(hashlib.sha256(self.records[place][self.key]).digest())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
  """Decoded images in memory.

  Attributes:
    images: `uint8[N, H, W, Ch]`.
    title: of the images, for errors.
  """

  images: np.ndarray
  title: str

  def __len__(self) -> int:
    return len(self.images)

  def picture(self, place: int, channels: int) -> Image.Image:
    pixels = self.images[place]
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)

  def name(self, place: int) -> str:
    return f"{self.title}, example {place}"

  def digest(self, places: np.ndarray) -> str:
    return hashlib.sha256(self.images[places].tobytes()).hexdigest()


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
    fraction: float = 1.0,
    places: np.ndarray | None = None,
  ):
    """Says what to read and how to show it.

    Args:
      source: the encoded images.
      channels: of each.
      size: side of the square that is cut from the centre; None keeps the
        images, which must have one size.
      fraction: of the short side that the square keeps.
      places: int[N] in the source; None for all.
    """
    self._source = source
    self._channels = channels
    self._size = size
    self._fraction = fraction
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
    return self._source.picture(int(self._places[row]), self._channels)

  def digest(self) -> str:
    """Changes with the images, whatever is shown of them."""
    return self._source.digest(self._places)

  def take(self, rows: np.ndarray) -> Stored:
    """These images, none of them decoded."""
    taken = Stored(
      self._source,
      channels=self._channels,
      size=self._size,
      fraction=self._fraction,
      places=self._places[rows],
    )
    # Known already: no second look at the first image.
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

    # Four parts a thread, as pictures differ in size and none should wait.
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
    if isinstance(self._source, Pixels) and self._size is None:
      return self._source.images[self._places]
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
    return pictures.fitted(picture, self._size, fraction=self._fraction)

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


def _sample(places: np.ndarray) -> np.ndarray:
  """Places spread over all of them, first and last included."""
  count = min(len(places), _NUM_SAMPLED)
  return places[np.linspace(0, len(places) - 1, count).astype(int)]


def _num_threads() -> int:
  """One a processor; one in a worker process, for there are others."""
  if multiprocessing.parent_process() is not None:
    return 1
  return min(_MAX_THREADS, os.cpu_count() or 1)
