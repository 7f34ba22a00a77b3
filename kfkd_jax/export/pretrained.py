"""A network from a folder that `kfkd export` made.

It is built anew from its description and its weights; no program of others is
run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util
from jax.typing import ArrayLike
from PIL import Image

from kfkd_jax import files, history, models
from kfkd_jax.export import predict
from kfkd_jax.training import step

# What a model is, its weights, and what it scored.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "card.json"
_BATCH = 1024
_SHOWN = 3  # arrays in a message

Pictures = str | os.PathLike | Image.Image


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A network as it was exported, or a fusion of several.

  Attributes:
    apply_fn: `(variables, images u8[B, H, W, Ch]) -> logits[B, K]`.
    variables: `{"params", "batch_stats"}`; a fusion's have leaves `[M, ...]`.
    weights: `f32[M]` of a fusion's networks; None for one network.
    class_names: K names.
    image_shape: H, W, Ch.
    config: what `config.json` holds: what the network is.
    card: what `card.json` holds: where it is from and what it scored; empty
      where there is none.
  """

  apply_fn: step.ApplyFn
  variables: Any
  weights: np.ndarray | None
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  config: Mapping[str, Any]
  card: Mapping[str, Any]

  def predict(
    self, images: ArrayLike | Pictures | Sequence[Pictures]
  ) -> np.ndarray:
    """Returns the probabilities of the classes, f32[N, K].

    Args:
      images: `u8[N, H, W, Ch]` as they are; or pictures, which are made to fit
        as `kfkd predict` does: files, folders, patterns, PIL images, one or a
        list of them.
    """
    found = self._fitted(images)
    size = min(len(found), _BATCH)
    if self.weights is None:
      probs = history.predict(
        self.apply_fn, self.variables, found, batch_size=size
      )
    else:
      probs = history.fused_predict(
        self.apply_fn, self.variables, self.weights, found, batch_size=size
      )
    return np.asarray(probs)

  def _fitted(self, images) -> np.ndarray:
    if hasattr(images, "shape"):
      return predict.checked(np.asarray(images), self.image_shape, "images")
    given: list = [images] if isinstance(images, Pictures) else list(images)
    if given and all(isinstance(image, Image.Image) for image in given):
      return np.stack([
        predict.fitted(image, self.image_shape, f"images[{n}]")[0]
        for n, image in enumerate(given)
      ])  # fmt: skip
    paths = [os.fspath(path) for path in given]
    return predict.read_inputs(paths, self.image_shape).images


def read(folder: epath.Path, source: str) -> Pretrained:
  """The network in a folder.

  Args:
    folder: with `CONFIG` and `WEIGHTS`, and `CARD` if there is one.
    source: what it was asked for as.
  """
  for name in (CONFIG, WEIGHTS):
    if not files.exists(folder / name):
      raise ValueError(
        f"{source} holds no {name}; `kfkd export` writes it, and `kfkd push` "
        "sends it to the Hub"
      )
  config = files.read_json(folder / CONFIG)
  apply_fn, expected = _network(folder / CONFIG, config)
  variables, weights = _weights(
    folder / WEIGHTS, config.get("sha256"), expected
  )
  card = folder / CARD
  return Pretrained(
    apply_fn,
    variables,
    weights,
    tuple(config["class_names"]),
    tuple(config["image_shape"]),
    config,
    files.read_json(card) if files.exists(card) else {},
  )


def _network(
  path: epath.Path, config: Mapping[str, Any]
) -> tuple[step.ApplyFn, dict[str, Any]]:
  """The function of the network that is described, and its arrays by name."""
  try:
    options = dict(config["model"])
    names, shape = config["class_names"], tuple(config["image_shape"])
    if not all(isinstance(name, str) for name in names):
      raise TypeError("class_names are not all text")
    module = models.create(
      options.pop("name"),
      len(names),
      **{**options, "dtype": jnp.dtype(options["dtype"])},
    )
    views = step.Views(tuple(config["mean"]), tuple(config["std"]))
    apply_fn = step.clean_apply(module, views)
    images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    variables = jax.eval_shape(
      functools.partial(models.init, module, images=images), jax.random.key(0)
    )
    jax.eval_shape(apply_fn, variables, images)
  except Exception as error:  # there are as many as there are wrong values
    line = next(iter(str(error).splitlines()), "")
    raise ValueError(
      f"{path} describes no network that this kfkd-jax can build: "
      f"{type(error).__name__}: {line}"
    ) from error
  return apply_fn, traverse_util.flatten_dict(variables, sep="/")


def _weights(
  path: epath.Path, digest: str | None, expected: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray | None]:
  """The variables of the network, and the weights of a fusion."""
  content = files.read_bytes(path)
  if digest not in (None, hashlib.sha256(content).hexdigest()):
    raise ValueError(
      f"{path} is damaged or replaced: its SHA-256 sum is not the one in "
      f"{CONFIG}; fetch or export it again, or take sha256 out there"
    )
  try:
    arrays = safetensors.numpy.load(content)
  except Exception as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  weights = arrays.pop("weights", None)
  members = () if weights is None else np.shape(weights)
  found = {name: array.shape for name, array in arrays.items()}
  wanted = {name: (*members, *like.shape) for name, like in expected.items()}
  differing = sorted(
    name for name in {*found, *wanted} if found.get(name) != wanted.get(name)
  )
  if differing:
    raise ValueError(
      f"{path} does not fit {CONFIG}: "
      + "; ".join(
        f"{name} is {found.get(name, 'missing')} and should be "
        f"{wanted.get(name, 'absent')}"
        for name in differing[:_SHOWN]
      )
      + (f"; {len(differing)} in all" if differing[_SHOWN:] else "")
    )
  variables = traverse_util.unflatten_dict(
    {name: jnp.asarray(arrays[name], expected[name].dtype) for name in arrays},
    sep="/",
  )
  return {"batch_stats": {}, **variables}, weights
