"""TensorFlow's SavedModel, for those who serve with it; TensorFlow is optional.

This module alone imports TensorFlow, and only when something is written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath

PLATFORMS = ("cpu", "cuda", "tpu")  # of every exported program


def is_available() -> bool:
  """Whether TensorFlow is installed."""
  return importlib.util.find_spec("tensorflow") is not None


def write(
  path: epath.Path,
  predict: Callable[[jax.Array], jax.Array],
  shape: Sequence[int],
) -> None:
  """Writes `predict` as the function `predict` and the serving signature.

  Args:
    path: the folder to make.
    predict: u8[B, H, W, Ch] -> f32[B, K].
    shape: H, W, Ch.
  """
  import tensorflow as tf
  from jax.experimental import jax2tf

  tf.config.set_visible_devices([], "GPU")  # JAX holds its memory already
  converted = jax2tf.convert(
    predict,
    polymorphic_shapes=["(b, ...)"],
    with_gradient=False,
    native_serialization_platforms=PLATFORMS,
  )
  module = tf.Module()
  module.predict = tf.function(
    lambda images: {"probs": converted(images)},
    input_signature=[tf.TensorSpec([None, *shape], tf.uint8, name="images")],
    autograph=False,
  )
  signature = module.predict.get_concrete_function()
  tf.saved_model.save(module, str(path), signatures=signature)


def probabilities(path: epath.Path, images: np.ndarray) -> np.ndarray:
  """What the SavedModel says about `u8[N, H, W, Ch]` images: `f32[N, K]`."""
  import tensorflow as tf

  loaded = tf.saved_model.load(str(path))
  return loaded.predict(tf.constant(images))["probs"].numpy()
