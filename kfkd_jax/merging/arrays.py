"""Checkpoints as one `.npz` each, arrays by name."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from etils import epath

from kfkd_jax import files

SUFFIX = ".npz"


class Arrays:
  """A checkpoint in an `.npz`.

  Args:
    path: the file.

  Attributes:
    path: as given.
    leaves: shape and type by name, in the order of the file.
  """

  def __init__(self, path: epath.Path):
    self.path = path = epath.Path(path)
    self.leaves = {
      name: jax.ShapeDtypeStruct(shape, dtype)
      for name, (shape, dtype) in files.foreign_arrays(path).items()
    }
    for name, spec in self.leaves.items():
      if spec.dtype.kind == "V":
        raise ValueError(
          f"{path}: {name} is raw bytes ({spec.dtype.str}), which is what "
          "numpy.savez makes of bfloat16; save it as float32"
        )

  def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names."""
    return files.read_foreign_npz(self.path, list(names))

  @contextlib.contextmanager
  def writing(
    self, path: epath.Path
  ) -> Iterator[Callable[[dict[str, np.ndarray]], None]]:
    """Makes an `.npz` like this one at `path`; yields what fills it."""
    with path.open("wb") as f, zipfile.ZipFile(f, "w") as archive:

      def fill(part: dict[str, np.ndarray]) -> None:
        for name, value in part.items():
          info = zipfile.ZipInfo(f"{name}.npy")
          with archive.open(info, "w", force_zip64=True) as member:
            np.lib.format.write_array(member, value, allow_pickle=False)

      yield fill
