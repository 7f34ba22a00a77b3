"""Which networks of a run are kept, and in what precision.

Everything here follows from the stored predictions alone, so that a run which
was stopped and continued keeps the same networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from kfkd_jax import checkpoints, files, processes


class RightBits:
  """Which examples were right at each kept epoch, a bit for each.

  F_e against every new network needs them all: C x N bits in memory, 6 MB for
  1,000 epochs of 50,000 examples, and as many are read an epoch.
  """

  def __init__(self, num_examples: int, most: int):
    self._rows = np.empty((most, -(-num_examples // 8)), np.uint8)
    self._num_examples = num_examples
    self._count = 0

  def __len__(self) -> int:
    return self._count

  @property
  def newest(self) -> np.ndarray:
    """`bool[N]` that came last."""
    row = self._rows[self._count - 1]
    return np.unpackbits(row, count=self._num_examples).astype(bool)

  def add(self, right: np.ndarray) -> None:
    """Notes `bool[N]` of the next kept epoch."""
    self._rows[self._count] = np.packbits(right)
    self._count += 1

  def remembered(self, right: np.ndarray) -> np.ndarray:
    """How many examples each row has that are not in `right`, `i64[C]`."""
    # The padding of the last byte is 0 in the rows, so inverting `right` does
    # no harm.
    only = self._rows[: self._count] & ~np.packbits(right)
    return np.bitwise_count(only).sum(1, dtype=np.int64)


class History:
  """The networks of a run that are kept: the newest, and which before it.

  With `most`, one checkpoint too many and the one goes that is right least
  often where the newest is wrong (ties: the earliest). F_e is meant against
  the final network, which nobody knows yet: a heuristic, and what would have
  been remembered later may be gone by then.

  Use as a context manager, as `Checkpoints`.

  Args:
    run: the run's folder.
    dtype: of the checkpoints before the last, which is always kept whole.
    most: checkpoints to keep, at least 2; None keeps all.
    owner: as of `Checkpoints`.
  """

  def __init__(
    self,
    run: epath.Path,
    *,
    dtype: str,
    most: int | None,
    owner: Mapping[str, str],
  ):
    self._checkpoints = checkpoints.Checkpoints(run / "history", owner=owner)
    self._dtype = dtype
    self._most = most
    self._rows: dict[int, int] = {}  # of `RightBits`, by epoch that counts
    # Deleting comes after noting it, so that what is missing without a note
    # was lost. A run that continues from before may still count what is gone.
    self._note = run / "dropped.json"
    self._dropped = set(processes.on_main(self._read_note))
    self._unwanted: list[int] = []  # noted, but still there

  @property
  def path(self) -> epath.Path:
    return self._checkpoints.path

  def as_kept(self, variables: Any, *, last: bool) -> Any:
    """The network that the checkpoint will hold, in its own dtype."""
    return (
      variables if last or self._dtype == "float32" else _rounded(variables)
    )

  def save(self, epoch: int, variables: Any, *, last: bool) -> None:
    """Starts saving what `as_kept` gave."""
    self._delete_unwanted()
    dtype = None if last else self._dtype
    self._checkpoints.save(epoch, variables, dtype=dtype)

  def retain(self, epoch: int, right: RightBits) -> None:
    """Counts in a saved epoch, the newest of `right`; drops one too many.

    It goes with the next save: deleting waits until the newest is on disk.
    """
    self._unwanted += processes.on_main(self._choose, epoch, right)

  def _choose(self, epoch: int, right: RightBits) -> list[int]:
    """What to drop, noted; what is counted only the main process knows."""
    self._rows[epoch] = len(right) - 1
    if self._most is None or len(self._rows) <= self._most:
      return []
    remembered = right.remembered(right.newest)
    # The newest stays in any case; of equals `min` takes the first, the
    # earliest.
    before = sorted(self._rows)[:-1]
    least = min(before, key=lambda e: remembered[self._rows[e]])
    del self._rows[least]
    self._dropped.add(least)
    self._write_note()
    return [least]

  def gone(self, due: list[int]) -> list[int]:
    """Which of the epochs `due` were dropped."""
    return [e for e in due if e in self._dropped]

  def missing(self, due: list[int]) -> list[int]:
    """Which of the epochs `due` were neither kept nor dropped."""
    return sorted(set(due) - self._dropped - set(self._checkpoints.steps()))

  def steps(self) -> list[int]:
    """Epochs of the checkpoints that are there, ascending."""
    return self._checkpoints.steps()

  def restore(self, epoch: int, template: Any) -> Any:
    """The network after `epoch`, as `Checkpoints.restore`."""
    return self._checkpoints.restore(epoch, template)

  def wait(self) -> None:
    """Returns once everything is on disk."""
    self._checkpoints.wait()

  def restart(self, epoch: int) -> None:
    """Forgets whatever came after `epoch`, also what was dropped."""
    self._unwanted = processes.on_main(self._forget, epoch)
    self._checkpoints.delete_after(epoch)
    self._delete_unwanted()  # killed before it could

  def _forget(self, epoch: int) -> list[int]:
    self._dropped = {e for e in self._dropped if e <= epoch}
    self._write_note()
    return sorted(self._dropped)

  def __enter__(self) -> History:
    self._checkpoints.__enter__()
    return self

  def __exit__(self, kind: type | None, *rest: Any) -> None:
    try:
      if kind is None:
        self._delete_unwanted()
    finally:
      self._checkpoints.__exit__(kind, *rest)

  def _delete_unwanted(self) -> None:
    there = self._checkpoints.steps() if self._unwanted else []
    for epoch in self._unwanted:
      if epoch in there:
        self._checkpoints.delete(epoch)
    self._unwanted = []

  def _read_note(self) -> list[int]:
    there = files.exists(self._note)
    return files.read_json(self._note, list) if there else []

  def _write_note(self) -> None:
    if self._most is not None:
      files.write_json(self._note, sorted(self._dropped))


@jax.jit
def _rounded(variables: Any) -> Any:
  """To the numbers that bfloat16 has; a cast and back XLA would leave out."""
  return jax.tree.map(
    lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7),
    variables,
  )
