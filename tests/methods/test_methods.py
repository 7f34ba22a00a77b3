"""Every optional row of the comparison, against its definition."""

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import (
  calibration,
  catalogue,
  checkpoints,
  files,
  losses,
  methods,
  stages,
)
from kfkd_jax.methods import schedules
from kfkd_jax.run import results, tasks
from kfkd_jax.run.workspace import Workspace

pytestmark = pytest.mark.slow

EPOCHS = 8
VARIED = ("final", "kf", "independent")


def config_of_all():
  return tiny_config(
    train__epochs=str(EPOCHS),
    compare__methods=",".join(catalogue.ASKED),
    compare__temperature=",".join(VARIED),
    compare__test_time=",".join(VARIED),
    compare__views="3",
    compare__patience="2",
    baselines__snapshot_cycles="3",
    baselines__fge_start="0.5",
    baselines__swa_start="0.5",
    augment__pad="1",
  )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("methods"))
  stages.run(config_of_all(), folder, say=lambda line: None)
  return folder


@pytest.fixture(scope="module")
def rows(workdir):
  found = files.read_json_lines(workdir / "results.jsonl")
  return {row["method"]: row for row in found}


def history_of(workdir, run):
  template = results.template(Workspace(config_of_all()))
  with checkpoints.Checkpoints(workdir / "runs" / run / "history") as history:
    return {e: history.restore(e, template) for e in history.steps()}


def stored(workdir, run):
  store = results.predictions(workdir, run, "test")
  return {e: store.read(e) for e in store.epochs}


def accuracy_of(probs):
  labels = tasks.load_task(config_of_all()).splits["test"].labels
  return float((probs.argmax(-1) == labels).mean())


def test_the_configuration_knows_every_method(rows):
  plain = {name for name in rows if "+" not in name}
  assert plain | {"ema"} == set(catalogue.METHODS)
  assert not any(np.isnan(row["nll"]) for row in rows.values())


def test_swa_is_the_mean_of_its_path_with_statistics_of_its_own(workdir):
  path = history_of(workdir, "swa_path")
  assert sorted(path) == list(range(1, EPOCHS + 1))
  averaged = [path[e] for e in range(EPOCHS // 2 + 1, EPOCHS + 1)]
  (swa,) = history_of(workdir, "swa").values()
  jax.tree.map(
    lambda actual, *parts: np.testing.assert_allclose(
      actual, np.mean(parts, axis=0), atol=1e-6
    ),
    swa["params"],
    *[one["params"] for one in averaged],
  )
  mean = jax.tree.map(
    lambda *parts: np.mean(parts, axis=0),
    *[one["batch_stats"] for one in averaged],
  )
  apart = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), swa["batch_stats"], mean
  )
  assert max(jax.tree.leaves(apart)) > 1e-3


def test_swa_averages_each_model_once():
  np.testing.assert_allclose(
    schedules.swa_weights(8, 0.75), [0, 0, 0, 0, 0, 0, 0.5, 0.5]
  )
  np.testing.assert_allclose(schedules.swa_weights(3, 0), np.full(3, 1 / 3))


def test_snapshots_are_the_ends_of_the_last_cycles(workdir, rows):
  probs = stored(workdir, "snapshot")
  assert sorted(probs) == [2, 4, 6, 8]  # cycles of 8 // 3 epochs
  expected = np.mean([probs[e] for e in (4, 6, 8)], axis=0)
  assert rows["snapshot"]["accuracy"] == accuracy_of(expected)
  assert rows["snapshot"]["num_members"] == 3
  assert rows["snapshot"]["train_cost"] == 1


def test_fge_starts_from_the_teacher_and_takes_the_middles(workdir, rows):
  probs = stored(workdir, "fge")
  assert sorted(probs) == [2, 4]  # one cycle of four epochs
  assert rows["fge"]["accuracy"] == accuracy_of(probs[2])
  assert rows["fge"]["num_members"] == 1
  assert rows["fge"]["train_cost"] == 1
  config = config_of_all()
  (plan,) = schedules.FGE.plans(Workspace(config, workdir))
  teacher = history_of(workdir, "teacher")[EPOCHS // 2]
  jax.tree.map(np.testing.assert_array_equal, plan.init(), teacher)
  assert plan.changes["optim.schedule"] == "triangular"


def test_equal_budget_trains_each_for_its_share(workdir, rows):
  for member in range(2):
    assert list(stored(workdir, f"short_{member}")) == [EPOCHS // 2]
  last = [stored(workdir, f"short_{m}")[EPOCHS // 2] for m in range(2)]
  row = rows["independent_equal_budget"]
  assert row["accuracy"] == accuracy_of(np.mean(last, axis=0))
  assert row["train_cost"] == 1
  assert np.abs(last[0] - last[1]).max() > 1e-3


def test_early_stopping_is_the_best_epoch_that_patience_sees(workdir, rows):
  config = config_of_all()
  store = results.predictions(workdir, "teacher", "select")
  accuracy = [
    (store[c].argmax(-1) == store.labels).mean() for c in range(EPOCHS)
  ]
  best, seen = 0, 0
  for seen in range(EPOCHS):
    if accuracy[seen] > accuracy[best]:
      best = seen
    if seen - best == config.compare.patience:
      break
  expected = stored(workdir, "teacher")[best + 1]
  assert rows["early_stopping"]["accuracy"] == accuracy_of(expected)
  assert rows["early_stopping"]["select_gain"] == pytest.approx(
    accuracy[best] - accuracy[-1], abs=1e-6
  )
  watched = (seen + 1) / EPOCHS
  assert watched <= rows["early_stopping"]["train_cost"] < 1.5 * watched


def test_uniform_soup_averages_what_fixed_jumps_uses(workdir):
  config = config_of_all()
  (jumps,) = [
    e
    for e in methods.ALWAYS[0].ensembles(
      Workspace(config, workdir), tasks.load_task(config).folds[0]
    )
    if e.method == "fixed_jumps"
  ]
  path = history_of(workdir, "teacher")
  used = [path[c + 1] for c in np.flatnonzero(jumps.sources[0].weights)]
  (soup,) = history_of(workdir, "uniform_soup").values()
  jax.tree.map(
    lambda actual, *parts: np.testing.assert_allclose(
      actual, np.mean(parts, axis=0), atol=1e-6
    ),
    soup["params"],
    *[one["params"] for one in used],
  )


def test_greedy_soup_is_no_worse_on_the_selecting_points_than_one_network(
  workdir, rows
):
  store = results.predictions(workdir, "greedy_soup", "select")
  soup = (store[0].argmax(-1) == store.labels).mean()
  path = history_of(workdir, "teacher")
  networks_alone = results.predictions(workdir, "teacher", "select")
  accuracy = [
    (networks_alone[c].argmax(-1) == store.labels).mean() for c in range(EPOCHS)
  ]
  best = path[1 + EPOCHS - 1 - int(np.argmax(accuracy[::-1]))]
  space = Workspace(config_of_all())
  renewed = methods.soups.with_statistics(space)(best)
  score = methods.soups._scorer(space, lambda variables: variables)
  assert soup >= score(renewed) - 1e-6
  assert rows["greedy_soup"]["selected_on"] == "select (clean labels)"


def test_temperature_is_fitted_on_the_selecting_points(workdir, rows):
  select = results.predictions(workdir, "teacher", "select")
  temperature = calibration.fit_temperature(select[EPOCHS - 1], select.labels)
  test = results.predictions(workdir, "teacher", "test")
  probs = np.asarray(losses.temper(test[EPOCHS - 1], temperature))
  chosen = np.take_along_axis(probs, test.labels[:, None], 1)
  row = rows["final+temperature"]
  assert row["nll"] == pytest.approx(-np.log(chosen).mean(), abs=1e-5)
  assert row["accuracy"] == rows["final"]["accuracy"]
  assert row["selected_on"] == "select (clean labels)"
  assert rows["kf+temperature"]["nll"] < rows["kf"]["nll"]


def test_views_average_and_cost_what_they_are(workdir, rows):
  row = rows["kf+views"]
  assert row["inference_cost"] == 3 * rows["kf"]["inference_cost"]
  assert row["storage_cost"] == rows["kf"]["storage_cost"]
  assert row["nll"] != rows["kf"]["nll"]
  assert abs(row["accuracy"] - rows["kf"]["accuracy"]) < 0.2
  config = config_of_all()
  config.compare.views = 1  # the image as it is
  for ensemble in methods.ALWAYS[0].ensembles(
    Workspace(config, workdir), tasks.load_task(config).folds[0]
  )[:4]:
    np.testing.assert_allclose(
      methods.variants.with_views(Workspace(config, workdir), ensemble.sources),
      methods.predict(workdir, ensemble, "test"),
      atol=1e-5,
    )


def test_views_of_a_network_apart_count_alike(workdir):
  config = config_of_all()
  config.compare.views = 1
  (ensemble,) = methods.several.INDEPENDENT.ensembles(
    Workspace(config, workdir), tasks.load_task(config).folds[0]
  )
  sources = [
    s._replace(weights=s.over(len(results.predictions(workdir, s.run, "test"))))
    for s in ensemble.sources
  ]
  np.testing.assert_allclose(
    methods.variants.with_views(Workspace(config, workdir), sources),
    methods.predict(workdir, ensemble, "test"),
    atol=1e-5,
  )


def test_robust_losses_train_other_networks(workdir):
  runs = ["teacher", "gce", "sce", "elr", "label_smoothing", "mixup"]
  probs = [stored(workdir, run)[EPOCHS] for run in runs]
  for i in range(len(runs)):
    for j in range(i):
      assert np.abs(probs[i] - probs[j]).max() > 1e-3, (runs[i], runs[j])


def test_another_option_trains_only_its_method_again(workdir):
  config = config_of_all()
  config.baselines.gce_q = 0.5
  said: list[str] = []
  stages.run_stage(config, workdir, "rivals", say=said.append, redo=True)
  assert said[0].endswith(": gce")
