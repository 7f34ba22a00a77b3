"""What README and the other pages show works as shown."""

import pathlib
import re
import tomllib

import numpy as np
import pytest

from kfkd_jax import config as config_lib
from kfkd_jax import options

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = "\n".join(
  path.read_text()
  for path in (
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "colabs").glob("*.md")),
    ROOT / "colabs" / "board" / "README.md",
  )
)
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))


def test_first_screen_holds_exactly_two_commands():
  lines = [line for line in SHELL.splitlines() if "venv" in line]
  assert len(lines) == 2
  assert all(README.index(line) < 2000 for line in lines)
  assert lines[0].endswith("/kfkd run")


@pytest.mark.parametrize("page", ["README.md", "colabs/functions.md"])
def test_code_of_the_functional_door_runs(page):
  text = (ROOT / page).read_text()
  (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
  names = {}
  exec(code, names)
  assert names["fused"].shape == (300, 10)
  np.testing.assert_allclose(names["fused"].sum(-1), 1, atol=1e-5)
  assert names["chosen"].weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
  "override",
  sorted(
    set(re.findall(r"--config\.([\w.]+=[^\s`)\x22\]]+)", PAGES))
    - {"section.key=value"}
  ),
)
def test_every_key_that_is_shown_exists(override):
  key, _, text = override.partition("=")
  if text == "FILE.safetensors":
    text = "None"
  config = config_lib.default_config()
  config_lib.override(config, key, text.rstrip("."))
  assert key in config_lib.names(config)


def test_every_command_that_is_shown_exists():
  shown = re.findall(r"(?:^|/)kfkd (\w+)", "\n".join(_shell(PAGES)), re.M)
  assert len(shown) >= 15
  for stage in shown:
    assert stage in options.STAGES


def _shell(text):
  return re.findall(r"```sh\n(.*?)```", text, re.S)


@pytest.mark.parametrize(
  "spec", sorted(set(re.findall(r"--config=(configs/[^\s`\"]+)", PAGES)))
)
def test_every_config_file_that_is_shown_loads(spec):
  config = config_lib.load_config(f"{ROOT}/{spec}")
  config_lib.validate(config)
  assert config_lib.names(config) == config_lib.names(
    config_lib.default_config()
  )


def test_every_page_that_is_linked_is_there():
  pages = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *(ROOT / "colabs").rglob("*.md"),
  ]
  for page in pages:
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
      assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_everything_agrees_with_the_address_of_the_repository():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  address = project["urls"]["Repository"]
  ours = address.removeprefix("https://github.com/")
  files = [
    ROOT / "README.md",
    ROOT / "CITATION.cff",
    ROOT / "mkdocs.yml",
    *(ROOT / "colabs").glob("*.md"),
    *(ROOT / "colabs").glob("*.ipynb"),
  ]
  found = {
    (file.name, slug)
    for file in files
    # Of Colab's badges, of what is installed, and of a checkout to clone.
    for slug in re.findall(
      r"(?:google\.com/github|git\+https://github\.com|repository-code: "
      r"\"https://github\.com)/([\w.-]+/[\w.-]+)",
      file.read_text(),
    )
  }
  assert len(found) >= 8  # the citation, notebooks, and their list
  others = {slug for _, slug in found} - {ours}
  assert not others, (
    f"pyproject.toml says {address}; the rest follows by: sed -i "
    f"'s#{others.pop()}#{ours}#g' CITATION.cff mkdocs.yml README.md "
    "colabs/*.md colabs/*.ipynb"
  )
  for notebook in (ROOT / "colabs").glob("*.ipynb"):
    badge = (
      f"https://colab.research.google.com/github/{ours}/blob/main/colabs/"
      f"{notebook.name})"
    )
    assert badge in notebook.read_text()
    assert badge in (ROOT / "colabs" / "notebooks.md").read_text()
