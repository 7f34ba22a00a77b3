"""The configuration: every key, what is allowed, how it is read.

A config file is a Python file with `get_config(args="")` that changes
`default_config()`; on the command line any key is set by
`--config.section.key=value`. A key that is not in `keys.py` does not exist.
"""

from kfkd_jax.config.explaining import explain
from kfkd_jax.config.grid import Axis, parse_grid
from kfkd_jax.config.keys import KEYS, PARTS, Key, default_config
from kfkd_jax.config.protocols import (
  PROTOCOLS,
  check_choice,
  set_noise,
  set_protocol,
)
from kfkd_jax.config.reading import (
  changed,
  deciding,
  keys_deciding,
  load_config,
  override,
  parse_arguments,
  read,
  read_sealed,
  sealed,
  set_keys,
  to_json,
)
from kfkd_jax.config.tree import ConfigError, get, names
from kfkd_jax.config.validation import validate

__all__ = [
  "KEYS",
  "PARTS",
  "PROTOCOLS",
  "Axis",
  "ConfigError",
  "Key",
  "changed",
  "check_choice",
  "deciding",
  "default_config",
  "explain",
  "get",
  "keys_deciding",
  "load_config",
  "names",
  "override",
  "parse_arguments",
  "parse_grid",
  "read",
  "read_sealed",
  "sealed",
  "set_keys",
  "set_noise",
  "set_protocol",
  "to_json",
  "validate",
]
