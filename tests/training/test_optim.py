import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfkd_jax import optim
from kfkd_jax.models import pretrained


def values(schedule, num_steps):
  return np.array([float(schedule(s)) for s in range(num_steps + 1)])


def test_cosine_ends_at_zero_when_the_run_ends():
  rates = values(optim.make_schedule("cosine", 0.2, 100), 100)
  expected = 0.1 * (1 + np.cos(np.pi * np.arange(101) / 100))
  np.testing.assert_allclose(rates, expected, atol=1e-7)


def test_warmup_rises_to_the_peak_and_is_part_of_the_total():
  schedule = optim.make_schedule("cosine", 1.0, 50, warmup_steps=10)
  rates = values(schedule, 50)
  np.testing.assert_allclose(rates[:11], np.arange(11) / 10, atol=1e-6)
  assert rates.argmax() == 10 and rates[50] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("warmup", [0, 10])
def test_step_boundaries_are_shares_of_the_whole_run(warmup):
  schedule = optim.make_schedule(
    "step", 1.0, 100, warmup_steps=warmup, boundaries=(0.5, 0.75), decay=0.1
  )
  rates = values(schedule, 100)
  np.testing.assert_allclose(
    rates[[49, 51, 74, 76]], [1, 0.1, 0.1, 0.01], rtol=1e-5
  )


def test_constant():
  assert set(values(optim.make_schedule("constant", 0.5, 9), 9)) == {0.5}


def test_restarts_follow_the_formula_of_snapshot_ensembles():
  """a0 / 2 (cos(pi mod(t - 1, c) / c) + 1), t counted from 1."""
  schedule = optim.make_schedule("restarts", 0.3, 30, cycle_steps=10)
  expected = [
    0.3 / 2 * (np.cos(np.pi * ((t - 1) % 10) / 10) + 1) for t in range(1, 31)
  ]
  np.testing.assert_allclose(values(schedule, 29), expected, rtol=1e-5)


def test_triangular_follows_the_formula_of_fge():
  """Down to a2 in the middle of a cycle and up to a1, t = mod(i, c) / c."""
  low, high, cycle = 0.02, 0.2, 8
  schedule = optim.make_schedule(
    "triangular", high, 24, cycle_steps=cycle, low=low / high
  )
  expected = []
  for i in range(24):
    t = (i % cycle) / cycle
    if t <= 0.5:
      expected.append((1 - 2 * t) * high + 2 * t * low)
    else:
      expected.append((2 - 2 * t) * low + (2 * t - 1) * high)
  np.testing.assert_allclose(values(schedule, 23), expected, rtol=1e-5)


def test_swa_goes_down_and_stays_low():
  schedule = optim.make_schedule("swa", 0.4, 100, low=0.25, hold=0.8)
  rates = values(schedule, 99)
  expected = []
  for step in range(100):  # the averaged part begins at step 80
    way = step / 80
    if way <= 0.5:
      factor = 1.0
    elif way <= 0.9:
      factor = 1 - 0.75 * (way - 0.5) / 0.4
    else:
      factor = 0.25
    expected.append(0.4 * factor)
  np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_swa_may_cycle_and_ends_each_cycle_at_its_lowest():
  schedule = optim.make_schedule(
    "swa", 0.4, 40, low=0.1, hold=0.5, cycle_steps=5
  )
  rates = values(schedule, 39)[20:]
  expected = [
    (1 - t) * 0.4 + t * 0.04
    for i in range(1, 21)
    for t in [((i - 1) % 5 + 1) / 5]
  ]
  np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_cycles_need_a_length():
  with pytest.raises(ValueError, match="'restarts' needs cycle_steps"):
    optim.make_schedule("restarts", 0.1, 10)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="'cosin' is unknown"):
    optim.make_schedule("cosin", 0.1, 10)
  with pytest.raises(ValueError, match="'adam' is unknown"):
    optim.make_optimizer("adam", optax.constant_schedule(0.1))


PARAMS = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
GRADS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def one_update(**options):
  optimizer = optim.make_optimizer(
    options.pop("name", "sgd"), optax.constant_schedule(0.1), **options
  )
  updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
  return {k: float(v.ravel()[0]) for k, v in updates.items()}


def test_decay_spares_biases_unless_told():
  some = one_update(weight_decay=0.5)
  assert some == pytest.approx({"kernel": -0.2, "bias": -0.1})
  every = one_update(weight_decay=0.5, decay_everything=True)
  assert every == pytest.approx({"kernel": -0.2, "bias": -0.2})


def test_adamw_decay_is_decoupled():
  update = one_update(name="adamw", weight_decay=0.5)
  assert update["bias"] == pytest.approx(-0.1, rel=1e-4)
  assert update["kernel"] == pytest.approx(-0.2, rel=1e-4)


def test_clipping_shortens_the_whole_gradient():
  update = one_update(clip_norm=1.0)
  assert update["kernel"] == pytest.approx(-0.1 / np.sqrt(6), rel=1e-5)


def test_the_backbone_waits_for_the_head_and_learns_slower_then():
  """By its definition: as if training began when it is set free."""
  params = {"head.fc": {"w": jnp.ones(2)}, "stem": {"w": jnp.ones((2, 2))}}
  grads = jax.tree.map(jnp.ones_like, params)

  def walked(steps, **options):
    optimizer = optim.make_optimizer(
      "sgd", lambda step: 0.1, head=pretrained.head_mask, **options
    )
    state, at = optimizer.init(params), params
    for _ in range(steps):
      updates, state = optimizer.update(grads, state, at)
      at = optax.apply_updates(at, updates)
    return at

  plain = walked(5)
  waiting = walked(5, head_steps=3, backbone_rate=0.5)
  np.testing.assert_allclose(
    waiting["head.fc"]["w"], plain["head.fc"]["w"], rtol=1e-6
  )
  free = walked(2)["stem"]["w"]
  np.testing.assert_allclose(
    1 - waiting["stem"]["w"], 0.5 * (1 - free), rtol=1e-5
  )
  still = walked(3, head_steps=3, backbone_rate=0.5)
  np.testing.assert_array_equal(still["stem"]["w"], 1)
