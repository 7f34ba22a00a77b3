"""Rounds of students, and students that see more images than labels."""

import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import config as config_lib
from kfkd_jax import files, methods, metrics, parallel, stages
from kfkd_jax.run import results, students, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import distill


def config_of(**changes):
  return tiny_config(
    **{
      "train__epochs": "3",
      "distill__teachers": "kf",
      "distill__rounds": "3",
      "compare__independent": "1",
      **changes,
    }
  )


def guessing(images):
  """A teacher whose class is the image's first pixel modulo 10."""
  return np.eye(10, dtype=np.float32)[images[:, 0, 1, 0] % 10]


def test_students_of_the_rest_learn_what_the_teacher_says():
  config = config_of(distill__inputs="extra")
  task = tasks.load_task(config)
  found = students.student_examples(Workspace(config), guessing)
  assert len(found["image"]) == len(task.rest) == 1297 - 120 - 60
  np.testing.assert_array_equal(found["label"], task.rest[:, 0, 1, 0] % 10)
  np.testing.assert_array_equal(found["unlabelled"], 1)
  assert found["label"].dtype == np.int32


def test_rest_is_apart_from_all_that_plays_a_part():
  config = config_of(distill__inputs="both")
  task = tasks.load_task(config)
  found = students.student_examples(Workspace(config), guessing)
  np.testing.assert_array_equal(found["image"][:120], task.images)
  np.testing.assert_array_equal(found["label"][:120], task.given)
  np.testing.assert_array_equal(found["unlabelled"], np.arange(1237) >= 120)
  pixels = {image.tobytes() for image in task.rest}
  used = [task.images, task.splits["select"].images]
  assert not pixels & {image.tobytes() for part in used for image in part}


def test_plain_students_see_the_training_images():
  config = config_of()
  found = students.student_examples(Workspace(config), guessing)
  assert set(found) == {"image", "label"}


@pytest.mark.slow
def test_extra_images_come_from_another_data_set_if_they_fit(monkeypatch):
  config = config_of(distill__inputs="extra", distill__extra="digits")
  assert students.extra_images(Workspace(config)).shape == (1297, 8, 8, 1)
  cost = students.train_cost(Workspace(config), 4)
  assert cost == pytest.approx(1297 / 120 * (3 * 3 + 4) / (3 * 3))
  config.distill.extra = "synthetic"
  with pytest.raises(config_lib.ConfigError, match="extra='synthetic' has"):
    students.extra_images(Workspace(config))


@pytest.mark.parametrize(
  ("name", "shared"), [("fashion_mnist", False), ("image_folder", True)]
)
def test_the_root_is_the_extra_sets_if_it_is_a_folder(
  tmp_path, monkeypatch, name, shared
):
  config = config_of(distill__inputs="extra", data__root=str(tmp_path))
  space = Workspace(config)
  assert len(space.task.images)  # read before the folder is asked for
  roots = []

  load_data = tasks.data_lib.load

  def load(name, *, manual_dir, **options):
    roots.append(manual_dir)
    return load_data("digits")

  monkeypatch.setattr(tasks.data_lib, "load", load)
  config.distill.extra = name
  students.extra_images(space)
  assert roots == [str(tmp_path) if shared else None]


def test_nothing_left_over_is_found_before_training(tmp_path):
  config = config_of(distill__inputs="both", data__num_train="None")
  with pytest.raises(config_lib.ConfigError, match="leaves no image"):
    stages.run_stage(config, tmp_path, "train", say=lambda line: None)
  assert not (tmp_path / "runs" / "teacher").exists()


@pytest.mark.parametrize(
  "scores, rounds",
  [
    ([0.5, 0.6, 0.7], 3),
    ([0.5, 0.5, 0.9], 2),
    ([0.5, 0.6, 0.6], 3),
    ([0.5, 0.4, 0.9], 2),
  ],
)
def test_rounds_end_where_nothing_is_gained(monkeypatch, scores, rounds):
  config = config_of(distill__rounds_stop="accuracy")
  asked = iter(scores)
  monkeypatch.setattr(students, "_score", lambda *_: next(asked))
  names = list(students.students(Workspace(config), "kf"))
  assert names == ["kf_kd", "kf_kd_2", "kf_kd_3"][:rounds]
  config.distill.rounds_stop = "none"
  assert len(list(students.students(Workspace(config), "kf"))) == 3


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("rounds"))
  for name in ("train", "fuse", "distill"):
    stages.run_stage(config_of(), folder, name, say=lambda line: None)
  return folder


def last(workdir, name, split):
  store = results.predictions(workdir, name, split)
  return store[len(store) - 1]


@pytest.mark.slow
def test_each_round_learns_from_the_one_before(workdir):
  config = config_of()
  for before, name in (("kf_kd", "kf_kd_2"), ("kf_kd_2", "kf_kd_3")):
    lesson = distill._lesson(
      Workspace(config, workdir), before, np.ones(1, "f")
    )
    np.testing.assert_allclose(
      lesson.extra["teacher_probs"], last(workdir, before, "train"), atol=1e-6
    )
    difference = last(workdir, before, "test") - last(workdir, name, "test")
    assert np.abs(difference).max() > 1e-3


@pytest.mark.slow
def test_scores_and_costs_of_rounds(workdir):
  config = config_of(distill__rounds_stop="nll")
  task = tasks.load_task(config)
  labels = task.splits["select"].labels
  probs = last(workdir, "kf_kd", "select")
  score = -metrics.negative_log_likelihood(probs, labels)
  assert students._score(Workspace(config, workdir), "kf_kd") == pytest.approx(
    float(score)
  )
  config.distill.rounds_stop = "none"
  rows = methods.students.STUDENTS.ensembles(
    Workspace(config, workdir), tasks.load_task(config).folds[0]
  )
  assert [row.method for row in rows] == ["kf_kd", "kf_kd_2", "kf_kd_3"]
  costs = [row.train_cost for row in rows]
  np.testing.assert_allclose(np.diff(costs), (3 * 3 + 1) / 9)


@pytest.mark.slow
def test_another_first_round_changes_all_that_follow(workdir):
  config = config_of(distill__alpha="0.5", distill__rounds="2")
  said: list[str] = []
  stages.run_stage(config, workdir, "distill", say=said.append, redo=True)
  assert said[0].endswith(": kf_kd, kf_kd_2")
  back = config_of()
  stages.run_stage(back, workdir, "distill", say=said.append, redo=True)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["cached", "live"])
def test_students_of_extra_images_train_to_the_end(workdir, targets):
  config = config_of(
    distill__inputs="both", distill__alpha="0.5", distill__rounds="1",
    distill__targets=targets, data__num_train="120",
  )  # fmt: skip
  stages.run_stage(config, workdir, "distill", say=lambda line: None, redo=True)
  resume = workdir / "runs" / "kf_kd" / "resume"
  steps = 3 * -(-1237 // 40)  # epochs of all images, in batches of 40
  assert str(steps) in {p.name for p in resume.iterdir()}
  for stage in ("rivals", "compare"):
    stages.run_stage(config, workdir, stage, say=lambda line: None)
  rows = files.read_json_lines(workdir / "results.jsonl")
  (cost,) = [row["train_cost"] for row in rows if row["method"] == "kf_kd"]
  assert cost > 1237 / 120


def test_teachers_over_an_axis_of_devices_teach_the_same(tmp_path, monkeypatch):
  """Three members over 1, 2 and 4 devices, filled up where they do not fit."""
  tmp_path = epath.Path(tmp_path)
  weights = np.array([0.5, 0.3, 0.2], np.float32)
  monkeypatch.setattr(results, "weights_of", lambda workdir, name: weights)
  students, meshes, of = [], [], parallel.data_mesh

  def data_mesh(*args, **options):
    meshes.append(of(*args, **options).shape)
    return of(*args, **options)

  monkeypatch.setattr(parallel, "data_mesh", data_mesh)
  for axis in ("1", "2", "4"):
    config = config_of(
      distill__targets="live", distill__rounds="1",
      runtime__ensemble_axis=axis,
    )  # fmt: skip
    if axis == "1":
      stages.run_stage(config, tmp_path, "train", say=lambda line: None)
    meshes.clear()
    distill.run(Workspace(config, tmp_path))
    assert {"data": 8 // int(axis), "ensemble": int(axis)} in meshes
    students.append(last(tmp_path, "kf_kd", "test"))
    (tmp_path / "runs" / "kf_kd").rmtree()
  for student in students[1:]:
    np.testing.assert_allclose(student, students[0], atol=2e-4)
