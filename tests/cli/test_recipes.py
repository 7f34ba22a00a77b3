"""Every recipe of colabs/recipes.md runs as it stands."""

import ast
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from kfkd_jax import models
from kfkd_jax.data import builders
from kfkd_jax.run import objectives

PAGE = pathlib.Path(__file__).parents[2] / "colabs" / "recipes.md"
PARTS = {
  part.partition("\n")[0]: part for part in PAGE.read_text().split("\n## ")[1:]
}
BEFORE = "Before each recipe"
RECIPES = [name for name in PARTS if name != BEFORE]


def blocks(name):
  """The blocks that run, as one program; line numbers are the page's."""
  text, page = PARTS[name], PAGE.read_text()
  found = re.findall(r"```python\n(.*?)```", text, re.S)
  return "\n".join(
    "\n" * page[: page.index(block)].count("\n") * (number == 0) + block
    for number, block in enumerate(found)
  )


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow)
    if name == "Share it on the Hub"  # which begins with a run
    else name
    for name in RECIPES
  ],
)
def test_recipe_runs(name):
  names = {}
  with jax.numpy_rank_promotion("allow"):  # JAX's default
    exec(compile(blocks(BEFORE), PAGE, "exec"), names)
    exec(compile(blocks(name), PAGE, "exec"), names)
  asserted = [
    node
    for node in ast.walk(ast.parse(blocks(name)))
    if isinstance(node, ast.Assert)
  ]
  assert asserted


def test_every_recipe_is_linked_from_the_top():
  links = re.findall(r"\(#([\w-]+)\)", PAGE.read_text().partition("\n## ")[0])
  anchors = [
    re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in RECIPES
  ]
  assert links == anchors


def test_only_the_block_for_pytorch_is_shown_and_not_run():
  (shown,) = re.findall(r"```python (.*?)```", PAGE.read_text(), re.S)
  assert shown.startswith("torch\n")
  ast.parse(shown.partition("\n")[2])


def test_recipes_are_formatted_as_all_code():
  for name in PARTS:
    done = subprocess.run(
      [sys.executable, "-m", "ruff", "format", "--check", "-q", "-"],
      input=blocks(name).lstrip("\n"),
      check=False,
      text=True,
      cwd=PAGE.parent.parent,
    )
    assert done.returncode == 0, name


GUIDE = (PAGE.parent.parent / ".github" / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("name", ["A model", "A data set", "A method"])
def test_what_contributing_shows_runs(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # What the examples register is taken out again.
  monkeypatch.setitem(models.MODELS, "tiny", None)
  monkeypatch.setitem(builders.BUILDERS, "stripes", None)
  monkeypatch.setitem(objectives.OBJECTIVES, "ce", objectives.OBJECTIVES["ce"])
  text = GUIDE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
  program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
  names = {"__name__": "shown"}
  with jax.numpy_rank_promotion("allow"):
    exec(program, names)
  assert re.search(r"^assert ", program, re.M)
