"""The audit of a run and of a file: table, summary, page; corrections."""

import csv
import io
import json

import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from kfkd_jax import auditing, cli, stages
from kfkd_jax import config as config_lib
from kfkd_jax.data import splits
from kfkd_jax.run import results


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


def test_one_epoch_says_what_needs_more(tmp_path, capsys):
  path = save(tmp_path / "p.npz", 1)
  output = tmp_path / "out"
  code, out, _ = kfkd(
    "audit", f"--predictions={path}", f"--output={output}", capsys=capsys
  )
  assert code == 0
  assert "one epoch only: variability, first_learnt, forgotten need more" in out
  assert "One epoch only" in (output / "index.html").read_text()
