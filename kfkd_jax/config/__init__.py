"""The configuration: every key, what is allowed, how it is read.

A config file is a Python file with `get_config(args="")` that changes
`default_config()`; on the command line any key is set by
`--config.section.key=value`. A key that is not in `keys.py` does not exist.
"""

from kfkd_jax.config.grid import Axis, parse_grid
from kfkd_jax.config.keys import default_config
from kfkd_jax.config.pairs import TEACHERS
from kfkd_jax.config.protocols import PROTOCOLS, set_protocol
from kfkd_jax.config.reading import (
  changed,
  load_config,
  override,
  parse_arguments,
  read,
  read_sealed,
  sealed,
  subset,
  to_json,
)
from kfkd_jax.config.rules import EXPORTABLE, validate
from kfkd_jax.config.tree import ConfigError, names

__all__ = [
  "EXPORTABLE",
  "PROTOCOLS",
  "TEACHERS",
  "Axis",
  "ConfigError",
  "changed",
  "default_config",
  "load_config",
  "names",
  "override",
  "parse_arguments",
  "parse_grid",
  "read",
  "read_sealed",
  "sealed",
  "set_protocol",
  "subset",
  "to_json",
  "validate",
]
