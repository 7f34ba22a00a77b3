"""Vision transformers (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from kfkd_jax.models import layers

_gelu = functools.partial(jax.nn.gelu, approximate=False)


class Block(nn.Module):
  """Attention and an MLP, each after LayerNorm, each added."""

  heads: int
  dtype: jnp.dtype
  layer_scale: float | None
  drop_path: float
  dropout: float

  @nn.compact
  def __call__(self, x: chex.Array, keys: layers.Keys) -> chex.Array:
    mlp = layers.Mlp(_gelu, self.dtype, dropout=self.dropout, name="mlp")
    drawn = [layers.layer_keys(keys, number) for number in range(4)]
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm1")(x)
    y = layers.Attention(self.heads, self.dtype, name="attn")(y)
    y = self._scaled(layers.drop(y, drawn[0], self.dropout), "ls1")
    x = x + layers.skip(y, drawn[1], self.drop_path)
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm2")(x)
    y = self._scaled(mlp(y, drawn[2]), "ls2")
    return x + layers.skip(y, drawn[3], self.drop_path)

  def _scaled(self, x: chex.Array, name: str) -> chex.Array:
    if self.layer_scale is None:
      return x
    return layers.LayerScale(self.layer_scale, self.dtype, name=name)(x)


class ViT(layers.Dropping):
  """Patches as tokens, a class token, `depth` blocks, a linear head.

  `width` numbers a token, in heads of `head_width`. `patch` is the side of a
  patch: 16 for large images, 4 for small ones. `remat` computes a block's inner
  activations anew in the backward pass. `layer_scale` is what the factors of a
  block's output begin with; None has none. `dropout` is that of the positions,
  of attention's output and of both layers of an MLP. There is no BatchNorm, so
  `axis_name` and `norm_momentum` change nothing.
  """

  depth: int = 12
  width: int = 768
  head_width: int = 64
  patch: int = 16
  remat: bool = False
  layer_scale: float | None = None

  @nn.compact
  def __call__(
    self, x: chex.Array, *, train: bool = False, keys: layers.Keys = None
  ) -> chex.Array:
    self._check(x.shape)
    x = self._tokens(x.astype(self.dtype))
    x = layers.drop(x, layers.layer_keys(keys, self.depth), self.dropout)
    heads = max(self.width // self.head_width, 1)
    block = nn.remat(Block) if self.remat else Block
    for b, rate in enumerate(self.path_rates(self.depth)):
      x = block(
        heads,
        self.dtype,
        self.layer_scale,
        rate,
        self.dropout,
        name=f"blocks.{b}",
      )(x, layers.layer_keys(keys, b))
    x = nn.LayerNorm(1e-6, dtype=jnp.float32, name="norm")(x[:, 0])
    self.sow("intermediates", "features", x)
    return layers.Linear(self.num_classes, dtype=jnp.float32, name="head")(x)

  def _tokens(self, x: chex.Array) -> chex.Array:
    """The class token and the patches with their positions, `[B, T, D]`."""
    x = layers.Conv(
      self.width,
      (self.patch, self.patch),
      self.patch,
      padding=0,
      dtype=self.dtype,
      kernel_init=nn.initializers.lecun_normal(),
      name="patch_embed.proj",
    )(x)
    x = x.reshape(x.shape[0], -1, self.width)
    token = self.param(
      "cls_token", nn.initializers.normal(1e-6), (1, 1, self.width)
    )
    token = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
    x = jnp.concatenate([token.astype(self.dtype), x], axis=1)
    shape = (1, x.shape[1], self.width)
    positions = self.param("pos_embed", layers.linear_init, shape)
    return x + positions.astype(self.dtype)

  def _check(self, shape: tuple[int, ...]) -> None:
    if shape[1] % self.patch or shape[2] % self.patch:
      raise ValueError(
        f"patch {self.patch} does not divide images {shape[1]}x{shape[2]}; "
        "choose a patch that does, such as 4 for small images"
      )
    if self.width > self.head_width and self.width % self.head_width:
      raise ValueError(
        f"width {self.width} does not divide into heads of {self.head_width}"
      )


ViTTiny = functools.partial(ViT, width=192)
ViTSmall = functools.partial(ViT, width=384)
ViTBase = functools.partial(ViT, width=768)
