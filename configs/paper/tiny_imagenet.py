"""TinyImageNet, ResNet-18: Table 1.

    kfkd run --config=configs/paper/tiny_imagenet.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final                 64.95 ± 0.24
    horizontal_one_step   64.89 ± 0.18
    fixed_jumps_one_step  66.54 ± 0.35
    kf_one_step           66.98 ± 0.37
    horizontal            65.11 ± 0.30
    fixed_jumps           68.24 ± 0.38
    kf                    68.50 ± 0.36

DIR holds `tiny-imagenet-200` as its authors pack it. Meant for: one
accelerator with 16 GB; 200 checkpoints take about 9 GB of disk. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation), and whether
images are kept at 64 pixels, as here; `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=tiny_imagenet,data=tiny_imagenet"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
