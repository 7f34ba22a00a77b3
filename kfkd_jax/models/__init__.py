"""The model zoo: `create(name, num_classes, **options)`.

A model is a linen module called as `module.apply(variables, images, train=...)`
that returns float32 logits and keeps its BatchNorm statistics, if any, in the
collection `batch_stats`. With `axis_name` set, the statistics of a training
step are averaged over that mesh axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from kfkd_jax.models.cnn import CNN
from kfkd_jax.models.mlp import MLP
from kfkd_jax.models.resnet import ResNet18

MODELS: dict[str, Callable[..., nn.Module]] = {
  "mlp": MLP,
  "cnn": CNN,
  "resnet18": ResNet18,
}


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
  """The model called `name` with `num_classes` outputs.

  Args:
    name: a key of `MODELS`.
    num_classes: K.
    **options: fields of that model, such as `width`, `dtype`, `axis_name`; an
      option of `None` keeps the model's own default.
  """
  if name not in MODELS:
    raise ValueError(
      f"model name {name!r} is unknown; choose one of {sorted(MODELS)}"
    )
  given = {k: v for k, v in options.items() if v is not None}
  return MODELS[name](num_classes=num_classes, **given)


def init(
  module: nn.Module, key: chex.PRNGKey, images: chex.Array
) -> dict[str, Any]:
  """Fresh `{"params", "batch_stats"}` for inputs shaped like `images`."""
  variables = jax.jit(lambda k, x: module.init(k, x))(
    key, jnp.zeros(images.shape, jnp.float32)
  )
  return {
    "params": variables["params"],
    "batch_stats": variables.get("batch_stats", {}),
  }


def num_parameters(variables: dict[str, Any]) -> int:
  """How many trainable numbers `variables["params"]` holds."""
  return sum(x.size for x in jax.tree.leaves(variables["params"]))
