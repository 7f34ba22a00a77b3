"""What the strategies' networks are taught, and online fusion."""

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import auditing, fusion, losses, models, parallel, stages
from kfkd_jax import config as config_lib
from kfkd_jax.methods import OPTIONAL, objectives, online, strategies
from kfkd_jax.run import (
  build,
  networks,
  results,
  streams,
  students,
  tasks,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import rivals
from kfkd_jax.training import loop


@pytest.mark.parametrize(
  "name", ["elr", "air_previous", "ps_kd", "self_adaptive"]
)
def test_memories_of_single_images_see_no_mixed_ones(tmp_path, name):
  config = tiny_config(augment__mixup="0.5", compare__methods=name)
  (plan,) = OPTIONAL[name].plans(Workspace(config, epath.Path(tmp_path)))
  assert plan.changes["augment.mixup"] == 0


def _plain_share(correct):
  """The most that one checkpoint got right of what is wrong at the end."""
  wrong = [n for n, right in enumerate(correct[-1]) if not right]
  if not wrong:
    return 0.0
  return max(sum(row[n] for n in wrong) / len(wrong) for row in correct)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_past_is_the_likeliest_mixture_and_trusted_by_what_it_mends(count):
  rng = np.random.default_rng(count)
  probs = rng.dirichlet(np.ones(3), (count, 40)).astype(np.float32)
  labels = rng.integers(0, 3, 40)
  likelihoods = fusion.label_likelihoods(probs, labels)
  correct = probs.argmax(-1) == labels
  past = online.fused_past(likelihoods, correct)
  assert past.weights.shape == (count,)
  assert past.weights.sum() == pytest.approx(1)
  assert (past.weights >= 0).all()
  assert fusion.mixture_gap(likelihoods, past.weights) < 2e-3
  assert past.share == pytest.approx(_plain_share(correct))


def test_nothing_forgotten_means_nothing_told():
  likelihoods = np.array([[0.1, 0.1], [0.9, 0.2]], np.float32)
  correct = np.array([[False, False], [True, False]])
  assert online.fused_past(likelihoods, correct).share == 0
  assert online.fused_past(likelihoods, np.ones((2, 2), bool)).share == 0
  mended = np.array([[False, True], [True, False]])
  assert online.fused_past(likelihoods, mended).share == 1


def test_propagation_believes_small_losses_and_asks_the_neighbours():
  rng = np.random.default_rng(0)
  clean = np.repeat([0, 1, 2], 30)
  given = np.where(rng.random(90) < 0.3, (clean + 1) % 3, clean)
  features = np.eye(3)[clean] + rng.normal(0, 0.15, (90, 3))
  probs = 0.7 * np.eye(3)[clean] + 0.1  # the fusion is right but unsure
  found = strategies.propagated(
    probs, features, given, num_neighbours=8, decay=0.9
  )
  assert (found.argmax(1) == clean).all()
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


CONFIG = {
  "train__epochs": "4",
  "distill__teachers": "",
  "compare__independent": "1",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("strategies"))
  for name in ("train", "fuse"):
    stages.run_stage(tiny_config(**CONFIG), folder, name, say=lambda line: None)
  return folder


@pytest.fixture(scope="module")
def teaching(workdir):
  return strategies._teaching(Workspace(tiny_config(**CONFIG), workdir))


TARGETS = {
  "xi_kd": lambda t: losses.extrapolated_targets(t.labels, t.probs, 1.5),
  "partial_kd": lambda t: losses.partial_targets(t.probs),
  "agreement_kd": lambda t: losses.agreement_targets(t.labels, t.probs),
}


@pytest.mark.slow
def test_taught_lessons_carry_what_their_loss_reads(workdir, teaching):
  config = tiny_config(**CONFIG)
  weights = np.asarray(teaching.weights)
  for name, method in strategies.TAUGHT.items():
    (plan,) = method.plans(Workspace(config, workdir))
    lesson = plan.lesson()
    (extra,) = lesson.extra.values()
    assert plan.name == name
    assert len(extra) == len(teaching.labels) == 120
    if name in TARGETS:
      np.testing.assert_allclose(extra, TARGETS[name](teaching), atol=1e-6)
    elif name == "relational_kd":
      assert extra.shape == (120, len(weights) * 16)
    elif name != "propagation":
      np.testing.assert_allclose(extra, teaching.probs)
    np.testing.assert_array_equal(np.isfinite(extra), True)


@pytest.mark.slow
def test_features_side_by_side_have_the_members_mean_products(
  workdir, teaching
):
  config = tiny_config(**CONFIG)
  stacked, _ = results.read_members(
    Workspace(config, workdir), np.ones(4, "f") / 4
  )
  weights = np.array([0.1, 0.2, 0.3, 0.4])

  def features(members, weights):
    part = jax.tree.map(lambda x: x[members], stacked)
    return students.teacher_features(
      Workspace(config), part, weights, teaching.images[:9]
    )

  fused = features([0, 1, 2, 3], weights)
  expected = sum(
    weights[m] * (single := features([m], np.ones(1))) @ single.T
    for m in range(4)
  )
  np.testing.assert_allclose(fused @ fused.T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_other_options_start_only_their_row_again(workdir):
  config = tiny_config(**CONFIG)
  everything = {**objectives.BY_OBJECTIVE, **strategies.TAUGHT}
  everything.pop("ce")  # the teacher itself

  def inputs():
    return {
      name: method.plans(Workspace(config, workdir))[0].inputs
      for name, method in everything.items()
    }

  before = inputs()
  for key in config.strategy:
    config = tiny_config(**CONFIG)
    old = config.strategy[key]
    if key == "teacher":
      config.strategy.teacher = "mixture"
    elif isinstance(old, tuple):
      config.strategy[key] = (0.5, 0.5)
    elif isinstance(old, bool):
      config.strategy[key] = not old
    elif isinstance(old, int):
      config.strategy[key] = old + 1
    else:
      config.strategy[key] = 0.55
    changed = {n for n, found in inputs().items() if found != before[n]}
    assert changed, key
    if "_" in key and key != "label_weight":
      family = key.split("_")[0]
      assert all(name.startswith(family) for name in changed), (key, changed)


@pytest.mark.slow
def test_mutual_keeps_the_first_of_two_networks(workdir):
  config = tiny_config(**CONFIG)
  method = OPTIONAL["mutual"]
  (plan,) = method.plans(Workspace(config, workdir))
  networks.carry_out(Workspace(config, workdir), plan)
  method.make(Workspace(config, workdir))
  pair = results.predictions(workdir, "mutual_pair", "test")
  kept = results.predictions(workdir, "mutual", "test")
  np.testing.assert_allclose(kept[0], pair[len(pair) - 1], atol=1e-6)
  stacked, _ = results.read_members(
    Workspace(config, workdir), np.ones(1, "f"), name="mutual"
  )
  expected = results.template(Workspace(config))
  jax.tree.map(lambda a, b: a.shape[1:] == b.shape or 1 / 0, stacked, expected)
  assert models.num_parameters(stacked) == models.num_parameters(expected)


class StopError(Exception):
  pass


def train_online(folder, stop_at=None, num_devices=1, name="online_fusion"):
  config = tiny_config(**CONFIG)
  task = tasks.load_task(config)
  (plan,) = online.ONLINE[name].plans(Workspace(config, folder))
  lesson = plan.lesson()

  def observe(report):
    if report.epoch == stop_at:
      raise StopError

  return loop.train(
    epath.Path(folder),
    build.make_recipe(Workspace(config), keep_history=plan.keep_history),
    lesson.objective,
    {"image": task.images, "label": task.given},
    build.predicted_splits(Workspace(config)),
    seeds=streams.seeds_for(config),
    mesh=parallel.data_mesh(jax.devices()[:num_devices]),
    review=lesson.review,
    observe=observe,
  )


@pytest.mark.slow
def test_online_fusion_resumes_to_the_same_bits(tmp_path):
  whole = train_online(tmp_path / "whole")
  with pytest.raises(StopError):
    train_online(tmp_path / "run", stop_at=3)
  resumed = train_online(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  eight = train_online(tmp_path / "eight", num_devices=8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    eight,
    whole,
  )


@pytest.mark.slow
def test_online_fusion_learns_from_the_stores(tmp_path):
  """The targets of an epoch are labels and the past, in the stated shares."""
  train_online(tmp_path)
  config = tiny_config(**CONFIG)
  task = tasks.load_task(config)
  (plan,) = online.ONLINE["online_fusion"].plans(Workspace(config, tmp_path))
  stores = {
    name: networks.PredictionStore(tmp_path / "predictions" / name)
    for name in ("select", "train")
  }
  found = plan.lesson().review(4, stores)["teacher_probs"]
  select = np.stack([stores["select"][c] for c in range(4)])
  labels = task.splits["select"].labels
  likely = fusion.label_likelihoods(select, labels)
  past = online.fused_past(likely, select.argmax(-1) == labels)
  told = fusion.fuse(np.stack([stores["train"][c] for c in range(4)]), past[0])
  given = np.eye(10)[task.given]
  expected = (1 - past.share) * given + past.share * np.asarray(told)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert 0 < past.share < 1


def test_what_is_covered_joins_the_labels_more_and_more(tmp_path):
  config = tiny_config(**CONFIG, strategy__coverage_share="0.6")
  space = Workspace(config, epath.Path(tmp_path))
  task, epochs = space.task, config.train.epochs
  rng = np.random.default_rng(0)
  stores, told = {}, {}
  for name in ("select", "train"):
    split = task.splits[name]
    told[name] = rng.dirichlet(np.ones(10), (2, len(split.labels))).astype("f")
    stores[name] = networks.PredictionStore.create(
      epath.Path(tmp_path) / name, split.labels, split.ids, num_classes=10
    )
    for epoch, probs in enumerate(told[name], 1):
      stores[name].write(epoch, probs)
  (plan,) = online.ONLINE["online_coverage"].plans(space)
  found = plan.lesson().review(2, stores)["teacher_probs"]
  right = told["select"].argmax(-1) == task.splits["select"].labels
  past = np.tensordot(fusion.coverage(right), told["train"], 1)
  share = 0.6 * 2 / epochs
  expected = (1 - share) * np.eye(10)[task.given] + share * past
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("correct", ["drop", "relabel", "weight"])
def test_the_audited_row_learns_what_the_teachers_history_leaves(
  tmp_path, correct
):
  config = tiny_config(
    compare__methods="audit_retrain", baselines__audit_correct=correct,
    train__epochs="2",
  )  # fmt: skip
  stages.run_stage(config, epath.Path(tmp_path), "train", lambda line: None)
  space = Workspace(config, epath.Path(tmp_path))
  (plan,) = OPTIONAL["audit_retrain"].plans(space)
  store = results.predictions(epath.Path(tmp_path), "teacher", "train")
  found = auditing.audit(store, space.task.given)
  taught = plan.lesson().extra
  if correct == "relabel":
    assert taught.keys() == {"label"}
    np.testing.assert_array_equal(taught["label"], found.suggested)
  elif correct == "weight":
    np.testing.assert_array_equal(taught["label"], space.task.given)
    np.testing.assert_array_equal(taught["trust"], auditing.trust(found))
    assert taught["trust"].min() < 1
  else:
    np.testing.assert_array_equal(
      taught["image"], space.task.images[~found.accused]
    )
    assert len(taught["label"]) == len(taught["image"]) < 120
  assert OPTIONAL["audit_retrain"].ensembles(space, space.task.folds[0])[
    0
  ].train_cost == pytest.approx(2 + 1 / 3)


@pytest.mark.parametrize("correct", ["drop", "relabel", "weight"])
def test_labels_of_little_weight_keep_it_whatever_an_audit_says(
  tmp_path, correct
):
  table = tmp_path / "weights.csv"
  before = Workspace(tiny_config()).task
  ids, given = before.splits["train"].ids, before.given
  rows = [f"{n},{k},0.5" for n, k in zip(ids, given, strict=True)]
  table.write_text("\n".join(["index,given,weight", *rows]))
  config = tiny_config(
    noise__corrections=str(table), noise__correct="weight",
    baselines__audit_correct=correct, train__epochs="2",
  )  # fmt: skip
  stages.run_stage(config, tmp_path / "w", "train", lambda line: None)
  space = Workspace(config, epath.Path(tmp_path / "w"))
  (plan,) = OPTIONAL["audit_retrain"].plans(space)
  taught = plan.lesson().extra
  store = results.predictions(space.path, "teacher", "train")
  found = auditing.audit(store, given)
  own = auditing.trust(found) if correct == "weight" else np.ones(120)
  kept = ~found.accused if correct == "drop" else slice(None)
  np.testing.assert_array_equal(taught["trust"], own[kept] / 2)


def test_the_audited_network_is_trained_once_fused_and_distilled(tmp_path):
  names = ("audit_retrain_kd", "audit_retrain_kf", "audit_retrain")
  config = tiny_config(
    compare__methods=",".join(names), train__epochs="3",
    distill__teachers="", compare__independent="1", history__keep="2",
  )  # fmt: skip
  space = Workspace(config, epath.Path(tmp_path))
  for stage in ("train", "fuse"):
    stages.run_stage(config, space.path, stage, lambda line: None)
  plans = rivals.plans(space)
  assert [p.name for p in plans] == ["audit_retrain", "audit_retrain_kd"]
  networks.carry_out(space, plans[0])
  (fold,) = space.task.folds
  (fused,) = OPTIONAL["audit_retrain_kf"].ensembles(space, fold)
  (retrained,) = OPTIONAL["audit_retrain"].ensembles(space, fold)
  (source,) = fused.sources
  own = results.predictions(space.path, "audit_retrain", fold.select_split)
  kept = results.kept_checkpoints(space.path, "audit_retrain")
  assert len(kept) == 2 and set(np.flatnonzero(source.weights)) <= {*kept}
  labels = own.labels[fold.select_rows]

  def right(weights):
    probs = np.asarray(fusion.fuse(own, np.asarray(weights, np.float32)))
    return (probs[fold.select_rows].argmax(-1) == labels).mean()

  assert right(source.weights) >= right(fusion.final_only(3))
  watching = 3 * len(labels) / (3 * 120 * 3)
  assert fused.train_cost == pytest.approx(retrained.train_cost + watching)
  taught = plans[1].lesson().extra["teacher_probs"]
  expected = fusion.fuse(
    results.predictions(space.path, "audit_retrain", "train"), source.weights
  )
  np.testing.assert_allclose(taught, expected, atol=1e-5)
  other = config_lib.changed(config, {"fuse.window": 0})
  anew = rivals.plans(Workspace(other, space.path))
  same = [
    networks.origin(config, before) == networks.origin(other, after)
    for before, after in zip(plans, anew, strict=True)
  ]
  assert same == [True, False]  # another fusion, another student


def test_audited_rows_need_what_was_said_of_the_training_points():
  with pytest.raises(
    config_lib.ConfigError,
    match=r"names audit_retrain_kd, .*predictions\.train must be True",
  ):
    tiny_config(compare__methods="audit_retrain_kd", predictions__train="False")
