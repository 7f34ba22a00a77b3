"""Predictions of stacked checkpoints, all, or fused as they come."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import ArrayLike

from kfkd_jax import stacks
from kfkd_jax.history.networks import ApplyFn, as_apply_fn
from kfkd_jax.history.stacking import (
  leading_size,
  num_checkpoints,
  take_checkpoints,
)

T = TypeVar("T")

_IMPLS = ("auto", "vmap", "map", "loop")
# Checkpoints per vmap off the CPU inside somebody's `jit`, where nobody knows
# what else the memory is for.
_TRACED_CHUNK = 4
_USED_SHARE = 0.8  # of the free memory: estimates are of temporaries alone


def predict(
  apply_fn: ApplyFn | Any,
  variables: Any,
  inputs: Any,
  *,
  batch_size: int | None = None,
) -> jax.Array | np.ndarray:
  """Returns the class probabilities of one checkpoint, f32[N, K].

  Args:
    apply_fn: (variables, inputs) -> logits [N, K], or an NNX network, see
      `predict_checkpoints`.
    variables: the checkpoint.
    inputs: array or pytree with leaves [N, ...].
    batch_size: examples at a time, see `predict_checkpoints`.
  """
  apply_fn = as_apply_fn(apply_fn)
  return _in_batches(
    lambda batch, chunk: _predict(apply_fn, variables, batch),
    inputs,
    batch_size,
    1,
  )


def predict_checkpoints(
  apply_fn: ApplyFn | Any,
  stacked: Any,
  inputs: Any,
  *,
  batch_size: int | None = None,
  chunk: int | None = None,
  impl: str = "auto",
) -> jax.Array | np.ndarray:
  """Returns the class probabilities of every checkpoint.

  Args:
    apply_fn: (variables, inputs) -> logits [N, K]. Or an `nnx.Module` or its
      `nnx.GraphDef`, for checkpoints that are copies of its `nnx.state` or pure
      dicts of it: it predicts in eval mode; the module itself stays as it is.
    stacked: pytree with leaves [C, ...].
    inputs: array or pytree with leaves [N, ...].
    batch_size: examples at a time. The last batch is padded, so one shape is
      compiled, and the result is a NumPy array, collected on the host as it
      comes. None takes all at once, gives a JAX array and works inside `jit`.
      Outside it, what the device has no room for is tried again by smaller
      chunks, then by smaller batches.
    chunk: checkpoints per vmap, where vmap is used; None for as many as fit
      into the device's free memory.
    impl: "map" runs one checkpoint after the other on the device, "vmap" all of
      them (or `chunk`) together, "loop" one by one from the host, which needs
      room for one only if `stacked` is in NumPy. "auto" is map on CPU, where
      vmapped convolutions are slow, and vmap in chunks elsewhere.

  Returns:
    f32[C, N, K].

  >>> stacked = {"w": np.asarray([[[0.0, 0.0]], [[0.0, 9.0]]])}
  >>> probs = predict_checkpoints(
  ...   lambda v, x: x @ v["w"], stacked, np.ones((1, 1))
  ... )
  >>> probs.round(2).tolist() == [[[0.5, 0.5]], [[0.0, 1.0]]]
  True
  """
  apply_fn, size = as_apply_fn(apply_fn), num_checkpoints(stacked)
  chunk = _chunk_size(apply_fn, stacked, inputs, batch_size, impl, chunk)

  def predict_batch(batch, chunk):
    if impl != "loop":
      return _predict_stacked(apply_fn, stacked, batch, chunk)
    members = (take_checkpoints(stacked, c) for c in range(size))
    return jnp.stack([_predict(apply_fn, member, batch) for member in members])

  return _in_batches(predict_batch, inputs, batch_size, chunk)


def fused_predict(
  apply_fn: ApplyFn | Any,
  stacked: Any,
  weights: ArrayLike,
  inputs: Any,
  *,
  batch_size: int | None = None,
  chunk: int | None = None,
  impl: str = "auto",
) -> jax.Array | np.ndarray:
  """Returns the weighted sum of the checkpoints' probabilities.

  The sum is a running one: [C, N, K] is never held. Checkpoints of weight 0
  are not run, unless `weights` is traced.

  Args:
    apply_fn: (variables, inputs) -> logits [N, K], or an NNX network, see
      `predict_checkpoints`.
    stacked: pytree with leaves [C, ...].
    weights: [C], not negative, of sum 1 (not looked at where traced).
    inputs: array or pytree with leaves [N, ...].
    batch_size: examples at a time, see `predict_checkpoints`.
    chunk: checkpoints per vmap, see `predict_checkpoints`.
    impl: see `predict_checkpoints`.

  Returns:
    f32[N, K].

  >>> stacked = {"w": np.asarray([[[0.0, 0.0]], [[0.0, 99.0]]])}
  >>> inputs = np.ones((1, 1))
  >>> fused_predict(
  ...   lambda v, x: x @ v["w"], stacked, [0.5, 0.5], inputs
  ... ).tolist()
  [[0.25, 0.75]]
  """
  apply_fn = as_apply_fn(apply_fn)
  stacked, weights = _members(stacked, weights)
  chunk = _chunk_size(apply_fn, stacked, inputs, batch_size, impl, chunk)

  def predict_batch(batch, chunk):
    if impl != "loop":
      return _fused_predict(apply_fn, stacked, weights, batch, chunk)
    return sum(
      weights[c] * _predict(apply_fn, take_checkpoints(stacked, c), batch)
      for c in range(len(weights))
    )

  return _in_batches(predict_batch, inputs, batch_size, chunk)


def with_room(
  run: Callable[[int], T],
  size: int,
  *,
  least: int = 1,
  smaller: Callable[[int], Any] = lambda size: None,
) -> T:
  """`run(size)`, by halves for as long as the device has no room.

  Args:
    run: the work; all of it is done again.
    size: to begin with.
    least: size at which there is no smaller one.
    smaller: told every new size.
  """
  while True:
    try:
      return jax.block_until_ready(run(size))
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error) or size <= least:
        raise
    size = max(size // 2, least)
    smaller(size)


def _members(stacked: Any, weights: ArrayLike) -> tuple[Any, jax.Array]:
  """Returns the checkpoints to run and their weights f32[M]."""
  size = num_checkpoints(stacked)
  stacks.check_weights(weights, size)
  if not isinstance(weights, jax.core.Tracer):
    used = np.flatnonzero(np.asarray(weights))
    if used.size < size:
      stacked = take_checkpoints(stacked, used)
      weights = np.asarray(weights)[used]
  return stacked, jnp.asarray(weights, jnp.float32)


def _probs(apply_fn: ApplyFn, variables: Any, inputs: Any) -> jax.Array:
  """Returns softmax(logits), f32[N, K]."""
  logits = apply_fn(variables, inputs)
  size = leading_size("inputs", inputs)
  shape: tuple[int, ...] = getattr(logits, "shape", ())
  if len(shape) != 2 or shape[0] != size:
    raise ValueError(
      f"apply_fn must return logits of shape ({size}, K) for {size} inputs; "
      f"got {jax.tree.map(np.shape, logits)}."
    )
  return jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1)


_predict = jax.jit(_probs, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _predict_stacked(
  apply_fn: ApplyFn, stacked: Any, inputs: Any, chunk: int
) -> jax.Array:
  """Returns f32[C, N, K], `chunk` checkpoints at a time."""
  size = num_checkpoints(stacked)
  one = functools.partial(_probs, apply_fn, inputs=inputs)
  # Not `batch_size=1`, which would vmap over one: slow convolutions on CPU.
  if chunk == 1:
    return jax.lax.map(one, stacked)
  if chunk >= size:
    return jax.vmap(one)(stacked)
  return jax.lax.map(one, stacked, batch_size=chunk)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _fused_predict(
  apply_fn: ApplyFn, stacked: Any, weights: jax.Array, inputs: Any, chunk: int
) -> jax.Array:
  """Returns f32[N, K], adding up `chunk` checkpoints at a time."""

  def part(members, weights):
    probs = _predict_stacked(apply_fn, members, inputs, len(weights))
    return jnp.einsum(
      "c,cnk->nk", weights, probs, precision=jax.lax.Precision.HIGHEST
    )

  def add(total, members_and_weights):
    return total + part(*members_and_weights), None

  full, rest = divmod(len(weights), chunk)
  blocks = jax.tree.map(
    lambda x: x[: full * chunk].reshape(full, chunk, *x.shape[1:]),
    (stacked, weights),
  )
  # Its shape without running it: K is known to the network alone.
  start = jax.eval_shape(part, stacked, weights)
  total, _ = jax.lax.scan(add, jnp.zeros(start.shape, start.dtype), blocks)
  if rest:
    total += part(*jax.tree.map(lambda x: x[-rest:], (stacked, weights)))
  return total


def _chunk_size(
  apply_fn: ApplyFn,
  stacked: Any,
  inputs: Any,
  batch_size: int | None,
  impl: str,
  chunk: int | None,
) -> int:
  """Returns how many checkpoints run together."""
  if impl not in _IMPLS:
    raise ValueError(f"impl must be one of {_IMPLS}; got {impl!r}.")
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk must be at least 1; got {chunk}.")
  size = num_checkpoints(stacked)
  if impl == "vmap":
    return min(chunk or size, size)
  if impl != "auto" or jax.default_backend() == "cpu":
    return 1
  if chunk is not None:
    return min(chunk, size)
  leaves = jax.tree.leaves((stacked, inputs))
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return min(_TRACED_CHUNK, size)
  count = min(batch_size or np.inf, leading_size("inputs", inputs))
  return _fitting_chunk(apply_fn, stacked, inputs, int(count))


def _fitting_chunk(
  apply_fn: ApplyFn, stacked: Any, inputs: Any, count: int
) -> int:
  """Returns how many checkpoints' temporaries fit into the free memory.

  A power of two, or all, so that free memory that differs a little does not
  compile another program.
  """
  stats = jax.local_devices()[0].memory_stats()
  if not stats or "bytes_limit" not in stats:
    return 1
  shapes, structure = jax.tree.flatten(
    (
      jax.tree.map(_shaped, stacked),
      jax.tree.map(lambda x: _shaped(x[:count]), inputs),
    )
  )
  # One checkpoint is compiled to learn what its activations take.
  each, result = _bytes_for_one(apply_fn, tuple(shapes), structure)
  # What is still on the host has to be brought beside what is there.
  coming = sum(
    x.nbytes for x in jax.tree.leaves(stacked) if isinstance(x, np.ndarray)
  )
  free = stats["bytes_limit"] - stats["bytes_in_use"] - result - coming
  fitting = int(max(1, _USED_SHARE * free // max(each, 1)))
  size = num_checkpoints(stacked)
  return size if fitting >= size else 2 ** (fitting.bit_length() - 1)


def _shaped(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


@functools.lru_cache(maxsize=32)
def _bytes_for_one(
  apply_fn: ApplyFn, shapes: tuple[jax.ShapeDtypeStruct, ...], structure: Any
) -> tuple[int, int]:
  """Bytes of one checkpoint's temporaries, and of the result of all."""
  stacked, inputs = jax.tree.unflatten(structure, shapes)
  compiled = _predict_stacked.lower(apply_fn, stacked, inputs, 1).compile()
  analysis: Any = compiled.memory_analysis()
  return analysis.temp_size_in_bytes, analysis.output_size_in_bytes


def _in_batches(
  predict: Callable[[Any, int], jax.Array],
  inputs: Any,
  batch_size: int | None,
  chunk: int,
) -> jax.Array | np.ndarray:
  """Predicts [..., N, K], with smaller chunks or batches if there is no room.

  Args:
    predict: (inputs [B, ...], chunk) -> [..., B, K].
    inputs: leaves [N, ...].
    batch_size: None for all inputs at once.
    chunk: to begin with.
  """
  size = leading_size("inputs", inputs)
  if batch_size is not None and (batch_size < 1 or size == 0):
    raise ValueError(
      f"batch_size and the number of inputs must be at least 1; got "
      f"{batch_size} and {size}."
    )

  # First smaller chunks of checkpoints, for any batch: they cost least. When
  # one at a time has no room either, the error leaves the inner `with_room` and
  # the outer one halves the batch.
  def by_batches(rows: int) -> jax.Array | np.ndarray:
    if batch_size is None and rows == size:
      return with_room(functools.partial(predict, inputs), chunk)
    return _collected(
      lambda batch: with_room(functools.partial(predict, batch), chunk),
      inputs,
      rows,
    )

  return with_room(by_batches, batch_size or size)


def _collected(
  predict_batch: Callable[[Any], jax.Array], inputs: Any, batch_size: int
) -> np.ndarray:
  """Predicts [..., N, K] batch by batch into host memory."""
  size = leading_size("inputs", inputs)
  result = np.empty(0)
  for start in range(0, size, batch_size):
    # The last example fills the last batch up: every batch has one shape.
    rows = np.minimum(np.arange(start, start + batch_size), size - 1)
    batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs)
    probs = np.asarray(predict_batch(batch))
    if start == 0:
      result = np.empty((*probs.shape[:-2], size, probs.shape[-1]), probs.dtype)
    kept = min(batch_size, size - start)
    result[..., start : start + kept, :] = probs[..., :kept, :]
  return result
