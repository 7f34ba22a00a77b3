"""The command a person types: help, mistakes, foreign predictions."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import kfkd_jax
from kfkd_jax import cli
from kfkd_jax import config as config_lib

ROOT = pathlib.Path(kfkd_jax.__file__).parents[1]


def kfkd(*arguments, capsys):
  try:
    code = cli.main(arguments)
  except SystemExit as leaving:
    code = leaving.code
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
  ("argument", "code", "said"),
  [
    ("--help", 0, "usage: kfkd"),
    ("--version", 0, f"kfkd {kfkd_jax.__version__}\n"),
    ("trian", 2, "'trian' is no stage; did you mean 'train'?"),
  ],
)
def test_what_needs_no_jax_does_not_wait_for_it(tmp_path, argument, code, said):
  (tmp_path / "jax.py").write_text("raise SystemExit('JAX was loaded')")
  done = subprocess.run(
    [sys.executable, "-m", "kfkd_jax.cli", argument],
    env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == code
  assert said in done.stdout + done.stderr
  assert "JAX was loaded" not in done.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["run", "--config.train.epochs=0"], "train.epochs=0 is not possible"),
    (["run", "--config.train.epoch=3"], "did you mean 'train.epochs'"),
    (["run", "--config=nowhere.py"], "there is no file nowhere.py"),
    (["run", "--epochs=3"], "argument '--epochs=3' is unknown"),
    (["run", "--config.train.epochs", "4"], "use --config.train.epochs=VALUE"),
    (["run", "--config.train.lr=1"], "did you mean 'optim.learning_rate'"),
    (["runn"], "'runn' is no stage; did you mean 'run'?"),
    (["zzz", "--workdir=x"], "'zzz' is no stage; `kfkd --help` has all"),
    ([], "name a STAGE, such as run"),
    (["train", "--config.data.name=cifar-10"], "did you mean cifar10?"),
    (["train", "--config.data.name=cifar11"], "did you mean cifar10?"),
    (["help", "train.epoch"], "did you mean 'train.epochs'"),
    (["help", "--config.train.epochs=3"], "help takes no --config"),
    (
      ["compare", "--predictions=x.npz"],
      "goes with diagnose, fuse, report, audit, not",
    ),
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
  assert err.count("\n") == 1 and len(err) < 400
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("arguments", "words", "others"),
  [
    (["study", "--help"], ["retention", "How few", "--seeds"], ["--model"]),
    (["-h", "predict"], ["--model", "folders of them"], ["--seeds", "sweep"]),
    (["merge", "--help"], ["--decay", "PATH"], ["--config", "--workdir"]),
    (["--version"], ["kfkd 0."], ["usage"]),
  ],
)
def test_a_stage_has_a_help_of_its_own(arguments, words, others, capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.main(arguments)
  assert stopped.value.code == 0
  said = capsys.readouterr().out
  assert all(word in said for word in words)
  assert not any(word in said for word in others)


def test_keys_are_explained(capsys):
  _, out, _ = kfkd("help", "train.epochs", capsys=capsys)
  assert out == (
    "train.epochs: Passes over the training set.\n"
    "  default 60; allowed 1 to 1e+06\n"
  )
  _, out, _ = kfkd("help", "optim", "history.keep", capsys=capsys)
  assert "optim.nesterov" in out and "allowed True, False" in out
  assert "or None" in out.partition("history.keep")[2]
  _, out, _ = kfkd("help", capsys=capsys)
  assert all(f"{key.name}=" in out for key in config_lib.KEYS)


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
  done = subprocess.run(
    [sys.executable, "-c", code], check=False, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_foreign_predictions_are_diagnosed_and_fused(
  capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  path = save_predictions(tmp_path / "p.npz", epochs=np.arange(6) * 10)
  code, out, _ = kfkd("diagnose", f"--predictions={path}", capsys=capsys)
  assert code == 0
  assert "max F_e" in out
  assert "at epoch 20" in out
  assert f"points of {path} wrong at the end" in out
  code, out, _ = kfkd("fuse", f"--predictions={path}", capsys=capsys)
  assert code == 0
  assert out.startswith(f"on the points of {path} KF of epochs ")
  content = json.loads((tmp_path / "p.fusion.json").read_text())
  assert content["epochs"] == [0, 10, 20, 30, 40, 50]
  kf = content["folds"][0]["methods"]["kf"]
  assert 2 in kf["members"]
  assert sum(kf["weights"]) == pytest.approx(1)
  assert kf["gain"] > 0
  assert {p.name for p in tmp_path.iterdir()} == {
    "p.npz", "p.diagnosis.json", "p.fusion.json", "p.weights.npz",
  }  # fmt: skip


def test_fuse_says_how_its_weights_are_applied(capsys, tmp_path):
  path = save_predictions(tmp_path / "p'1.npz")
  _, out, _ = kfkd("fuse", f"--predictions={path}", capsys=capsys)
  assert "These points chose the weights: expect less" in out
  arrays = np.load(path)
  known = {"numpy": np, "probs": arrays["probs"]}
  exec("\n".join(x[2:] for x in out.splitlines() if x[:2] == "  "), known)
  assert sum(line[:2] == "  " for line in out.splitlines()) == 1
  right = np.mean(known["fused"].argmax(-1) == arrays["labels"])
  stored = json.loads((tmp_path / "p'1.fusion.json").read_text())
  assert right == pytest.approx(
    stored["folds"][0]["methods"]["kf"]["accuracy"], abs=1e-6
  )


def test_the_last_epoch_alone_is_said_so(capsys, tmp_path):
  probs = np.tile(np.eye(3), (2, 1, 1))
  path = save_predictions(tmp_path / "p.npz", probs=probs, labels=np.arange(3))
  _, out, _ = kfkd("fuse", f"--predictions={path}", capsys=capsys)
  assert "KF of the last epoch alone has accuracy 1.000" in out


@pytest.mark.parametrize("option", ["--output", "--workdir"])
@pytest.mark.parametrize("stage", ["diagnose", "fuse"])
def test_foreign_results_never_go_into_a_run(
  stage, option, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  path = save_predictions(tmp_path / "p.npz")
  run = tmp_path / "kfkd-workdir"  # where runs are unless told otherwise
  (run / "runs").mkdir(parents=True)
  for name in ("config.json", "diagnosis.json", "fusion.json"):
    (run / name).write_text("of a run")
  foreign = (stage, f"--predictions={path}")
  assert kfkd(*foreign, capsys=capsys)[0] == 0
  code, _, err = kfkd(*foreign, f"{option}=kfkd-workdir", capsys=capsys)
  assert code == 2 and err.count("\n") == 1
  assert "kfkd-workdir holds a run, whose" in err
  assert {p.name for p in run.iterdir() if p.is_file()} == {
    "config.json", "diagnosis.json", "fusion.json",
  }  # fmt: skip
  assert all(p.read_text() == "of a run" for p in run.glob("*.json"))
  code, out, _ = kfkd(*foreign, f"{option}=new/deep", capsys=capsys)
  assert code == 0 and "written to new/deep/" in out
  code, _, err = kfkd(*foreign, f"{option}={path}", capsys=capsys)
  assert code == 2 and "is a file; name a folder" in err


def test_output_of_a_run_is_its_workdir(capsys):
  code, _, err = kfkd("fuse", "--output=x", capsys=capsys)
  assert code == 2 and "--output goes with fuse --predictions" in err


def test_logits_by_mistake(capsys, tmp_path):
  logits = np.random.default_rng(0).normal(size=(6, 40, 3))
  path = save_predictions(tmp_path / "p.npz", probs=logits)
  code, _, err = kfkd("fuse", f"--predictions={path}", capsys=capsys)
  assert code == 2
  assert "are these logits?" in err


@pytest.mark.parametrize(
  "arguments",
  [
    ["run", "--config=x.jaxexp"],
    ["predict", "--model=x.jaxexp", "images.npz"],
    ["fuse", "--predictions=x.jaxexp"],
  ],
)
def test_pipes_are_no_input(arguments, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.mkfifo("x.jaxexp")
  code, _, err = kfkd(*arguments, capsys=capsys)
  assert code == 2
  assert "x.jaxexp is a named pipe where a file belongs" in err
  assert err.count("\n") == 1
