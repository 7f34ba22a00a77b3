"""The command a person types: help, mistakes, foreign predictions."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kfkd_jax import cli


def kfkd(*arguments, capsys):
  code = cli.main(arguments)
  out, err = capsys.readouterr()
  return code, out, err


def save_predictions(path, **changes):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 40)
  probs = rng.dirichlet(np.ones(3), (6, 40))
  probs[2, np.arange(40), labels] += 1  # the third checkpoint knows most
  probs /= probs.sum(-1, keepdims=True)
  arrays = {"probs": probs.astype(np.float32), "labels": labels, **changes}
  np.savez(path, **arrays)
  return str(path)


def test_help_names_every_stage_and_key(capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.main(["--help"])
  assert stopped.value.code == 0
  said = capsys.readouterr().out
  for word in ("train", "fuse", "--config.KEY", "--predictions", "--workdir"):
    assert word in said


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["run", "--config.train.epochs=0"], "train.epochs=0 is not possible"),
    (["run", "--config.train.epoch=3"], "did you mean 'train.epochs'"),
    (["run", "--config=nowhere.py"], "there is no file nowhere.py"),
    (["run", "--epochs=3"], "argument '--epochs=3' is unknown"),
    (["run", "--config.train.epochs"], "--config.key=value"),
    (["compare", "--predictions=x.npz"], "goes with diagnose and fuse"),
    (["fuse", "--predictions=no-such-file.npz"], "no-such-file.npz"),
    (["sweep", "--seeds=0"], "--seeds must be at least 1"),
  ],
)
def test_mistakes_are_one_line_and_exit_code_2(
  arguments, message, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, _, err = kfkd(*arguments, capsys=capsys)
  assert code == 2
  assert message in err
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_stage_before_its_turn(capsys, tmp_path):
  code, _, err = kfkd("report", f"--workdir={tmp_path}", capsys=capsys)
  assert code == 2
  assert "report needs train" in err


def test_mistakes_are_found_before_jax_starts():
  code = (
    "import sys\n"
    "from kfkd_jax import cli\n"
    "assert cli.main(['run', '--config.train.epochs=0']) == 2\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge._backends\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_foreign_predictions_are_diagnosed_and_fused(capsys, tmp_path):
  path = save_predictions(tmp_path / "p.npz", epochs=np.arange(6) * 10)
  where = f"--workdir={tmp_path / 'w'}"
  code, out, _ = kfkd("diagnose", f"--predictions={path}", where, capsys=capsys)
  assert code == 0
  assert "max F_e" in out
  assert "at epoch 20" in out
  code, out, _ = kfkd("fuse", f"--predictions={path}", where, capsys=capsys)
  assert code == 0
  content = json.loads((tmp_path / "w" / "fusion.json").read_text())
  assert content["epochs"] == [0, 10, 20, 30, 40, 50]
  kf = content["folds"][0]["methods"]["kf"]
  assert 2 in kf["members"]
  assert sum(kf["weights"]) == pytest.approx(1)
  assert kf["gain"] > 0


def test_logits_by_mistake(capsys, tmp_path):
  logits = np.random.default_rng(0).normal(size=(6, 40, 3))
  path = save_predictions(tmp_path / "p.npz", probs=logits)
  code, _, err = kfkd("fuse", f"--predictions={path}", capsys=capsys)
  assert code == 2
  assert "are these logits?" in err
