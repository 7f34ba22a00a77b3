"""Residual networks (He et al. 2016) with the CIFAR stem."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax.numpy as jnp


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

  features: int
  strides: tuple[int, int]
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: chex.Array) -> chex.Array:
    y = self.conv(self.features, (3, 3), self.strides, padding=1)(x)
    y = nn.relu(self.norm()(y))
    y = self.norm()(self.conv(self.features, (3, 3), padding=1)(y))
    if x.shape != y.shape:
      x = self.conv(self.features, (1, 1), self.strides)(x)
      x = self.norm()(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A 3x3 stem without pooling, four stages of basic blocks, mean pooling."""

  num_classes: int
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None
  norm_momentum: float = 0.9

  @nn.compact
  def __call__(self, x: chex.Array, *, train: bool = False) -> chex.Array:
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.norm_momentum,
      dtype=self.dtype,
      axis_name=self.axis_name if train else None,
    )
    x = x.astype(self.dtype)
    x = nn.relu(norm()(conv(self.width, (3, 3), padding=1)(x)))
    for stage, size in enumerate(self.stage_sizes):
      for block in range(size):
        strides = (2, 2) if stage and not block else (1, 1)
        x = BasicBlock(self.width * 2**stage, strides, conv, norm)(x)
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, dtype=jnp.float32)(x)


ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
