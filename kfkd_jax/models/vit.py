"""Vision transformers (Dosovitskiy et al. 2021), without dropout."""

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

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm1")(x)
    x = x + layers.Attention(self.heads, self.dtype, name="attn")(y)
    y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm2")(x)
    return x + layers.Mlp(_gelu, self.dtype, name="mlp")(y)


class ViT(layers.Classifier):
  """Patches as tokens, a class token, `depth` blocks, a linear head.

  `width` numbers a token, in heads of `head_width`. `patch` is the side of a
  patch: 16 for large images, 4 for small ones. `remat` computes a block's inner
  activations anew in the backward pass. There is no BatchNorm, so `axis_name`
  and `norm_momentum` change nothing.
  """

  depth: int = 12
  width: int = 768
  head_width: int = 64
  patch: int = 16
  remat: bool = False

  @nn.compact
  def __call__(self, x: chex.Array, *, train: bool = False) -> chex.Array:
    self._check(x.shape)
    x = self._tokens(x.astype(self.dtype))
    heads = max(self.width // self.head_width, 1)
    block = nn.remat(Block) if self.remat else Block
    for b in range(self.depth):
      x = block(heads, self.dtype, name=f"blocks.{b}")(x)
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
