"""Layers that several families share, computed as in the published networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

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

  @property
  def is_random(self) -> bool:
    """Whether training needs `keys[B]`, one for what each image leaves out."""
    return False


class Dropping(Classifier):
  """What models have in common that leave parts of themselves out in training.

  Called with `keys`, one of each image, `[B]`: what an image draws does not
  depend on where, and with how many others, it is computed. Without, nothing
  is left out.

  Attributes:
    drop_path: chance that an image skips the last block (Huang et al. 2016); it
      rises from 0 at the first one.
    dropout: chance that a number is left out (Srivastava et al. 2014).
  """

  drop_path: float = 0.0
  dropout: float = 0.0

  @property
  def is_random(self) -> bool:
    return bool(self.drop_path or self.dropout)

  def path_rates(self, blocks: int) -> list[float]:
    """The chance of each block to be skipped."""
    return [self.drop_path * b / max(blocks - 1, 1) for b in range(blocks)]


Keys: TypeAlias = (
  chex.Array | None
)  # [B], of the images; None leaves nothing out


def layer_keys(keys: Keys, layer: int) -> Keys:
  """What a layer draws from: other numbers than any other layer."""
  if keys is None:
    return None
  return jax.vmap(jax.random.fold_in, (0, None))(keys, layer)


def drop(
  x: chex.Array, keys: Keys, rate: float, *, whole: bool = False
) -> chex.Array:
  """`x[B, ...]` with some numbers, or whole images, at 0 and the rest larger.

  Args:
    x: what the layer gives.
    keys: of this layer.
    rate: the chance of a zero; the rest is divided by 1 - rate.
    whole: leave out all numbers of an image or none.
  """
  if keys is None or not rate:
    return x
  shape = (1,) * (x.ndim - 1) if whole else x.shape[1:]
  kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
  return jnp.where(kept, x / (1 - rate), 0)


skip = functools.partial(drop, whole=True)


def conv(model: Classifier) -> Callable[..., nn.Module]:
  """A convolution in front of a BatchNorm, as `model` computes."""
  return functools.partial(
    Conv, use_bias=False, dtype=model.dtype, kernel_init=conv_init
  )


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


def residual_stem(
  model: Classifier,
  x: chex.Array,
  norm: Callable[..., nn.Module],
  *,
  width: int,
  stem: str,
  names: tuple[str, str],
) -> chex.Array:
  """A 3x3 convolution (`cifar`), or a strided 7x7 one and a max pool."""
  check_stem(stem)
  small = stem == "cifar"
  kernel, strides, padding = ((3, 3), 1, 1) if small else ((7, 7), 2, 3)
  x = x.astype(model.dtype)
  x = conv(model)(width, kernel, strides, padding, name=names[0])(x)
  x = nn.relu(norm(name=names[1])(x))
  return x if small else nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class SqueezeExcite(nn.Module):
  """Scales channels by a gate computed from their means."""

  hidden: int
  dtype: jnp.dtype
  activation: Callable[[chex.Array], chex.Array] = nn.silu
  gate: Callable[[chex.Array], chex.Array] = nn.sigmoid
  names: tuple[str, str] = ("fc1", "fc2")

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    conv = functools.partial(Conv, kernel_size=(1, 1), dtype=self.dtype)
    means = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    y = self.activation(conv(self.hidden, name=self.names[0])(means))
    return x * self.gate(conv(x.shape[-1], name=self.names[1])(y))


class Mlp(nn.Module):
  """Two linear layers, the hidden one `ratio` times as wide."""

  activation: Callable[[chex.Array], chex.Array]
  dtype: jnp.dtype
  ratio: int = 4
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: chex.Array, keys: Keys = None) -> chex.Array:
    width = x.shape[-1]
    x = Linear(self.ratio * width, dtype=self.dtype, name="fc1")(x)
    x = drop(self.activation(x), layer_keys(keys, 0), self.dropout)
    x = Linear(width, dtype=self.dtype, name="fc2")(x)
    return drop(x, layer_keys(keys, 1), self.dropout)


class LayerScale(nn.Module):
  """A factor for each channel, at first `start` (Touvron et al. 2021)."""

  start: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    first = nn.initializers.constant(self.start)
    return x * self.param("gamma", first, (x.shape[-1],)).astype(self.dtype)


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
