"""Training steps against those of the same networks in PyTorch, if installed.

Same layers, batch and optimiser; PyTorch has its channels last, as we do.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kfkd_jax import config as config_lib
from kfkd_jax import models
from kfkd_jax.lab.bench import measure

_CLASSES = 10
_RATE, _MOMENTUM = 0.1, 0.9


class Peer(NamedTuple):
  """What both train: a network of the zoo on random images."""

  model: str
  width: int
  batch: int
  side: int
  channels: int


PEERS = {
  "cnn_8px": Peer("cnn", 16, 64, 8, 1),
  "cnn_28px": Peer("cnn", 16, 128, 28, 1),
  "cnn_28px_wide": Peer("cnn", 32, 128, 28, 1),
  "cnn_32px": Peer("cnn", 64, 32, 32, 3),
  "resnet18_32px": Peer("resnet18", 64, 32, 32, 3),
}


def check_installed() -> None:
  """Refuses the comparison where there is nothing to compare with."""
  if importlib.util.find_spec("torch") is None:
    raise config_lib.ConfigError(
      "bench.parts='peer' compares with PyTorch, which is not installed; run "
      "`pip install torch`"
    )


def measure_peers(config_json: str) -> list[dict[str, Any]]:
  """A row for each of `bench.peers`, both in turns in this process."""
  bench = json.loads(config_json)["bench"]
  rows = []
  for name in bench["peers"]:
    peer, count = PEERS[name], bench["steps"]
    seconds = measure.in_turns(
      {"ours": make_ours(peer, count), "torch": make_torchs(peer, count)},
      bench["rounds"],
    )
    rows.append(
      measure.row(
        f"train step of {peer.model}, width {peer.width}, "
        f"{peer.batch} x {peer.side} px",
        "PyTorch",
        seconds["ours"],
        seconds["torch"],
        count,
        limit=1.3,
      )
    )
  return rows


def _batch(peer: Peer) -> tuple[np.ndarray, np.ndarray]:
  shape = (peer.batch, peer.side, peer.side, peer.channels)
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  return images, np.arange(peer.batch) % _CLASSES


def make_ours(peer: Peer, count: int) -> Callable[[], Any]:
  """Builds a call of `count` steps, which returns the last loss."""
  module = models.create(peer.model, _CLASSES, width=peer.width)
  optimizer = optax.sgd(_RATE, _MOMENTUM)
  images, labels = jax.device_put(_batch(peer))

  def step(params, batch_stats, opt_state):
    def loss_fn(params):
      logits, updates = module.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), updates["batch_stats"]

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state, loss

  fresh = models.init(module, jax.random.key(0), images)
  state = (*fresh.values(), optimizer.init(fresh["params"]))
  fn = jax.jit(step, donate_argnums=(0, 1, 2))

  def run():
    nonlocal state
    for _ in range(count):
      *state, loss = fn(*state)
    return jnp.asarray(loss).block_until_ready()

  return run


def make_torchs(peer: Peer, count: int) -> Callable[[], float]:
  """The same in PyTorch."""
  torch: Any = importlib.import_module("torch")
  make = {"cnn": torch_cnn, "resnet18": torch_resnet18}[peer.model]
  last = {"memory_format": torch.channels_last}
  network = make(torch, peer.channels, peer.width).to(**last)
  images, labels = (torch.from_numpy(x) for x in _batch(peer))
  images = images.permute(0, 3, 1, 2).contiguous(**last)
  optimizer = torch.optim.SGD(network.parameters(), _RATE, _MOMENTUM)

  def run():
    for _ in range(count):
      optimizer.zero_grad()
      loss = torch.nn.functional.cross_entropy(network(images), labels)
      loss.backward()
      optimizer.step()
    return loss.item()

  return run


def _normed(torch: Any, inputs: int, features: int, side: int, stride: int):
  """A convolution without bias, then BatchNorm."""
  nn = torch.nn
  conv = nn.Conv2d(inputs, features, side, stride, side // 2, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(features))


def _with_head(torch: Any, body: list[Any], features: int):
  nn = torch.nn
  head = nn.Linear(features, _CLASSES)
  return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def torch_cnn(torch: Any, channels: int, width: int):
  """`cnn` of the zoo."""
  body, inputs = [], channels
  for stage, features in enumerate((width, 2 * width)):
    for layer in range(2):
      stride = 2 if stage and not layer else 1
      body += [_normed(torch, inputs, features, 3, stride), torch.nn.ReLU()]
      inputs = features
  return _with_head(torch, body, inputs)


def torch_resnet18(torch: Any, channels: int, width: int):
  """`resnet18` of the zoo, with the stem for small images."""
  nn: Any = torch.nn

  class Block(nn.Module):
    def __init__(self, inputs: int, features: int, stride: int):
      super().__init__()
      self.first = _normed(torch, inputs, features, 3, stride)
      self.second = _normed(torch, features, features, 3, 1)
      self.shortcut = (
        nn.Identity()
        if inputs == features
        else _normed(torch, inputs, features, 1, stride)
      )

    def forward(self, x):
      y = self.second(torch.relu(self.first(x)))
      return torch.relu(self.shortcut(x) + y)

  body, inputs = [_normed(torch, channels, width, 3, 1), nn.ReLU()], width
  for stage in range(4):
    for b in range(2):
      features = width * 2**stage
      body.append(Block(inputs, features, 2 if stage and not b else 1))
      inputs = features
  return _with_head(torch, body, inputs)
