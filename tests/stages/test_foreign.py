"""The page on somebody's saved predictions."""

import json

import numpy as np
import pytest

from kfkd_jax import cli, forgetting
from kfkd_jax.stages import fuse

NUM_CLASSES = 3


def said(num, seed, *, checkpoints=5, rate=0.3):
  """Probabilities of checkpoints that err each on points of its own."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(NUM_CLASSES, size=num)
  sure = 0.1 + 0.7 * np.eye(NUM_CLASSES)
  wrong = rng.random((checkpoints, num)) < rate
  return sure[np.where(wrong, labels + 1, labels) % NUM_CLASSES], labels


def save(path, probs, labels, **more):
  np.savez(path, probs=probs, labels=labels, **more)
  return path


def report(*arguments, capsys):
  code = cli.main(["report", *map(str, arguments)])
  out, err = capsys.readouterr()
  return code, out, err


def rows_of(folder):
  lines = (folder / "results.jsonl").read_text().splitlines()
  return {row["method"]: row for row in map(json.loads, lines)}


def test_other_points_measure_what_the_file_chose(tmp_path, capsys):
  names = np.array([f"{n}.png" for n in range(400)])
  chose = save(tmp_path / "chose.npz", *said(200, 1))
  test_probs, test_labels = said(400, 2)
  tests = save(tmp_path / "tests.npz", test_probs, test_labels, ids=names)
  code, out, _ = report(
    f"--predictions={chose}", f"--test={tests}", capsys=capsys
  )
  assert code == 0 and "chose.report/index.html" in out
  folder = tmp_path / "chose.report"
  rows = rows_of(folder)
  weights = np.load(folder / "weights.npz")
  fused = np.einsum("c,cnk->nk", weights["kf"], test_probs)
  assert rows["kf"]["accuracy"] == np.mean(fused.argmax(-1) == test_labels)
  assert rows["final"]["accuracy"] == np.mean(
    test_probs[-1].argmax(-1) == test_labels
  )
  assert rows["kf"]["gain_interval"][0] > 0
  # Every forgotten point stands there under its name, with both answers.
  lines = (folder / "tables" / "forgotten.csv").read_text().splitlines()
  assert lines[0] == "id,true,at_end,fused,times_right,last_right"
  correct = test_probs.argmax(-1) == test_labels
  lost = np.flatnonzero(~correct[-1] & correct.any(0))
  assert {line.split(",")[0] for line in lines[1:]} == set(names[lost])
  name, true, at_end, now, times, last = lines[1].split(",")
  n = int(np.flatnonzero(names == name)[0])
  assert int(true) == test_labels[n]
  assert int(at_end) == test_probs[-1, n].argmax()
  assert int(now) == fused[n].argmax()
  assert int(times) == correct[:, n].sum() == correct[:, lost].sum(0).max()
  assert int(last) == 1 + np.flatnonzero(correct[:, n])[-1]
  page = (folder / "index.html").read_text()
  assert "an interval clear of zero" in page
  assert "measured on tests.npz" in page


def test_the_classes_of_a_file_are_found_once(tmp_path, capsys, monkeypatch):
  found, classes_of = [], forgetting.predicted_classes

  def note(probs):
    found.append(probs.shape[1])
    return classes_of(probs)

  chosen = {"weights": [0, 0, 0, 0.5, 0.5], "members": [3], "gain": 0.0}
  methods = dict.fromkeys(("kf_one_step", "kf", "mixture"), chosen)
  monkeypatch.setattr(fuse, "fuse", lambda *arguments, **options: methods)
  monkeypatch.setattr(forgetting, "predicted_classes", note)
  chose = save(tmp_path / "chose.npz", *said(40, 1))
  tests = save(tmp_path / "tests.npz", *said(50, 2))
  assert (
    report(f"--predictions={chose}", f"--test={tests}", capsys=capsys)[0] == 0
  )
  assert sorted(found) == [40, 50]


def test_alone_each_half_is_measured_by_what_the_other_chose(tmp_path, capsys):
  # Labels drawn at random: what is chosen here holds nowhere.
  probs, labels = said(120, 3, checkpoints=40, rate=2 / 3)
  path = save(
    tmp_path / "p.npz", probs, np.random.default_rng(0).permutation(labels)
  )
  assert report(f"--predictions={path}", capsys=capsys)[0] == 0
  best = rows_of(tmp_path / "p.report")["best_epoch"]
  assert best["num_examples"] == 120
  assert best["select_gain"] - best["gain"] > 0.03
  page = (tmp_path / "p.report" / "index.html").read_text()
  assert "measured on the other half" in page
  assert "an interval clear of zero" not in page


@pytest.mark.parametrize("kind", ["answers", "correct"])
def test_answers_have_a_page_without_fusions(kind, tmp_path, capsys):
  probs, labels = said(60, 4)
  answers = probs.argmax(-1)
  arrays = {"answers": {"answers": answers, "labels": labels}}
  arrays["correct"] = {"correct": answers == labels}
  np.savez(tmp_path / "a.npz", **arrays[kind])
  code, out, _ = report(
    f"--predictions={tmp_path / 'a.npz'}",
    f"--output={tmp_path / 'x'}",
    capsys=capsys,
  )
  assert code == 0 and "max F_e" in out
  page = (tmp_path / "x" / "index.html").read_text()
  assert "What they know together" in page and 'data-name="gains"' not in page
  head = (
    (tmp_path / "x" / "tables" / "forgotten.csv").read_text().split("\n")[0]
  )
  said_of = "true,at_end," if kind == "answers" else ""
  assert head == f"id,{said_of}times_right,last_right"
  assert not (tmp_path / "x" / "weights.npz").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"checkpoints": 4}, "5 checkpoints and"),
    ({"epochs": np.arange(5)}, "name other epochs"),
  ],
)
def test_points_of_other_checkpoints_measure_nothing(
  changes, message, tmp_path, capsys
):
  chose = save(tmp_path / "chose.npz", *said(50, 1))
  epochs = changes.pop("epochs", None)
  more = {} if epochs is None else {"epochs": epochs}
  tests = save(tmp_path / "tests.npz", *said(50, 2, **changes), **more)
  code, _, err = report(
    f"--predictions={chose}", f"--test={tests}", capsys=capsys
  )
  assert code == 2 and err.count("\n") == 1 and message in err
  assert not (tmp_path / "chose.report").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--test=x.npz"], "--test goes with report --predictions"),
    (["runs", "--predictions=x.npz"], "not both"),
  ],
)
def test_what_does_not_go_together(arguments, message, capsys):
  code, _, err = report(*arguments, capsys=capsys)
  assert code == 2 and message in err


def test_three_points_cannot_measure_each_other(tmp_path, capsys):
  path = save(tmp_path / "p.npz", *said(3, 0))
  code, _, err = report(f"--predictions={path}", capsys=capsys)
  assert code == 2 and "name others by --test" in err
