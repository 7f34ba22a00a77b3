"""The audit of a run and of a file: table, summary, page; corrections."""

import csv
import io
import json
import shlex

import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import auditing, cli, predictions, stages
from kfkd_jax import config as config_lib
from kfkd_jax import options as options_lib
from kfkd_jax.data import splits
from kfkd_jax.run import provenance, results, students, tasks
from kfkd_jax.run.workspace import Workspace
from kfkd_jax.stages import audit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("audited")
  stages.run_stage(tiny_config(), workdir, "train", lambda line: None)
  return epath.Path(workdir)


def rows_of(path):
  return list(csv.DictReader(io.StringIO(path.read_text())))


def kfkd(*arguments, capsys):
  code = cli.main(list(map(str, arguments)))
  return code, *capsys.readouterr()


def test_every_training_label_is_judged(trained):
  said = []
  stages.run_stage(tiny_config(), trained, "audit", said.append)
  folder = trained / "audit"
  rows = rows_of(folder / "audit.csv")
  ledger = splits.read_ledger(trained / "noise.npz")
  train = ledger.split == "train"
  given = dict(zip(ledger.index[train], ledger.given[train], strict=True))
  assert {int(row["index"]): int(row["given"]) for row in rows} == given
  store = results.predictions(trained, "teacher", "train")
  labels = np.array([given[n] for n in store.ids])
  found = auditing.audit(store, labels)
  order = np.argsort(-found.score, kind="stable")
  assert [int(row["index"]) for row in rows] == store.ids[order].tolist()
  assert [row["accused"] == "1" for row in rows] == found.accused[
    order
  ].tolist()
  assert all(bool(row["why"]) == (row["accused"] == "1") for row in rows)
  summary = json.loads((folder / "audit.json").read_text())
  assert summary["num_accused"] == found.accused.sum()
  low, high = summary["rate_interval"]
  assert low < summary["rate"] < high
  assert (
    sum(row["accused"] for row in summary["classes"])
    == (summary["num_accused"])
  )
  wrong = labels != store.labels
  truth = summary["truth"]
  assert truth["num_wrong"] == wrong.sum()
  assert truth["scores"]["aum"]["auroc"] == pytest.approx(
    auditing.judge(found.scores.aum, wrong).auroc
  )
  page = (folder / "index.html").read_text()
  assert page.count('alt="Training image') == 2 and "cartography" in page
  assert f"{summary['num_accused']} of 120 labels look wrong" in said[-1]
  stages.run_stage(tiny_config(), trained, "audit", said.append)
  assert said[-1] == "audit: up to date"


def test_a_run_is_audited_into_another_folder(trained, tmp_path, capsys):
  command = ("audit", f"--workdir={trained}", f"--output={tmp_path / 'a'}")
  code, out, _ = kfkd(*command, capsys=capsys)
  assert code == 0 and "labels look wrong" in out
  assert len(rows_of(tmp_path / "a" / "audit.csv")) == 120
  assert (tmp_path / "a" / "index.html").exists()
  code, _, err = kfkd(*command[:2], f"--output={trained}", capsys=capsys)
  assert code == 2 and "holds a run" in err


def test_the_last_line_is_the_run_without_the_accused_labels(
  trained, tmp_path, capsys
):
  """Data, networks and options of the run before, but for the labels."""
  output = tmp_path / "an audit"
  code, out, _ = kfkd(
    "audit", f"--workdir={trained}", f"--output={output}", capsys=capsys
  )
  assert code == 0
  program, *words = shlex.split(out.splitlines()[-1])
  assert program == "kfkd"
  options, rest = options_lib.parse(words)
  assert options.stage == "run" and options.workdir == f"{trained}-mended"
  config = config_lib.read(None, options_lib.check(options, rest))
  table = str(output / "audit.csv")
  assert config == config_lib.changed(
    tiny_config(), {"noise.corrections": table}
  )
  nothing = tmp_path / "corrected.csv"
  nothing.write_text("index,given,suggested\n")
  before = tiny_config(noise__corrections=str(nothing))
  lines = audit.write_of_run(Workspace(before, trained), tmp_path / "again")
  assert len(lines) == 1  # a run takes one table


def test_out_of_sample_each_point_is_judged_by_who_never_saw_it(tmp_path):
  config = tiny_config(audit__folds="3", train__epochs="2")
  space = Workspace(config, epath.Path(tmp_path))
  task, said = Workspace(config).task, []
  stages.run_stage(config, space.path, "train", said.append)
  with pytest.raises(
    config_lib.ConfigError, match=r"output first, or .*folds=None"
  ):
    audit.write_of_run(space, space.path / "elsewhere")
  stages.run_stage(config, space.path, "audit", said.append)
  folds = audit.folds_of(space)
  np.testing.assert_array_equal(np.bincount(folds), [40, 40, 40])
  counts = np.zeros((10, 3), int)
  np.add.at(counts, (task.given, folds), 1)
  assert (np.ptp(counts, axis=1) <= 1).all()
  expected = np.empty((1, 120, 10), np.float32)
  for k, plan in enumerate(audit.plans(space)):
    taught = plan.lesson().extra
    np.testing.assert_array_equal(taught["image"], task.images[folds != k])
    np.testing.assert_array_equal(taught["label"], task.given[folds != k])
    store = results.predictions(space.path, f"fold_{k}", "train")
    expected[0, folds == k] = store[len(store) - 1][folds == k]
  found = auditing.audit(expected, task.given)
  rows = rows_of(space.path / "audit" / "audit.csv")
  ids = task.splits["train"].ids.tolist()
  for row in rows:
    n = ids.index(int(row["index"]))
    assert float(row["score"]) == pytest.approx(found.score[n], abs=1e-5)
    margin = found.scores.class_margin[n]
    assert float(row["class_margin"]) == pytest.approx(margin, abs=1e-5)
  told = space.path / "audit" / "out_of_sample.npz"
  assert told.name in (told.parent / "SHA256SUMS").read_text()
  read = predictions.read_foreign(told)
  np.testing.assert_array_equal(read.probs, expected)
  np.testing.assert_array_equal(read.labels, task.given)
  with np.load(told) as arrays:
    assert arrays["ids"].tolist() == ids
  page = (space.path / "audit" / "index.html").read_text()
  assert "digits, out of sample in 3 folds" in page
  assert any("3 networks, a fold apart each: at most 3" in s for s in said)
  stages.run_stage(config, space.path, "audit", said.append)
  assert said[-1] == "audit: up to date"
  audit.write_of_run(space.changed({"audit.folds": None}), told.parent)
  assert not told.exists()


def test_folds_need_predictions_of_the_training_points():
  with pytest.raises(config_lib.ConfigError, match=r"audit\.folds=3 needs"):
    tiny_config(audit__folds="3", predictions__train="False")


def test_without_predictions_of_the_training_points_the_key_is_named(tmp_path):
  config = tiny_config(predictions__train="False", train__epochs="1")
  stages.run_stage(config, tmp_path, "train", lambda line: None)
  with pytest.raises(config_lib.ConfigError, match=r"predictions\.train=True"):
    stages.run_stage(config, tmp_path, "audit", lambda line: None)


def test_an_audit_needs_a_trained_network(tmp_path, capsys):
  code, _, err = kfkd("audit", f"--workdir={tmp_path / 'w'}", capsys=capsys)
  assert code == 2 and "audit needs train" in err


def save(path, num_epochs):
  rng = np.random.default_rng(0)
  probs = rng.dirichlet(np.ones(3), (num_epochs, 40)).astype(np.float32)
  np.savez(path, probs=probs, labels=rng.integers(3, size=40))
  return path


def test_the_predictions_of_others_are_audited_beside_their_file(
  tmp_path, capsys
):
  path = save(tmp_path / "p.npz", 4)
  code, out, _ = kfkd("audit", f"--predictions={path}", capsys=capsys)
  assert code == 0 and "of 40 labels look wrong" in out
  rows = rows_of(tmp_path / "p.audit" / "audit.csv")
  assert sorted(int(row["index"]) for row in rows) == list(range(40))
  assert list(rows[0])[:5] == ["index", "file", "given", "suggested", "score"]
  assert "truth" not in json.loads(
    (tmp_path / "p.audit" / "audit.json").read_text()
  )


def test_where_no_label_is_accused_there_is_a_page_too(tmp_path, capsys):
  labels = np.arange(12) % 3
  path = tmp_path / "p.npz"
  np.savez(path, probs=np.stack([np.eye(3)[labels]] * 2), labels=labels)
  code, out, _ = kfkd("audit", f"--predictions={path}", capsys=capsys)
  assert code == 0 and "0 of 12 labels look wrong, 0.0 % [0.0, 0.0]" in out
  page = (tmp_path / "p.audit" / "index.html").read_text()
  assert "The most suspect" not in page and "By class" in page


def test_one_epoch_says_what_needs_more(tmp_path, capsys):
  path = save(tmp_path / "p.npz", 1)
  output = tmp_path / "out"
  code, out, _ = kfkd(
    "audit", f"--predictions={path}", f"--output={output}", capsys=capsys
  )
  assert code == 0
  assert "one epoch only: variability, first_learnt, forgotten need more" in out
  assert "One epoch only" in (output / "index.html").read_text()


@pytest.fixture
def corrected(tmp_path):
  """Rows of a table of corrections, and the configuration that takes them."""

  def write(rows, correct="drop", columns="index,given,suggested", **changes):
    path = tmp_path / "corrections.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    changes = {"noise__corrections": str(path), "noise__correct": correct} | (
      changes
    )
    return tiny_config(**changes)

  return write


def given_labels(config):
  task = tasks.load_task(config)
  ids = task.splits["train"].ids
  return dict(zip(ids.tolist(), task.given.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["pair", "none"])
@pytest.mark.parametrize("correct", ["drop", "relabel"])
def test_corrections_change_these_labels_and_no_others(
  corrected, correct, kind
):
  noise = {"noise__kind": kind}
  before = given_labels(tiny_config(**noise))
  (one, two, three), rows = sorted(before)[:3], []
  for n, accused in ((one, 1), (two, 0), (three, 1)):
    rows.append(f"{n},{before[n]},{(before[n] + 1) % 10},{accused}")
  config = corrected(
    rows, correct, columns="index,given,suggested,accused", **noise
  )
  wanted = dict(before)
  for n in (one, three):
    if correct == "drop":
      del wanted[n]
    else:
      wanted[n] = (before[n] + 1) % 10
  assert given_labels(config) == wanted
  task = tasks.load_task(config)
  assert len(task.images) == len(task.given) == len(wanted)
  train = task.ledger.split == "train"
  assert task.ledger.index[train].tolist() == task.splits["train"].ids.tolist()
  if kind == "none":
    np.testing.assert_array_equal(task.given, task.splits["train"].labels)
    assert f"; labels corrected by {config.noise.corrections} ({correct})" in (
      tasks.first_line(config, task)
    )
  np.testing.assert_array_equal(
    task.splits["select"].ids,
    tasks.load_task(tiny_config(**noise)).splits["select"].ids,
  )


def test_the_audit_of_a_run_is_what_the_next_one_takes(trained, tmp_path):
  stages.run_stage(tiny_config(), trained, "audit", lambda line: None)
  path = str(trained / "audit" / "audit.csv")
  accused = sum(row["accused"] == "1" for row in rows_of(epath.Path(path)))
  config = tiny_config(noise__corrections=path)
  assert len(given_labels(config)) == 120 - accused
  said = tasks.first_line(config, tasks.load_task(config))
  assert f"are wrong (pair), corrected by {path} (drop)" in said


def test_other_corrections_are_other_data(corrected, tmp_path):
  before = given_labels(tiny_config())
  one, two = sorted(before)[:2]
  config = corrected([f"{one},{before[one]},0"], "drop")
  provenance.note(Workspace(config, tmp_path))
  assert provenance.difference(Workspace(config, tmp_path)) == ""
  corrected([f"{two},{before[two]},0"], "drop")
  tasks._load_task.cache_clear()
  assert provenance.difference(Workspace(config, tmp_path)) == "corrections"


@pytest.mark.parametrize(
  "rows, message",
  [
    (["99999,1,2"], r"corrects index 99999, which is none of the 120 training"),
    (["ONE,OTHER,2"], r"is given as \d, but here it is given as \d"),
    (["ONE,GIVEN,2", "ONE,GIVEN,3"], r"corrects index \d+ twice"),
    (["ONE,GIVEN,10"], r"line 2: labels must lie in 0\.\.9"),
    (["ONE,GIVEN,cat"], r"line 2: .* must be whole numbers"),
    (["ONE"], r"line 2: .* must be whole numbers"),
  ],
)
def test_corrections_that_do_not_fit_are_said_in_a_line(
  corrected, rows, message
):
  before = given_labels(tiny_config())
  one = min(n for n, label in before.items() if label > 3)
  words = {
    "ONE": one, "GIVEN": before[one], "OTHER": before[one] - 1
  }  # fmt: skip
  for word, number in words.items():
    rows = [row.replace(word, str(number)) for row in rows]
  with pytest.raises(ValueError, match=message):
    tasks.load_task(corrected(rows))


@pytest.mark.parametrize("columns", ["given,weight", "given,weight,accused"])
def test_weighted_labels_stay_and_count_less(corrected, columns):
  before = given_labels(tiny_config())
  one, two = sorted(before)[:2]
  rows = [f"{one},{before[one]},0.25,1", f"{two},{before[two]},0.5,0"]
  config = corrected(rows, "weight", columns=f"index,{columns}")
  task = tasks.load_task(config)
  assert given_labels(config) == before
  expected = np.ones(120, np.float32)
  ids = task.splits["train"].ids
  expected[ids == one] = 0.25
  if "accused" not in columns:
    expected[ids == two] = 0.5
  np.testing.assert_array_equal(task.trust, expected)
  assert "(weight)" in tasks.first_line(config, task)
  kept = np.arange(0, 120, 7)
  np.testing.assert_array_equal(task.taught(kept)["trust"], expected[kept])


@pytest.mark.parametrize("weight", ["1.5", "-0.1", "nan", "much", ""])
def test_a_weight_that_is_none_is_said_in_a_line(corrected, weight):
  before = given_labels(tiny_config())
  one = min(before)
  config = corrected(
    [f"{one},{before[one]},{weight}"], "weight", columns="index,given,weight"
  )
  with pytest.raises(
    ValueError, match=r"csv, line 2: weight must be .* 0 to 1, got '" + weight
  ):
    tasks.load_task(config)


def test_tables_that_weigh_nothing_are_refused(corrected):
  before = given_labels(tiny_config())
  rows = [f"{n},{label},0" for n, label in before.items()]
  with pytest.raises(ValueError, match="all 120 training points a weight of 0"):
    tasks.load_task(corrected(rows, "weight", columns="index,given,weight"))
  with pytest.raises(ValueError, match=r"'weight'; noise\.correct='weight' ne"):
    tasks.load_task(corrected(["1,2,3"], "weight"))


def test_an_audit_weighs_what_it_accuses(trained, tmp_path):
  """The next run takes the column; whole weights change no bit of it."""
  said = []
  stages.run_stage(tiny_config(), trained, "audit", said.append)
  path = trained / "audit" / "audit.csv"
  rows = rows_of(path)
  store = results.predictions(trained, "teacher", "train")
  mean = np.mean([store[c] for c in range(len(store))], axis=0)
  for row in rows:
    n = store.ids.tolist().index(int(row["index"]))
    own, other = mean[n, int(row["given"])], mean[n, int(row["suggested"])]
    expected = own / (own + other) if row["accused"] == "1" else 1
    assert float(row["weight"]) == pytest.approx(expected, abs=1e-4)
  table = tmp_path / "weights.csv"
  ones = [f"{row['index']},{row['given']},1" for row in rows]
  table.write_text("\n".join(["index,given,weight", *ones]))
  found = {}
  for name, source in (("whole", table), ("less", path)):
    config = tiny_config(
      noise__corrections=str(source), noise__correct="weight"
    )
    stages.run_stage(config, tmp_path / name, "train", said.append)
    store = results.predictions(tmp_path / name, "teacher", "test")
    found[name] = store[len(store) - 1]
  store = results.predictions(trained, "teacher", "test")
  np.testing.assert_array_equal(found["whole"], store[len(store) - 1])
  assert not np.array_equal(found["less"], found["whole"])


def test_a_student_hears_its_teacher_where_labels_are_not_trusted(corrected):
  before = given_labels(tiny_config())
  one = min(before)
  config = corrected(
    [f"{one},{before[one]},0.25"], "weight", columns="index,given,weight"
  )
  space = Workspace(config)
  seen = students.student_examples(space, None)
  assert "trust" not in seen
  place = space.task.splits["train"].ids == one
  np.testing.assert_array_equal(seen["unlabelled"], np.where(place, 0.75, 0))
  plain = students.student_examples(Workspace(tiny_config()), None)
  assert "unlabelled" not in plain


def test_a_table_without_the_columns_is_refused(corrected):
  with pytest.raises(ValueError, match="has no column 'suggested'"):
    tasks.load_task(corrected(["1,2"], columns="index,given"))
  with pytest.raises(config_lib.ConfigError, match=r"noise\.correct="):
    tiny_config(noise__correct="relabel")


def test_not_every_point_may_be_dropped(corrected):
  before = given_labels(tiny_config())
  rows = [f"{n},{label},{(label + 1) % 10}" for n, label in before.items()]
  with pytest.raises(ValueError, match="drops all 120 training points"):
    tasks.load_task(corrected(rows))
