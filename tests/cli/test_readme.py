"""What README and the other pages show works as shown."""

import pathlib
import re

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
  )
)
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))


def test_first_screen_holds_exactly_two_commands():
  lines = [line for line in SHELL.splitlines() if "venv" in line]
  assert len(lines) == 2
  assert all(README.index(line) < 2000 for line in lines)
  assert lines[0].endswith("/kfkd run")


def test_code_of_the_functional_door_runs():
  (code,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.S)
    if "import kfkd_jax as kfkd" in block
  )
  names = {}
  exec(code, names)
  assert names["fused"].shape == (300, 10)
  np.testing.assert_allclose(names["fused"].sum(-1), 1, atol=1e-5)
  assert names["mixed"].sum() == pytest.approx(1)


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
  for folder, text in ((ROOT, README), (ROOT / "colabs", PAGES)):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
      found = [folder / link, ROOT / link, ROOT / ".github" / link]
      assert any(path.exists() for path in found), link
