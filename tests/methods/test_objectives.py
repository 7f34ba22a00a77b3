"""The teacher's objective: the same network as the row of that name."""

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import catalogue, losses, methods, stages
from kfkd_jax import config as config_lib
from kfkd_jax.methods import several
from kfkd_jax.run import (
  build,
  keeping,
  networks,
  objectives,
  results,
  students,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import distill, train
from kfkd_jax.training import objective


def config_of(**changes):
  return tiny_config(**{"train__epochs": "4", **changes})


def space_of(path=".", **changes):
  return Workspace(config_of(**changes), epath.Path(path))


def plan_of(row, space):
  (plan,) = methods.OPTIONAL[row].plans(space)
  return plan


def last(folder, run):
  store = results.predictions(epath.Path(folder), run, "test")
  return store[len(store) - 1]


def test_every_objective_of_labels_alone_is_made_from_a_configuration():
  assert set(catalogue.OBJECTIVES) == set(objectives.OBJECTIVES)
  for name in catalogue.OBJECTIVES:
    lesson = networks.supervised(config_of(train__objective=name))
    remembers = "memory" in catalogue.METHODS[name].needs
    assert (lesson.objective.memory is not None) == remembers


ELR = {"train__objective": "elr", "train__epochs": "5"}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
  """A teacher that learnt by a memory of what it said."""
  space = space_of(tmp_path_factory.mktemp("elr"), **ELR)
  (plan,) = train.plans(space)
  networks.carry_out(space, plan)
  keeping.write_config(space)
  return space


def test_the_teacher_is_the_network_of_the_row(tmp_path, learnt):
  """To the last bit; so that the row trains no second one."""
  plain = space_of(tmp_path, train__epochs="5")
  networks.carry_out(plain, plan_of("elr", plain))
  teacher = last(learnt.path, "teacher")
  np.testing.assert_array_equal(last(plain.path, "elr"), teacher)
  row = methods.OPTIONAL["elr"]
  assert row.plans(learnt) == []
  (ensemble,) = row.ensembles(learnt, learnt.task.folds[0])
  assert (ensemble.method, ensemble.train_cost) == ("elr", 1)
  found = methods.predict(learnt.path, ensemble, "test")
  np.testing.assert_array_equal(found, teacher)


def test_a_teacher_that_learns_mixed_images_sees_what_the_row_sees():
  plain, mixing = space_of(), space_of(train__objective="mixup")
  row = plain.changed(plan_of("mixup", plain).changes)
  (plan,) = train.plans(mixing)
  views = build.make_views(mixing.changed(plan.changes))
  assert views == build.make_views(row)
  assert views.mixup == 1
  # Its students and other rows see them as configured.
  student = mixing.changed(students.student_changes(mixing.config))
  for space in (student, mixing.changed(plan_of("gce", mixing).changes)):
    assert build.make_views(space) == build.make_views(plain)


@pytest.mark.parametrize("teacher", ["elr", "mixup", "air"])
def test_other_rows_are_the_same_whatever_the_teacher_learns(teacher):
  plain, learnt = space_of(), space_of(train__objective=teacher)
  for name in {*catalogue.OBJECTIVES, "mutual", "online_fusion"} - {
    "ce", teacher,
  }:  # fmt: skip
    plans = [plan_of(name, space) for space in (plain, learnt)]
    before, after = (
      networks.origin(space.config, plan)
      for space, plan in zip((plain, learnt), plans, strict=True)
    )
    assert before == after, name
    views = [
      build.make_views(space.changed(plan.changes))
      for space, plan in zip((plain, learnt), plans, strict=True)
    ]
    assert views[0] == views[1], name
  assert plan_of("ce", learnt).changes["train.objective"] == "ce"
  assert methods.OPTIONAL["ce"].plans(plain) == []


def test_independent_networks_learn_what_the_teacher_does(monkeypatch):
  def plans(name):
    space = space_of(train__objective=name, compare__independent="2")
    ensembles = several.INDEPENDENT, several.EQUAL_BUDGET
    return [plan for method in ensembles for plan in method.plans(space)]

  assert len(plans("elr")) == 3
  for plan in plans("elr"):
    assert plan.lesson().objective.memory is not None
  # Some objectives go by the length of the run that they are part of.
  epochs = []
  monkeypatch.setitem(
    objectives.OBJECTIVES,
    "ps_kd",
    lambda c: epochs.append(c.train.epochs) or objective.supervised(),
  )
  for plan in plans("ps_kd"):
    plan.lesson()
  assert epochs == [4, 2, 2]


def test_an_objectives_options_decide_what_is_trained_with_it():
  def digests(**changes):
    space = space_of(**changes)
    (plan,) = train.plans(space)
    inputs = stages.inputs_of(space.config, "train")["config"]
    return networks.origin(space.config, plan), inputs

  plain = digests()
  assert digests(train__objective="ce", baselines__elr_weight="2") == plain
  elr = digests(train__objective="elr")
  found = {
    plain,
    elr,
    digests(train__objective="elr", baselines__elr_weight="2"),
    digests(train__objective="air"),
    digests(train__objective="air_soft"),  # of the same options
  }
  assert len({origin for origin, _ in found}) == 5
  assert len({inputs for _, inputs in found}) == 5
  assert digests(train__objective="elr", baselines__gce_q="0.5") == elr


class StopError(Exception):
  pass


def test_memory_of_a_teacher_resumes_to_the_same_bits(
  tmp_path, learnt, monkeypatch
):
  def stop(progress, report):
    if report.epoch == 3:  # one epoch after the last full state
      raise StopError

  part = space_of(tmp_path, **ELR)
  (plan,) = train.plans(part)
  with monkeypatch.context() as patch:
    patch.setattr(networks.Progress, "__call__", stop)
    with pytest.raises(StopError):
      networks.carry_out(part, plan)
  networks.carry_out(part, plan)
  for split in ("train", "test"):
    stores = [
      results.predictions(space.path, "teacher", split)
      for space in (learnt, part)
    ]
    for epoch in range(5):
      np.testing.assert_array_equal(stores[0][epoch], stores[1][epoch])


@pytest.mark.slow
def test_memory_finds_its_images_on_disk_too(tmp_path, learnt):
  streamed = space_of(tmp_path, data__stream="always", **ELR)
  (plan,) = train.plans(streamed)
  networks.carry_out(streamed, plan)
  np.testing.assert_array_equal(
    last(streamed.path, "teacher"), last(learnt.path, "teacher")
  )


def test_changed_options_are_named_before_a_teacher_is_replaced(learnt):
  config = config_of(**ELR, baselines__elr_weight="2")
  with pytest.raises(
    networks.WouldReplaceError, match=r"baselines.elr_weight=3\.0 -> 2\.0"
  ):
    stages.run_stage(config, learnt.path, "train", say=lambda line: None)


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"train__objective": "mutual"}, "allowed: ce, gce"),
    ({"train__objective": "online_fusion"}, "allowed: ce, gce"),
    ({"train__objective": "kf_kd"}, "allowed: ce, gce"),
    (
      {"train__objective": "elr", "augment__mixup": "0.5"},
      "train.objective='elr' .* augment.mixup=0.5",
    ),
    (
      {"train__objective": "mixup", "augment__mixup": "0.5"},
      "train.objective='mixup' .* augment.mixup=0.5",
    ),
    (
      {"train__objective": "sce", "train__label_smoothing": "0.1"},
      "train.objective='sce' .* train.label_smoothing=0.1",
    ),
    (
      {"train__objective": "ps_kd", "compare__methods": "gce,fge"},
      "compare.methods names fge, .* train.objective='ps_kd'",
    ),
    ({"distill__label_loss": "mixup"}, "distill.label_loss='mixup'"),
    (
      {"distill__label_loss": "gce"},
      "distill.label_loss='gce' .* distill.alpha=1.0",
    ),
    (
      {
        "distill__label_loss": "gce",
        "distill__alpha": "0.5",
        "distill__inputs": "extra",
      },
      "distill.label_loss='gce' .* distill.inputs='extra'",
    ),
    (
      {
        "distill__label_loss": "elr",
        "distill__alpha": "0.5",
        "augment__mixup": "1",
      },
      "distill.label_loss='elr' .* augment.mixup=1.0",
    ),
  ],
)
def test_what_does_not_go_together_is_refused_in_a_line(changes, named):
  with pytest.raises(config_lib.ConfigError, match=named) as refused:
    config_of(**changes)
  assert "\n" not in str(refused.value)


def test_rows_that_mix_images_do_not_ask_what_students_learn():
  space = space_of(distill__label_loss="elr", distill__alpha="0.5")
  plan = plan_of("mixup", space)
  assert build.make_views(space.changed(plan.changes)).mixup == 1


@pytest.mark.parametrize("name", ["ce", "sce", "elr", "ps_kd"])
@pytest.mark.parametrize("targets", ["cached", "live"])
def test_students_mix_any_loss_of_labels_with_their_teachers(
  monkeypatch, name, targets
):
  changes = {
    "distill__label_loss": name,
    "distill__alpha": "0.25",
    "distill__epochs": "3",
    "distill__targets": targets,
    "train__objective": "gce",
  }
  space = space_of(**changes)
  monkeypatch.setattr(
    results, "read_members", lambda *_, **__: ({"w": np.ones(1)}, np.ones(1))
  )
  monkeypatch.setattr(results, "configured_as", lambda space, run: space)
  monkeypatch.setattr(
    students, "teacher_probs", lambda s, t, w, x: np.full((len(x), 10), 0.1)
  )
  lesson = distill._lesson(space, "teacher", np.ones(1)).objective
  generator = np.random.default_rng(0)
  logits = generator.normal(size=(6, 10)).astype("f")
  teacher = generator.dirichlet(np.ones(10), 6).astype("f")
  own = objectives.OBJECTIVES[name](space.changed({"train.epochs": 3}).config)
  batch = {"label": np.arange(6), "teacher_probs": teacher}
  if own.memory is not None:
    assert lesson.memory is not None
    fresh = own.memory.init(batch["label"], 10)
    # One tenth of everything: not what the labels say, nor epoch 0.
    batch["memory"] = jax.tree.map(lambda x: np.full_like(x, 0.1), fresh)
  expected = 0.75 * own.loss(logits, batch)
  expected += 0.25 * losses.distillation(logits, teacher)
  np.testing.assert_allclose(lesson.loss(logits, batch), expected, rtol=1e-5)
  # The teacher's own objective is no part of it.
  student = space.changed(students.student_changes(space.config))
  assert student.config.train.objective == "ce"


def test_label_losses_start_only_students_again():
  plain = config_of(distill__alpha="0.5")
  sce = config_of(distill__alpha="0.5", distill__label_loss="sce")
  other = config_lib.changed(sce, {"baselines.sce_weights": (1.0, 1.0)})
  for stage, changes in (("train", 1), ("fuse", 1), ("distill", 3)):
    found = {stages.inputs_of(c, stage)["config"] for c in (plain, sce, other)}
    assert len(found) == changes
