"""CIFAR-100, ResNet-18: Tables 1 and 3, CIFAR-100 without noise.

    kfkd run --config=configs/paper/cifar100.py

Test accuracy to reach, in %, mean and standard error over three halvings:

    final                 78.07 ± 0.28
    horizontal_one_step   78.15 ± 0.17
    fixed_jumps_one_step  78.04 ± 0.23
    kf_one_step           78.33 ± 0.08
    horizontal            78.23 ± 0.17
    fixed_jumps           79.17 ± 0.08
    kf                    79.13 ± 0.14
    fge                   78.9 ± 0.4
    swa                   78.8 ± 0.1
    snapshot              78.4 ± 0.1

One file for both tables: the setting is the same. Table 3 has 79.3 ± 0.2 for
KF. Meant for: one accelerator with 16 GB; 200 checkpoints take about 9 GB of
disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation); `common.py`
says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=cifar100,trained"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
