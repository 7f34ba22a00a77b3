"""Runs exported models as somebody without this package would.

    python -P standalone.py IMAGES.npy MODEL.jaxexp PROBS.npy [MODEL PROBS ...]

Imports JAX and NumPy alone: that it works is half of what it shows.
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np
from jax import export


def main(arguments: Sequence[str]) -> None:
  """Predicts the images with every model and writes the probabilities."""
  images = np.load(arguments[0])
  for model, probs in zip(arguments[1::2], arguments[2::2], strict=True):
    with open(model, "rb") as file:
      exported = export.deserialize(bytearray(file.read()))
    np.save(probs, jax.jit(exported.call)(images))
  known = {"flax", "kfkd_jax", "orbax"} & set(sys.modules)
  if known:
    raise ImportError(f"{sorted(known)} were imported on the way")


if __name__ == "__main__":
  main(sys.argv[1:])
