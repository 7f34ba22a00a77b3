"""Every stage end to end on a tiny run: artefacts, golden values, up-to-date.

The golden values pin down the whole path on the CPU. They may change only with
a change that is meant to change training, noise, splits or fusion; say so in
the commit that changes them.
"""

import shutil

import jax
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import catalogue, cli, files, fusion, methods, stages
from kfkd_jax.data import splits
from kfkd_jax.report import tables
from kfkd_jax.run import results, students, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import compare, distill

METHODS = {
  "final",
  "horizontal",
  "fixed_jumps",
  "random_epochs",
  "best_epoch",
  "early_stopping",
  "kf",
  "kf_one_step",
  "mixture",
  "kf_soup",
  "independent",
  "kf_kd",
  "mixture_kd",
}


def run(config, workdir):
  lines = []
  ran = stages.run(config, epath.Path(workdir), say=lines.append)
  return ran, "\n".join(lines)


def read(workdir, name):
  return files.read_json(epath.Path(workdir) / name)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  assert run(tiny_config(), folder)[0]
  return folder


@pytest.mark.slow
def test_history_within_epochs_goes_through_every_stage(tmp_path):
  config = tiny_config(train__epochs="2", history__every="0.5")
  assert run(config, tmp_path)[0]
  for name in ("diagnosis.json", "fusion.json"):
    # Three steps an epoch: the first half ends after two of them.
    assert read(tmp_path, name)["epochs"] == [0.6667, 1, 1.6667, 2]
  assert sorted(rows_of(tmp_path)) == sorted(METHODS)


def rows_of(workdir):
  rows = files.read_json_lines(epath.Path(workdir) / "results.jsonl")
  return {row["method"]: row for row in rows}


def test_leaves_every_artefact(workdir):
  for name in (
    "config.json",
    "manifest.json",
    "noise.npz",
    "diagnosis.json",
    "fusion.json",
    "results.jsonl",
    "hits.npz",
    "report/index.html",
    "runs/teacher/metrics.jsonl",
    "runs/teacher/predictions/train",
    "runs/kf_kd/history",
  ):
    assert (workdir / name).exists(), name
  history = workdir / "runs" / "teacher" / "history"
  assert sorted(int(p.name) for p in history.iterdir()) == list(range(1, 7))


def test_golden_values(workdir):
  """Equal on jax 0.7.2, 0.10.2 and 0.12.0; the slack is for other CPUs."""
  rows = rows_of(workdir)
  ledger = splits.read_ledger(epath.Path(workdir) / "noise.npz")
  assert ledger.realised_rate("train") == 55 / 120
  metrics = files.read_json_lines(
    epath.Path(workdir) / "runs" / "teacher" / "metrics.jsonl"
  )
  assert metrics[-1]["fit/loss"] == pytest.approx(1.61127, abs=1e-3)
  kf = read(workdir, "fusion.json")["folds"][0]["methods"]["kf"]
  assert kf["members"] == [1]
  assert kf["epsilons"] == pytest.approx([0.27])
  golden = {
    "final": (0.436, 1.73238),
    "kf": (0.434, 1.78834),
    "mixture": (0.436, 1.73238),
    "kf_soup": (0.432, 1.79148),
    "independent": (0.466, 1.75877),
    "kf_kd": (0.348, 1.97607),
  }
  for method, (accuracy, nll) in golden.items():
    assert rows[method]["accuracy"] == pytest.approx(accuracy, abs=0.0041)
    assert rows[method]["nll"] == pytest.approx(nll, abs=2e-3)


def test_costs_are_plain_numbers(workdir):
  """The verdict on a run whose best row cost a NumPy number was an error."""
  space = Workspace(tiny_config(), epath.Path(workdir))
  (fold,) = space.task.folds
  for method in methods.configured(space.config):
    for ensemble in method.ensembles(space, fold):
      assert type(ensemble.train_cost) is float, ensemble.method


def test_every_method_is_scored_with_its_costs(workdir):
  rows = rows_of(workdir)
  assert set(rows) == METHODS
  for row in rows.values():
    low, high = row["accuracy_interval"]
    assert low <= row["accuracy"] <= high
    assert row["gain"] == pytest.approx(
      row["accuracy"] - rows["final"]["accuracy"]
    )
    assert row["num_examples"] == 500
    assert row["split"] == "test"
    assert 0 <= row["ece"] <= 1
    assert 0 <= row["brier"] <= 2
    coverages, risks = row["risk_coverage"]
    assert coverages[-1] == 1
    assert risks[-1] == pytest.approx(1 - row["accuracy"])
    assert min(risks) <= row["aurc"] <= max(risks)
    assert row["set_size"] is row["set_coverage"] is None
  assert rows["final"]["gain_interval"] == [0, 0]
  assert rows["independent"]["train_cost"] == 2
  assert rows["kf_kd"]["inference_cost"] == rows["kf_soup"]["num_members"] == 1
  assert rows["kf_kd"]["train_cost"] > 2 > rows["kf"]["train_cost"] > 1


def test_hits_are_what_the_rows_are_means_of(workdir):
  hits = results.read_hits(epath.Path(workdir))
  assert hits.tested.all() and hits.scored.all()
  store = results.predictions(epath.Path(workdir), "teacher", "test")
  np.testing.assert_array_equal(hits.ids, store.ids)
  rows = rows_of(workdir)
  assert hits.methods.tolist() == list(rows)
  for method, right in zip(hits.methods, hits.hits[0], strict=True):
    assert right.mean() == rows[str(method)]["accuracy"]
  final = np.asarray(store[len(store) - 1]).argmax(-1) == store.labels
  np.testing.assert_array_equal(hits.hits[0, 0], final)


def test_sanity_of_the_history(workdir, capsys):
  code = cli.main(["sanity", f"--workdir={workdir}"])
  said = capsys.readouterr().out
  checks = read(workdir, "sanity.json")["checks"]
  assert said.count("\n") == 2 + len(checks) == 9
  assert said.count("| pass |") + said.count("| FAIL |") == 7
  sure = ("identical checkpoints", "one checkpoint")
  assert all(c["passed"] for c in checks if c["name"] in sure)
  assert code == (0 if all(c["passed"] for c in checks) else 1)


def test_configuration_and_methods_agree():
  assert set(catalogue.ASKED) == set(methods.OPTIONAL)


def test_rows_say_what_made_them(workdir, tmp_path):
  final = rows_of(workdir)["final"]
  assert final["versions"]["jax"] == jax.__version__
  assert final["device_kind"] == jax.devices()[0].device_kind
  same = tiny_config(report__num_examples="1", runtime__tensorboard="True")
  assert compare._origin(same)["config_hash"] == final["config_hash"]
  other = tiny_config(fuse__window="0")
  assert compare._origin(other)["config_hash"] != final["config_hash"]


def test_nothing_is_reported_on_the_points_that_chose(workdir):
  task = tasks.load_task(tiny_config())
  (fold,) = task.folds
  assert fold.select_split == "select"
  train_ids = set(task.splits["train"].ids)
  assert not train_ids & set(task.splits["select"].ids)
  assert rows_of(workdir)["kf"]["selected_on"] == "select (clean labels)"
  assert rows_of(workdir)["final"]["selected_on"] == ""


def test_fusion_reproduces_from_the_store(workdir):
  content = read(workdir, "fusion.json")
  chosen = content["folds"][0]["methods"]["kf"]
  store = results.predictions(epath.Path(workdir), "teacher", "select")
  fresh = fusion.knowledge_fusion(store, store.labels)
  np.testing.assert_array_equal(fresh.members, chosen["members"])
  np.testing.assert_allclose(fresh.weights, chosen["weights"], atol=1e-7)
  assert content["epochs"] == store.epochs == list(range(1, 7))


def test_cached_teacher_is_the_fused_store(workdir):
  """Members run again from their checkpoints say what the store says."""
  config = tiny_config()
  weights = np.linspace(0, 1, 6, dtype=np.float32) / 3
  stacked, weights_used = results.read_members(
    Workspace(config, epath.Path(workdir)), weights
  )
  assert len(weights_used) == 5  # the first weighs nothing
  images = tasks.load_task(config).images
  probs = students.teacher_probs(
    Workspace(config), stacked, weights_used, images
  )
  store = results.predictions(epath.Path(workdir), "teacher", "train")
  np.testing.assert_allclose(probs, fusion.fuse(store, weights), atol=1e-6)


def test_second_run_does_nothing_and_says_so(workdir):
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  ran, said = run(tiny_config(), workdir)
  assert not ran
  assert said.count("up to date") == len(stages.STAGES)
  after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  assert before == after


AFTER_FUSE = ["fuse", "distill", "rivals", "compare", "report"]


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    ({"report__num_examples": "1"}, ["report"]),
    ({"compare__level": "0.9"}, ["compare", "report"]),
    ({"fuse__window": "0"}, AFTER_FUSE),
    ({"selection__labels": "noisy"}, AFTER_FUSE),
    ({"baselines__gce_q": "0.5"}, ["rivals", "compare", "report"]),
    ({"distill__alpha": "0.5"}, ["distill", "compare", "report"]),
    ({"train__epochs": "2"}, list(stages.STAGES)),
    ({"runtime__tensorboard": "True"}, []),
  ],
)
def test_a_change_redoes_only_what_depends_on_it(workdir, change, expected):
  config = tiny_config(**change)
  folder = epath.Path(workdir)
  stale = [
    s
    for s in stages.STAGES
    if not stages.is_up_to_date(Workspace(config, folder), s)
  ]
  assert stale == expected


def test_lost_artefact_is_made_again(workdir, tmp_path):
  (workdir / "diagnosis.json").unlink()
  ran, said = run(tiny_config(), workdir)
  assert ran
  assert "diagnose ..." in said
  assert "train: up to date" in said


def test_other_inputs_start_a_run_again(tmp_path, capsys):
  quick = {"train__epochs": "1", "distill__teachers": ""}
  folder = epath.Path(tmp_path)
  stages.run_stage(tiny_config(**quick), folder, "train", say=print)
  first = results.predictions(folder, "teacher", "test")[0]
  other = tiny_config(**quick, optim__learning_rate="0.3")
  stages.run_stage(other, folder, "train", say=print, redo=True)
  assert "set aside in" in capsys.readouterr().out
  again = results.predictions(folder, "teacher", "test")[0]
  assert np.abs(first - again).max() > 1e-4


def test_stage_before_its_turn_says_what_is_missing(tmp_path):
  with pytest.raises(stages.MissingStageError, match="fuse needs train"):
    stages.run_stage(tiny_config(), epath.Path(tmp_path), "fuse")


@pytest.mark.slow
def test_half_of_test_selects_three_times(tmp_path):
  config = tiny_config(
    selection__source="test",
    train__epochs="3",
    distill__targets="live",
    distill__alpha="0.7",
    distill__temperature="2.0",
    distill__teachers="kf",
    train__average_decay="0.9",
    augment__mixup="0.3",
    augment__pad="1",
    runtime__tensorboard="True",
  )
  run(config, tmp_path)
  rows = files.read_json_lines(epath.Path(tmp_path) / "results.jsonl")
  finals = [row for row in rows if row["method"] == "final"]
  assert [row["split"] for row in finals] == ["test/0", "test/1", "test/2"]
  assert {row["num_examples"] for row in rows} == {250}
  (student,) = [row for row in rows if row["method"] == "kf_kd"]
  assert student["split"] == "test/0"
  assert student["selected_on"] == "test half (clean labels)"
  assert "ema" in {row["method"] for row in rows}
  assert list((tmp_path / "runs" / "teacher" / "tensorboard").iterdir())
  hits = results.read_hits(epath.Path(tmp_path))
  for f, fold in enumerate(tasks.load_task(config).folds):
    assert not set(fold.select_rows) & set(fold.test_rows)
    assert np.flatnonzero(hits.tested[f]).tolist() == list(fold.test_rows)
  run_ = tables.Run(rows, hits)
  for summary in tables.summarise([run_], num_samples=100):
    own = [row for row in rows if row["method"] == summary["method"]]
    for key in ("accuracy", "gain"):
      mean = np.mean([row[key] for row in own])
      assert summary[key] == pytest.approx(mean)


def test_table_shows_the_rows_that_matter_or_every_one():
  row = {
    "method": "kf", "split": "test", "accuracy": 0.5, "gain": 0.1,
    "gain_interval": [0.05, 0.15], "nll": 1.0, "ece": 0.1, "brier": 0.5,
    "train_cost": 1.1, "inference_cost": 3, "selected_on": "",
  }  # fmt: skip
  rows = [row, {**row, "method": "kf_soup"}, {**row, "method": "swa"}]
  lines = compare.table(rows, level=0.9).splitlines()
  assert "  90 % interval  " in lines[0]
  assert "[+0.050, +0.150]" in lines[2]
  assert [line.split()[0] for line in lines[2:4]] == ["kf", "swa"]
  assert lines[4:] == ["1 more row: kfkd compare --all"]
  whole = compare.table(rows, level=0.9, whole=True).splitlines()
  assert [line.split()[0] for line in whole[2:]] == ["kf", "kf_soup", "swa"]
  # The one to take is among them.
  assert "\nkf_soup " in compare.table(rows, level=0.9, besides=("kf_soup",))


def test_eight_rows_matter_of_those_that_nobody_asked_for():
  assert {m for m in METHODS if m not in catalogue.MINOR} == {
    "final", "best_epoch", "fixed_jumps", "kf", "mixture", "independent",
    "kf_kd", "mixture_kd",
  }  # fmt: skip


def test_the_verdict_comes_last_and_a_student_below_is_warned_of(
  workdir, tmp_path, capsys
):
  folder = shutil.copytree(workdir, tmp_path / "copy")
  assert cli.main(["compare", "--all", f"--workdir={folder}"]) == 0
  said = capsys.readouterr().out
  assert "\nkf_one_step " in said
  (warning,) = [
    line for line in said.splitlines() if line.startswith("WARNING: kf_kd ")
  ]
  rows = rows_of(folder)
  agreement = rows["kf_kd"]["teacher_agreement"]
  assert f"what its teacher says on {100 * agreement:.0f} % of" in warning
  assert rows["kf"]["teacher_agreement"] is None
  _, _, verdict = said.rpartition("\n\n")
  assert verdict.startswith("One network of the original size, ")
  page = (folder / "report" / "index.html").read_text()
  assert page.index("of the original size") < page.index("Every method")
  assert "“KF, distilled” is clearly below" in page
  # The stage that trained it said the same.
  space = Workspace(tiny_config(), epath.Path(folder))
  assert f"WARNING: {distill._warnings(space, 'kf_kd', 'kf')[0]}" == warning
