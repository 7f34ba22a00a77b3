"""The model zoo: `create(name, num_classes, **options)`.

A model is a linen module called as `module.apply(variables, images, train=...)`
that returns float32 logits and keeps its BatchNorm statistics, if any, in the
collection `batch_stats`. One that leaves parts out in training says so by
`is_random`, and takes `keys[B]` then. What its last layer reads, `[B, F]`, is
sown as `features` in the collection `intermediates`. With `axis_name` set, the
statistics of a training step are averaged over that mesh axis.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kfkd_jax import extras

with extras.named():
  import chex
  import flax.linen as nn

  from kfkd_jax.models import (
    convnext,
    densenet,
    maxvit,
    mobilenet,
    resnet,
    vit,
    wide_resnet,
  )
  from kfkd_jax.models.cnn import CNN
  from kfkd_jax.models.layers import STEMS as STEMS
  from kfkd_jax.models.mlp import MLP
  from kfkd_jax.models.pair import Pair as Pair
  from kfkd_jax.models.pair import first_of as first_of
  from kfkd_jax.models.pretrained import UNPUBLISHED as UNPUBLISHED

MODELS: dict[str, Callable[..., nn.Module]] = {
  "mlp": MLP,
  "cnn": CNN,
  "resnet18": resnet.ResNet18,
  "resnet34": resnet.ResNet34,
  "resnet50": resnet.ResNet50,
  "wide_resnet28_10": wide_resnet.WideResNet28x10,
  "convnext_tiny": convnext.ConvNeXtTiny,
  "convnext_small": convnext.ConvNeXtSmall,
  "convnext_base": convnext.ConvNeXtBase,
  "convnext_large": convnext.ConvNeXtLarge,
  "vit_tiny": vit.ViTTiny,
  "vit_small": vit.ViTSmall,
  "vit_base": vit.ViTBase,
  "maxvit_tiny": maxvit.MaxViTTiny,
  "densenet121": densenet.DenseNet121,
  "mobilenetv3_large": mobilenet.MobileNetV3Large,
  "mobilenetv3_small": mobilenet.MobileNetV3Small,
}


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
  """The model called `name` with `num_classes` outputs.

  Args:
    name: a key of `MODELS`.
    num_classes: K.
    **options: fields of that model, such as `width`, `dtype`, `axis_name`; an
      option of `None` keeps the model's own default.
  """
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1; got {num_classes}")
  given = {k: v for k, v in options.items() if v is not None}
  known = option_names(name)
  for option, value in given.items():
    if option not in known:
      raise ValueError(
        f"{option}={value!r} does not fit model {name!r}, which takes "
        f"{sorted(known)}"
      )
  return MODELS[name](num_classes=num_classes, **given)


def option_names(name: str) -> frozenset[str]:
  """The options that the model called `name` takes."""
  if name not in MODELS:
    raise ValueError(
      f"model name {name!r} is unknown; choose one of {sorted(MODELS)}"
    )
  model: Any = MODELS[name]
  if isinstance(model, functools.partial):
    model = model.func
  names = {field.name for field in dataclasses.fields(model)}
  return frozenset(names - {"num_classes", "parent", "name"})


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
