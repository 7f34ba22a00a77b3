"""What a step learns from: live against cached targets, mixing, averages."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfkd_jax import fusion, history, losses, models, parallel
from kfkd_jax.models import layers
from kfkd_jax.training import memory, objective, self_taught, step
from kfkd_jax.training.state import init_state, put

BATCH, CLASSES = 8, 3
PLAIN = step.Views(mean=(0.5,), std=(0.3,))


class TinyNet(nn.Module):
  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, x, *, train=False):
    x = x.reshape(len(x), -1)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    return nn.Dense(self.num_classes)(x)


def make_data():
  rng = np.random.default_rng(0)
  resident = {
    "image": rng.integers(0, 256, (BATCH, 4, 4, 1), np.uint8),
    "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
  }
  rows = {
    "index": np.arange(BATCH, dtype=np.int32)[None],
    "weight": np.ones((1, BATCH), np.float32),
  }
  return resident, rows


def make_teachers(num=3):
  images = make_data()[0]["image"]
  keys = jax.random.split(jax.random.key(5), num)
  stacked = history.stack_checkpoints([
    jax.tree.map(np.asarray, TinyNet().init(k, PLAIN.clean(images)))
    for k in keys
  ])  # fmt: skip
  return stacked, np.array([0.5, 0.2, 0.3], np.float32)


def run(
  lesson,
  views,
  resident,
  frozen=None,
  num_steps=3,
  decay=None,
  num_devices=2,
  module=TinyNet(),  # noqa: B008
  pieces=1,
  rows=None,
):
  mesh = parallel.data_mesh(jax.devices()[:num_devices])
  optimizer = optax.sgd(0.2)
  remembered = None
  if lesson.memory is not None:
    remembered = memory.padded(
      lesson.memory.init(resident["label"], CLASSES), mesh
    )
  state = init_state(
    module, optimizer, jax.random.key(1), resident["image"][:1],
    keep_average=decay is not None, memory=remembered,
  )  # fmt: skip
  fn = step.map_train_step(
    step.make_train_step(
      module,
      optimizer,
      lesson,
      views,
      average_decay=decay,
      micro_batches=pieces,
    ),
    mesh,
  )
  state = put(jax.tree.map(np.asarray, state), mesh)
  resident, frozen, seed = (
    parallel.replicate(x, mesh) for x in (resident, frozen, np.uint32(3))
  )
  states = []
  rows = make_data()[1] if rows is None else rows
  rows = parallel.shard(rows, mesh, parallel.BATCHES)
  for _ in range(num_steps):
    state, metrics = fn(state, frozen, resident, rows, seed)
    states.append(parallel.to_host(state))
  return states, step.StepMetrics(*parallel.to_host(metrics))


def assert_close(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("hard", [False, True])
def test_live_targets_on_a_clean_view_are_the_cached_ones(hard):
  resident, _ = make_data()
  stacked, weights = make_teachers()
  options = {"alpha": 0.8, "temperature": 1.0 if hard else 2.0}
  apply_fn = step.eval_apply(TinyNet())
  probs = fusion.fuse(
    history.predict_checkpoints(
      apply_fn, stacked, PLAIN.clean(resident["image"])
    ),
    weights,
  )
  if hard:
    probs = losses.hard_targets(probs)
  cached = {**resident, "teacher_probs": np.asarray(probs)}
  live, _ = run(
    objective.live_distillation(apply_fn, hard=hard, **options),
    PLAIN,
    resident,
    {"stacked": stacked, "weights": weights},
  )
  kept, _ = run(objective.cached_distillation(**options), PLAIN, cached)
  assert_close(live[-1].params, kept[-1].params)


def test_live_targets_are_of_the_images_given_not_of_the_stored():
  resident, _ = make_data()
  stacked, weights = make_teachers()
  apply_fn = step.eval_apply(TinyNet())
  lesson = objective.live_distillation(apply_fn)
  images = PLAIN.clean(resident["image"]) + 1
  frozen = {"stacked": stacked, "weights": weights}
  targets = parallel.pmapped(
    lesson.targets,
    parallel.data_mesh(jax.devices()[:2]),
    in_specs=(lesson.frozen_spec, parallel.SHARDED, parallel.SHARDED),
    out_specs=parallel.SHARDED,
  )
  batch = targets(frozen, images, resident)
  expected = history.fused_predict(apply_fn, stacked, weights, images)
  np.testing.assert_allclose(batch["teacher_probs"], expected, atol=1e-6)


def test_mixing_takes_the_next_row_of_the_global_batch():
  """With alpha huge the coefficient is one half: plain averages of rows."""
  resident, _ = make_data()

  def targets(frozen, images, batch):
    del frozen
    return {**batch, "seen": images}

  def loss(logits, batch):
    # The step returns sums of the loss: let them carry what was seen.
    weights = jnp.arange(1, CLASSES + 1, dtype=jnp.float32)
    return (
      jnp.sum(batch["seen"], (1, 2, 3)) * (1 + batch["position"])
      + batch["label"] @ weights
      + 0 * jnp.sum(logits, 1)
    )

  lesson = objective.Objective(loss, targets)
  views = PLAIN._replace(mixup=1e6)
  _, metrics = run(lesson, views, resident, num_steps=1)
  clean = np.asarray(PLAIN.clean(resident["image"]))
  labels = np.eye(CLASSES)[resident["label"]]
  expected = 0.0
  for row in range(BATCH):
    partner = (row + 1) % BATCH
    image = (clean[row] + clean[partner]) / 2
    label = (labels[row] + labels[partner]) / 2
    expected += image.sum() * (1 + row) + label @ np.arange(1, CLASSES + 1)
  assert metrics.loss == pytest.approx(expected, rel=2e-3)


def test_average_follows_parameters_and_statistics():
  resident, _ = make_data()
  states, _ = run(objective.supervised(), PLAIN, resident, decay=0.75)
  first = init_state(
    TinyNet(), optax.sgd(0.2), jax.random.key(1), resident["image"][:1]
  )
  average = first.variables
  for state in states:
    average = jax.tree.map(
      lambda a, b: 0.75 * a + 0.25 * b, average, state.variables
    )
  assert_close(states[-1].average, average)


class PlainNet(nn.Module):
  """Without BatchNorm; its hidden layer is its features."""

  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, x, *, train=False):
    del train
    x = nn.tanh(nn.Dense(5)(x.reshape(len(x), -1)))
    self.sow("intermediates", "features", x)
    return nn.Dense(self.num_classes)(x)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_of_a_batch_make_the_step_of_the_whole(pieces, num_devices):
  resident, _ = make_data()
  options = {"num_devices": num_devices, "module": PlainNet()}
  lesson = objective.supervised(label_smoothing=0.1)
  whole, sums = run(lesson, PLAIN, resident, **options)
  parts, part_sums = run(lesson, PLAIN, resident, pieces=pieces, **options)
  assert_close(parts[-1].params, whole[-1].params)
  assert_close(part_sums, sums, atol=1e-5)


class SkippingNet(layers.Dropping):
  """Leaves out numbers of its hidden layer, and some images whole."""

  num_classes: int = CLASSES
  drop_path: float = 0.5
  dropout: float = 0.5

  @nn.compact
  def __call__(self, x, *, train=False, keys=None):
    x = nn.tanh(nn.Dense(5)(x.reshape(len(x), -1)))
    x = layers.drop(x, layers.layer_keys(keys, 0), self.dropout)
    x = layers.skip(x, layers.layer_keys(keys, 1), self.drop_path)
    return nn.Dense(self.num_classes)(x)


@pytest.mark.parametrize(("num_devices", "pieces"), [(1, 4), (2, 1), (2, 2)])
@pytest.mark.parametrize(
  "make", [SkippingNet, lambda: models.Pair(CLASSES, SkippingNet)]
)
def test_what_is_left_out_is_the_rows_own(make, num_devices, pieces):
  """However many devices and pieces there are; another step, other parts."""
  resident, _ = make_data()
  lesson = objective.supervised()
  if make is not SkippingNet:
    lesson = self_taught.mutual()
  one, _ = run(lesson, PLAIN, resident, num_devices=1, module=make())
  same, _ = run(
    lesson, PLAIN, resident,
    num_devices=num_devices, pieces=pieces, module=make(),
  )  # fmt: skip
  assert_close(same[-1].params, one[-1].params)


def test_every_step_leaves_out_other_parts():
  seen = []

  def loss(logits, batch):
    jax.debug.callback(lambda x: seen.append(np.array(x)), logits)
    return 0 * logits.sum(-1)  # learns nothing: only what is left out changes

  module = SkippingNet(drop_path=0.0)
  run(
    objective.Objective(loss), PLAIN, make_data()[0],
    num_devices=1, module=module,
  )  # fmt: skip
  jax.effects_barrier()
  assert len(seen) == 3
  # Of 5 numbers, two draws agree by chance in one row of 32.
  for before, after in itertools.pairwise(seen):
    assert np.isclose(before, after).all(axis=1).sum() < BATCH / 2


def remembering():
  """Remembers how often an example was seen, and its place in the batch."""

  def init(labels, num_classes):
    assert num_classes == CLASSES
    return {"seen": np.zeros((len(labels), 2)), "label": labels.astype("f")}

  def update(rows, logits, batch):
    del logits
    place = batch["position"].astype("f")
    seen = jnp.stack([rows["seen"][:, 0] + 1, place], 1)
    return {"seen": seen, "label": rows["label"]}

  plain = objective.supervised()

  def loss(logits, batch):  # what was read is what belongs to the example
    right = batch["memory"]["label"] == batch["label"]
    return jnp.where(right, plain.loss(logits, batch), np.nan)

  return objective.Objective(loss, memory=objective.Memory(init, update))


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_memory_is_of_the_example_wherever_it_is_kept(num_devices):
  resident, _ = make_data()
  states, sums = run(remembering(), PLAIN, resident, num_devices=num_devices)
  assert sums.broken == 0
  kept = states[-1].memory
  assert kept["seen"].shape == (1024, 2)  # the same for any number of devices
  expected = np.stack([np.full(BATCH, 3.0), np.arange(BATCH)], 1)
  np.testing.assert_array_equal(kept["seen"][:BATCH], expected)
  np.testing.assert_array_equal(kept["seen"][BATCH:], 0)


def test_memory_is_not_written_by_rows_that_fill_up():
  """Of a row with weight 0 not even the loss, here NaN, is heard."""
  resident, rows = make_data()
  rows["weight"][0, 3] = 0
  states, _ = run(remembering(), PLAIN, resident, num_steps=1, rows=rows)
  seen = states[-1].memory["seen"][:BATCH, 0]
  np.testing.assert_array_equal(seen, rows["weight"][0])


@pytest.mark.parametrize("num_devices", [1, 2])
def test_rows_that_fill_up_teach_nothing_and_do_not_count(num_devices):
  """The step of the real rows alone, by its definition."""
  resident, rows = make_data()
  real = np.array([0, 1, 2, 4, 5])
  rows["weight"][0] = np.isin(np.arange(BATCH), real)
  start = init_state(
    PlainNet(), optax.sgd(0.2), jax.random.key(1), resident["image"][:1]
  ).params
  images = PLAIN.clean(resident["image"])
  said = PlainNet().apply({"params": start}, images).argmax(-1)
  right = np.arange(BATCH) % 2 == 1  # rows that fill up among them
  labels = np.where(right, said, (said + 1) % CLASSES).astype(np.int32)

  def loss(params):
    logits = PlainNet().apply({"params": params}, images[real])
    return losses.cross_entropy(logits, labels[real]).mean()

  expected, grads = jax.value_and_grad(loss)(start)
  states, sums = run(
    objective.supervised(), PLAIN, {**resident, "label": labels}, num_steps=1,
    module=PlainNet(), num_devices=num_devices, rows=rows,
  )  # fmt: skip
  moved = jax.tree.map(lambda x, g: x - 0.2 * g, start, grads)
  assert_close(states[-1].params, moved)
  np.testing.assert_allclose(sums.loss, len(real) * expected, rtol=1e-5)
  assert sums.count == len(real)
  assert sums.correct == right[real].sum()


TRUST = np.array([1, 0.25, 0, 1, 0.5, 0.75, 0, 1], np.float32)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("trust", [TRUST, TRUST / 8])
def test_the_loss_is_the_mean_of_the_rows_as_they_are_trusted(
  trust, num_devices
):
  """By its definition; what counts for less than one row stays less."""
  resident, rows = make_data()
  rows["weight"][0, 3] = 0
  worth = trust * rows["weight"][0]
  start = init_state(
    PlainNet(), optax.sgd(0.2), jax.random.key(1), resident["image"][:1]
  ).params
  images = PLAIN.clean(resident["image"])

  def loss(params):
    logits = PlainNet().apply({"params": params}, images)
    each = losses.cross_entropy(logits, resident["label"])
    return (worth * each).sum() / max(worth.sum(), 1)

  expected, grads = jax.value_and_grad(loss)(start)
  states, sums = run(
    objective.supervised(), PLAIN, {**resident, "trust": trust}, num_steps=1,
    module=PlainNet(), num_devices=num_devices, rows=rows,
  )  # fmt: skip
  moved = jax.tree.map(lambda x, g: x - 0.2 * g, start, grads)
  assert_close(states[-1].params, moved)
  np.testing.assert_allclose(sums.loss / max(worth.sum(), 1), expected, 1e-5)
  assert sums.count == BATCH - 1  # who is trusted less was seen all the same


@pytest.mark.parametrize(
  "lesson, mixup",
  [
    (objective.supervised(), 0.0),
    (objective.supervised(), 1.0),
    (objective.early_learning(3.0, 0.7), 0.0),
    (self_taught.air(), 0.0),
    (self_taught.self_adaptive(1), 0.0),
  ],
)
def test_whole_trust_is_none_to_the_bit_and_less_is_another_network(
  lesson, mixup
):
  resident, _ = make_data()
  views = PLAIN._replace(mixup=mixup)
  plain, sums = run(lesson, views, resident)
  ones = {**resident, "trust": np.ones(BATCH, np.float32)}
  whole, same_sums = run(lesson, views, ones)
  jax.tree.map(np.testing.assert_array_equal, (plain, sums), (whole, same_sums))
  less, _ = run(lesson, views, {**resident, "trust": TRUST})
  moved = np.abs(
    less[-1].params["Dense_0"]["kernel"] - plain[-1].params["Dense_0"]["kernel"]
  )
  assert moved.max() > 1e-3


def test_what_is_remembered_of_an_example_does_not_go_by_its_trust():
  resident, _ = make_data()
  states, _ = run(remembering(), PLAIN, {**resident, "trust": TRUST})
  np.testing.assert_array_equal(states[-1].memory["seen"][:BATCH, 0], 3)


def test_mixed_rows_are_trusted_as_their_parts_are():
  """With alpha huge, half of each."""
  resident, _ = make_data()
  lesson = objective.Objective(
    lambda logits, batch: batch["position"] + 0 * logits[:, 0]
  )
  views = PLAIN._replace(mixup=1e6)
  _, sums = run(lesson, views, {**resident, "trust": TRUST}, num_steps=1)
  halves = (TRUST + np.roll(TRUST, -1)) / 2
  np.testing.assert_allclose(sums.loss, np.arange(BATCH) @ halves, rtol=2e-3)


def test_a_batch_is_seen_differently_at_every_step():
  """The same rows thrice, by a network that stays as it is."""
  resident, _ = make_data()

  def targets(frozen, images, batch):
    del frozen
    return {**batch, "seen": images}

  def loss(logits, batch):  # the step returns its sum: which pixel lies where
    places = jnp.arange(16.0).reshape(1, 4, 4, 1)
    seen = jnp.sum(batch["seen"] * places, (1, 2, 3))
    return seen * (1 + batch["position"]) + 0 * logits.sum(-1)

  lesson = objective.Objective(loss, targets)
  views = PLAIN._replace(flip=True, pad=1)
  seen = {
    float(run(lesson, views, resident, num_steps=n)[1].loss) for n in (1, 2, 3)
  }
  assert len(seen) == 3


def test_features_are_those_before_the_last_layer():
  resident, _ = make_data()

  def loss(logits, batch):
    return batch["features"].sum(-1) + 0 * logits.sum(-1)

  lesson = objective.Objective(loss, features=True)
  states, sums = run(lesson, PLAIN, resident, num_steps=1, module=PlainNet())
  variables = init_state(
    PlainNet(), optax.sgd(0.2), jax.random.key(1), resident["image"][:1]
  ).variables
  _, found = PlainNet().apply(
    variables, PLAIN.clean(resident["image"]), mutable=["intermediates"]
  )
  expected = found["intermediates"]["features"][0].sum()
  np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
  del states


def gated(sign, by_group, threshold=0.0):
  """Cross entropy, with itself or its opposite behind the gate."""
  plain = objective.supervised()

  def term(logits, batch):
    return sign * 0.5 * plain.loss(logits, batch)

  gate = objective.Gate(term, threshold=threshold, by_group=by_group)
  return objective.Objective(plain.loss, gate=gate)


@pytest.mark.parametrize("by_group", [False, True])
def test_gate_keeps_a_term_that_agrees_and_drops_one_that_does_not(by_group):
  resident, _ = make_data()
  options = {"num_steps": 1, "module": PlainNet()}

  def after(lesson):
    states, sums = run(lesson, PLAIN, resident, **options)
    start = init_state(
      PlainNet(), optax.sgd(0.2), jax.random.key(1), resident["image"][:1]
    )
    moved = jax.tree.map(np.subtract, states[-1].params, start.params)
    return moved, sums.gated

  plain, _ = after(objective.supervised())
  kept, opened = after(gated(1.0, by_group))
  assert opened == BATCH
  assert_close(kept, jax.tree.map(lambda x: 1.5 * x, plain))
  dropped, opened = after(gated(-1.0, by_group))
  assert opened == 0
  assert_close(dropped, plain)
  above, opened = after(gated(1.0, by_group, threshold=1.1))
  assert opened == 0
  assert_close(above, plain)


def test_gate_by_group_decides_for_each_group():
  main = {"a": {"w": jnp.array([1.0, 2.0])}, "b": jnp.array([[1.0, 0.0, 0.0]])}
  term = {"a": {"w": jnp.array([2.0, 1.0])}, "b": jnp.array([[-1.0, 9.0, 0.0]])}
  plain = objective.supervised().loss

  def gated_by(**options):
    return step._gated((main, term), objective.Gate(plain, **options))

  merged, opened = gated_by(by_group=True)  # cosines 0.8 and -0.11
  np.testing.assert_array_equal(merged["a"]["w"], [3.0, 3.0])
  np.testing.assert_array_equal(merged["b"], main["b"])
  assert opened == pytest.approx(2 / 5)
  merged, opened = gated_by()  # together 3 / (sqrt(6) sqrt(87)) = 0.131
  np.testing.assert_array_equal(merged["b"], [[0.0, 9.0, 0.0]])
  assert opened == 1
  merged, opened = gated_by(threshold=0.14)
  np.testing.assert_array_equal(merged["a"]["w"], main["a"]["w"])
  assert opened == 0


@pytest.mark.parametrize("by_group", [False, True])
@pytest.mark.parametrize("term", [[0.0, 2.0], [0.0, 0.0]])
def test_gate_is_shut_at_the_threshold_itself(term, by_group):
  """SCKD hears what is above it: not what is orthogonal, nor nothing."""
  main = {"w": jnp.array([3.0, 0.0])}
  gate = objective.Gate(objective.supervised().loss, by_group=by_group)
  merged, opened = step._gated((main, {"w": jnp.array(term)}), gate)
  np.testing.assert_array_equal(merged["w"], main["w"])
  assert opened == 0
