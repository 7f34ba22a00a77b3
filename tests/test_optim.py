import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfkd_jax import optim


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
