"""The site builds without a warning, and holds what it promises."""

import csv
import html.parser
import importlib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest

import kfkd_jax
from kfkd_jax import config as config_lib
from kfkd_jax.catalogue import METHODS
from kfkd_jax.lab import sweep

ROOT = pathlib.Path(__file__).parents[2]
COLABS = ROOT / "colabs"
BOARD = {path.stem: path for path in sorted((COLABS / "board").glob("*.csv"))}
PARTS = ("idea", "formula", "paper", "key", "cost", "when-it-loses")


def test_every_method_has_its_section_in_the_order_of_the_catalogue():
  text = (COLABS / "methods.md").read_text()
  _, *sections = re.split(r"^## (\w+)$", text, flags=re.M)
  assert sections[::2] == list(METHODS)
  for slug, said in zip(sections[::2], sections[1::2], strict=True):
    for part in ("Idea", "Formula", "When it loses"):
      assert f"**{part}.**" in said, (slug, part)
    assert "**Paper.**" in said or not METHODS[slug].paper, slug
    for function in re.findall(r"\*\*Function\.\*\* `(\S+)`", said):
      module, _, name = function.rpartition(".")
      assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", BOARD)
def test_what_is_on_the_board_says_how_it_was_made(name):
  note = json.loads(BOARD[name].with_suffix(".json").read_text())
  assert all(note[key] for key in ("command", "machine", "date", "versions"))
  with BOARD[name].open() as file:
    rows = list(csv.DictReader(file))
  config = config_lib.default_config()
  for word in shlex.split(note["command"])[2:]:
    if word.startswith("--config="):
      path = word.removeprefix("--config=")
      config = config_lib.load_config(f"{ROOT}/{path}")
    elif word.startswith("--config."):
      key, _, value = word.removeprefix("--config.").partition("=")
      config_lib.override(config, key, value)
  for axis in (column for column in rows[0] if "." in column):
    for value in {row[axis] for row in rows} - {""}:
      config_lib.override(config, axis, value)
  assert {row["method"].partition("+")[0] for row in rows} <= set(METHODS)


def program(name):
  """A script of .ci as a module."""
  path = str(ROOT / ".ci" / name)
  loader = importlib.machinery.SourceFileLoader(name, path)
  module = importlib.util.module_from_spec(
    importlib.util.spec_from_loader(name, loader)
  )
  loader.exec_module(module)
  return module


def test_a_sweep_comes_on_the_board_with_its_command(tmp_path, monkeypatch):
  board = program("board")
  monkeypatch.setattr(board, "BOARD", tmp_path / "board")
  config = config_lib.changed(
    config_lib.default_config(),
    {"data.root": str(tmp_path), "train.epochs": 30, "noise.rate": 0.1},
  )
  (tmp_path / sweep.BASE).write_text(config_lib.sealed(config))
  note = {"axes": [["noise.rate", [0.1, 0.2]]], "seeds": [0, 1, 2]}
  (tmp_path / "sweep.json").write_text(json.dumps(note))
  (tmp_path / "table.csv").write_text("noise.rate,method\n0.1,final\n")
  monkeypatch.setattr(sys, "argv", ["board", str(tmp_path), "mine"])
  board.main()
  said = json.loads((tmp_path / "board" / "mine.json").read_text())
  assert said["command"] == (
    "kfkd sweep --seeds=3 --config.data.root=DIR --config.train.epochs=30"
  )
  assert str(tmp_path) not in json.dumps(said)
  copied = (tmp_path / "board" / "mine.csv").read_text()
  assert copied == (tmp_path / "table.csv").read_text()


class Page(html.parser.HTMLParser):
  """Ids, links, what is loaded, and the words below each second heading."""

  def __init__(self, path):
    super().__init__()
    self.ids, self.links, self.loaded = set(), [], []
    self.words, self._part = {}, None
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    self.ids.add(given.get("id"))
    if tag == "a":
      self.links.append(given.get("href") or "")
    if tag == "h2":
      self._part = given.get("id")
      self.words[self._part] = ""
    elif tag == "footer":
      self._part = None
    if tag in ("script", "img", "iframe"):
      self.loaded.append(given.get("src") or "")
    if tag == "link":
      self.loaded.append(given.get("href") or "")

  def handle_endtag(self, tag):
    if tag == "h2":
      self.words[self._part] = ""  # not the heading itself

  def handle_data(self, data):
    if self._part:
      self.words[self._part] += data.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  pytest.importorskip("mkdocs", reason="the extras `docs` are not installed")
  folder = tmp_path_factory.mktemp("site")
  built = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "NO_MKDOCS_2_WARNING": "1",  # an advertisement of its theme
      "PYTHONPATH": str(ROOT),
    },
  )
  said = built.stdout + built.stderr
  assert built.returncode == 0 and "WARNING" not in said, said
  return {
    path.relative_to(folder).as_posix(): Page(path)
    for path in folder.rglob("*.html")
  }


@pytest.mark.slow
def test_every_method_has_a_page_with_all_that_one_asks(site):
  for slug in METHODS:
    words = site[f"methods/{slug}.html"].words
    assert all(len(words[part]) > 3 for part in PARTS), (slug, words)


@pytest.mark.slow
def test_every_key_has_an_anchor(site):
  assert {key.name for key in config_lib.KEYS} <= site["keys.html"].ids


@pytest.mark.slow
def test_the_reference_shows_every_name(site):
  pages = [page for name, page in site.items() if name.startswith("reference/")]
  described = set().union(*(page.ids for page in pages))
  linked = site["reference/kfkd_jax.html"].links
  for name in kfkd_jax.__all__:
    if not isinstance(getattr(kfkd_jax, name), types.ModuleType):
      (anchor,) = {
        link.partition("#")[2] for link in linked if link.endswith(f".{name}")
      }
      assert anchor in described


@pytest.mark.slow
def test_notebooks_and_board_are_shown_with_what_came_out(site):
  for path in COLABS.glob("*.ipynb"):
    pictures = [
      picture
      for picture in site[f"{path.stem}.html"].loaded
      if picture.startswith(f"figures/{path.stem}")
    ]
    assert len(pictures) == path.read_text().count('"image/png": "'), path
  assert set(BOARD) <= set(site["board/index.html"].words)


@pytest.mark.slow
def test_no_page_asks_for_anything_of_the_network(site):
  assert len(site) > 80
  for name, page in site.items():
    assert [x for x in page.loaded if "//" in x] == [], name
