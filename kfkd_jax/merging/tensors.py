"""Checkpoints in safetensors: one file, or shards and their index.

The file begins with the length of a JSON header that says where each tensor's
bytes lie. What is written has the header of the checkpoint that is last, so
names, order, shards and metadata stay as they came.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from kfkd_jax import files

INDEX = "*.safetensors.index.json"
SUFFIX = ".safetensors"
_DTYPES = {
  "BOOL": np.dtype(bool),
  "BF16": np.dtype(jnp.bfloat16),
  "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
  "F8_E5M2": np.dtype(jnp.float8_e5m2),
  **{
    f"{letter}{8 * size}": np.dtype(f"<{kind}{size}")
    for letter, kind, sizes in (
      ("F", "f", (2, 4, 8)),
      ("I", "i", (1, 2, 4, 8)),
      ("U", "u", (1, 2, 4, 8)),
    )
    for size in sizes
  },
}
_MOST_HEADER = 100_000_000  # what the format allows


class _Place(NamedTuple):
  """Where a tensor lies: its file, and from which byte on."""

  file: str
  start: int
  spec: jax.ShapeDtypeStruct


class Tensors:
  """A checkpoint in safetensors.

  Args:
    path: a file, or a folder with one or with shards and their index.

  Attributes:
    path: as given.
    leaves: shape and type by name, in the order of the files.
  """

  def __init__(self, path: epath.Path):
    self.path = path = epath.Path(path)
    self._folder = path if path.is_dir() else path.parent
    self._heads: dict[str, bytes] = {}
    self._sizes: dict[str, int] = {}
    self._index, names, wanted = self._parts()
    places: dict[str, _Place] = {}
    for name in names:
      for tensor, place in self._read_header(name).items():
        if wanted is None or wanted.get(tensor) == name:
          places[tensor] = place
    for tensor, name in (wanted or {}).items():
      if tensor not in places:
        raise ValueError(
          f"{path}: its index names {tensor!r} in {name}, which does not "
          "hold it"
        )
    self._places = places
    self.leaves = {name: place.spec for name, place in places.items()}

  def _parts(self) -> tuple[epath.Path | None, list[str], dict | None]:
    """The index if there is one, the files, and which tensor is in which."""
    if not self.path.is_dir():
      return None, [self.path.name], None
    found = sorted(self.path.glob(INDEX))
    if not found:
      return None, [next(self.path.glob(f"*{SUFFIX}")).name], None
    index = found[0]
    placed = files.read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
      raise ValueError(f"{index} has no weight_map that says what lies where")
    for name in placed.values():
      if not isinstance(name, str) or epath.Path(name).name != name:
        raise ValueError(f"{index} names {name!r}, which is no file beside it")
    return index, sorted(set(placed.values())), placed

  def _read_header(self, name: str) -> dict[str, _Place]:
    path = self._folder / name
    files.check_is_file(path)
    self._sizes[name] = path.stat().length
    with path.open("rb") as f:
      start = f.read(8)
      length = int.from_bytes(start, "little")
      whole = len(start) == 8 and 8 + length <= self._sizes[name]
      text = f.read(length) if whole and length <= _MOST_HEADER else b""
    try:
      if not text:
        raise ValueError("its header is not whole")
      self._heads[name] = start + text
      return self._places_in(name, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise ValueError(
        f"{path} is damaged or no safetensors file ({error})"
      ) from error

  def _places_in(self, name: str, header: dict[str, Any]) -> dict[str, _Place]:
    header.pop("__metadata__", None)
    begin = end = len(self._heads[name])
    places = {}
    for tensor, entry in sorted(
      header.items(), key=lambda item: tuple(item[1]["data_offsets"])
    ):
      if entry["dtype"] not in _DTYPES:
        raise ValueError(
          f"{tensor} has type {entry['dtype']}, which is none of "
          f"{', '.join(_DTYPES)}"
        )
      spec = jax.ShapeDtypeStruct(
        tuple(entry["shape"]), _DTYPES[entry["dtype"]]
      )
      size = math.prod(spec.shape) * spec.dtype.itemsize
      if entry["data_offsets"] != [end - begin, end - begin + size]:
        raise ValueError(f"{tensor} does not lie where the others end")
      places[tensor] = _Place(name, end, spec)
      end += size
    if end != self._sizes[name]:
      raise ValueError(f"{self._sizes[name]} bytes where {end} belong")
    return places

  def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The tensors of these names."""
    found = {}
    with contextlib.ExitStack() as stack:
      opened: dict[str, Any] = {}
      for name in names:
        file, start, spec = self._places[name]
        if file not in opened:
          path = self._folder / file
          opened[file] = stack.enter_context(path.open("rb"))
        opened[file].seek(start)
        size = math.prod(spec.shape) * spec.dtype.itemsize
        content = opened[file].read(size)
        if len(content) != size:
          raise ValueError(f"{self._folder / file} was cut short meanwhile")
        found[name] = np.frombuffer(content, spec.dtype).reshape(spec.shape)
    return found

  @contextlib.contextmanager
  def writing(
    self, path: epath.Path
  ) -> Iterator[Callable[[dict[str, np.ndarray]], None]]:
    """Makes a checkpoint like this one at `path`; yields what fills it."""
    if self.path.is_dir():
      path.mkdir()
    if self._index is not None:
      (path / self._index.name).write_bytes(self._index.read_bytes())
    with contextlib.ExitStack() as stack:
      opened = {}
      for name, head in self._heads.items():
        target = path / name if self.path.is_dir() else path
        opened[name] = stack.enter_context(target.open("wb"))
        opened[name].write(head)

      def fill(part: dict[str, np.ndarray]) -> None:
        for name, value in part.items():
          file, start, spec = self._places[name]
          opened[file].seek(start)
          value = np.ascontiguousarray(value, spec.dtype)
          opened[file].write(value.reshape(-1).view(np.uint8).data)

      yield fill
