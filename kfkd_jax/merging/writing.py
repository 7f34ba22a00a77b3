"""The merged network, in the format that came in, and a card that says how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

import kfkd_jax
from kfkd_jax import averaging, files, stacks
from kfkd_jax.merging import finding
from kfkd_jax.merging.finding import Checkpoint, Checkpoints

_PIECE = 64 * 2**20  # bytes read and summed at once; a larger tensor is alone
CARD = "card.json"
_SHOWN = 6
_STATISTICS = ("batch_stats", "running_mean", "running_var")


def write(
  checkpoints: Checkpoints,
  weights: ArrayLike,
  output: epath.PathLike,
  *,
  shape: str = "given weights",
) -> epath.Path:
  """Writes the weighted sum of checkpoints to a new file or folder.

  Floating tensors are summed in float32 and keep their type; others are the
  last checkpoint's. What is written appears whole or not at all.

  Args:
    checkpoints: from `find`.
    weights: [C], convex.
    output: where to; nothing may be there.
    shape: for the card, what the weights are.

  Returns:
    The card, in the folder or beside the file.
  """
  stacks.check_weights(weights, len(checkpoints))
  weights = np.asarray(weights, float)
  last = checkpoints.members[-1]
  path = _checked_output(epath.Path(output), last)
  card = path.with_name(f"{path.name.removesuffix(last.path.suffix)}.{CARD}")
  content = _card(checkpoints, weights, shape)
  order = [*np.flatnonzero(weights[:-1]).tolist(), len(weights) - 1]
  with files.placed(path) as temporary, futures.ThreadPoolExecutor(1) as reader:
    with last.writing(temporary) as fill:
      for names in _pieces(last):
        part = averaging.merge(
          _Part(checkpoints, names, order, reader), weights
        )
        _check_numbers(checkpoints, weights, part)
        fill(part)
    if temporary.is_dir():
      card = path / CARD
      files.write_json(temporary / CARD, content)
    else:
      files.write_json(card, content)
  return card


def _checked_output(path: epath.Path, last: Checkpoint) -> epath.Path:
  if path.exists():
    raise ValueError(f"--output={path} is there already; name a new one")
  suffix = "" if last.path.is_dir() else last.path.suffix
  if suffix and path.suffix != suffix:
    raise ValueError(f"--output={path} must end in {suffix}, as what goes in")
  if not suffix and path.suffix in (".safetensors", ".npz"):
    raise ValueError(f"--output={path} must be a folder, as what goes in")
  return path


class _Part(Sequence):
  """Some tensors of every checkpoint, the next ones read while these are used.

  Args:
    checkpoints: all of them.
    names: of the tensors.
    order: which checkpoints will be asked for.
    reader: one thread that reads ahead.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    names: Sequence[str],
    order: Sequence[int],
    reader: futures.Executor,
  ):
    self._members, self._names, self._reader = (
      checkpoints.members,
      names,
      reader,
    )
    self._following = dict(zip(order, [*order[1:], None], strict=True))
    self._ahead: dict[int, futures.Future] = {}

  def __len__(self) -> int:
    return len(self._members)

  def __getitem__(self, c: Any) -> Any:
    found = self._ahead.pop(c, None) or self._read(c)
    following = self._following.get(c)
    tensors = found.result()
    if following is not None:
      self._ahead[following] = self._read(following)
    return tensors

  def _read(self, c: int) -> futures.Future:
    return self._reader.submit(self._members[c].read, self._names)


def _pieces(checkpoint: Checkpoint) -> Iterator[list[str]]:
  """Names of tensors that go through memory together."""
  names: list[str] = []
  size = 0
  for name, spec in checkpoint.leaves.items():
    own = math.prod(spec.shape) * max(4, spec.dtype.itemsize)
    if names and size + own > _PIECE:
      yield names
      names, size = [], 0
    names, size = [*names, name], size + own
  if names:
    yield names


def _check_numbers(
  checkpoints: Checkpoints, weights: np.ndarray, part: dict[str, np.ndarray]
) -> None:
  """Names the checkpoint that brought a NaN in."""
  for name, value in part.items():
    if not _has_nan(value):
      continue
    for c in np.flatnonzero(weights):
      member = checkpoints.members[c]
      if _has_nan(member.read([name])[name]):
        raise ValueError(f"{member.path}: {name} holds NaN; leave it out")
    raise ValueError(f"{name} is infinity less infinity; leave out what has it")


def _has_nan(value: np.ndarray) -> bool:
  return averaging.is_float(value) and bool(np.isnan(value).any())


def summary(checkpoints: Checkpoints, weights: ArrayLike, shape: str) -> str:
  """One line about what went in, and with which weights."""
  used = [
    f"{member.path.name} {weight:.3g}"
    for member, weight in zip(
      checkpoints.members, np.asarray(weights), strict=True
    )
    if weight
  ]
  shown = used if len(used) <= _SHOWN else [*used[:3], "...", *used[-2:]]
  return (
    f"merged {len(used)} of {len(checkpoints)} checkpoints ({shape}): "
    f"{', '.join(shown)}"
  )


def notes(checkpoints: Checkpoints) -> list[str]:
  """What the user may not have meant, or has to do."""
  found = []
  paths = [member.path for member in checkpoints.members]
  if checkpoints.passed_over:
    found.append(
      f"note: no checkpoints, so left out: {', '.join(checkpoints.passed_over)}"
    )
  if not finding.in_order(paths):
    found.append(
      "note: the paths count in the order given, which is not that of their "
      f"numbers, {paths[0].name} first and {paths[-1].name} last; the folder "
      "or a quoted pattern takes that one"
    )
  statistics = [
    name
    for name in checkpoints.members[-1].leaves
    if any(part in name for part in _STATISTICS)
  ]
  if statistics:
    found.append(
      f"note: {len(statistics)} batch statistics, such as {statistics[0]}, are "
      "averages too; averaging.reestimate_batch_stats makes those that belong "
      "to the merged weights"
    )
  return found


def _card(
  checkpoints: Checkpoints, weights: np.ndarray, shape: str
) -> dict[str, Any]:
  leaves = checkpoints.members[-1].leaves
  taken = [n for n, spec in leaves.items() if not averaging.is_float(spec)]
  return {
    "made_by": f"kfkd merge {kfkd_jax.__version__}",
    "shape": shape,
    "checkpoints": [
      {"path": str(member.path), "weight": float(weight)}
      for member, weight in zip(checkpoints.members, weights, strict=True)
    ],
    "summed_in": "float32, float64 tensors in float64",
    "num_tensors": len(leaves),
    "taken_from_the_last": taken,
  }
