"""Every column of the paper's tables has a configuration that works."""

import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from kfkd_jax import config as config_lib
from kfkd_jax import models, published, stages
from kfkd_jax.report import run_page as report
from kfkd_jax.run import build, results

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "paper"
# Those of the one paper have a file each.
COLUMNS = sorted(
  name
  for name, column in published.COLUMNS.items()
  if "Knowledge Fusion" in column.source
)
# Parameters in millions: the published counts, ResNet-18 with a small stem.
MILLIONS = {
  "cifar100": 11.22, "tiny_imagenet": 11.27, "animal10n": 11.17,
  "imagenet_resnet50": 25.56, "imagenet_convnext_large": 197.77,
  "imagenet_vit_base": 86.57, "imagenet_maxvit_tiny": 30.92,
}  # fmt: skip
# One in every run of the tests: a compilation takes half a minute of a core.
FAST = ("cifar100_asym_40",)
DRY = [
  name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
  for name in COLUMNS
]


def load(name, arguments=""):
  return config_lib.load_config(f"{FOLDER}/{name}.py:{arguments}")


def of(name, table):
  return next(table[key] for key in table if name.startswith(key))


def test_every_column_has_a_file_and_every_file_is_a_column():
  names = [path.stem for path in FOLDER.glob("*.py")]
  assert sorted(names) == sorted([*COLUMNS, "common"])


@pytest.mark.parametrize("name", COLUMNS)
def test_file_is_valid_and_says_what_it_is_to_reach(name, tmp_path):
  config = load(name, f"root={tmp_path}")
  config_lib.validate(config)
  assert config.report.paper == name
  assert config.selection.source == "test"
  assert (config.selection.labels, config.selection.halvings) == ("clean", 3)
  text = (FOLDER / f"{name}.py").read_text()
  assert f"kfkd run --config=configs/paper/{name}.py" in text
  said = dict(re.findall(r"^    (\w+) +([\d.]+ ± [\d.]+)$", text, re.M))
  numbers = published.COLUMNS[name].numbers
  assert {m: tuple(map(float, t.split(" ± "))) for m, t in said.items()} == {
    m: tuple(number) for m, number in numbers.items()
  }
  trained = {"fge", "swa", "snapshot"} & set(numbers)
  assert set(config.compare.methods) == trained


@pytest.mark.parametrize("name", COLUMNS)
def test_networks_have_the_published_size(name, tmp_path):
  config = load(name, f"root={tmp_path}")
  side = 32 if config.data.name == "cifar100" else 64
  side = config.data.image_size or side
  options = build.model_options(config)
  count = {"cifar100": 100, "tiny_imagenet": 200, "animal10n": 10}
  module = models.create(
    options.pop("name"),
    count.get(config.data.name, 1000),
    **{**options, "dtype": jnp.dtype(config.model.dtype)},
  )
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), images)
  )
  total = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))
  assert total / 1e6 == pytest.approx(of(name, MILLIONS), abs=0.011)


@pytest.mark.parametrize("name", DRY)
@pytest.mark.slow
def test_two_steps_on_made_images(name, tmp_path):
  config = load(name, "dryrun")
  config_lib.validate(config)
  full = load(name)
  assert (config.noise, config.optim.name) == (full.noise, full.optim.name)
  stages.run_stage(config, epath.Path(tmp_path), "train", say=str)
  store = results.predictions(epath.Path(tmp_path), "teacher", "test")
  assert store.epochs == [1, 2]  # of one step each
  assert np.isfinite(store[1]).all()


@pytest.mark.slow
def test_whole_run_on_made_images(tmp_path):
  config = load("cifar100_asym_40", "dryrun")
  stages.run(config, epath.Path(tmp_path), say=str)
  page = (tmp_path / "report" / "index.html").read_text()
  assert "Beside the paper" in page
  table = (tmp_path / "report" / "tables" / "paper.csv").read_text()
  lines = {line.split(",")[0]: line.split(",") for line in table.splitlines()}
  assert lines["kf"][1:3] == ["62.1", "0.5"]
  assert float(lines["fge"][3]) >= 0
  assert lines["kf_kd"][1:3] == ["", ""]


def row(method, accuracy):
  return {"method": method, "accuracy": accuracy}


def test_paper_and_ours_side_by_side():
  rows = [row("final", 0.5), row("kf", 0.6), row("final", 0.6), row("own", 1.0)]
  table = {r.pop("method"): r for r in report.beside_paper(rows, "cifar100")}
  assert table["final"] == {
    "paper": 78.07,
    "paper_error": 0.28,
    "ours": pytest.approx(55),
    "ours_error": pytest.approx(5),
  }
  assert table["kf"]["ours"] == pytest.approx(60)
  assert table["kf"]["ours_error"] is None
  assert table["swa"]["ours"] is None
  assert table["own"]["paper"] is None
  assert list(table)[-1] == "own"


def test_numbers_were_copied_whole():
  """Gains as the paper's own last rows have them, to its rounding."""
  gains = {
    "cifar100": 1.05, "tiny_imagenet": 3.54, "imagenet_resnet50": 0.78,
    "imagenet_convnext_large": 1.03, "imagenet_vit_base": 1.17,
    "imagenet_maxvit_tiny": 1.29, "animal10n": 1.9, "cifar100_asym_20": 7.1,
    "cifar100_asym_40": 12.6, "cifar100_sym_20": 7.4, "cifar100_sym_40": 10.1,
    "tiny_imagenet_20": 6.6, "tiny_imagenet_40": 7.2,
  }  # fmt: skip
  for name, gain in gains.items():
    numbers = published.COLUMNS[name].numbers
    found = numbers["kf"].mean - numbers["final"].mean
    assert found == pytest.approx(gain, abs=0.11), name


def test_unknown_column():
  config = config_lib.default_config()
  config.report.paper = "cifar10"
  with pytest.raises(config_lib.ConfigError, match=r"report.paper='cifar10'"):
    config_lib.validate(config)
