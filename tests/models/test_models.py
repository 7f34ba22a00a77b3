import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kfkd_jax import models
from kfkd_jax.models import layers, mobilenet, pretrained

IMAGENET = {"stem": "imagenet"}

# Trainable numbers as counted in timm 1.0.31 (its names in the second column),
# and a digest of timm's names and shapes. timm has no wide ResNet of this kind:
# its figures are those of the PyTorch code in general use.
TIMM = {
  "resnet18": (11_689_512, "fc669aac650ab66f", IMAGENET),
  "resnet34": (21_797_672, "efabbe4b2289112b", IMAGENET),
  "resnet50": (25_557_032, "584ee931ad382885", IMAGENET),
  "convnext_tiny": (28_589_128, "6a2556c605ee9b4f", {}),
  "convnext_small": (50_223_688, "e1f54aa6ce4119f2", {}),
  "convnext_base": (88_591_464, "f7e3abf6b07f4fe2", {}),
  "convnext_large": (197_767_336, "b82e92b71084eef5", {}),
  "vit_tiny": (5_717_416, "f67d4b872e4c717d", {}),  # vit_tiny_patch16_224
  "vit_small": (22_050_664, "03e6e034b3796f89", {}),  # vit_small_patch16_224
  "vit_base": (86_567_656, "c2466264757856c5", {}),  # vit_base_patch16_224
  "maxvit_tiny": (30_916_528, "c19e207e6b304a6a", {}),  # maxvit_tiny_tf_224
  "densenet121": (7_978_856, "c4a956e878d257a8", {}),
  # mobilenetv3_large_100 and mobilenetv3_small_100
  "mobilenetv3_large": (5_483_032, "45e47990ea6b1d0c", {}),
  "mobilenetv3_small": (2_542_856, "f5e518da1a2d7d3a", {}),
}

# One small network of every family: (name, options, side of its images).
SMALL = {
  "mlp": ("mlp", {"width": 4}, 8),
  "cnn": ("cnn", {"width": 4}, 8),
  "resnet": ("resnet18", {"stage_sizes": (1, 1), "width": 4}, 8),
  "resnet imagenet": (
    "resnet18",
    {"stage_sizes": (2, 1), "width": 3, "stem": "imagenet"},
    15,
  ),
  "bottleneck": ("resnet50", {"stage_sizes": (1, 2), "width": 4}, 15),
  "wide": ("wide_resnet28_10", {"depth": 1, "width": 16}, 8),
  "wide projected": ("wide_resnet28_10", {"depth": 2, "width": 4}, 8),
  "convnext": ("convnext_tiny", {"stage_sizes": (1, 2), "width": 4}, 17),
  "convnext cifar": (
    "convnext_tiny",
    {"stage_sizes": (1, 1), "width": 4, "stem": "cifar"},
    8,
  ),
  "vit": (
    "vit_tiny",
    {"depth": 2, "width": 6, "head_width": 3, "patch": 4},
    8,
  ),
  "maxvit": (
    "maxvit_tiny",
    {"stage_sizes": (1, 1), "width": 4, "head_width": 2},
    24,
  ),
  "densenet": ("densenet121", {"stage_sizes": (2, 1), "width": 4}, 17),
  "densenet cifar": (
    "densenet121",
    {"stage_sizes": (1, 2), "width": 6, "stem": "cifar"},
    8,
  ),
  "mobilenet": (
    "mobilenetv3_small",
    {
      "blocks": (
        (mobilenet.Kind(3, 16, 16, True, False, 2),),
        (
          mobilenet.Kind(5, 24, 8, False, True, 2),
          mobilenet.Kind(5, 40, 8, True, True),
        ),
      ),
      "width": 10,
    },
    15,
  ),
  "maxvit cifar": (
    "maxvit_tiny",
    {"stage_sizes": (2,), "width": 4, "head_width": 2, "stem": "cifar"},
    8,
  ),
}


def shapes_of(name, side, classes, **options):
  module = models.create(name, classes, **options)
  images = np.zeros((1, side, side, 3))
  return jax.eval_shape(lambda: models.init(module, jax.random.key(0), images))


def small(family, **options):
  """A module with random variables and two images."""
  name, settings, side = SMALL[family]
  module = models.create(name, 5, **settings, **options)
  rng = np.random.default_rng(3)
  images = rng.normal(size=(2, side, side, 3)).astype(np.float32)
  shapes = jax.eval_shape(
    lambda: models.init(module, jax.random.key(0), images)
  )

  def random(path, leaf):
    values = rng.normal(size=leaf.shape).astype(np.float32)
    return 0.5 + values**2 if path[-1].key == "var" else 0.5 * values

  return module, jax.tree_util.tree_map_with_path(random, shapes), images


@pytest.mark.parametrize(
  ("name", "side", "classes", "parameters", "options"),
  [
    # 8*8*3*32+32, then 32*32+32, two norms of 2*32, and 32*10+10.
    (
      "mlp",
      8,
      10,
      192 * 32 + 32 + 32 * 32 + 32 + 4 * 32 + 330,
      {"width": 32},
    ),
    # Published sizes with a 3x3 stem.
    ("resnet18", 32, 10, 11_173_962, {}),
    ("resnet18", 32, 100, 11_220_132, {}),
    ("wide_resnet28_10", 32, 10, 36_479_194, {}),
    ("wide_resnet28_10", 32, 100, 36_536_884, {}),
    *((n, 224, 1000, count, o) for n, (count, _, o) in TIMM.items()),
  ],
)
def test_parameter_counts(name, side, classes, parameters, options):
  variables = shapes_of(name, side, classes, **options)
  assert models.num_parameters(variables) == parameters


@pytest.mark.parametrize("name", TIMM)
def test_names_and_shapes_are_timms(name):
  _, digest, options = TIMM[name]
  variables = shapes_of(name, 224, 1000, **options)
  tensors = jax.eval_shape(pretrained.tensors, variables)
  lines = sorted(f"{n} {list(x.shape)}" for n, x in tensors.items())
  found = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
  assert found == digest, "\n".join(lines)


@pytest.mark.parametrize("family", SMALL)
def test_logits_are_float32_whatever_the_computation(family):
  module, _, images = small(family, dtype=jnp.bfloat16)

  def both(key):
    variables = models.init(module, key, images)
    logits, _ = module.apply(variables, images, train=True, mutable=True)
    return variables, logits, module.apply(variables, images)

  variables, *logits = jax.eval_shape(both, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  for found in logits:
    assert found.shape == (2, 5) and found.dtype == jnp.float32


def test_every_model_is_of_a_family_tested_here():
  kinds = {type(small(family)[0]) for family in SMALL}
  assert {type(models.create(name, 2)) for name in models.MODELS} == kinds


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_statistics_move_by_the_momentum_which_is_nine_tenths(name):
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1))

  def trained(variables, **options):
    module = models.create(name, 3, width=4, **options)
    _, updates = jax.jit(
      lambda v: module.apply(v, images, train=True, mutable=["batch_stats"])
    )(variables)
    return updates["batch_stats"]

  variables = models.init(
    models.create(name, 3, width=4), jax.random.key(0), images
  )
  start = variables["batch_stats"]
  batch = trained(variables, norm_momentum=0.0)  # the batch's own
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), batch, start)
  assert min(jax.tree.leaves(moved)) > 0
  again = trained({**variables, "batch_stats": batch}, norm_momentum=0.0)
  jax.tree.map(np.testing.assert_array_equal, again, batch)
  jax.tree.map(
    lambda new, old, own: np.testing.assert_allclose(
      new, 0.9 * old + 0.1 * own, rtol=1e-5, atol=1e-6
    ),
    trained(variables), start, batch,
  )  # fmt: skip


def loss_of(module, variables, images):
  def loss(params):
    logits, _ = module.apply(
      {**variables, "params": params}, images, train=True, mutable=True
    )
    return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

  return loss


@pytest.mark.parametrize(
  ("family", "blocks"),
  [
    ("resnet", 2),
    ("bottleneck", 3),
    ("wide", 3),
    ("convnext", 3),
    ("vit", 2),
    ("maxvit", 2),
    ("densenet", 3),
    ("mobilenet", 3),
  ],
)
def test_remat_rematerialises_every_block(family, blocks):
  for remat in (False, True):
    module, variables, images = small(family, remat=remat)
    loss = loss_of(module, variables, images)
    program = jax.make_jaxpr(loss)(variables["params"])
    names = [equation.primitive.name for equation in program.eqns]
    assert sum("remat" in n or "checkpoint" in n for n in names) == (
      blocks if remat else 0
    )


def test_rematerialising_changes_no_gradient():
  plain, again = (
    jax.jit(jax.grad(loss_of(*parts)))(parts[1]["params"])
    for parts in (small("vit", remat=remat) for remat in (False, True))
  )
  # Recomputed sums may be fused in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    plain,
    again,
  )
  assert max(np.abs(g).max() for g in jax.tree.leaves(plain)) > 0.1


class Reference:
  """The networks in NumPy, from tensors under timm's names and layouts."""

  def __init__(self, variables):
    self.t = pretrained.tensors(variables)

  def linear(self, name, x):
    return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

  def conv(self, name, x, stride=1, pad=(0, 0), groups=1):
    w = self.t[f"{name}.weight"]
    outs, ins, height, width = w.shape
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    rows = range(0, x.shape[1] - height + 1, stride)
    columns = range(0, x.shape[2] - width + 1, stride)
    y = np.zeros((len(x), len(rows), len(columns), outs))
    for o in range(outs):
      group = o // (outs // groups)
      kernel = w[o].transpose(1, 2, 0)[None]
      for i, r in enumerate(rows):
        for j, c in enumerate(columns):
          patch = x[:, r : r + height, c : c + width]
          patch = patch[..., group * ins : (group + 1) * ins]
          y[:, i, j, o] = np.sum(patch * kernel, axis=(1, 2, 3))
    return y + self.t.get(f"{name}.bias", 0)

  def batch_norm(self, name, x, epsilon=1e-5):
    mean, var = (self.t[f"{name}.running_{s}"] for s in ("mean", "var"))
    x = (x - mean) / np.sqrt(var + epsilon)
    return x * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

  def layer_norm(self, name, x, epsilon=1e-6):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) / np.sqrt(var + epsilon)
    return x * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

  def mlp(self, name, x, act):
    return self.linear(f"{name}.fc2", act(self.linear(f"{name}.fc1", x)))

  def attention(self, name, x, heads, window=None):
    """Over tokens `[T, D]` of one example, a head and a query at a time."""
    tokens, width = x.shape
    q, k, v = np.split(self.linear(f"{name}.qkv", x), 3, axis=-1)
    size = width // heads
    out = np.zeros_like(q)
    for h in range(heads):
      part = slice(h * size, (h + 1) * size)
      for i in range(tokens):
        scores = k[:, part] @ q[i, part] / np.sqrt(size)
        for j in range(tokens) if window else ():
          down = j // window - i // window + window - 1
          right = j % window - i % window + window - 1
          table = f"{name}.rel_pos.relative_position_bias_table"
          scores[j] += self.t[table][h, down, right]
        weights = np.exp(scores - scores.max())
        out[i, part] = weights / weights.sum() @ v[:, part]
    return self.linear(f"{name}.proj", out)


def relu(x):
  return np.maximum(x, 0)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def gelu(x):
  return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))


def gelu_tanh(x):
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  return 0.5 * x * (1 + np.tanh(inner))


def pool(x, size, stride, reduce):
  rows = range(0, x.shape[1] - size + 1, stride)
  columns = range(0, x.shape[2] - size + 1, stride)
  return np.stack(
    [
      np.stack(
        [reduce(x[:, r : r + size, c : c + size], (1, 2)) for c in columns], 1
      )
      for r in rows
    ],
    1,
  )


def resnet(module, net, x):
  small_stem = module.stem == "cifar"
  stride, pad = (1, 1) if small_stem else (2, 3)
  x = relu(net.batch_norm("bn1", net.conv("conv1", x, stride, (pad, pad))))
  if not small_stem:
    edge = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = pool(np.pad(x, edge, constant_values=-np.inf), 3, 2, np.max)
  bottleneck = "layer1.0.conv3.weight" in net.t
  for stage, size in enumerate(module.stage_sizes):
    for b in range(size):
      name = f"layer{stage + 1}.{b}"
      stride = 2 if stage and not b else 1
      if bottleneck:
        layers = [("1", 1, 0), ("2", stride, 1), ("3", 1, 0)]
      else:
        layers = [("1", stride, 1), ("2", 1, 1)]
      y = x
      for n, s, pad in layers:
        y = net.conv(f"{name}.conv{n}", y, s, (pad, pad))
        y = net.batch_norm(f"{name}.bn{n}", y)
        y = relu(y) if n != layers[-1][0] else y
      if f"{name}.downsample.0.weight" in net.t:
        x = net.conv(f"{name}.downsample.0", x, stride)
        x = net.batch_norm(f"{name}.downsample.1", x)
      x = relu(x + y)
  return net.linear("fc", x.mean((1, 2)))


def wide_resnet(module, net, x):
  x = net.conv("conv1", x, 1, (1, 1))
  for stage in range(3):
    for b in range(module.depth):
      name = f"block{stage + 1}.layer.{b}"
      stride = 2 if stage and not b else 1
      y = relu(net.batch_norm(f"{name}.bn1", x))
      if f"{name}.convShortcut.weight" in net.t:
        x = net.conv(f"{name}.convShortcut", y, stride)
      y = net.conv(f"{name}.conv1", y, stride, (1, 1))
      y = relu(net.batch_norm(f"{name}.bn2", y))
      x = x + net.conv(f"{name}.conv2", y, 1, (1, 1))
  x = relu(net.batch_norm("bn1", x))
  return net.linear("fc", x.mean((1, 2)))


def convnext(module, net, x):
  stride, pad = (1, 1) if module.stem == "cifar" else (4, 0)
  x = net.layer_norm("stem.1", net.conv("stem.0", x, stride, (pad, pad)))
  for stage, size in enumerate(module.stage_sizes):
    if stage:
      x = net.layer_norm(f"stages.{stage}.downsample.0", x)
      x = net.conv(f"stages.{stage}.downsample.1", x, 2)
    for b in range(size):
      name = f"stages.{stage}.blocks.{b}"
      y = net.conv(f"{name}.conv_dw", x, 1, (3, 3), groups=x.shape[-1])
      y = net.mlp(f"{name}.mlp", net.layer_norm(f"{name}.norm", y), gelu)
      x = x + y * net.t[f"{name}.gamma"]
  return net.linear("head.fc", net.layer_norm("head.norm", x.mean((1, 2))))


def vit(module, net, x):
  x = net.conv("patch_embed.proj", x, module.patch)
  x = x.reshape(len(x), -1, module.width)
  token = np.broadcast_to(net.t["cls_token"], (len(x), 1, module.width))
  x = np.concatenate([token, x], 1) + net.t["pos_embed"]
  for b in range(module.depth):
    name, heads = f"blocks.{b}", module.width // module.head_width
    y = net.layer_norm(f"{name}.norm1", x)
    x = x + np.stack([net.attention(f"{name}.attn", e, heads) for e in y])
    y = net.layer_norm(f"{name}.norm2", x)
    x = x + net.mlp(f"{name}.mlp", y, gelu)
  return net.linear("head", net.layer_norm("norm", x)[:, 0])


def maxvit(module, net, x):
  shrink = 1 if module.stem == "cifar" else 2
  window = x.shape[1] // shrink // 2 ** len(module.stage_sizes)
  x = net.conv("stem.conv1", x, shrink, (0, 1) if shrink == 2 else (1, 1))
  x = gelu_tanh(net.batch_norm("stem.norm1", x, 1e-3))
  x = net.conv("stem.conv2", x, 1, (1, 1))
  for stage, size in enumerate(module.stage_sizes):
    for b in range(size):
      name = f"stages.{stage}.blocks.{b}"
      x = mb_conv(net, f"{name}.conv", x, 1 if b else 2)
      for kind in ("block", "grid"):
        x = window_attention(
          net, f"{name}.attn_{kind}", x, kind, window, module.head_width
        )
  x = net.layer_norm("head.norm", x.mean((1, 2)), 1e-5)
  return net.linear("head.fc", np.tanh(net.linear("head.pre_logits.fc", x)))


def mb_conv(net, name, x, stride):
  y = net.conv(f"{name}.conv1_1x1", net.batch_norm(f"{name}.pre_norm", x, 1e-3))
  y = gelu_tanh(net.batch_norm(f"{name}.norm1", y, 1e-3))
  pad = (0, 1) if stride == 2 else (1, 1)
  y = net.conv(f"{name}.conv2_kxk", y, stride, pad, groups=y.shape[-1])
  y = gelu_tanh(net.batch_norm(f"{name}.norm2", y, 1e-3))
  gate = net.conv(f"{name}.se.fc1", y.mean((1, 2), keepdims=True))
  y = y * sigmoid(net.conv(f"{name}.se.fc2", gate * sigmoid(gate)))
  if stride == 2:
    x = pool(x, 2, 2, np.mean)
  if f"{name}.shortcut.expand.weight" in net.t:
    x = net.conv(f"{name}.shortcut.expand", x)
  return x + net.conv(f"{name}.conv3_1x1", y)


def window_attention(net, name, x, kind, window, head_width):
  heads, side = x.shape[-1] // head_width, x.shape[1]
  y = net.layer_norm(f"{name}.norm1", x, 1e-5)
  out = np.zeros_like(x)
  for b in range(len(x)):
    for i in range(side // window):
      for j in range(side // window):
        if kind == "block":
          rows = slice(i * window, (i + 1) * window)
          columns = slice(j * window, (j + 1) * window)
        else:
          rows = slice(i, None, side // window)
          columns = slice(j, None, side // window)
        tokens = y[b, rows, columns].reshape(window**2, -1)
        seen = net.attention(f"{name}.attn", tokens, heads, window)
        out[b, rows, columns] = seen.reshape(window, window, -1)
  x = x + out
  y = net.layer_norm(f"{name}.norm2", x, 1e-5)
  return x + net.mlp(f"{name}.mlp", y, gelu_tanh)


def densenet(module, net, x):
  small_stem = module.stem == "cifar"
  stride, pad = (1, 1) if small_stem else (2, 3)
  x = net.conv("features.conv0", x, stride, (pad, pad))
  x = relu(net.batch_norm("features.norm0", x))
  if not small_stem:
    edge = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = pool(np.pad(x, edge, constant_values=-np.inf), 3, 2, np.max)
  for stage, size in enumerate(module.stage_sizes):
    if stage:
      name = f"features.transition{stage}"
      x = net.conv(f"{name}.conv", relu(net.batch_norm(f"{name}.norm", x)))
      x = pool(x, 2, 2, np.mean)
    for b in range(size):
      name = f"features.denseblock{stage + 1}.denselayer{b + 1}"
      y = net.conv(f"{name}.conv1", relu(net.batch_norm(f"{name}.norm1", x)))
      y = relu(net.batch_norm(f"{name}.norm2", y))
      y = net.conv(f"{name}.conv2", y, 1, (1, 1))
      x = np.concatenate([x, y], -1)
  x = relu(net.batch_norm("features.norm5", x))
  return net.linear("classifier", x.mean((1, 2)))


def hard_sigmoid(x):
  return np.clip(x + 3, 0, 6) / 6


def hard_swish(x):
  return x * hard_sigmoid(x)


def mobilenet_v3(module, net, x):
  x = hard_swish(net.batch_norm("bn1", net.conv("conv_stem", x, 2, (1, 1))))
  for stage, kinds in enumerate(module.blocks):
    for b, kind in enumerate(kinds):
      name, act = f"blocks.{stage}.{b}", hard_swish if kind.hard else relu
      y, norms, last = x, iter((1, 2, 3)), "conv_pw"
      if f"{name}.conv_pwl.weight" in net.t:
        y, last = net.conv(f"{name}.conv_pw", y), "conv_pwl"
        y = act(net.batch_norm(f"{name}.bn{next(norms)}", y))
      pad = (kind.kernel // 2,) * 2
      y = net.conv(f"{name}.conv_dw", y, kind.strides, pad, groups=y.shape[-1])
      y = act(net.batch_norm(f"{name}.bn{next(norms)}", y))
      if kind.gated:
        gate = net.conv(f"{name}.se.conv_reduce", y.mean((1, 2), keepdims=True))
        y = y * hard_sigmoid(net.conv(f"{name}.se.conv_expand", relu(gate)))
      y = net.batch_norm(
        f"{name}.bn{next(norms)}", net.conv(f"{name}.{last}", y)
      )
      x = x + y if x.shape == y.shape else y
  name = f"blocks.{len(module.blocks)}.0"
  x = hard_swish(net.batch_norm(f"{name}.bn1", net.conv(f"{name}.conv", x)))
  x = hard_swish(net.conv("conv_head", x.mean((1, 2), keepdims=True)))
  return net.linear("classifier", x[:, 0, 0])


@pytest.mark.parametrize(
  ("family", "reference"),
  [
    ("resnet", resnet),
    ("resnet imagenet", resnet),
    ("bottleneck", resnet),
    ("wide", wide_resnet),
    ("wide projected", wide_resnet),
    ("convnext", convnext),
    ("convnext cifar", convnext),
    ("vit", vit),
    ("maxvit", maxvit),
    ("maxvit cifar", maxvit),
    ("densenet", densenet),
    ("densenet cifar", densenet),
    ("mobilenet", mobilenet_v3),
  ],
)
def test_computes_what_the_published_network_does(family, reference):
  module, variables, images = small(family)
  expected = reference(module, Reference(variables), images.astype(np.float64))
  logits = jax.jit(lambda v, x: module.apply(v, x))(variables, images)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize(
  "family", ["convnext", "vit", "maxvit", "densenet", "mobilenet"]
)
def test_what_an_image_leaves_out_is_its_keys(family):
  """The same wherever it stands in a batch, and nothing without keys."""
  module, variables, images = small(family, drop_path=0.7, dropout=0.5)
  assert module.is_random

  # In evaluation, or BatchNorm would mix the images.
  told = jax.jit(lambda x, keys: module.apply(variables, x, keys=keys))
  keys = jax.random.split(jax.random.key(1), 16)
  same = np.repeat(images[:1], len(keys), axis=0)
  many, turned = told(same, keys), told(same, keys[::-1])
  np.testing.assert_allclose(many, turned[::-1], atol=1e-4)
  assert len(np.unique(np.round(np.asarray(many), 4), axis=0)) > 8
  plain, _, _ = small(family)
  assert not plain.is_random
  np.testing.assert_array_equal(
    module.apply(variables, images), plain.apply(variables, images)
  )


def test_blocks_are_skipped_the_more_the_later_they_are():
  module = models.create("vit_tiny", 3, drop_path=0.3)
  assert module.path_rates(4) == pytest.approx([0, 0.1, 0.2, 0.3])
  assert module.path_rates(1) == [0]


def test_what_is_left_out_leaves_the_mean_as_it_was():
  keys = jax.random.split(jax.random.key(0), 20_000)
  x = jnp.full((len(keys), 3), 2.0)
  some = np.asarray(layers.drop(x, keys, 0.25))
  assert set(np.unique(some)) == {0, np.float32(2 / 0.75)}
  np.testing.assert_allclose(some.mean(0), 2, atol=0.05)
  assert not (some == some[:, :1]).all(axis=1).all()
  whole = np.asarray(layers.skip(x, keys, 0.25))
  assert (whole == whole[:, :1]).all()
  np.testing.assert_allclose(whole.mean(0), 2, atol=0.05)


def test_unknown_model_lists_the_known():
  with pytest.raises(ValueError, match=r"'resnet19' is unknown.*'resnet18'"):
    models.create("resnet19", 10)


@pytest.mark.parametrize(
  ("name", "option", "value"),
  [
    ("mlp", "stem", "cifar"),
    ("cnn", "remat", True),
    ("resnet18", "patch", 4),
    ("vit_tiny", "stem", "cifar"),
    ("wide_resnet28_10", "stem", "imagenet"),
  ],
)
def test_an_option_that_a_model_lacks_is_refused(name, option, value):
  with pytest.raises(ValueError, match=f"{option}=.*does not fit.*'{name}'"):
    models.create(name, 10, **{option: value})


@pytest.mark.parametrize(
  ("name", "side", "options", "message"),
  [
    ("resnet18", 32, {"stem": "s2d"}, "stem 's2d' is unknown.*imagenet"),
    ("convnext_tiny", 16, {}, "16x16 are too small.*32x32"),
    ("convnext_tiny", 7, {"stem": "cifar"}, "7x7 are too small.*8x8"),
    ("vit_tiny", 8, {}, "patch 16 does not divide images 8x8"),
    ("vit_tiny", 32, {"width": 100}, "width 100 .*heads of 64"),
    ("maxvit_tiny", 48, {}, "48x48 .*multiple of 32"),
    ("maxvit_tiny", 8, {"stem": "cifar"}, "8x8 .*multiple of 16"),
  ],
)
def test_images_that_do_not_fit_are_refused(name, side, options, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(name, side, 10, **options)


def test_no_classes_at_all_are_refused():
  with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
    models.create("resnet18", 0)
