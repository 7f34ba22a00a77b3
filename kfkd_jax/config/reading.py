"""From files and the command line to a validated configuration."""

from __future__ import annotations

import ast
import importlib.util
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from etils import epath

from kfkd_jax import files
from kfkd_jax.catalogue import METHODS
from kfkd_jax.config import tree
from kfkd_jax.config.keys import BY_NAME, KEYS, Key, default_config
from kfkd_jax.config.ranges import shown
from kfkd_jax.config.tree import ConfigError
from kfkd_jax.config.validation import check_type, validate


def parse_arguments(text: str, **defaults: Any) -> ml_collections.ConfigDict:
  """A config file's string argument, `"noise=pair,rate=0.4,runlocal"`.

  Args:
    text: comma-separated `name=value`; a bare name means True.
    **defaults: every allowed name with its default, which sets the type.

  Returns:
    The values, typed like their defaults.
  """
  values = ml_collections.ConfigDict(defaults)
  for part in filter(None, (p.strip() for p in text.split(","))):
    name, _, value = part.partition("=")
    if name not in defaults:
      raise ConfigError(
        f"config argument {name!r} is unknown; this file takes "
        f"{sorted(defaults)}"
      )
    values[name] = _typed(name, value or "True", defaults[name], None)
  return values


def load_config(spec: str | None) -> ml_collections.ConfigDict:
  """The config of `FILE.py` or `FILE.py:arguments`.

  None and `default` stand for the one that is built in.
  """
  if spec in (None, "default"):
    return default_config()
  path, _, arguments = spec.partition(":")
  if not epath.Path(path).exists():
    raise ConfigError(f"--config: there is no file {path}")
  files.check_is_file(path)
  module_spec = importlib.util.spec_from_file_location("kfkd_config", path)
  if module_spec is None or module_spec.loader is None:
    raise ConfigError(f"--config: {path} is not a Python file (.py)")
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    config = module.get_config(arguments)
  except ConfigError as error:
    raise ConfigError(f"--config: {path}: {error}") from error
  except Exception as error:
    raise ConfigError(
      f"--config: {path} failed: {type(error).__name__}: {error}"
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(
      f"--config: get_config of {path} returns a {type(config).__name__}; it "
      "must return a ConfigDict, from default_config()"
    )
  return config


def read(
  spec: str | None,
  overrides: Iterable[tuple[str, str]] = (),
  *,
  saved: epath.Path | None = None,
) -> ml_collections.ConfigDict:
  """The validated config of a command.

  Args:
    spec: for `load_config`.
    overrides: keys and their values as text, set on top.
    saved: a file that `sealed` wrote, which is continued where there is one
      and no `spec`.
  """
  if spec is None and saved is not None and files.exists(saved):
    config = _from_json(saved)
  else:
    config = load_config(spec)
  for key, text in overrides:
    override(config, key, text)
  validate(config)
  return config


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
  """Sets `key` (dotted) from the text given on the command line."""
  *sections, name = key.split(".")
  node = config
  for section in sections:
    node = node.get(section) if tree.is_section(node, section) else None
  if node is None or name not in node or tree.is_section(node, name):
    raise tree.unknown(key, tree.names(config))
  node[name] = _typed(key, text, node[name], node.get_type(name))


def changed(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """A validated copy with other values for some dotted keys."""
  copy = default_config()
  _adopt(copy, config)
  _set(copy, changes)
  validate(copy)
  return copy


def set_keys(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
  """The keys that differ from their defaults, as `override` takes them."""
  default, found = default_config(), []
  for key in KEYS:
    value = tree.get(config, key.name)
    if value != tree.get(default, key.name):
      several = isinstance(value, tuple)
      text = ",".join(map(str, value)) if several else str(value)
      found.append((key.name, text))
  return found


_OBJECTIVES = ("train.objective", "distill.label_loss")


def keys_deciding(config: ml_collections.ConfigDict, stage: str) -> list[Key]:
  """The keys that decide a stage's outcome, options of objectives among them.

  An objective's options decide the stage that trains with it, and no other.
  """
  options = [
    option
    for name in _OBJECTIVES
    if stage in BY_NAME[name].decides
    for option in METHODS[tree.get(config, name)].keys
  ]
  return [k for k in KEYS if stage in k.decides or k.name in options]


def deciding(config: ml_collections.ConfigDict, stage: str) -> dict[str, Any]:
  """What decides a stage's outcome: whole sections, and single dotted keys.

  Digests of it tell whether a stage would be made alike, so its form must not
  change: see `Key.later`.
  """
  found: dict[str, Any] = {}
  decide = {key.name for key in keys_deciding(config, stage)}
  for section in config:
    keys = [k for k in KEYS if k.name.split(".")[0] == section]
    ours = {
      key.name: tree.get(config, key.name)
      for key in keys
      if key.name in decide
      and not (key.later and tree.get(config, key.name) == key.default)
    }
    whole = all(stage in key.decides or key.later for key in keys)
    if whole and tree.is_section(config, section):
      short = {name.partition(".")[2]: v for name, v in ours.items()}
      found |= {section: short} if short else {}
    else:
      found |= ours
  return found


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as readable JSON, in the order of `default_config`."""
  return _as_text(config.to_dict())


def sealed(config: ml_collections.ConfigDict) -> str:
  """`to_json` with a digest of the values, for a file to be continued from."""
  return _as_text(files.sealed(config.to_dict()))


def _as_text(content: Mapping[str, Any]) -> str:
  return json.dumps(content, indent=1, default=list) + "\n"


def read_sealed(path: epath.Path) -> dict[str, Any]:
  """The sections of a file that `sealed` wrote."""
  content = files.unsealed(files.read_json(path))
  if content is None:
    raise ConfigError(
      f"{path} is not as it was written, by accident or by hand (keys change "
      "by --config.KEY=VALUE); remove it and run again, which takes its copy "
      "or asks for what it said"
    )
  return content


def _from_json(path: epath.Path) -> ml_collections.ConfigDict:
  """The config that `sealed` wrote; keys that are new since keep defaults."""
  config, content = default_config(), read_sealed(path)
  try:
    _adopt(config, ml_collections.ConfigDict(content))
  except (ValueError, TypeError, AttributeError) as error:
    raise ConfigError(
      f"{path} cannot be continued ({error}); name a --config or another "
      "--workdir"
    ) from error
  return config


def _adopt(
  config: ml_collections.ConfigDict, other: ml_collections.ConfigDict
) -> None:
  """Sets what `other` has different: what follows other keys does so still."""
  known = tree.names(config)
  for key in tree.names(other):
    value = tree.get(other, key)
    if key not in known or repr(tree.get(config, key)) != repr(value):
      _set(config, {key: value})


def _set(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
  for key, value in values.items():
    override(config, key, value if isinstance(value, str) else repr(value))


def _typed(key: str, text: str, current: Any, expected: type | None) -> Any:
  """Reads `text` as the type that `key` has."""
  expected = expected or type(current)
  if expected is str:
    optional = key in BY_NAME and BY_NAME[key].kind is not None
    return None if text == "None" and optional else text
  value = _literal(text)
  if expected is tuple and isinstance(value, str):
    value = tuple(filter(None, (v.strip() for v in value.split(","))))
  if expected is tuple and isinstance(value, (int, float)):
    value = (value,)
  check_type(key, value, expected)
  if value is None:
    return None
  try:
    return expected(value)
  except OverflowError:
    raise ConfigError(
      f"{key}={shown(value)} is not possible; it does not fit a "
      f"{expected.__name__}"
    ) from None


def _literal(text: str) -> Any:
  """The Python literal that `text` spells, else `text` itself."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # such as an escape that does not exist
      return ast.literal_eval(text)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return text
