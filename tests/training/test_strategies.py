"""Every objective: finite, learning, the same on any devices and resumed."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from etils import epath

from kfkd_jax import losses, models, parallel
from kfkd_jax.training import (
  evaluation,
  loop,
  objective,
  self_taught,
  step,
  taught,
)

NUM, CLASSES, EPOCHS, BATCH = 21, 3, 4, 8


class TinyNet(nn.Module):
  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, x, *, train=False):
    x = x.reshape(len(x), -1)
    axis_name = parallel.DATA_AXIS if train else None
    x = nn.BatchNorm(use_running_average=not train, axis_name=axis_name)(x)
    self.sow("intermediates", "features", x)
    return nn.Dense(self.num_classes)(x)


OBJECTIVES = {
  "supervised": objective.supervised(label_smoothing=0.1),
  "generalised": objective.generalised(0.7),
  "symmetric": objective.symmetric((0.1, 1.0)),
  "early_learning": objective.early_learning(3.0, 0.7),
  "cached": objective.cached_distillation(alpha=0.7, temperature=2.0),
  "air": self_taught.air(),
  "air_soft": self_taught.air(hard=False),
  "air_fixed": self_taught.air(share=0.2),
  "air_previous": self_taught.air(hard=False, previous=True),
  "past_predictions": self_taught.past_predictions(EPOCHS),
  "self_adaptive": self_taught.self_adaptive(2),
  "mutual": self_taught.mutual(),
  "gated": taught.gated(),
  "gated_by_group": taught.gated(by_group=True, threshold=0.1),
  "decoupled": taught.decoupled(weights=(1.0, 2.0)),
  "standardized": taught.standardized(weight=1.0),
  "correlated": taught.correlated(weights=(0.5, 0.5)),
  "relational": taught.relational(weights=(2.0, 1.0)),
}


class StopError(Exception):
  pass


def make_data():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (NUM, 4, 4, 1), np.uint8)
  labels = rng.integers(0, CLASSES, NUM).astype(np.int32)
  soft = 0.8 * np.eye(CLASSES, dtype=np.float32)[labels] + 0.2 / CLASSES
  return {
    "image": images,
    "label": labels,
    "teacher_probs": soft,
    "teacher_features": rng.standard_normal((NUM, 5)).astype(np.float32),
  }


def train(
  run,
  name,
  *,
  num_devices=1,
  stop_at=None,
  lesson=None,
  rate=0.05,
  init_from=None,
):
  def observe(report):
    reports.append(report.metrics)
    if report.epoch == stop_at:
      raise StopError

  reports = []
  data = make_data()
  module = TinyNet()
  if name == "mutual":
    module = models.Pair(num_classes=CLASSES, make=TinyNet)
  recipe = loop.Recipe(
    module=module,
    optimizer=optax.sgd(rate, 0.5),
    views=step.Views(mean=(0.5,), std=(0.3,)),
    epochs=EPOCHS,
    batch_size=BATCH,
    evaluation_batch=8,
  )
  trained = loop.train(
    epath.Path(run),
    recipe,
    lesson or OBJECTIVES[name],
    data,
    {
      "test": evaluation.Split(
        data["image"][:8], data["label"][:8], np.arange(8)
      )
    },
    seeds=loop.Seeds(1, 2, 3),
    mesh=parallel.data_mesh(jax.devices()[:num_devices]),
    init_from=init_from,
    observe=observe,
  )
  return trained, reports


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, atol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b
  )


def some(fast):
  """All objectives, of which only the named ones are quick enough to wait."""
  return [
    name if name in fast else pytest.param(name, marks=pytest.mark.slow)
    for name in OBJECTIVES
  ]


@pytest.mark.parametrize("name", some({"past_predictions", "gated", "mutual"}))
def test_learns_and_resumes_to_the_same_bits(tmp_path, name):
  whole, reports = train(tmp_path / "whole", name)
  assert reports[-1]["fit/loss"] < reports[0]["fit/loss"]
  if name.startswith("gated"):
    assert 0 <= reports[-1]["fit/gate"] <= 1
    assert any(report["fit/gate"] > 0 for report in reports)
  with pytest.raises(StopError):
    train(tmp_path / "run", name, stop_at=2)
  resumed, later = train(tmp_path / "run", name)
  assert_same(resumed, whole)
  assert later == reports[2:]


QUICK = {"self_adaptive", "gated_by_group", "correlated", "relational"}


@pytest.mark.parametrize("name", some(QUICK))
def test_eight_devices_learn_what_one_does(tmp_path, name):
  one, reports = train(tmp_path / "one", name)
  eight, others = train(tmp_path / "eight", name, num_devices=8)
  assert_close(eight, one)
  for report, other in zip(reports, others, strict=True):
    assert other["fit/loss"] == pytest.approx(report["fit/loss"], rel=1e-4)
    assert other.get("fit/gate") == report.get("fit/gate")


def test_no_objective_is_left_out():
  made = {
    name
    for room in (objective, self_taught, taught)
    for name, value in vars(room).items()
    if getattr(value, "__annotations__", {}).get("return") == "Objective"
  }
  renamed = {
    "cached_distillation",
    "live_distillation",
  }  # cached, test_objective
  assert made - renamed <= set(OBJECTIVES)


def losses_of(lesson, logits, batch, num_devices=2):
  """The objective's per-example losses, each device with its share."""
  fn = parallel.pmapped(
    lesson.loss,
    parallel.data_mesh(jax.devices()[:num_devices]),
    in_specs=(parallel.SHARDED, parallel.SHARDED),
    out_specs=parallel.SHARDED,
  )
  return np.asarray(fn(logits, {"weight": np.ones(len(logits), "f"), **batch}))


def made_up(seed=0, num=6):
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((num, CLASSES)).astype(np.float32)
  labels = rng.integers(0, CLASSES, num).astype(np.int32)
  probs = rng.dirichlet(np.ones(CLASSES), num).astype(np.float32)
  return logits, labels, probs


def entropy_to(logits, targets):
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  return -(np.asarray(targets) * log_probs).sum(-1)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("hard", [False, True])
def test_air_mixes_by_the_share_of_the_global_batch_that_agrees(
  hard, num_devices
):
  logits, labels, _ = made_up()
  weight = np.array([1, 1, 1, 0, 1, 1], np.float32)
  own = np.asarray(jax.nn.softmax(logits))
  agree = [
    own[n].argmax() == labels[n] for n in range(len(labels)) if weight[n]
  ]
  share = sum(agree) / len(agree)
  assert 0 < share < 1
  told = np.eye(CLASSES)[own.argmax(-1)] if hard else own
  expected = entropy_to(
    logits, (1 - share) * np.eye(CLASSES)[labels] + share * told
  )
  batch = {"label": labels, "weight": weight}
  found = losses_of(self_taught.air(hard=hard), logits, batch, num_devices)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  soft = {"label": np.eye(CLASSES, dtype="f")[labels], "weight": weight}
  mixed = losses_of(self_taught.air(hard=hard), logits, soft, num_devices)
  np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_soft_air_of_a_fixed_share_is_a_smaller_step(tmp_path):
  """dLoss/dz = (1 - l) (p - y): plain training at 1 - l times the rate."""
  lesson = self_taught.air(hard=False, share=0.4)
  found, _ = train(tmp_path / "air", "", lesson=lesson, rate=0.1)
  plain, _ = train(
    tmp_path / "plain", "", lesson=objective.supervised(), rate=0.06
  )
  assert_close(found, plain)


def test_previous_air_learns_from_what_is_remembered():
  logits, labels, before = made_up()
  lesson = self_taught.air(hard=False, previous=True)
  share = np.mean(before.argmax(-1) == labels)
  target = (1 - share) * np.eye(CLASSES)[labels] + share * before
  batch = {"label": labels, "memory": before}
  np.testing.assert_allclose(
    losses_of(lesson, logits, batch), entropy_to(logits, target), rtol=1e-5
  )
  np.testing.assert_allclose(
    lesson.memory.update(before, logits, batch), jax.nn.softmax(logits)
  )
  first = lesson.memory.init(labels, CLASSES)  # in the first epoch, the labels
  batch = {"label": labels, "memory": first}
  np.testing.assert_allclose(
    losses_of(lesson, logits, batch),
    entropy_to(logits, np.eye(CLASSES)[labels]),
    rtol=1e-5,
  )


def test_past_predictions_are_trusted_more_from_epoch_to_epoch():
  logits, labels, before = made_up()
  lesson = self_taught.past_predictions(10, last_share=0.8)
  rows = lesson.memory.init(labels, CLASSES)
  for epoch in range(1, 11):
    rows = {**rows, "probs": before}
    share = 0.8 * epoch / 10
    target = (1 - share) * np.eye(CLASSES)[labels] + share * before
    found = losses_of(lesson, logits, {"label": labels, "memory": rows})
    np.testing.assert_allclose(found, entropy_to(logits, target), rtol=1e-5)
    rows = jax.tree.map(np.asarray, lesson.memory.update(rows, logits, None))
    np.testing.assert_allclose(rows["probs"], jax.nn.softmax(logits))


def test_self_adaptive_targets_move_and_weigh():
  logits, labels, _ = made_up()
  own = np.asarray(jax.nn.softmax(logits))
  lesson = self_taught.self_adaptive(1, decay=0.75)
  rows = lesson.memory.init(labels, CLASSES)
  targets = np.eye(CLASSES)[labels]
  for epoch in range(3):
    if epoch >= 1:
      targets = 0.75 * targets + 0.25 * own
    trust = targets.max(-1)
    expected = trust / trust.mean() * entropy_to(logits, targets)
    found = losses_of(lesson, logits, {"label": labels, "memory": rows})
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    rows = jax.tree.map(np.asarray, lesson.memory.update(rows, logits, None))
    np.testing.assert_allclose(rows["target"], targets, rtol=1e-5)


def test_mutual_learners_learn_labels_and_each_other():
  first, labels, _ = made_up(0)
  second, _, _ = made_up(1)
  p, q = np.asarray(jax.nn.softmax(first)), np.asarray(jax.nn.softmax(second))
  expected = (
    entropy_to(first, np.eye(CLASSES)[labels])
    + entropy_to(second, np.eye(CLASSES)[labels])
    + 0.5 * ((q * np.log(q / p)).sum(-1) + (p * np.log(p / q)).sum(-1))
  )
  logits = np.stack([first, second], 1)
  lesson = self_taught.mutual(weight=0.5)
  found = losses_of(lesson, logits, {"label": labels})
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  # The gradient of each is towards a constant: p - y + (p - q) / 2.
  gradient = jax.grad(lambda z: lesson.loss(z, {"label": labels}).sum())(logits)
  y = np.eye(CLASSES)[labels]
  np.testing.assert_allclose(gradient[:, 0], p - y + 0.5 * (p - q), atol=1e-5)
  np.testing.assert_allclose(gradient[:, 1], q - y + 0.5 * (q - p), atol=1e-5)


def test_a_pair_that_does_not_talk_is_two_networks(tmp_path):
  images = np.zeros((1, 4, 4, 1), np.float32)
  pair = models.Pair(num_classes=CLASSES, make=TinyNet)
  variables = models.init(pair, jax.random.key(0), images)
  first = models.first_of(variables)
  kernels = [
    variables["params"][n]["Dense_0"]["kernel"] for n in ("first", "second")
  ]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1
  x = make_data()["image"].astype("f")
  np.testing.assert_array_equal(
    pair.apply(variables, x), TinyNet().apply(first, x)
  )


def test_a_pair_that_does_not_talk_is_two_networks_in_training(tmp_path):
  silent = self_taught.mutual(weight=0.0)
  pair, reports = train(tmp_path / "pair", "mutual", lesson=silent)
  start = models.init(
    models.Pair(num_classes=CLASSES, make=TinyNet),
    jax.random.key(1),
    np.zeros((1, 4, 4, 1), np.float32),
  )
  alone, others = train(
    tmp_path / "alone",
    "",
    lesson=objective.supervised(),
    init_from=jax.tree.map(np.asarray, models.first_of(start)),
  )
  assert_close(models.first_of(pair.variables), alone.variables)
  for report, other in zip(reports, others, strict=True):
    assert report["fit/accuracy"] == other["fit/accuracy"]
    assert report["test/nll"] == pytest.approx(other["test/nll"], rel=1e-4)


def test_an_open_gate_adds_the_teacher_and_a_shut_one_does_not(tmp_path):
  def both(logits, batch):
    given = losses.cross_entropy(logits, batch["label"])
    return given + losses.distillation(
      logits, batch["teacher_probs"], temperature=4.0
    )

  for threshold, lesson in (
    (-1.1, objective.Objective(both)),
    (1.1, objective.supervised()),
  ):
    expected, _ = train(tmp_path / f"a{threshold}", "", lesson=lesson)
    gated = taught.gated(threshold=threshold)
    found, reports = train(tmp_path / f"b{threshold}", "", lesson=gated)
    assert_close(found, expected)
    for report in reports:
      assert report["fit/gate"] == pytest.approx(float(threshold < 0))


def test_the_unlabelled_learn_from_the_teacher_alone():
  logits, labels, probs = made_up()
  lesson = objective.cached_distillation(alpha=0.25)
  unlabelled = np.array([0, 1, 0, 1, 0, 1], np.float32)
  batch = {"label": labels, "teacher_probs": probs, "unlabelled": unlabelled}
  share = np.where(unlabelled > 0, 1, 0.25)
  kl = entropy_to(logits, probs) - entropy_to(np.log(probs), probs)
  given = entropy_to(logits, np.eye(CLASSES)[labels])
  np.testing.assert_allclose(
    losses_of(lesson, logits, batch), (1 - share) * given + share * kl,
    rtol=1e-4, atol=1e-6,
  )  # fmt: skip


def test_labels_may_count_less_beside_a_teacher():
  logits, labels, probs = made_up()
  batch = {"label": labels, "teacher_probs": probs}
  whole, none = (
    losses_of(taught.decoupled(label_weight=w), logits, batch)
    for w in (1.0, 0.0)
  )
  given = entropy_to(logits, np.eye(CLASSES)[labels])
  np.testing.assert_allclose(whole - none, given, rtol=1e-3, atol=1e-4)
