"""ImageNet, ViT-B/16: Table 1.

    kfkd run --config=configs/paper/imagenet_vit_base.py:root=DIR

Test accuracy to reach, in %, mean and standard error over three halvings:

    final                 79.16 ± 0.10
    horizontal_one_step   79.11 ± 0.10
    fixed_jumps_one_step  78.67 ± 0.08
    kf_one_step           79.93 ± 0.11
    horizontal            79.53 ± 0.13
    fixed_jumps           79.11 ± 0.13
    kf                    80.34 ± 0.08

DIR holds ImageNet as TFDS prepared it. Meant for: a pod slice of 16 chips or
eight GPUs with 80 GB; 60 checkpoints take about 11 GB. Not run yet.

Not known: recipe (epochs, learning rate, batch, augmentation), and whether
the network was trained from scratch or from published weights
(`model.pretrained`); `common.py` says what is taken instead.
"""

import pathlib

from kfkd_jax import config as config_lib

COMMON = pathlib.Path(__file__).with_name("common.py")
COLUMN = "paper=imagenet_vit_base,data=imagenet2012,model=vit_base"


def get_config(args=""):
  """Arguments: those of `common.py`, such as dryrun."""
  return config_lib.load_config(f"{COMMON}:{COLUMN},{args}")
