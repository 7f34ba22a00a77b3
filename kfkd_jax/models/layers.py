"""Layers that several families share, computed as in the published networks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kfkd_jax.models import convolution

STEMS = ("cifar", "imagenet")

conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
linear_init = nn.initializers.truncated_normal(0.02)
Linear = functools.partial(nn.Dense, kernel_init=linear_init)
Conv = functools.partial(
  nn.Conv, conv_general_dilated=convolution.conv_general_dilated
)


class Classifier(nn.Module):
  """What all models have in common.

  Attributes:
    num_classes: K.
    dtype: of the computation; parameters and logits are float32.
    axis_name: mesh axis that BatchNorm averages over in training, if any.
    norm_momentum: how much of its running statistics a step keeps.
  """

  num_classes: int
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None
  norm_momentum: float = 0.9


def batch_norm(
  model: Classifier, *, train: bool, epsilon: float = 1e-5
) -> Callable[..., nn.Module]:
  """BatchNorm as the fields of `model` want it."""
  axis_name = model.axis_name if train else None
  # Alone on its axis, a device has nobody to ask, and XLA fuses what need not
  # be reduced: a small network's step is 2 % faster.
  if axis_name and not model.is_initializing() and lax.psum(1, axis_name) == 1:
    axis_name = None
  return functools.partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=model.norm_momentum,
    epsilon=epsilon,
    dtype=model.dtype,
    axis_name=axis_name,
  )


def check_stem(stem: str) -> None:
  """Refuses a stem that no model has."""
  if stem not in STEMS:
    raise ValueError(f"stem {stem!r} is unknown; choose one of {STEMS}")


class Mlp(nn.Module):
  """Two linear layers, the hidden one `ratio` times as wide."""

  activation: Callable[[chex.Array], chex.Array]
  dtype: jnp.dtype
  ratio: int = 4

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    width = x.shape[-1]
    x = Linear(self.ratio * width, dtype=self.dtype, name="fc1")(x)
    return Linear(width, dtype=self.dtype, name="fc2")(self.activation(x))


class Attention(nn.Module):
  """Self-attention over tokens `[B, T, D]`, its softmax in float32.

  With `window`, the T tokens are a square of that side and every head learns a
  bias for each relative position.
  """

  heads: int
  dtype: jnp.dtype
  window: int | None = None

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    batch, tokens, width = x.shape
    qkv = Linear(3 * width, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
    bias = None if self.window is None else self._position_bias(self.window)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    x = jax.nn.dot_product_attention(q, k, v, bias=bias)
    x = x.reshape(batch, tokens, width)
    return Linear(width, dtype=self.dtype, name="proj")(x)

  def _position_bias(self, side: int) -> chex.Array:
    """`[1, heads, T, T]`, looked up by how far the key is from the query."""
    table = self.param(
      "rel_pos.relative_position_bias_table",
      linear_init,
      (self.heads, 2 * side - 1, 2 * side - 1),
    )
    shift = np.arange(side)[None, :] - np.arange(side)[:, None] + side - 1
    bias = table[:, shift[:, None, :, None], shift[None, :, None, :]]
    return bias.reshape(1, self.heads, side**2, side**2).astype(self.dtype)
