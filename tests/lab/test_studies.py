"""Studies: measures against hand-made stores, summaries, one small run."""

import csv
import html
import itertools
import pathlib
import re
import shlex
import types

import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import auditing, cli, files
from kfkd_jax import config as config_lib
from kfkd_jax.lab import studies, sweep
from kfkd_jax.lab.studies import composed, measures
from kfkd_jax.predictions import PredictionStore
from kfkd_jax.report import tables
from kfkd_jax.run import results
from kfkd_jax.run.workspace import Workspace


def one_hot(classes, num_classes=3, sure=0.9):
  """Probabilities whose top class is given."""
  probs = np.full((len(classes), num_classes), (1 - sure) / (num_classes - 1))
  probs[np.arange(len(classes)), classes] = sure
  return probs.astype(np.float32)


def store_of(path, says, labels):
  """A store of checkpoints that say these classes, `[C, N]`."""
  path, ids = epath.Path(path), np.arange(len(labels))
  store = PredictionStore.create(path, labels, ids, num_classes=3)
  for epoch, classes in enumerate(says, start=1):
    store.write(epoch, one_hot(classes))
  return store


def make_history(tmp_path, *, num=40, checkpoints=20, transition=None):
  """Checkpoint 4 is right everywhere, the others on a third of the points."""
  labels = np.arange(num) % 3
  says = np.tile((labels + np.arange(num) // 3 % 3) % 3, (checkpoints, 1))
  says[4] = labels
  select = store_of(tmp_path / "select", says, labels)
  test = store_of(tmp_path / "test", says, labels)
  rows = np.arange(num)
  given = np.where(rows % 4 == 0, (labels + 1) % 3, labels)
  return measures.History(
    select, rows, labels, given, test, rows[::2], transition
  )


@pytest.fixture(autouse=True)
def few(monkeypatch):
  """Ends of the ranges: every length compiles anew."""
  monkeypatch.setattr(measures, "RETENTION", (1.0, 0.05))
  monkeypatch.setattr(measures, "WINDOWS", (0, 8))
  monkeypatch.setattr(measures, "NUM_EPSILONS", (2, 101))
  monkeypatch.setattr(measures, "NUM_SELECT", (25, 60, 400))


def test_retention_finds_what_was_kept_and_loses_what_was_not(tmp_path):
  run = make_history(tmp_path)
  config = config_lib.default_config()
  config.fuse.window = 0
  rows = measures.retention_of(config, run)
  assert [row["kept"] for row in rows] == list(measures.RETENTION)
  final = np.mean(run.test[19][::2].argmax(-1) == run.test.labels[::2])
  assert rows[0]["kf"] == pytest.approx(1 - final)  # checkpoint 4 is there
  assert rows[0]["fixed_jumps"] == 0  # outvoted
  assert rows[-1] == {"kept": 0.05, "fixed_jumps": 0, "kf": 0, "mixture": 0}


def test_windows_that_are_too_wide_lose_a_lone_checkpoint(tmp_path):
  run = make_history(tmp_path)
  rows = measures.window_of(config_lib.default_config(), run)
  assert len(rows) == len(measures.WINDOWS) * len(measures.NUM_EPSILONS)
  by_window = {r["window"]: r["kf"] for r in rows if r["num_epsilons"] == 101}
  assert by_window[0] > 0.5
  assert by_window[8] == 0


def test_selection_by_number_and_kind_of_labels(tmp_path):
  transition = np.full((3, 3), 0.125, np.float32) + 0.625 * np.eye(3)
  run = make_history(tmp_path, num=120, transition=transition)
  config = config_lib.default_config()
  config.fuse.window = 0
  rows = measures.selection_of(config, run)
  assert [(r["labels"], r["num_select"]) for r in rows] == [
    (kind, num) for kind in ("clean", "noisy") for num in (25, 60)
  ]
  final = np.mean(run.test[19][::2].argmax(-1) == run.test.labels[::2])
  for row in rows:
    assert row["mixture"] == pytest.approx(1 - final)
    for told in ("mixture_known", "mixture_estimated"):
      assert np.isnan(row[told]) == (row["labels"] == "clean")
  assert rows[-1]["mixture_known"] == pytest.approx(1 - final)
  assert rows[-1]["mixture_estimated"] == pytest.approx(1 - final)


def test_without_a_matrix_nothing_is_told(tmp_path):
  rows = measures.selection_of(
    config_lib.default_config(), make_history(tmp_path)
  )
  assert np.isnan([row["mixture_known"] for row in rows]).all()


def test_recipes_by_what_chooses_and_by_what_is_tested(tmp_path):
  kf = {"accuracy": 0.9, "gain": 0.2}
  folder = epath.Path(tmp_path)
  files.write_json(folder / "fusion.json", {"folds": [{"methods": {"kf": kf}}]})
  gains = {"final": None, "kf": 0.2, "mixture": 0.1}
  rows = [
    {"method": method, "accuracy": 0.5, "select_gain": gain}
    for method, gain in gains.items()
  ]
  files.write_json_lines(folder / "results.jsonl", rows)
  (row,) = measures.chosen(config_lib.default_config(), folder)
  assert row == pytest.approx({
    "final": 0.5, "kf": 0.5, "mixture": 0.5,
    "select_final": 0.7, "select_kf": 0.9, "select_mixture": 0.8,
  })  # fmt: skip
  drawn = {v for vs in studies.find("reversal").figures.values() for v in vs}
  assert drawn == set(row)


def cell_of(objective, seed, right):
  """What `composed.run_of` says of a cell whose methods are right here."""
  names = [*right, "kf_one_step"]
  hits = np.array([[*right.values(), np.zeros(8, bool)]], bool)
  score = dict.fromkeys(
    ("nll", "ece", "brier", "train_cost", "inference_cost", "storage_cost"), 1.0
  )
  run = tables.Run(
    [{"method": name, **score} for name in names],
    results.Hits(
      np.array(names), np.arange(8), hits,
      tested=np.ones((1, 8), bool), scored=np.ones((1, len(names)), bool),
    ),
  )  # fmt: skip
  return {
    "noise.kind": "pair", "train.objective": objective, "seed": seed, "run": run
  }  # fmt: skip


def up_to(count):
  return np.arange(8) < count


def test_fusions_beside_their_own_network_and_the_best_one():
  """`sce` is best on the mean though not in every seed; of `ce` one is left."""
  rows = [
    cell_of("ce", 0, {"final": up_to(3), "kf": up_to(7)}),
    cell_of("sce", 0, {"final": up_to(5), "kf": up_to(4)}),
    cell_of("elr", 0, {"final": up_to(6), "kf": up_to(6)}),
    cell_of("sce", 1, {"final": up_to(7), "kf": up_to(8)}),
    cell_of("elr", 1, {"final": up_to(4), "kf": up_to(8)}),
  ]
  table = composed.summarise(rows, ("noise.kind", "train.objective", "method"))
  found = {(row["train.objective"], row["method"]): row for row in table}
  assert list(found) == [
    (name, method)
    for name in ("ce", "sce", "elr")
    for method in ("final", "kf")
  ]
  assert {row["noise.kind"] for row in table} == {"pair"}
  expected = {  # accuracy, over its own final network, over that of sce
    ("ce", "final"): (3 / 8, 0, -2 / 8),
    ("ce", "kf"): (7 / 8, 4 / 8, 2 / 8),
    ("sce", "final"): (6 / 8, 0, 0),
    ("sce", "kf"): (6 / 8, 0, 0),
    ("elr", "final"): (5 / 8, 0, -1 / 8),
    ("elr", "kf"): (7 / 8, 2 / 8, 1 / 8),
  }
  values = ("accuracy", "over_final", "over_best")
  for key, numbers in expected.items():
    row = found[key]
    assert [row[value] for value in values] == pytest.approx(list(numbers)), key
    for value in values:
      assert row[f"{value}_low"] <= row[value] <= row[f"{value}_high"]
  assert [found["ce", "kf"][k] for k in ("seeds", "accuracy_error")] == [
    1,
    None,
  ]
  # Paired: +4 and +0 of 8 points, whatever the accuracies are.
  gain = found["elr", "kf"]
  assert gain["over_final_error"] == pytest.approx(2 / 8)
  assert (gain["over_final_low"], gain["over_final_high"]) == (
    pytest.approx(0, abs=0.01),
    pytest.approx(0.75, abs=0.15),
  )
  text = studies.to_markdown(table)
  assert "| pair | elr | kf | 2 | 87.5 ± 12.5 (" in text
  study = studies.find("objectives")
  made = studies.render(
    "objectives", study, table, ["noise.kind", "train.objective"]
  )
  assert set(made.figures) == {"accuracy", "gains"}
  assert "87.5 ± 12.5 (" in made.html
  rows[1]["run"].hits.ids[0] = 9
  with pytest.raises(ValueError, match="differ in ids"):
    composed.summarise(rows, ("noise.kind", "train.objective", "method"))


def test_objectives_without_a_common_seed_are_not_compared():
  rows = [
    cell_of("ce", 0, {"final": up_to(3)}),
    cell_of("sce", 1, {"final": up_to(5)}),
  ]
  table = composed.summarise(rows, ("noise.kind", "train.objective", "method"))
  assert [row["over_best"] for row in table] == [None, 0]
  assert "| - |" in studies.to_markdown(table)


def test_what_a_student_keeps():
  labels = np.array([0, 0, 1, 1, 2, 2])
  final = one_hot([0, 1, 0, 0, 0, 0])  # right on the first alone
  teacher = one_hot([0, 0, 1, 1, 1, 1])  # brings back three, misses two
  student = one_hot([1, 0, 1, 0, 2, 0])
  kept = measures.student_of(final, teacher, student, labels)
  assert kept["recovered"] == pytest.approx(2 / 3)
  assert kept["beyond"] == pytest.approx(1 / 2)
  assert kept["agreement"] == pytest.approx(2 / 6)
  assert kept["teacher_gain"] == pytest.approx(3 / 6)
  assert kept["student_gain"] == pytest.approx(2 / 6)
  # Always 0.9 sure, and right on 1, 4 and 3 of 6.
  for name, right in (("final", 1), ("teacher", 4), ("student", 3)):
    assert kept[f"{name}_ece"] == pytest.approx(0.9 - right / 6)
  none = measures.student_of(teacher, teacher, student, labels)
  assert np.isnan(none["recovered"])


def test_online_fusion_beside_plain_training(tmp_path):
  """Two points are forgotten for good by the one, one by the other."""
  labels = np.array([0, 1, 2, 0])
  right, end = [0, 1, 2, 0], [1, 1, 2, 0]
  store_of(
    tmp_path / "runs/online_fusion/predictions/test", [right, end], labels
  )
  test = {"accuracy": [1.0, 0.5], "max_forget": 0.5}
  files.write_json(tmp_path / "diagnosis.json", {"splits": {"test": test}})
  files.write_json_lines(
    tmp_path / "results.jsonl",
    [
      {"method": "final", "accuracy": 0.5, "gain": 0.0},
      {"method": "online_fusion", "accuracy": 0.75, "gain": 0.25},
    ],
  )
  config = config_lib.default_config()
  assert measures.online(config, epath.Path(tmp_path)) == [
    {
      "accuracy": 0.5,
      "online_accuracy": 0.75,
      "gain": 0.25,
      "max_forget": 0.5,
      "online_max_forget": 0.25,
    }
  ]


def audited(tmp_path, **changes):
  """The measure of two epochs, which say clean labels, then given ones."""
  config = tiny_config(**changes)
  task = Workspace(config, epath.Path(tmp_path)).task
  train = task.splits["train"]
  store = PredictionStore.create(
    epath.Path(tmp_path) / "runs/teacher/predictions/train",
    train.labels, train.ids, num_classes=10,
  )  # fmt: skip
  for epoch, says in enumerate((train.labels, task.given), start=1):
    store.write(epoch, one_hot(says, num_classes=10))
  rows = measures.audits(config, epath.Path(tmp_path))
  return rows, task.given != train.labels


def test_scores_are_held_against_the_labels_that_noise_changed(tmp_path):
  rows, wrong = audited(tmp_path)
  by_score = {row["score"]: row for row in rows}
  assert list(by_score) == ["ours", *auditing.Scores._fields]
  perfect = {"auroc": 1.0, "average_precision": 1.0, "missed": 0.0}
  for name in ("ours", "aum", "first_learnt"):
    found = {key: by_score[name][key] for key in perfect}
    assert found == perfect
  # The end says every label alike, so that nothing is told from it.
  assert by_score["last_loss"]["auroc"] == 0.5
  share = pytest.approx(wrong.mean())
  assert by_score["last_loss"]["average_precision"] == share
  study = studies.find("audit")
  point = {"noise.kind": "pair", "noise.rate": 0.4}
  table = studies.summarise(
    [{**point, **row} for row in rows], (*point, *study.by)
  )
  made = studies.render("audit", study, table, [*point])
  assert set(made.figures) == {"auroc", "average_precision", "missed"}
  assert "| pair | 0.4 | ours | 1 | 100.0 |" in studies.to_markdown(table)


def test_without_wrong_labels_scores_have_nothing_to_find(tmp_path):
  rows, wrong = audited(tmp_path, noise__kind="none")
  assert not wrong.any()
  assert np.isnan([row["auroc"] for row in rows]).all()
  table = studies.summarise(rows, ("score",))
  assert "| ours | 1 | 0.0 |" in studies.to_markdown(table)


def test_gains_of_a_cell_are_means_over_folds():
  test = {"max_forget_checkpoint": 1, "max_forget": 0.3, "null": [0.1, 0.2]}
  rows = [
    {"method": method, "accuracy": accuracy, "gain": gain}
    for method, accuracy, gain in (
      ("final", 0.5, 0.0), ("final", 0.7, 0.0), ("kf", 0.8, 0.1), ("kf", 1, 0.3)
    )
  ]  # fmt: skip
  found = measures.gains_of(test, rows)
  assert found["accuracy"] == pytest.approx(0.6)
  assert found["kf"] == pytest.approx(0.2)
  assert (found["max_forget"], found["null_forget"]) == (0.3, 0.2)
  assert np.isnan(found["kf_kd"])


def test_summary_is_a_mean_over_seeds_and_leaves_out_what_nobody_has():
  nan = float("nan")
  rows = [
    {"kind": "a", "gain": 0.1, "rare": nan, "none": nan},
    {"kind": "b", "gain": 0.5, "rare": 0.2, "none": nan},
    {"kind": "a", "gain": 0.3, "rare": nan, "none": nan},
  ]
  first, second = studies.summarise(rows, ("kind",))
  assert first == {
    "kind": "a",
    "seeds": 2,
    "gain": pytest.approx(0.2),
    "gain_error": pytest.approx(0.1),
    "rare": None,
    "rare_error": None,
  }
  assert (second["gain"], second["gain_error"]) == (0.5, None)
  assert second["rare"] == 0.2


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_is_a_valid_sweep_of_what_it_draws(name):
  study = studies.find(name)
  config = config_lib.read(None, study.changes)
  axes = [axis.key for axis in config_lib.parse_grid(study.grid, config)]
  assert study.x in (*axes, *study.by)
  assert not study.line or study.line in (*axes, *study.by)
  assert study.question.endswith("?")
  # Whoever shares cells shares their configuration and axes.
  for other in studies.STUDIES.values():
    if other.cells == study.cells:
      same = config_lib.parse_grid(other.grid, config)
      assert other.changes == study.changes
      assert [axis.key for axis in same] == axes


def table_of(name):
  """A made summary of a study, two values on every axis."""
  study = studies.find(name)
  axes = config_lib.parse_grid(study.grid, config_lib.default_config())
  own = [config_lib.Axis(key, ("1", "2")) for key in study.by]
  rows = [{}]
  for axis in (*axes, *own):
    texts = axis.values[:2]
    values = [float(t) if t[0].isdigit() else t for t in texts]
    rows = [{**row, axis.key: value} for row in rows for value in values]
  numbers = {}
  for value in dict.fromkeys(v for vs in study.figures.values() for v in vs):
    numbers |= {value: 0.12, f"{value}_error": 0.01}
  return study, [{**r, "seeds": 2, **numbers} for r in rows], axes


@pytest.mark.parametrize("name", ["window", "descent_width"])
def test_pages_show_every_value(name):
  study, table, axes = table_of(name)
  made = studies.render(name, study, table, [axis.key for axis in axes])
  assert study.question in html.unescape(made.html)
  assert {f"{f}-{k}" for f in study.figures for k in ("pair", "symmetric")} == (
    set(made.figures)
  )
  assert made.html.count("<td data-value") == len(table) * len(
    {v for vs in study.figures.values() for v in vs}
  )
  assert "12.0 ± 1.0" in made.html
  assert list(made.tables) == [name]
  assert f"against {study.x}, noise.kind=pair.\n" in made.html


def test_a_page_says_which_seeds_its_means_are_over():
  study, table, axes = table_of("window")
  found = []
  for seeds in (1, 2, 3):
    table[0]["seeds"] = seeds
    html = studies.render("w", study, table, [axis.key for axis in axes]).html
    found.append(
      " ".join(html.partition("study w · ")[2][:60].split("<")[0].split())
    )
  assert found == ["1 to 2 seeds a point", "2 seeds", "2 to 3 seeds a point"]


def test_values_with_slashes_make_names_of_files():
  study, table, axes = table_of("inputs")
  made = studies.render("inputs", study, table, [axis.key for axis in axes])
  assert set(made.figures) == {
    f"gains-{name}-{hard}"
    for name in ("digits", "synthetic_num_train_3000_num_test_1000")
    for hard in ("False", "True")
  }


COLABS = pathlib.Path(__file__).parents[2] / "colabs"


def test_page_of_results_names_what_there_is():
  text = (COLABS / "studies.md").read_text()
  commands = re.findall(r"`kfkd study (\w+)( --seeds=\d+)([^`]*)`", text)
  assert {name for name, _, _ in commands} == set(studies.STUDIES)
  for name, _, rest in commands:
    config = config_lib.read(None, studies.find(name).changes)
    words = shlex.split(rest)
    grid = [b for a, b in itertools.pairwise(words) if a == "--grid"]
    assert len(grid) == rest.count("--grid")
    config_lib.parse_grid(grid, config)
  for link in re.findall(r"\]\(([^)#:]+)\)", text):
    assert (COLABS / link).exists()
    assert (COLABS / link).stat().st_size < 100_000


TINY = [
  "--config.data.num_train=100",
  "--config.selection.num=60",
  "--config.train.epochs=2",
  "--config.train.batch_size=32",
  "--config.model.name=mlp",
  "--config.model.width=4",
  "--config.compare.bootstrap_samples=100",
  "--config.predictions.train=False",
]


def test_missing_cells_are_run_and_summed_up(tmp_path, monkeypatch):
  said = []

  def fake_sweep(config, workdir, *, num_seeds, grid):
    said.append((str(workdir), num_seeds, grid))
    cells = [
      sweep.Cell((), config_lib.changed(config, {"seed": s, "noise.rate": r}))
      for s in (0, 1)
      for r in (0.0, 0.2)
    ]
    return sweep.Outcome("", {"b": "broken"}, {}, tuple(cells))

  def measure(config, folder):
    assert folder.name == f"seed-{config.seed}"
    gain = config.noise.rate + 0.01 * config.seed
    return [{"max_forget": 0.1, "null_forget": 0.1, "kf": gain}]

  own = studies.STUDIES["noise"]._replace(measure=measure)
  monkeypatch.setitem(studies.STUDIES, "noise", own)
  monkeypatch.setattr(studies, "sweep", types.SimpleNamespace(run=fake_sweep))
  outcome = studies.run(
    config_lib.read(None, own.changes),
    "noise",
    epath.Path(tmp_path),
    num_seeds=2,
    grid=["noise.rate=0,0.2"],
  )
  grid = ("noise.kind=pair,symmetric", "noise.rate=0,0.2")
  assert said == [(str(tmp_path / "cells" / "noise"), 2, grid)]
  assert outcome.failed == {"b": "broken"}
  assert (
    "| pair | 0.2 | 2 | 10.0 ± 0.0 | 10.0 ± 0.0 | 20.5 ± 0.5 |" in outcome.table
  )
  tables = tmp_path / "noise" / "tables"
  assert "| 20.5 ± 0.5 |" in (tables / "noise.md").read_text()
  assert r"& 20.5 $\pm$ 0.5 \\" in (tables / "noise.tex").read_text()
  row = (tables / "noise.csv").read_text().splitlines()[2].split(",")
  assert [round(float(cell), 3) for cell in row[-2:]] == [0.205, 0.005]
  assert (tmp_path / "noise" / "figures" / "gains.svg").exists()


@pytest.mark.slow
def test_two_cells_serve_two_studies(tmp_path, capsys):
  grid = ["--grid", "noise.kind=pair", "--grid", "noise.rate=0,0.4"]
  command = [f"--workdir={tmp_path}", "--seeds=1", *grid, *TINY]
  assert cli.main(["study", "student", *command]) == 0
  first = capsys.readouterr().out
  assert "recovered" in first
  assert (tmp_path / "student" / "index.html").exists()
  assert cli.main(["study", "noise", *command]) == 0
  assert "train" not in capsys.readouterr().out  # the cells were there
  text = (tmp_path / "noise" / "tables" / "noise.csv").read_text()
  rows = list(csv.DictReader(text.splitlines()))
  assert [row["noise.rate"] for row in rows] == ["0.0", "0.4"]
  assert all(float(row["accuracy"]) > 0 for row in rows)
  # Another grid: only what was asked for is run and shown.
  grid[-1] = "noise.rate=0.4"
  one = [f"--workdir={tmp_path}", "--seeds=1", *grid, *TINY]
  assert cli.main(["study", "selection", *one]) == 0
  folder = tmp_path / "selection"
  text = (folder / "tables" / "selection.csv").read_text()
  rows = list(csv.DictReader(text.splitlines()))
  assert [r["num_select"] for r in rows] == ["25", "60", "25", "60"]
  assert {r["noise.rate"] for r in rows} == {"0.4"}
  assert list((folder / "figures").glob("gains*.svg"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["study"], "study needs one NAME"),
    (["study", "noises"], "'noises' is unknown; there are noise, width"),
    (["study", "noise", "--grid", "model.width=2"], "noise varies noise.kind"),
    (["study", "noise", "width"], "study needs one NAME"),
  ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
  assert cli.main([*arguments, f"--workdir={tmp_path}"]) == 2
  assert message in capsys.readouterr().err
