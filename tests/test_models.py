import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfkd_jax import models


@pytest.mark.parametrize(
  ("name", "shape", "classes", "parameters"),
  [
    # 64*32+32, then 32*32+32, two norms of 2*32, and 32*10+10.
    ("mlp", (8, 8, 1), 10, 64 * 32 + 32 + 32 * 32 + 32 + 4 * 32 + 330),
    # Published size of ResNet-18 with a 3x3 stem.
    ("resnet18", (32, 32, 3), 10, 11_173_962),
    ("resnet18", (32, 32, 3), 100, 11_220_132),
  ],
)
def test_parameter_counts(name, shape, classes, parameters):
  module = models.create(name, classes, width=32 if name == "mlp" else None)
  variables = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), np.zeros((1, *shape)))
  )
  assert models.num_parameters(variables) == parameters


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_logits_are_float32_whatever_the_computation(name):
  module = models.create(name, 7, width=4, dtype=jnp.bfloat16)
  images = jnp.zeros((2, 8, 8, 3))

  def both(key):
    variables = models.init(module, key, images)
    return variables, module.apply(variables, images)

  variables, logits = jax.eval_shape(both, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert logits.shape == (2, 7) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_training_changes_every_statistic_and_momentum_zero_forgets(name):
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
  module = models.create(name, 3, width=4, norm_momentum=0.0)
  variables = models.init(module, jax.random.key(0), images)
  train = jax.jit(
    lambda v: module.apply(v, images, train=True, mutable=["batch_stats"])[1]
  )
  once = train(variables)["batch_stats"]
  twice = train({**variables, "batch_stats": once})["batch_stats"]
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), once, variables["batch_stats"]
  )
  assert min(jax.tree.leaves(moved)) > 0
  jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_unknown_model_lists_the_known():
  with pytest.raises(ValueError, match=r"'resnet19' is unknown.*'resnet18'"):
    models.create("resnet19", 10)
