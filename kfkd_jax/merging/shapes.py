"""Weights over checkpoints by name, or from a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from kfkd_jax import averaging, files, fusion, stacks

_WINDOW = 6  # as many as LAWA averages
_DECAY = 0.9

# By name: what it is, and the weights of C checkpoints.
SHAPES: dict[str, tuple[str, Callable[[int, float], np.ndarray]]] = {
  "uniform": ("the mean", lambda size, decay: fusion.horizontal(size, size)),
  "window": (
    f"the mean of the last --last=K, {_WINDOW} unless said",
    lambda size, decay: fusion.horizontal(size, size),
  ),
  "ema": (
    "a moving average that keeps --decay at each",
    lambda size, decay: averaging.ema_weights(size, decay=decay),
  ),
  "exponential": (
    "a learning rate that falls to --decay of it at each",
    lambda size, decay: averaging.exponential_decay(size, decay=decay),
  ),
  "linear": (
    "a linear decay of the learning rate, which is the mean",
    lambda size, decay: averaging.linear_decay(size),
  ),
  "sqrt": (
    "a decay by 1 - sqrt, which favours early ones",
    lambda size, decay: averaging.sqrt_decay(size),
  ),
}
_TAKES_DECAY = ("ema", "exponential")


def weights_for(
  shape: str,
  num_checkpoints: int,
  *,
  last: int | None = None,
  decay: float | None = None,
) -> np.ndarray:
  """The weights of a shape, or of a file.

  Args:
    shape: one of `SHAPES`, or a `.json` or `.npz`: a list, `weights`, or what
      `kfkd fuse` wrote, of which `FILE:METHOD` names a method other than kf.
    num_checkpoints: C.
    last: only the last so many count; None: all, for `window` six.
    decay: of `ema` and `exponential`; None: 0.9.

  Returns:
    [C], convex.
  """
  if decay is not None and shape not in _TAKES_DECAY:
    raise ValueError(f"--decay goes with {' and '.join(_TAKES_DECAY)}")
  if shape not in SHAPES:
    if last is not None:
      raise ValueError("--last goes with a shape, not with weights of a file")
    return _from_file(shape, num_checkpoints)
  if last is None:
    most = _WINDOW if shape == "window" else num_checkpoints
    last = min(most, num_checkpoints)
  if not 1 <= last <= num_checkpoints:
    raise ValueError(
      f"--last={last} must lie in 1..{num_checkpoints}, the checkpoints there "
      "are"
    )
  _, make = SHAPES[shape]
  weights = make(last, _DECAY if decay is None else decay)
  return np.pad(weights, (num_checkpoints - last, 0))


def _from_file(spec: str, num_checkpoints: int) -> np.ndarray:
  path, method = epath.Path(spec), "kf"
  if not path.exists() and ":" in spec:
    name, _, method = spec.rpartition(":")
    path = epath.Path(name)
  if path.suffix not in (".json", ".npz") or not path.exists():
    raise ValueError(
      f"--weights={spec} is none of {', '.join(SHAPES)} and no .json or .npz "
      "file"
    )
  if path.suffix == ".npz":
    arrays = files.read_foreign_npz(path, ("weights", method))
    found: Any = arrays.get("weights", arrays.get(method))
  else:
    found = _in_json(path, method)
  if found is None:
    raise ValueError(f"{path} holds neither `weights` nor those of {method!r}")
  try:
    weights = np.asarray(found, float)
    stacks.check_weights(weights, num_checkpoints)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path}: {error}") from error
  return weights


def _in_json(path: epath.Path, method: str) -> Any:
  content = files.read_json(path, (dict, list))
  if isinstance(content, list):
    return content
  if "weights" in content:
    return content["weights"]
  try:
    return content["folds"][0]["methods"][method]["weights"]
  except (KeyError, IndexError, TypeError):
    return None
