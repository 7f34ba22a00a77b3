"""Pytrees that anybody saved by Orbax, some leaves at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kfkd_jax import files, history
from kfkd_jax.checkpoints.ways import (
  DamagedCheckpointError,
  absolute,
  digests,
  first_line,
  quiet,
)

_TREE = "_METADATA"  # Orbax leaves it in the folder of a pytree
_ITEMS = "_CHECKPOINT_METADATA"  # and this one around them
_USUAL_ITEMS = ("default", "tree", "state", "params")


def is_saved_tree(path: epath.Path) -> bool:
  """Whether Orbax saved a pytree in this folder, or one of a manager's steps.

  Older ones left the inner folder's mark alone.
  """
  path = epath.Path(path)
  if (path / _TREE).exists():
    return True
  return (path / _ITEMS).exists() and bool(_items(path))


def _items(path: epath.Path) -> list[str]:
  return sorted(p.name for p in path.iterdir() if (p / _TREE).exists())


class SavedTree:
  """A pytree that anybody saved by Orbax, read some leaves at a time.

  Args:
    path: its folder, or a manager's step with one pytree or a usual name of it.

  Attributes:
    path: as given.
    leaves: shape and type by name, the keys from the root on between slashes.
  """

  def __init__(self, path: epath.Path):
    self.path = path = epath.Path(path)
    self._item = None if (path / _TREE).exists() else self._choose_item()
    self._folder = absolute(path / self._item if self._item else path)
    with quiet():
      try:
        with ocp.PyTreeCheckpointer() as reader:
          self._tree = reader.metadata(self._folder).item_metadata.tree
      except Exception as error:
        raise self._damaged(error) from error
    self.leaves = {
      name: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
      for name, spec in history.named_leaves(self._tree).items()
      if getattr(spec, "shape", None) is not None
    }
    # Of our own histories: sums by the names that `digests` gives.
    beside = path / "digests" / "metadata"
    self._sums = files.read_json(beside) if beside.exists() else {}

  def _choose_item(self) -> str:
    there = _items(self.path)
    usual = [name for name in _USUAL_ITEMS if name in there]
    if len(there) > 1 and not usual:
      raise ValueError(
        f"{self.path} holds several trees ({', '.join(there)}); name one, "
        f"as in {self.path / there[0]}"
      )
    return (usual or there)[0]

  def _damaged(self, error: Exception) -> ValueError:
    return ValueError(
      f"{self._folder} is damaged or was not saved by Orbax "
      f"({first_line(error)})"
    )

  def _named(self, give: Callable[[str, Any], Any]) -> Any:
    """The tree with `give(name, spec)` in place of every leaf."""
    values = [
      give(name, spec)
      for name, spec in history.named_leaves(self._tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(self._tree), values)

  def read(self, names: Iterable[str]) -> dict[str, Any]:
    """The leaves of these names, arrays in NumPy."""
    wanted = set(names)
    item = self._named(
      lambda name, spec: spec if name in wanted else ocp.PLACEHOLDER
    )
    how = self._named(
      lambda name, spec: ocp.RestoreArgs(
        restore_type=np.ndarray if name in self.leaves else None
      )
    )
    try:
      with quiet(), ocp.PyTreeCheckpointer() as reader:
        read = reader.restore(
          self._folder, args=ocp.args.PyTreeRestore(item, restore_args=how)
        )
    except Exception as error:
      raise self._damaged(error) from error
    read = jax.tree.map(lambda x: None if x is ocp.PLACEHOLDER else x, read)
    for name, digest in (digests(read) if self._sums else {}).items():
      if self._sums.get(name) != digest:
        raise DamagedCheckpointError(
          f"{self.path} is damaged: {name} is not what was saved"
        )
    return history.named_leaves(read)

  @contextlib.contextmanager
  def writing(
    self, path: epath.Path
  ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Saves a tree like this one at `path`; yields what fills it.

    Orbax takes a tree whole, so it is held until then.
    """
    held: dict[str, Any] = {}
    yield held.update
    texts = history.named_leaves(self._tree).keys() - self.leaves.keys()
    held |= self.read(texts) if texts else {}
    save = ocp.args.PyTreeSave(self._named(lambda name, spec: held[name]))
    with quiet():
      if self._item is None:
        with ocp.PyTreeCheckpointer() as writer:
          writer.save(absolute(path), args=save)
      else:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
          items = ocp.args.Composite(**{self._item: save})
          writer.save(absolute(path), args=items)
