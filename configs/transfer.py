"""Published weights, trained on for other classes.

    kfkd run --config=configs/transfer.py:weights=FILE.safetensors

FILE is of timm or Hugging Face, for the network `model`. What its head is too
many or too few for is drawn afresh, and learns alone in the first epoch; then
all learns, the rest at a tenth of the head's rate, for 10 epochs of AdamW. The
students begin with the same weights. Without `weights` the same network is
trained from scratch, to compare with. `data` is a data set by name, whose
pictures are cut to `size`; `--config.data.root=DIR` is where it lies.
`runlocal` takes a few steps on made images with a narrow network of the same
kind, for which no published weights fit.
"""

from kfkd_jax import config as config_lib


def get_config(args=""):
  """Arguments: weights, model, data, size, noise, rate, protocol, runlocal."""
  arguments = config_lib.parse_arguments(
    args,
    weights="",
    model="convnext_tiny",
    data="cifar100",
    size=224,
    noise="none",
    rate=0.4,
    protocol="practitioner",
    runlocal=False,
  )
  config = config_lib.default_config()
  config.data.name = arguments.data
  config.data.image_size = arguments.size
  config_lib.set_noise(config, arguments.noise, arguments.rate)
  config.selection.num = 5000
  config_lib.set_protocol(config, arguments.protocol)
  config.model.name = arguments.model
  config.model.pretrained = arguments.weights or None
  config.model.dtype = "bfloat16"
  config.model.drop_path = 0.1
  config.optim.name = "adamw"
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.05
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 1
  if arguments.weights:
    config.optim.backbone_rate = 0.1
    config.optim.head_epochs = 1
  config.train.epochs = 10
  config.train.batch_size = 128
  config.train.label_smoothing = 0.1
  config.augment.pad = 0
  config.augment.flip = True
  config.augment.crop_scale = (0.25, 1.0)
  config.augment.cutout = 0
  config.data.workers = 8
  config.predictions.train = False
  # Some checkpoints an epoch: there are few epochs to choose from.
  config.history.every = 0.5
  config.history.dtype = "bfloat16"
  if arguments.runlocal:
    config.data.name = "synthetic/num_classes=5,num_train=96,num_test=40"
    config.data.image_size = None
    config.data.workers = 0
    config.augment.crop_scale = None
    config.selection.num = 32
    config.model.dtype = "float32"
    config.model.width = 8
    config.train.epochs = 3
    config.train.batch_size = 32
    config.compare.independent = 2
    config.compare.bootstrap_samples = 100
  return config
