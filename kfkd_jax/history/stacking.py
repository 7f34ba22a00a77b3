"""Checkpoints of one training run as one pytree, stacked leaf by leaf.

C checkpoints are leaves `[C, ...]`, in time order.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike


def stack_checkpoints(checkpoints: Sequence[Any]) -> Any:
  """Stacks checkpoints of one structure along a new leading axis C.

  What may change in place has to be copied when it is kept, or every entry is
  the last network. So no two checkpoints may hold one NumPy array that can be
  written to, or one variable of Flax NNX (`nnx.state` and `nnx.split` give the
  live ones). JAX arrays do not change: a frozen layer may be shared, but not
  every array.

  Args:
    checkpoints: C pytrees, in time order.

  Returns:
    The pytree with leaves [C, ...]; NumPy leaves stay on the host, in NumPy.

  >>> stack_checkpoints([{"w": np.zeros(2)}, {"w": np.ones(2)}])["w"].tolist()
  [[0.0, 0.0], [1.0, 1.0]]
  """
  if not isinstance(checkpoints, Sequence):
    raise ValueError(
      f"checkpoints must be a list of pytrees, one each; got one "
      f"{type(checkpoints).__name__}."
    )
  if not checkpoints:
    raise ValueError("checkpoints must hold at least one; got none.")
  first = named_leaves(checkpoints[0])
  structure: Any = jax.tree.structure(checkpoints[0])
  for index, checkpoint in enumerate(checkpoints):
    check_same_leaves(
      first,
      named_leaves(checkpoint),
      names=("checkpoint 0", f"checkpoint {index}"),
    )
    if jax.tree.structure(checkpoint) != structure:
      raise ValueError(
        f"checkpoints must be built of the same containers; checkpoint {index} "
        f"is {jax.tree.structure(checkpoint)}, checkpoint 0 is {structure}."
      )
    _check_alive(f"checkpoint {index}", named_leaves(checkpoint))
  _check_apart(checkpoints)

  def stack(*leaves):
    # A history may be larger than a device: what is in NumPy stays there.
    on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if on_host else jnp.stack(leaves)

  return jax.tree.map(stack, *checkpoints)


def take_checkpoints(
  stacked: Any, indices: int | Sequence[int] | np.ndarray
) -> Any:
  """Returns some checkpoints of a stack, or one of them.

  Args:
    stacked: pytree with leaves [C, ...].
    indices: int[M]; or one int for a pytree without the leading axis. Negative
      ones count from the end.

  Returns:
    The pytree with leaves [M, ...], or [...] for one int.
  """
  size = num_checkpoints(stacked)
  indices = np.asarray(indices, int)
  if ((indices < -size) | (indices >= size)).any():
    raise ValueError(
      f"indices must lie in {-size}..{size - 1}; got {indices.tolist()}."
    )
  return jax.tree.map(lambda leaf: leaf[indices], stacked)


def unstack_checkpoints(stacked: Any) -> list[Any]:
  """Returns the C checkpoints of a stack as a list.

  Args:
    stacked: pytree with leaves [C, ...].
  """
  return [take_checkpoints(stacked, c) for c in range(num_checkpoints(stacked))]


def pad_members(
  stacked: Any, weights: ArrayLike, multiple: int
) -> tuple[Any, np.ndarray]:
  """Fills a weighted stack up with copies of its last member, of weight 0.

  Args:
    stacked: pytree with leaves [M, ...].
    weights: [M].
    multiple: what the new M is a multiple of.

  Returns:
    The new stack and weights.
  """
  size = num_checkpoints(stacked)
  missing = -size % multiple
  if not missing:
    return stacked, np.asarray(weights)
  # Copies, not zeros: what no training made may say NaN, which weight 0 keeps.
  places = np.minimum(np.arange(size + missing), size - 1)
  return take_checkpoints(stacked, places), np.pad(weights, (0, missing))


def num_checkpoints(stacked: Any) -> int:
  """Returns C, after checking that every leaf has it as its leading axis.

  Args:
    stacked: pytree with leaves [C, ...].
  """
  return leading_size("stacked", stacked)


def leading_size(name: str, tree: Any) -> int:
  """Returns the leading size that all leaves share."""
  leaves = named_leaves(tree)
  _check_alive(name, leaves)
  shapes = {path: np.shape(leaf) for path, leaf in leaves.items()}
  if not shapes:
    raise ValueError(f"{name} has no leaves.")
  first_path, first = next(iter(shapes.items()))
  for path, shape in shapes.items():
    if not shape or shape[0] != first[0]:
      raise ValueError(
        f"{name} must have one leading size in all leaves; {first_path!r} has "
        f"shape {first} and {path!r} has {shape}."
      )
  return first[0]


def named_leaves(
  tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
  """Returns {leaf path: leaf}."""
  leaves, _ = jax.tree.flatten_with_path(tree, is_leaf)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def _check_alive(name: str, leaves: dict[str, Any]) -> None:
  for path, leaf in leaves.items():
    if (
      isinstance(leaf, jax.Array)
      and not isinstance(leaf, jax.core.Tracer)
      and leaf.is_deleted()
    ):
      raise ValueError(
        f"{name} is gone: {path!r} was donated to a jitted function; "
        "jax.tree.map(jnp.copy, ...) before that keeps it."
      )


def _check_apart(checkpoints: Sequence[Any]) -> None:
  """Refuses checkpoints that are one network under two numbers."""
  owners: dict[Any, int] = {}
  for index, checkpoint in enumerate(checkpoints):
    found = _changeable(checkpoint)
    arrays = tuple(
      id(leaf)
      for leaf in jax.tree.leaves(checkpoint)
      if isinstance(leaf, (np.ndarray, jax.Array))
    )
    if arrays:
      found["every array"] = arrays
    for what, identity in found.items():
      owner = owners.setdefault(identity, index)
      if owner != index:
        raise ValueError(
          f"checkpoints {owner} and {index} share {what}, so they are one "
          "network, whatever it was when they were kept; keep "
          "jax.tree.map(jnp.copy, ...) of each."
        )


def _changeable(checkpoint: Any) -> dict[str, Any]:
  """Returns what tells apart all that can change in place, by its path."""
  nnx: Any = sys.modules.get("flax.nnx")  # else nobody has its variables

  def is_variable(node):
    return nnx is not None and isinstance(node, nnx.Variable)

  found: dict[str, Any] = {
    repr(path): leaf.ctypes.data
    for path, leaf in named_leaves(checkpoint).items()
    if isinstance(leaf, np.ndarray) and leaf.flags.writeable and leaf.size
  }
  for path, node in named_leaves(checkpoint, is_variable).items():
    if is_variable(node):
      found[repr(path)] = ("variable", id(node))
  return found


def check_same_leaves(
  first: dict[str, Any], other: dict[str, Any], *, names: tuple[str, str]
) -> None:
  """Raises ValueError at the first leaf that two checkpoints have otherwise.

  Args:
    first: arrays by path, or what has their `shape` and `dtype`.
    other: the same of another checkpoint.
    names: what the two are called.
  """

  def describe(leaves: dict[str, Any], path: str) -> str:
    if path not in leaves:
      return "is missing"
    leaf = leaves[path]
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
      leaf = np.asarray(leaf)
    return f"has shape {tuple(leaf.shape)} and dtype {leaf.dtype}"

  for path in sorted(first.keys() | other.keys()):
    described = [describe(leaves, path) for leaves in (first, other)]
    if described[0] != described[1]:
      raise ValueError(
        f"checkpoints must agree in every leaf; {path!r} {described[0]} in "
        f"{names[0]} and {described[1]} in {names[1]}."
      )
