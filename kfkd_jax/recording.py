"""Notes what a network says, in a training loop of your own, and reports.

The loop may be of any framework: a `Recorder` is told how to predict, and
called at the end of every epoch. For PyTorch there is `torch_probabilities`,
and callbacks for Lightning and for the Hugging Face `Trainer`; these packages
are imported by nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath
from jax.typing import ArrayLike

from kfkd_jax import extras
from kfkd_jax.predictions import PredictionStore, check_probabilities


class Recorder:
  """What a network says of the same points after every epoch, on disk.

  `kfkd diagnose`, `fuse`, `report` and, for training points, `audit` take the
  folder as `--predictions`. A run that goes on after a stop calls it with the
  epochs that follow; an epoch that is noted again replaces what was there, and
  forgets all later ones.

  Attributes:
    folder: where it lies, a `PredictionStore`.
    predict: gives the probabilities `[N, K]` of the points, in their order.

  >>> import tempfile
  >>> record = Recorder(
  ...   tempfile.mkdtemp(), [0, 1], lambda sure: [[sure, 1 - sure]] * 2
  ... )
  >>> for epoch, sure in enumerate([0.6, 0.9], 1):
  ...   record(epoch, sure)
  >>> record.store.shape
  (2, 2, 2)
  """

  def __init__(
    self,
    folder: epath.PathLike,
    labels: ArrayLike,
    predict: Callable[[Any], ArrayLike],
    *,
    ids: ArrayLike | None = None,
    dtype: str = "float32",
  ):
    """Touches nothing before it is called.

    Args:
      folder: for what is noted, of its own.
      labels: int[N] of the points.
      predict: of a network, or whatever it will be called with.
      ids: int[N] of the points; None for 0..N-1.
      dtype: of the probabilities on disk.
    """
    self.folder, self.predict = epath.Path(folder), predict
    self._labels, self._dtype = np.asarray(labels), dtype
    self._ids = np.arange(len(self._labels)) if ids is None else np.asarray(ids)

  def __call__(self, epoch: int, network: Any) -> None:
    """Notes what `network` says after `epoch` finished epochs."""
    probs = np.asarray(self.predict(network), np.float32)
    if probs.ndim != 2 or len(probs) != len(self._labels):
      raise ValueError(
        f"predict must give [{len(self._labels)}, K] probabilities, a row for "
        f"each label; got shape {probs.shape}"
      )
    check_probabilities(probs[None])
    store = PredictionStore.create(
      self.folder,
      self._labels,
      self._ids,
      num_classes=probs.shape[1],
      dtype=self._dtype,
    )
    store.truncate(epoch - 1)
    store.write(epoch, probs)

  @property
  def store(self) -> PredictionStore:
    """All that was noted, as `probs[C, N, K]` read one epoch at a time."""
    return PredictionStore(self.folder)

  def report(
    self, output: epath.PathLike, *, test: Recorder | None = None
  ) -> str:
    """Writes the page of `kfkd report --predictions`; returns its lines.

    Args:
      output: its folder.
      test: noted other points, on which the fusions are measured; None for
        halves of these points that measure each other.
    """
    with extras.named():
      from kfkd_jax import config as config_lib
      from kfkd_jax.stages import foreign

    return foreign.report(
      self.folder,
      None if test is None else test.folder,
      epath.Path(output),
      config_lib.default_config(),
    )


def torch_probabilities(model: Any, batches: Iterable[Any]) -> np.ndarray:
  """What a PyTorch classifier says, f32[N, K]; its mode is left as it was.

  Args:
    model: gives logits, or an object that has `logits`.
    batches: of inputs, not shuffled: tensors, tuples that begin with one, or
      dictionaries of arguments.
  """
  import torch

  device, training = next(model.parameters()).device, model.training
  model.eval()
  parts = []
  try:
    with torch.no_grad():
      for batch in batches:
        if isinstance(batch, (tuple, list)):
          batch = batch[0]
        if hasattr(batch, "keys"):
          said = model(**{name: x.to(device) for name, x in batch.items()})
        else:
          said = model(batch.to(device))
        logits = getattr(said, "logits", said)
        parts.append(logits.float().softmax(-1).cpu().numpy())
  finally:
    model.train(training)
  return np.concatenate(parts)


def lightning_callback(record: Recorder) -> Any:
  """A Lightning callback that notes the module after every epoch."""
  import lightning

  class Record(lightning.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
      if trainer.is_global_zero:
        record(trainer.current_epoch + 1, pl_module)

  return Record()


def trainer_callback(record: Recorder) -> Any:
  """A callback of the Hugging Face `Trainer` that notes every epoch."""
  import transformers

  class Record(transformers.TrainerCallback):
    def on_epoch_end(self, args, state, control, model=None, **kwargs):
      if state.is_world_process_zero:
        record(round(state.epoch), model)

  return Record()
