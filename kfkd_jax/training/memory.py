"""Rows of per-example memory, which the devices share out among them.

Device d of D holds rows d N'/D to (d+1) N'/D. A batch's rows lie anywhere, so
every device offers those it holds and all take what they need.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kfkd_jax.parallel import DATA_AXIS

_ROWS = 1024  # a multiple of this: one shape for 1, 2, ..., 1024 devices


def padded(tree: chex.ArrayTree, mesh: jax.sharding.Mesh) -> chex.ArrayTree:
  """Rows `[N, ...]` filled up to `[N', ...]`, which divides over the mesh."""
  multiple = math.lcm(_ROWS, mesh.shape[DATA_AXIS])

  def fill(rows):
    rows = np.asarray(rows)
    missing = -len(rows) % multiple
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))

  return jax.tree.map(fill, tree)


def read(memory: chex.ArrayTree, index: chex.Array) -> chex.ArrayTree:
  """The rows of this device's share of the batch.

  Args:
    memory: this device's rows, each leaf `[N'/D, ...]`.
    index: `[B/D]` places in the training set.

  Returns:
    Each leaf `[B/D, ...]`.
  """
  everyone = lax.all_gather(index, DATA_AXIS, tiled=True)
  # As rows are sharded: device d holds the d-th part of the batch.
  start = lax.axis_index(DATA_AXIS) * len(index)

  def leaf(rows):
    place, held = _places(everyone, len(rows))
    # Exactly one device holds a row and all others add 0, so the sum is the
    # row.
    held = held.reshape(held.shape + (1,) * (rows.ndim - 1))
    found = jnp.where(held, rows[place], 0)
    return lax.dynamic_slice_in_dim(
      lax.psum(found, DATA_AXIS), start, len(index)
    )

  return jax.tree.map(leaf, memory)


def write(
  memory: chex.ArrayTree,
  index: chex.Array,
  weight: chex.Array,
  rows: chex.ArrayTree,
) -> chex.ArrayTree:
  """Memory with the batch's `rows` in it, except those of weight 0.

  Args:
    memory: this device's rows, each leaf `[N'/D, ...]`.
    index: `[B/D]` places in the training set.
    weight: `[B/D]`.
    rows: each leaf `[B/D, ...]`.
  """
  index, weight, rows = jax.tree.map(
    lambda x: lax.all_gather(x, DATA_AXIS, tiled=True), (index, weight, rows)
  )

  def leaf(old, new):
    place, held = _places(index, len(old))
    # One place too far is dropped. Fill rows are examples of other batches,
    # whose memory they must not advance a second time in an epoch.
    place = jnp.where(held & (weight > 0), place, len(old))
    return old.at[place].set(new.astype(old.dtype), mode="drop")

  return jax.tree.map(leaf, memory, rows)


def _places(index, size):
  """Where in this device's rows, and whether they are there at all."""
  place = index - lax.axis_index(DATA_AXIS) * size
  held = (place >= 0) & (place < size)
  # Masked as well; clipped so that nothing rests on what JAX reads outside.
  return jnp.clip(place, 0, size - 1), held
