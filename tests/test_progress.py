"""What a person sees while a run goes on."""

import sys

import pytest

from kfkd_jax.stages.progress import Progress
from kfkd_jax.training.loop import EpochReport


def report(epoch, **metrics):
  metrics = {
    "fit/loss": 0.5,
    "fit/accuracy": 0.9,
    "test/accuracy": 0.7,
    **metrics,
  }
  return EpochReport(epoch, 8, metrics, 123.4)


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
  with Progress(tmp_path, "teacher", tensorboard=False) as show:
    for epoch in range(1, 9):
      show(report(epoch, **{"select/max_forget": 0.25, "select/accuracy": 0.6}))
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[2] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
  for word in ("123 steps/s", "loss 0.500", "test 0.700", "max F_e 0.250"):
    assert word in lines[0]


def test_bar_fits_a_terminal(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "80")
  with Progress(tmp_path, "independent_1", tensorboard=False) as show:
    show(report(8, **{"test/max_forget": 0.25}))
  out, err = capsys.readouterr()
  assert not out
  assert "independent_1" in err
  for word in ("8/8", "123/s", "loss 0.50", "acc 0.700", "F_e 0.250"):
    assert word in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_are_written_without_tensorflow(tmp_path):
  with Progress(tmp_path, "teacher", tensorboard=True) as show:
    show(report(1))
  (file,) = (tmp_path / "tensorboard").iterdir()
  content = file.read_bytes()
  assert b"fit/loss" in content
  assert b"test/accuracy" in content
  assert "tensorflow" not in sys.modules
