"""Orbax's ways, and what we add: quiet, one line an error, a sum a leaf."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath


class Muted(logging.Filter):
  """Hides Orbax's line a save, and failures at length before they are raised.

  Only while there are checkpoints at work: a host program may log with it too.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Orbax logs by absl, which prints where nobody set logging up."""
  muted = Muted()
  logging.getLogger("absl").addFilter(muted)
  try:
    yield
  finally:
    logging.getLogger("absl").removeFilter(muted)


class DamagedCheckpointError(ValueError):
  """A checkpoint that is there but cannot be trusted; names its folder."""


def digests(tree: Any) -> dict[str, str]:
  """The SHA-256 of every leaf by its name."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  names = [jax.tree_util.keystr(path) for path, _ in leaves]

  def digest(leaf: np.ndarray) -> str:
    content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return hashlib.sha256(content).hexdigest()

  with concurrent.futures.ThreadPoolExecutor() as pool:
    sums = pool.map(digest, [leaf for _, leaf in leaves])
    return dict(zip(names, sums, strict=True))


def absolute(path: epath.Path) -> epath.Path:
  """Orbax takes no relative folder; a bucket's address is absolute as it is."""
  path = epath.Path(path)
  return path if "://" in str(path) else path.resolve()


def first_line(error: Exception) -> str:
  """The beginning of it; Orbax's may hold whole specifications."""
  line = (str(error) or type(error).__name__).split("\n")[0]
  return line if len(line) <= 120 else f"{line[:120]}..."
