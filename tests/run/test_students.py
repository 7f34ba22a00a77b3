"""A student may be of another kind than its teacher, wherever it is used."""

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import config as config_lib
from kfkd_jax import files, models, parallel, stages
from kfkd_jax.export import models as export
from kfkd_jax.run import (
  build,
  results,
  students,
  tasks,
  workspace,
)
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import compare, distill

TEACHER_WIDTH, STUDENT_WIDTH = 8, 4


def config_of(**changes):
  return tiny_config(**{
    "train__epochs": "3",
    "train__average_decay": "0.5",
    "model__width": str(TEACHER_WIDTH),
    "distill__teachers": "kf",
    "distill__width": str(STUDENT_WIDTH),
    "compare__independent": "1",
    "compare__methods": "dkd,relational_kd",
    "compare__test_time": "kf_kd",
    "export__models": "kf,kf_kd",
    **changes,
  })  # fmt: skip


def changed_model(**changes):
  config = config_of(**changes)
  student = config_lib.changed(config, students.student_changes(config))
  return {
    key: value
    for key, value in student.model.items()
    if value != config.model[key]
  }


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"distill__width": "None"}, {}),
    ({}, {"width": STUDENT_WIDTH}),
    ({"distill__model": "cnn"}, {"name": "cnn", "width": STUDENT_WIDTH}),
    (
      {"distill__model": "cnn", "distill__width": "None"},
      {"name": "cnn", "width": None},
    ),
    (  # patches are the teacher's alone
      {
        "model__name": "vit_tiny",
        "model__patch": "4",
        "distill__model": "resnet18",
      },
      {"name": "resnet18", "width": STUDENT_WIDTH, "patch": None},
    ),
    (  # a stem fits both
      {
        "model__name": "resnet50",
        "model__stem": "cifar",
        "distill__model": "resnet18",
      },
      {"name": "resnet18", "width": STUDENT_WIDTH},
    ),
    (
      {"model__pretrained": __file__},
      {"width": STUDENT_WIDTH, "pretrained": None},
    ),
    ({"model__pretrained": __file__, "distill__width": "None"}, {}),
  ],
)
def test_what_a_student_takes_over(changes, expected, monkeypatch):
  for module in ("kfkd_jax.config.reading", "kfkd_jax.config"):
    monkeypatch.setattr(f"{module}.validate", lambda config: None)
  assert changed_model(**changes) == expected


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("distill__width", "0", "distill.width=0 is not possible"),
    ("distill__model", "cn", "distill.model='cn' is not possible.*cnn"),
  ],
)
def test_mistakes_are_found_at_once(key, value, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    config_of(**{key: value})


def test_size_is_that_of_the_networks():
  config = config_of()
  task = tasks.load_task(config)
  size = students.student_size(Workspace(config))
  few, many = (
    models.num_parameters(
      models.init(
        models.create(config.model.name, 10, width=width),
        jax.random.key(0),
        task.images[:1],
      )
    )
    for width in (STUDENT_WIDTH, TEACHER_WIDTH)
  )
  assert size.storage == few / many
  # All but normalisation and the softmax are products of matrices.
  assert 0.35 < size.compute < 0.55
  assert students.student_size(Workspace(config_of(distill__width="None"))) == (
    1,
    1,
  )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("students"))
  config = config_of()
  for name in ("train", "fuse", "distill", "rivals", "compare", "export"):
    stages.run_stage(config, folder, name, say=lambda line: None)
  return folder


def member(workdir, run):
  weights = np.ones(1, np.float32)
  if run == workspace.TEACHER:
    weights = np.array([0, 0, 1], np.float32)
  stacked, _ = results.read_members(
    Workspace(config_of(), workdir), weights, name=run
  )
  return stacked["params"]


def test_runs_say_what_network_they_are(workdir):
  widths = {
    "teacher": TEACHER_WIDTH,
    "teacher_ema": TEACHER_WIDTH,
    "kf_kd": STUDENT_WIDTH,
    "kf_kd_ema": STUDENT_WIDTH,
    "dkd": STUDENT_WIDTH,
    "relational_kd": STUDENT_WIDTH,
    "kf_soup": TEACHER_WIDTH,
  }
  for run, width in widths.items():
    noted = files.read_json(workdir / "runs" / run / "model.json")
    assert noted["model"]["width"] == width, run
    assert member(workdir, run)["Dense_0"]["kernel"].shape[-1] == width, run


def test_a_run_without_a_note_is_as_configured(workdir, monkeypatch):
  """As those of versions that made all networks alike."""
  monkeypatch.setattr(results, "MODEL", "none.json")
  space = Workspace(config_of(), workdir)
  assert results.configured_as(space, "kf_kd") is space


def test_costs_count_what_the_student_takes(workdir):
  rows = {
    row["method"]: row
    for row in files.read_json_lines(workdir / "results.jsonl")
  }
  size = students.student_size(Workspace(config_of()))
  many = config_of().compare.views
  for name, views in (("kf_kd", 1), ("dkd", 1), ("kf_kd+views", many)):
    row = rows[name]
    assert row["num_members"] == 1
    assert row["inference_cost"] == pytest.approx(
      views * size.compute, abs=1e-3
    )
    assert row["storage_cost"] == pytest.approx(size.storage, abs=1e-3)
  assert rows["final"]["inference_cost"] == rows["final"]["storage_cost"] == 1
  config, members = config_of(), 2
  passes = students.train_cost(Workspace(config), members)
  assert passes == pytest.approx((3 * 3 * size.compute + members) / (3 * 3))


def test_views_of_the_student_are_of_the_student(workdir):
  """Without augmentation every view is the image as it is."""
  config = config_of()
  assert not config.augment.flip
  (probs,) = compare.view_probs(Workspace(config, workdir)).values()
  store = results.predictions(workdir, "kf_kd", "test")
  np.testing.assert_allclose(probs, store[len(store) - 1], atol=1e-6)


def test_each_exported_model_has_its_own_network(workdir):
  card = files.read_json(workdir / "export" / "card.json")
  described = {k: m["network"]["width"] for k, m in card["models"].items()}
  assert described == {"kf": TEACHER_WIDTH, "kf_kd": STUDENT_WIDTH}
  text = (workdir / "export" / "README.md").read_text()
  count = card["models"]["kf_kd"]["network"]["num_parameters"]
  assert f"`kf_kd`: `mlp` with {count} parameters" in text
  assert max(m["parity"] for m in card["models"].values()) <= 1e-5
  model = export.read(Workspace(config_of(), workdir), "kf_kd")
  images = tasks.load_task(config_of()).splits["test"].images
  store = results.predictions(workdir, "kf_kd", "test")
  np.testing.assert_allclose(
    export.live_probs(model, images), store[len(store) - 1], atol=1e-5
  )


@pytest.mark.parametrize("targets", ["cached", "live"])
def test_a_small_student_teaches_the_next(workdir, targets):
  """Its lesson comes from its own network, not from the first teacher's."""
  config = config_of(distill__targets=targets)
  lesson = distill._lesson(Workspace(config, workdir), "kf_kd", np.ones(1, "f"))
  if targets == "cached":
    probs = lesson.extra["teacher_probs"]
  else:
    task = tasks.load_task(config)
    views = build.make_views(Workspace(config))
    batch = {
      "image": views.clean(task.images),
      "label": task.given,
      "weight": np.ones(len(task.given), "f"),
    }
    targets_of = parallel.pmapped(
      lambda frozen, batch: lesson.objective.targets(
        frozen, batch["image"], batch
      ),
      parallel.data_mesh(jax.devices()[:1]),
      in_specs=(lesson.objective.frozen_spec, parallel.SHARDED),
      out_specs=parallel.SHARDED,
    )
    probs = targets_of(lesson.frozen, batch)["teacher_probs"]
  store = results.predictions(workdir, "kf_kd", "train")
  np.testing.assert_allclose(probs, store[len(store) - 1], atol=1e-5)


def test_a_damaged_note_is_named(workdir, tmp_path):
  note = tmp_path / "runs" / "kf_kd" / "model.json"
  note.parent.mkdir(parents=True)
  text = (workdir / "runs" / "kf_kd" / "model.json").read_text()
  for damage in (text.replace("4", "5", 1), text[:-20], "[]"):
    note.write_text(damage)
    with pytest.raises(ValueError, match=rf"{note} is damaged.*remove it"):
      results.configured_as(
        Workspace(config_of(), epath.Path(tmp_path)), "kf_kd"
      )
