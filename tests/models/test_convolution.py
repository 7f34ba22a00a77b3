"""The convolution of every network: XLA's forward, gradients like XLA's."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from test_models import SMALL

from kfkd_jax import models
from kfkd_jax.models import convolution, layers

SHAPES = {
  "3x3": ((6, 9, 9, 4), (3, 3, 4, 5), (1, 1), "SAME", 1),
  "3x3 strided": ((6, 9, 8, 4), (3, 3, 4, 5), (2, 2), "SAME", 1),
  "strides leave a rest": ((3, 9, 8, 2), (3, 2, 2, 3), (3, 2), "VALID", 1),
  "uneven padding": ((4, 6, 7, 2), (3, 3, 2, 3), (2, 1), [(0, 2), (1, 0)], 1),
  "one channel": ((5, 7, 7, 1), (3, 3, 1, 8), (1, 1), [(1, 1)] * 2, 1),
  "1x1 strided": ((4, 8, 8, 6), (1, 1, 6, 3), (2, 2), "SAME", 1),
  "patches": ((3, 8, 8, 3), (4, 4, 3, 6), (4, 4), "VALID", 1),
  "one pixel": ((2, 1, 1, 6), (1, 1, 6, 4), (1, 1), "SAME", 1),
  "depthwise": ((5, 8, 8, 6), (3, 3, 1, 6), (1, 1), "SAME", 6),
  "depthwise strided": ((5, 8, 8, 6), (7, 7, 1, 6), (2, 2), [(3, 3)] * 2, 6),
  "grouped": ((3, 6, 6, 4), (3, 3, 2, 6), (1, 1), "SAME", 2),
}
DIMENSIONS = lax.conv_dimension_numbers(
  (1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC")
)


def arguments(shape, dtype=jnp.float32):
  x, kernel, strides, padding, groups = shape
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=x), dtype)
  kernel = jnp.asarray(rng.normal(size=kernel), dtype)
  return x, kernel, strides, padding, groups


def summed(conv, strides, padding, groups):
  def loss(x, kernel):
    y = conv(
      x,
      kernel,
      strides,
      padding,
      lhs_dilation=(1, 1),
      rhs_dilation=(1, 1),
      dimension_numbers=DIMENSIONS,
      feature_group_count=groups,
      precision=None,
    )
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  return loss


def close(actual, expected, tolerance):
  def check(a, b):
    assert a.dtype == b.dtype
    a, b = np.float32(a), np.float32(b)
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())

  jax.tree.map(check, actual, expected)


@pytest.fixture(name="always")
def fixture_always(monkeypatch):
  """Our gradient for every shape that it can take, in several products."""
  monkeypatch.setattr(convolution, "_SLOW", 0)
  monkeypatch.setattr(convolution, "_ROWS", 130)


# What is cast to add up does not depend on the shape.
@pytest.mark.parametrize(
  ("name", "dtype"),
  [*((name, "float32") for name in SHAPES), ("3x3 strided", "bfloat16"),
   ("depthwise", "bfloat16"), ("grouped", "bfloat16")],
)  # fmt: skip
def test_gradients_are_xlas(always, name, dtype):
  x, kernel, *geometry = arguments(SHAPES[name], dtype)
  ours, theirs = (
    jax.jit(jax.value_and_grad(summed(conv, *geometry), (0, 1)))(x, kernel)
    for conv in (convolution.conv_general_dilated, lax.conv_general_dilated)
  )
  assert ours[0] == theirs[0]
  close(ours[1], theirs[1], 1e-5 if dtype == "float32" else 2e-2)


def test_pictures_are_added_up_in_float32(always):
  """bfloat16 itself would round most of these sums."""
  x, kernel = (
    jnp.ones((64, 9, 9, 1), "bfloat16"),
    jnp.zeros((1,) * 4, "bfloat16"),
  )
  loss = summed(convolution.conv_general_dilated, (1, 1), "VALID", 1)
  assert jax.grad(loss, 1)(x, kernel) == 64 * 81


@pytest.mark.parametrize("name", ["3x3 strided", "depthwise"])
def test_mapped_over_networks_and_differentiated_twice(always, name):
  x, kernel, *geometry = arguments(SHAPES[name])
  stacked = jnp.stack([kernel, -kernel, 2 * kernel])
  ours, theirs = (
    summed(conv, *geometry)
    for conv in (convolution.conv_general_dilated, lax.conv_general_dilated)
  )

  def twice(loss):
    def size(kernel):
      return jnp.sum(jax.grad(jax.checkpoint(loss), 1)(x, kernel) ** 2)

    return jax.grad(size)

  for x_axis, inputs in ((None, x), (0, jnp.stack([x, x + 1, -x]))):
    close(*(
      jax.jit(jax.vmap(jax.grad(loss, 1), (x_axis, 0)))(inputs, stacked)
      for loss in (ours, theirs)
    ), 1e-5)  # fmt: skip
  close(jax.jit(twice(ours))(kernel), jax.jit(twice(theirs))(kernel), 1e-5)


def test_in_a_loop_it_is_the_same(always):
  x, kernel, *geometry = arguments(SHAPES["3x3"])
  loss = summed(convolution.conv_general_dilated, *geometry)
  inputs = jnp.stack([x, x + 1])
  looped = jax.jit(
    lambda k: lax.map(lambda x: jax.grad(loss, 1)(x, k), inputs)
  )(kernel)
  close(looped, jnp.stack([jax.grad(loss, 1)(x, kernel) for x in inputs]), 1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_eight_devices_find_the_gradient_of_one(always, check_vma):
  mesh = Mesh(np.array(jax.devices()), ("data",))
  assert mesh.size == 8
  _, kernel, *geometry = arguments(SHAPES["3x3"])
  x = jax.random.normal(jax.random.key(0), (24, 9, 9, 4))
  loss = summed(convolution.conv_general_dilated, *geometry)

  def shares(x, kernel):
    return jax.grad(loss, 1)(x, kernel[0])[None]

  shared = jax.jit(
    jax.shard_map(
      shares,
      mesh=mesh,
      in_specs=(P("data"), P("data")),
      out_specs=P("data"),
      check_vma=check_vma,
    )
  )(x, jnp.stack([kernel] * 8))
  close(shared.sum(0), jax.grad(loss, 1)(x, kernel), 1e-5)


def has_loop(loss, x, kernel):
  text = str(jax.make_jaxpr(jax.grad(loss, 1))(x, kernel))
  return re.search(r"\bscan\[", text) is not None


@pytest.mark.parametrize(
  ("x", "kernel", "groups", "ours"),
  [
    ((64, 8, 8, 16), (3, 3, 16, 16), 1, False),
    ((64, 8, 8, 32), (3, 3, 32, 32), 1, False),
    ((128, 28, 28, 1), (3, 3, 1, 16), 1, True),
    ((128, 28, 28, 32), (3, 3, 32, 32), 1, True),
    ((32, 32, 32, 96), (7, 7, 1, 96), 96, True),
    ((32, 32, 32, 96), (7, 7, 2, 96), 48, False),
  ],
)
def test_the_rule_leaves_small_pictures_and_groups_to_xla(
  monkeypatch, x, kernel, groups, ours
):
  loss = summed(convolution.conv_general_dilated, (1, 1), "SAME", groups)
  x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, kernel))
  assert has_loop(loss, x, kernel) == ours
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert not has_loop(loss, x, kernel)


@pytest.mark.parametrize("family", SMALL)
def test_every_network_keeps_its_parameters(monkeypatch, family):
  """Names and shapes are those of flax's own layer, and so are its numbers."""
  name, settings, side = SMALL[family]
  images = jnp.zeros((2, side, side, 3))

  def shapes():
    module = models.create(name, 10, **settings)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]

  ours = shapes()
  monkeypatch.setattr(layers, "Conv", nn.Conv)
  assert ours == shapes()


def test_the_layer_draws_and_computes_as_flax_does():
  x = jax.random.normal(jax.random.key(1), (2, 9, 9, 3))
  outputs = [
    layer(4, (3, 3), 2, name="c").init_with_output(jax.random.key(0), x)
    for layer in (layers.Conv, nn.Conv)
  ]
  jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_a_forward_pass_of_any_batch_can_be_exported():
  (batch,) = export.symbolic_shape("b")
  layer = layers.Conv(32, (3, 3))
  variables = layer.init(jax.random.key(0), jnp.zeros((1, 28, 28, 32)))
  exported = export.export(
    jax.jit(lambda x: layer.apply(variables, x)),
    platforms=("cpu", "cuda", "tpu"),
  )(jax.ShapeDtypeStruct((batch, 28, 28, 32), jnp.float32))
  x = jnp.ones((3, 28, 28, 32))
  np.testing.assert_allclose(
    exported.call(x), layer.apply(variables, x), atol=1e-5
  )
