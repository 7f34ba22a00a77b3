"""ONNX, for those who serve with it; jax2onnx and onnxruntime are optional.

This module alone imports them, and only when something is written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath


def is_available() -> bool:
  """Whether both are installed."""
  return all(
    importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime")
  )


def write(
  path: epath.Path,
  predict: Callable[[jax.Array], jax.Array],
  shape: Sequence[int],
) -> None:
  """Writes `predict` as one file, for any number of images.

  Args:
    path: the file.
    predict: u8[B, H, W, Ch] -> f32[B, K].
    shape: H, W, Ch.
  """
  import jax2onnx

  batch = jax.export.symbolic_shape("B")
  images = jax.ShapeDtypeStruct((*batch, *shape), jnp.uint8)
  jax2onnx.to_onnx(predict, [images], return_mode="file", output_path=str(path))


def probabilities(path: epath.Path, images: np.ndarray) -> np.ndarray:
  """What the file says about `u8[N, H, W, Ch]` images: `f32[N, K]`."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors; shapes are noted in another order
  session = onnxruntime.InferenceSession(str(path), options)
  (given,) = session.get_inputs()
  return session.run(None, {given.name: images})[0]
