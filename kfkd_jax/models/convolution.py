"""Convolutions whose filters' gradients are fast on CPUs, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_ROWS = 2048  # of a matrix product: its left side should stay in the cache
_SLOW = 10**10  # multiplications, times the pixels of XLA's window

Pair = tuple[int, int]


def conv_general_dilated(
  x: chex.Array,
  kernel: chex.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[Pair],
  *,
  feature_group_count: int = 1,
  **options: Any,
) -> chex.Array:
  """`lax.conv_general_dilated`, as the layer of every network calls it.

  On CPUs, XLA computes the gradient with respect to the filter as a convolution
  whose window is the whole picture, on one core. Where that is slow, it is
  computed here as a sum of matrix products over a few pictures each. Such a
  convolution has no forward-mode derivative; all others are XLA's own.

  Args:
    x: `[B, H, W, C]`.
    kernel: `[h, w, C / feature_group_count, F]`.
    window_strides: along H and W.
    padding: as `lax` takes it.
    feature_group_count: as `lax` takes it.
    **options: what else `lax` takes; layouts and dilations.
  """
  pads: Any = padding
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(
      x.shape[1:-1], kernel.shape[:-2], window_strides, padding
    )
  geometry = (
    tuple(window_strides),
    tuple((low, high) for low, high in pads),
    feature_group_count,
  )
  dilations = {*options["lhs_dilation"], *options["rhs_dilation"]}
  if (
    jax.default_backend() == "cpu"
    and dilations == {1}
    and _is_slow(x, kernel, *geometry)
  ):
    return _conv(x, kernel, *geometry)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides,
    padding,
    feature_group_count=feature_group_count,
    **options,
  )


def _is_slow(x, kernel, strides, pads, groups) -> bool:
  """Whether XLA's gradient of this filter is slower on a CPU than ours."""
  # A batch without a number is being exported, which takes no gradient.
  if x.ndim != 4 or not isinstance(x.shape[0], int):
    return False
  if groups > 1:
    return groups == x.shape[-1] == kernel.shape[-1]
  # Milliseconds of processor time (an AMD EPYC, float32; wall time on its two
  # cores differs more, as XLA's uses one), by what `_SLOW` bounds:
  #
  # |  10^9 | x                  | filter        | XLA's | ours |
  # | ----: | ------------------ | ------------- | ----: | ---: |
  # |   0.6 | [64, 8, 8, 16]     | 3x3 -> 16     |   0.9 |  1.2 |
  # |   1.2 | [32, 32, 32, 3]    | 4x4 / 4 -> 192|   2.0 |  1.6 |
  # |   2.4 | [64, 8, 8, 32]     | 3x3 -> 32     |   2.5 |  3.6 |
  # |   9.7 | [64, 8, 8, 64]     | 3x3 -> 64     |    12 |   13 |
  # |   9.7 | [64, 16, 16, 16]   | 3x3 -> 16     |   4.0 |  5.4 |
  # |    11 | [128, 28, 28, 1]   | 3x3 -> 16     |   8.6 |  3.5 |
  # |    19 | [32, 4, 4, 512]    | 3x3 -> 512    |    52 |   42 |
  # |    39 | [64, 16, 16, 32]   | 3x3 -> 32     |    18 |   14 |
  # |    77 | [32, 8, 8, 256]    | 3x3 -> 256    |    61 |   50 |
  # |   181 | [128, 14, 14, 64]  | 3x3 -> 64     |   113 |   65 |
  # |   725 | [128, 28, 28, 32]  | 3x3 -> 32     |   456 |   63 |
  # |       | [16, 8, 8, 96]     | 7x7 depthwise |    22 |    5 |
  # |       | [32, 32, 32, 96]   | 7x7 depthwise |  3141 |  177 |
  height, width = (
    (side + sum(pad) - window) // stride + 1
    for side, pad, window, stride in zip(
      x.shape[1:3], pads, kernel.shape[:2], strides, strict=True
    )
  )
  multiplications = x.shape[0] * height * width * kernel.size
  return multiplications * height * width >= _SLOW


def _xla(x, kernel, strides, pads, groups):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
    dimension_numbers=_LAYOUT,
    feature_group_count=groups,
  )


_conv = jax.custom_vjp(_xla, nondiff_argnums=(2, 3, 4))


def _forward(x, kernel, *geometry):
  return _xla(x, kernel, *geometry), (x, kernel)


def _backward(strides, pads, groups, residuals, grad):
  x, kernel = residuals
  # Towards the pictures, XLA's own gradient is fast.
  _, pull = jax.vjp(lambda x: _xla(x, kernel, strides, pads, groups), x)
  return *pull(grad), _filter_gradient(x, kernel, grad, strides, pads, groups)


_conv.defvjp(_forward, _backward)


def _filter_gradient(x, kernel, grad, strides, pads, groups) -> chex.Array:
  """What `grad`, `[B, H', W', F]`, says about `kernel`, in its type."""
  batch, height, width, _ = grad.shape
  # bfloat16 has 8 bits, too few for a sum over the pixels of a batch.
  dtype = jnp.promote_types(kernel.dtype, jnp.float32)
  # The pictures of a product; the first product takes what would be left over.
  count = min(max(_ROWS // (height * width), 1), batch)
  first = (batch - 1) % count + 1

  def product(start, size):
    part, of = (
      lax.dynamic_slice_in_dim(a, start, size).astype(dtype) for a in (x, grad)
    )
    part = jnp.pad(part, ((0, 0), *pads, (0, 0)))
    seen = [
      part[
        :,
        i : i + (height - 1) * strides[0] + 1 : strides[0],
        j : j + (width - 1) * strides[1] + 1 : strides[1],
      ]
      for i in range(kernel.shape[0])
      for j in range(kernel.shape[1])
    ]
    if groups > 1:
      return jnp.stack([jnp.sum(pixels * of, (0, 1, 2)) for pixels in seen])
    return jnp.tensordot(jnp.concatenate(seen, -1), of, axes=((0, 1, 2),) * 2)

  total, _ = lax.scan(
    lambda total, start: (total + product(start, count), None),
    product(0, first),
    jnp.arange(first, batch, count),
  )
  return total.reshape(kernel.shape).astype(kernel.dtype)
