"""ImageNet, ConvNeXt-L: Table 1.

    kfkd run --config=configs/paper/imagenet_convnext_large.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final                 82.92 ± 0.11
    horizontal_one_step   83.13 ± 0.10
    fixed_jumps_one_step  82.37 ± 0.10
    kf_one_step           83.18 ± 0.16
    horizontal            83.02 ± 0.06
    fixed_jumps           83.86 ± 0.06
    kf                    83.96 ± 0.09

DIR holds ImageNet as TFDS prepared it. Meant for: a pod slice of 32 chips or
16 GPUs with 80 GB; 60 checkpoints take about 24 GB. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation), and whether
the network was trained from scratch or from published weights
(`model.pretrained`); `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=imagenet_convnext_large,data=imagenet2012,model=convnext_large"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
