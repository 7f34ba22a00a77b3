"""Averages of weights against the formulas they stand for."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import numpy as jnp

from kfkd_jax import averaging, history


def _models(num, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return [
    {
      "params": {"w": rng.standard_normal((2, 3)).astype(dtype)},
      "batch_stats": {"var": rng.random(3).astype(dtype)},
      "steps": np.int32(10 * c),
    }
    for c in range(num)
  ]


def _assert_close(actual, expected, **options):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, **options),
    actual,
    expected,
  )


def _plain_weighted(models, weights):
  """The weighted sum, leaf by leaf and model by model; the newest counter."""
  total = {
    "params": {"w": np.zeros((2, 3))},
    "batch_stats": {"var": np.zeros(3)},
    "steps": models[-1]["steps"],
  }
  for model, weight in zip(models, weights):
    total["params"]["w"] += weight * model["params"]["w"]
    total["batch_stats"]["var"] += weight * model["batch_stats"]["var"]
  return total


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 1.0])
def test_ema_is_a_weighted_sum(decay):
  models = _models(6)
  average = models[0]
  for model in models[1:]:
    average = averaging.ema_update(average, model, decay=decay)
  weights = [decay**5] + [(1 - decay) * decay ** (5 - c) for c in range(1, 6)]
  _assert_close(average, _plain_weighted(models, weights))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_debiased_ema_has_weights_that_sum_to_one(count):
  models = _models(count)
  average = jax.tree.map(np.zeros_like, models[0])
  for model in models:
    average = averaging.ema_update(average, model, decay=0.9)
  weights = np.asarray([0.9 ** (count - 1 - c) for c in range(count)])
  _assert_close(
    averaging.ema_debias(average, decay=0.9, count=count),
    _plain_weighted(models, weights / weights.sum()),
  )


@pytest.mark.parametrize("num", [1, 2, 9])
def test_running_mean_is_the_mean(num):
  models = _models(num)
  average = models[-1]  # not counted where count is 0
  for count, model in enumerate(models):
    average = averaging.running_mean(average, model, count=count)
  expected = _plain_weighted(models, np.full(num, 1 / num))
  _assert_close(average, expected)
  stacked = history.stack_checkpoints(models)
  soup = averaging.weighted_average(stacked, np.full(num, 1 / num))
  _assert_close(soup, expected)


def test_updates_inside_jit_with_traced_options():
  old, new = _models(2)
  _assert_close(
    jax.jit(averaging.ema_update)(old, new, decay=0.7),
    _plain_weighted([old, new], [0.7, 0.3]),
  )
  _assert_close(
    jax.jit(averaging.running_mean)(old, new, count=3),
    _plain_weighted([old, new], [0.75, 0.25]),
  )
  _assert_close(
    jax.jit(averaging.ema_debias)(old, decay=0.5, count=2),
    {**_plain_weighted([old], [4 / 3]), "steps": old["steps"]},
  )


@hypothesis.given(num=st.sampled_from([1, 2, 5]), seed=st.integers(0, 1000))
def test_weighted_average_against_loops(num, seed):
  models = _models(num, seed)
  weights = np.random.default_rng(seed).dirichlet(np.ones(num))
  stacked = history.stack_checkpoints(models)
  expected = _plain_weighted(models, weights)
  _assert_close(averaging.weighted_average(stacked, weights), expected)
  _assert_close(jax.jit(averaging.weighted_average)(stacked, weights), expected)


def test_weight_zero_leaves_out_what_is_not_finite():
  models = _models(3)
  models[1]["params"]["w"][:] = np.nan
  models[1]["batch_stats"]["var"][:] = np.inf
  stacked = history.stack_checkpoints(models)
  actual = averaging.weighted_average(stacked, [0.5, 0, 0.5])
  expected = _plain_weighted([models[0], models[2]], [0.5, 0.5])
  _assert_close(actual, expected)


def test_one_hot_weights_give_the_model_itself():
  models = _models(4)
  stacked = history.stack_checkpoints(models)
  actual = averaging.weighted_average(stacked, [0, 0, 1, 0])
  np.testing.assert_array_equal(actual["params"]["w"], models[2]["params"]["w"])


def test_half_precision_is_summed_in_float32_and_returned_as_it_was():
  # 300 times 1/300 in bfloat16 would stop growing well below 1
  stacked = {"w": jnp.ones((300, 2), jnp.bfloat16)}
  actual = averaging.weighted_average(stacked, np.full(300, 1 / 300))["w"]
  assert actual.dtype == jnp.bfloat16
  np.testing.assert_array_equal(actual.astype(np.float32), 1)
  new = {"w": jnp.zeros(2, jnp.bfloat16)}
  kept = averaging.ema_update({"w": jnp.ones(2)}, new, decay=0.9999)["w"]
  assert kept.dtype == jnp.float32
  np.testing.assert_allclose(kept, 0.9999, rtol=1e-6)


def _plain_greedy(values, order, target):
  """Keeps a value if the mean comes no farther from the target."""
  kept = [order[0]]
  best = -abs(values[order[0]] - target)
  for c in order[1:]:
    score = -abs(np.mean([values[i] for i in [*kept, c]]) - target)
    if score >= best:
      kept, best = [*kept, c], score
  weights = np.zeros(len(values))
  for c in kept:
    weights[c] = 1 / len(kept)
  return weights


@hypothesis.given(seed=st.integers(0, 1000), num=st.sampled_from([1, 2, 6]))
def test_greedy_soup_against_loops(seed, num):
  values = np.random.default_rng(seed).standard_normal(num).astype(np.float32)
  scores = -np.abs(values)
  evaluated = []

  def evaluate(variables):
    evaluated.append(variables)
    return -abs(float(variables["w"]))

  actual = averaging.greedy_soup({"w": values}, scores, evaluate)
  order = sorted(range(num), key=lambda c: -scores[c])
  np.testing.assert_allclose(
    actual, _plain_greedy(values, order, 0.0), atol=1e-6
  )
  assert actual.dtype == np.float32
  assert len(evaluated) == num
  soup = float(averaging.weighted_average({"w": values}, actual)["w"])
  assert -abs(soup) >= scores.max() - 1e-6


def test_greedy_soup_ties_go_to_the_latest_and_nan_comes_last():
  seen = []

  def evaluate(variables):
    seen.append(float(variables["w"]))
    return 1.0 if len(seen) == 1 else 0.0  # nothing joins the first

  stacked = {"w": np.asarray([1.0, 2.0, 4.0, 8.0], np.float32)}
  weights = averaging.greedy_soup(stacked, [0.5, 0.5, 0.1, np.nan], evaluate)
  assert weights.tolist() == [0, 1, 0, 0]
  assert seen == [2.0, 1.5, 3.0, 5.0]


def test_greedy_soup_keeps_members_that_change_nothing():
  stacked = {"w": np.zeros(4, np.float32)}
  weights = averaging.greedy_soup(stacked, np.zeros(4), lambda v: 0.0)
  np.testing.assert_allclose(weights, 0.25)


def test_greedy_soup_refuses_what_is_not_a_number():
  stacked = {"w": np.asarray([1.0, np.nan, 3.0], np.float32)}
  weights = averaging.greedy_soup(
    stacked, [3.0, 2.0, 1.0], lambda v: float(v["w"])
  )
  assert weights.tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("sizes", [[4], [4, 4, 4], [5, 1, 3]])
def test_batch_stats_are_those_of_all_examples(sizes):
  """Means weighted by batch size are the mean over every example."""
  data = np.random.default_rng(0).standard_normal((sum(sizes), 3))
  data = data.astype(np.float32)
  shift = np.asarray([[1.0, 2.0, 3.0]], np.float32)
  batches = np.split(data, np.cumsum(sizes)[:-1])

  def stats(variables, batch):
    return {"mean": (batch["x"] + variables["shift"]).mean(0)}

  actual = averaging.reestimate_batch_stats(
    stats, {"shift": shift}, ({"x": batch} for batch in batches)
  )
  np.testing.assert_allclose(actual["mean"], (data + shift).mean(0), atol=1e-6)


_STACKED = {"w": np.ones((3, 2), np.float32)}


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: averaging.weighted_average(_STACKED, [0.5, 0.5]),
      r"weights must have shape \(3,\).* got \(2,\)",
    ),
    (
      lambda: averaging.greedy_soup(_STACKED, [1.0], lambda v: 0.0),
      r"scores must have shape \(3,\).* got \(1,\)",
    ),
    (
      lambda: averaging.reestimate_batch_stats(lambda v, b: b, {}, []),
      "batches .* got none",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()


class _Reads:
  """Checkpoints that are counted as they are read."""

  def __init__(self, models):
    self.models, self.read = models, []

  def __len__(self):
    return len(self.models)

  def __getitem__(self, c):
    self.read.append(c)
    return self.models[c]


@hypothesis.given(num=st.sampled_from([1, 2, 5]), seed=st.integers(0, 1000))
def test_merge_is_the_weighted_average(num, seed):
  models = _models(num, seed)
  weights = np.random.default_rng(seed).dirichlet(np.ones(num))
  merged = averaging.merge(models, weights)
  _assert_close(merged, _plain_weighted(models, weights))
  assert merged["params"]["w"].dtype == np.float32


def test_merge_reads_only_what_counts_and_the_last():
  models = _Reads(_models(4))
  models.models[0]["params"]["w"][:] = np.nan
  merged = averaging.merge(models, [0, 1, 0, 0])
  assert models.read == [1, 3]
  np.testing.assert_array_equal(
    merged["params"]["w"], models.models[1]["params"]["w"]
  )
  assert merged["steps"] == 30


def test_merge_names_the_leaf_that_differs():
  models = _models(3)
  models[2]["params"]["w"] = np.zeros((3, 2), np.float32)
  with pytest.raises(
    ValueError, match=r"'params/w' .*\(2, 3\).* checkpoint 0 .* checkpoint 2"
  ):
    averaging.merge(models, [0.5, 0, 0.5])


def test_merge_adds_bfloat16_in_float32():
  models = [{"w": jnp.full(70_000, 3, jnp.bfloat16)}] * 300
  merged = averaging.merge(models, np.full(300, 1 / 300))["w"]
  assert merged.dtype == jnp.bfloat16
  np.testing.assert_array_equal(merged.astype(np.float32), 3)


CURVES = {
  "linear": (averaging.linear_decay, lambda t: 1 - t),
  "sqrt": (averaging.sqrt_decay, lambda t: 1 - np.sqrt(t)),
  "exponential": (
    lambda size: averaging.exponential_decay(size, decay=0.7),
    None,
  ),
}


@pytest.mark.parametrize("shape", CURVES)
@pytest.mark.parametrize("num", [1, 2, 8])
def test_merging_is_decaying_the_updates(shape, num):
  """WSM: constant steps, then merged, are decayed steps along the way."""
  weights_of, curve = CURVES[shape]
  rng = np.random.default_rng(0)
  start, updates = rng.standard_normal(5), rng.standard_normal((num - 1, 5))
  models = [{"w": start + updates[:c].sum(0)} for c in range(num)]
  times = np.arange(1, num)
  scales = 0.7**times if curve is None else curve(times / num)
  decayed = start + np.einsum("i,ij->j", scales, updates)
  merged = averaging.merge(models, weights_of(num))["w"]
  np.testing.assert_allclose(merged, decayed, atol=1e-6)


def test_ema_weights_are_those_of_the_updates():
  models = _models(6)
  average = models[0]
  for model in models[1:]:
    average = averaging.ema_update(average, model, decay=0.8)
  merged = averaging.merge(models, averaging.ema_weights(6, decay=0.8))
  _assert_close(merged, average)


@pytest.mark.parametrize(
  "curve", [[0.2, 0.5], [1.5], [-0.1], [np.nan], [[1.0]]]
)
def test_a_curve_that_rises_is_no_decay(curve):
  with pytest.raises(ValueError, match="gradient_weights must"):
    averaging.decay_weights(curve)


def test_greedy_means_of_bfloat16_are_not_rounded_on_the_way():
  values = [1.0, 1.0, 1.0078125, 1.0, 1.0, 1.0]
  models = [{"w": jnp.full(2, v, jnp.bfloat16)} for v in values]
  means = []
  averaging.greedy_merge(
    models, np.arange(6)[::-1], lambda v: means.append(v["w"]) or len(means)
  )
  assert all(mean.dtype == jnp.bfloat16 for mean in means)
  exact = np.float32(np.mean(values)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(means[-1], exact)
