"""An exported model in the formats of others, where their packages are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from kfkd_jax.export import onnx_model, saved_model


class ParityError(ValueError):
  """An exported file does not say what the live model says."""


class Shipped(NamedTuple):
  """A model to write, and what it must say.

  Attributes:
    predict: `u8[B, H, W, Ch] -> f32[B, K]`, the weights inside.
    probs: `f32[N, K]` of the live model on the images that are tried.
  """

  predict: Callable
  probs: np.ndarray


# By the key in `export` that asks for it: name, what it needs, and how.
_FORMATS = {
  "saved_model": ("SavedModel", "TensorFlow is", saved_model),
  "onnx": ("ONNX", "jax2onnx and onnxruntime are", onnx_model),
}
SUFFIXES = {"saved_model": ".savedmodel", "onnx": ".onnx"}
ALL_SUFFIXES = (".jaxexp", ".safetensors", *SUFFIXES.values())


def write(
  config: ml_collections.ConfigDict,
  folder: epath.Path,
  models: Mapping[str, Shipped],
  images: np.ndarray,
  *,
  tolerance: float,
) -> str:
  """Writes every model in the formats asked for; says which there are.

  Args:
    config: its `export` section says which.
    folder: where to.
    models: by name.
    images: `u8[N, H, W, Ch]` to try them on.
    tolerance: largest difference in a probability.
  """
  said = []
  for key, (name, needs, module) in _FORMATS.items():
    if not config.export[key]:
      said.append(f"no {name} (export.{key}=False)")
    elif not module.is_available():
      said.append(f"no {name} ({needs} not installed)")
    else:
      for model, shipped in models.items():
        path = folder / f"{model}{SUFFIXES[key]}"
        with no_source_paths():
          module.write(path, shipped.predict, images.shape[1:])
        gap = np.abs(module.probabilities(path, images) - shipped.probs).max()
        if not gap <= tolerance:
          remove(path)
          raise ParityError(
            f"{path.name} differs from the live model by {gap:.1e}"
          )
      said.append(f"{name} beside them")
  return ", ".join(said)


def remove(path: epath.Path) -> None:
  """Removes a file or a folder."""
  if path.is_dir():
    path.rmtree()
  else:
    path.unlink()


@contextlib.contextmanager
def no_source_paths() -> Iterator[None]:
  """Keeps where each operation was written out of the program.

  JAX notes it for error messages; a file to ship would tell folder names, and
  the same model exported elsewhere would be another file.
  """
  name = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)
