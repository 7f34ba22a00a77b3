"""Animal-10N (8 % noise), ResNet-18: Tables 2 and 3.

    kfkd run --config=configs/paper/animal10n.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final        85.9 ± 0.3
    horizontal   86.3 ± 0.3
    fixed_jumps  87.1 ± 0.4
    kf           87.8 ± 0.4
    fge          86.5 ± 0.6
    swa          88.1 ± 0.2
    snapshot     86.8 ± 0.3

One file for both tables: the setting is the same. The noise is in the data
set's own training labels, so no clean ones are known and none is added. DIR
holds Animal-10N as its authors pack it. Meant for: one accelerator with 16
GB; 200 checkpoints take about 9 GB of disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation); `common.py`
says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=animal10n,data=animal10n,trained"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
