"""MaxViT (Tu et al. 2022), as its authors' TensorFlow weights compute it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from kfkd_jax.models import layers

# The tanh form, with which the weights were trained.
_gelu = functools.partial(jax.nn.gelu, approximate=True)


def _padding(strides: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """TensorFlow's SAME for a 3x3 window on sides that `strides` divides."""
  return ((1, 1), (1, 1)) if strides == 1 else ((0, 1), (0, 1))


class MBConv(nn.Module):
  """A depthwise convolution on four times the channels, gated, added."""

  features: int
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  dtype: jnp.dtype
  drop_path: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    wide = 4 * self.features
    y = self.norm(name="pre_norm")(x)
    y = self.conv(wide, (1, 1), use_bias=False, name="conv1_1x1")(y)
    y = _gelu(self.norm(name="norm1")(y))
    y = self.conv(
      wide,
      (3, 3),
      self.strides,
      _padding(self.strides),
      feature_group_count=wide,
      use_bias=False,
      name="conv2_kxk",
    )(y)
    y = _gelu(self.norm(name="norm2")(y))
    y = layers.SqueezeExcite(self.features // 4, self.dtype, name="se")(y)
    y = self.conv(self.features, (1, 1), name="conv3_1x1")(y)
    return self._shortcut(x) + layers.skip(y, keys, self.drop_path)

  def _shortcut(self, x: chex.Array) -> chex.Array:
    if self.strides > 1:
      x = nn.avg_pool(x, (2, 2), (2, 2))
    if x.shape[-1] != self.features:
      x = self.conv(self.features, (1, 1), name="shortcut.expand")(x)
    return x


class WindowAttention(nn.Module):
  """Attention within blocks of neighbours, or over a grid of distant pixels."""

  kind: Literal["block", "grid"]
  window: int
  head_width: int
  dtype: jnp.dtype
  drop_path: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    norm = functools.partial(nn.LayerNorm, 1e-5, dtype=self.dtype)
    heads = max(x.shape[-1] // self.head_width, 1)
    attention = layers.Attention(heads, self.dtype, self.window, name="attn")
    first, second = (layers.layer_keys(keys, number) for number in range(2))
    y = self._within(attention, norm(name="norm1")(x))
    x = x + layers.skip(y, first, self.drop_path)
    y = layers.Mlp(_gelu, self.dtype, name="mlp")(norm(name="norm2")(x))
    return x + layers.skip(y, second, self.drop_path)

  def _within(
    self, attention: Callable[[chex.Array], chex.Array], x: chex.Array
  ) -> chex.Array:
    """Gathers `window`^2 pixels at a time into sequences and puts them back."""
    batch, height, width, channels = x.shape
    w = self.window
    if self.kind == "block":
      split = (batch, height // w, w, width // w, w, channels)
      order = (0, 1, 3, 2, 4, 5)
    else:
      split = (batch, w, height // w, w, width // w, channels)
      order = (0, 2, 4, 1, 3, 5)
    x = x.reshape(split).transpose(order)
    shape = x.shape
    x = attention(x.reshape(-1, w * w, channels)).reshape(shape)
    back = tuple(order.index(axis) for axis in range(6))
    return x.transpose(back).reshape(batch, height, width, channels)


class Block(nn.Module):
  """Convolution, attention within blocks, attention over the grid."""

  features: int
  strides: int
  window: int
  head_width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  dtype: jnp.dtype
  drop_path: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    drawn = [layers.layer_keys(keys, number) for number in range(3)]
    x = MBConv(
      self.features,
      self.strides,
      self.conv,
      self.norm,
      self.dtype,
      self.drop_path,
      name="conv",
    )(x, drawn[0])
    attend = functools.partial(
      WindowAttention,
      window=self.window,
      head_width=self.head_width,
      dtype=self.dtype,
      drop_path=self.drop_path,
    )
    x = attend("block", name="attn_block")(x, drawn[1])
    return attend("grid", name="attn_grid")(x, drawn[2])


class MaxViT(layers.Dropping):
  """A stem, four stages of `Block`, each at half the resolution, and a head.

  The stem's first convolution has stride 2 (`imagenet`) or 1 (`cifar`). `width`
  channels in the first stage, twice as many in each next. A window's side is
  that of the last stage: 7 for images of 224. `remat` computes a block's inner
  activations anew in the backward pass. `dropout` is that of what the head
  reads.
  """

  stage_sizes: Sequence[int] = (2, 2, 5, 2)
  width: int = 64
  head_width: int = 32
  stem: str = "imagenet"
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: chex.Array, *, train: bool = False, keys: layers.Keys = None
  ) -> chex.Array:
    window = self._window(x.shape)
    conv = functools.partial(
      layers.Conv, dtype=self.dtype, kernel_init=layers.conv_init
    )
    norm = layers.batch_norm(self, train=train, epsilon=1e-3)
    block = nn.remat(Block) if self.remat else Block
    strides = 1 if self.stem == "cifar" else 2
    x = conv(self.width, (3, 3), strides, _padding(strides), name="stem.conv1")(
      x.astype(self.dtype)
    )
    x = _gelu(norm(name="stem.norm1")(x))
    x = conv(self.width, (3, 3), 1, _padding(1), name="stem.conv2")(x)
    number, rates = 0, self.path_rates(sum(self.stage_sizes))
    for stage, size in enumerate(self.stage_sizes):
      for b in range(size):
        x = block(
          self.width * 2**stage,
          1 if b else 2,
          window,
          self.head_width,
          conv,
          norm,
          self.dtype,
          rates[number],
          name=f"stages.{stage}.blocks.{b}",
        )(x, layers.layer_keys(keys, number))
        number += 1
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return self._head(x, layers.layer_keys(keys, number))

  def _head(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    linear = functools.partial(layers.Linear, dtype=jnp.float32)
    x = nn.LayerNorm(1e-5, dtype=jnp.float32, name="head.norm")(x)
    x = nn.tanh(linear(x.shape[-1], name="head.pre_logits.fc")(x))
    self.sow("intermediates", "features", x)
    x = layers.drop(x, keys, self.dropout)
    return linear(self.num_classes, name="head.fc")(x)

  def _window(self, shape: tuple[int, ...]) -> int:
    layers.check_stem(self.stem)
    shrink = 2 ** len(self.stage_sizes) * (1 if self.stem == "cifar" else 2)
    _, height, width, _ = shape
    if height != width or height % shrink:
      raise ValueError(
        f"images {height}x{width} do not fit MaxViT with stem {self.stem!r}, "
        f"which needs squares whose side is a multiple of {shrink}"
      )
    return height // shrink


MaxViTTiny = functools.partial(MaxViT, stage_sizes=(2, 2, 5, 2), width=64)
