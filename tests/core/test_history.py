"""Stacks of checkpoints: every way to predict gives the same numbers."""

import functools

import hypothesis
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax import numpy as jnp

from kfkd_jax import history

_IMPLS = [
  {"impl": "auto"},
  {"impl": "map"},
  {"impl": "loop"},
  {"impl": "vmap"},
  {"impl": "vmap", "chunk": 1},
  {"impl": "vmap", "chunk": 2},
  {"impl": "vmap", "chunk": 99},
]


def _network(variables, inputs):
  """A small network with a convolution and stored statistics."""
  x = jax.lax.conv_general_dilated(
    inputs[:, :, None],
    variables["kernel"],
    (1,),
    "SAME",
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  mean = variables["stats"]["mean"][None, None]
  x = jnp.tanh(x - mean).reshape(len(inputs), -1)
  return x @ variables["dense"]


def _checkpoints(num, num_classes=3, seed=0):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  return [
    {
      "kernel": draw(3, 1, 4),
      "stats": {"mean": draw(4)},
      "dense": draw(20, num_classes),
    }
    for _ in range(num)
  ]


def _inputs(num, seed=1):
  return np.random.default_rng(seed).standard_normal((num, 5)).astype("f4")


def _plain_probs(checkpoints, inputs):
  result = []
  for variables in checkpoints:
    logits = np.asarray(_network(variables, inputs), np.float64)
    powers = np.exp(logits)
    result.append(powers / powers.sum(1, keepdims=True))
  return np.asarray(result)


def test_stack_take_unstack():
  checkpoints = _checkpoints(4)
  stacked = history.stack_checkpoints(checkpoints)
  assert history.num_checkpoints(stacked) == 4
  assert stacked["dense"].shape == (4, 20, 3)
  for got, wanted in zip(history.unstack_checkpoints(stacked), checkpoints):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
  some = history.take_checkpoints(stacked, [3, 0, -1])
  for got, index in zip(history.unstack_checkpoints(some), (3, 0, 3)):
    jax.tree.map(np.testing.assert_array_equal, got, checkpoints[index])


@pytest.mark.parametrize("on_device", [False, True])
def test_stack_stays_where_the_leaves_are(on_device):
  checkpoints = _checkpoints(2)
  if on_device:
    checkpoints = jax.tree.map(jnp.asarray, checkpoints)
  for stacked in (
    history.stack_checkpoints(checkpoints),
    history.take_checkpoints(history.stack_checkpoints(checkpoints), [0]),
  ):
    kind = jax.Array if on_device else np.ndarray
    assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(stacked))


def test_what_changes_in_place_is_kept_only_as_a_copy():
  weights, kept = {"w": np.zeros(2), "frozen": jnp.ones(2)}, []
  for _ in range(3):
    weights["w"] += 1
    kept.append(dict(weights))
  with pytest.raises(ValueError, match="checkpoints 0 and 1 share 'w'"):
    history.stack_checkpoints(kept)
  views = [{"w": kept[0]["w"][:]}, {"w": kept[0]["w"][:]}]
  with pytest.raises(ValueError, match="checkpoints 0 and 1 share 'w'"):
    history.stack_checkpoints(views)
  copies = [{"w": np.full(2, c), "frozen": jnp.ones(2)} for c in (0.0, 1.0)]
  assert history.stack_checkpoints(copies)["w"].tolist() == [[0, 0], [1, 1]]


def test_a_frozen_layer_may_be_shared_but_not_every_array():
  frozen, heads = jnp.ones(2), [jnp.full(2, c) for c in range(3)]
  kept = [{"frozen": frozen, "head": head} for head in heads]
  stacked = history.stack_checkpoints(kept)
  assert stacked["head"].tolist() == [[0, 0], [1, 1], [2, 2]]
  with pytest.raises(ValueError, match="checkpoints 1 and 3 share every array"):
    history.stack_checkpoints([*kept, dict(kept[1])])


class _Dropped(nnx.Module):
  def __init__(self):
    self.linear = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(2))

  def __call__(self, x):
    return self.norm(self.linear(self.dropout(x)))


@pytest.fixture(scope="module")
def nnx_run():
  """A network in train mode, its live and its copied states of three steps."""
  net, live, copies = _Dropped(), [], []
  optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)

  @nnx.jit
  def step(net, optimizer, x):
    def loss(net):
      return (net(x) ** 2).sum()

    optimizer.update(net, nnx.grad(loss)(net))

  with jax.numpy_rank_promotion("allow"):  # flax's own
    for _ in range(3):
      step(net, optimizer, _inputs(4))
      live.append(nnx.split(net)[1])
      copies.append(jax.tree.map(jnp.copy, nnx.state(net)))
  return net, live, copies


def test_live_states_of_nnx_are_refused(nnx_run):
  _, live, copies = nnx_run
  with pytest.raises(ValueError, match=r"0 and 1 share 'dropout/.*jnp\.copy"):
    history.stack_checkpoints(live)
  with pytest.raises(ValueError, match="checkpoints 2 and 4 share 'dropout/"):
    history.stack_checkpoints([*copies[:2], live[0], copies[2], live[1]])
  # Not every leaf is one object here, but the parameters are.
  numbered = [
    {"net": state, "epoch": np.array(e)} for e, state in enumerate(live)
  ]
  with pytest.raises(ValueError, match="0 and 1 share 'net/dropout/"):
    history.stack_checkpoints(numbered)


def _nnx_probs(state, inputs):
  """In eval mode: nothing dropped, normed by the kept statistics."""
  linear, norm = state["linear"], state["norm"]
  logits = inputs @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"])
  logits = (logits - np.asarray(norm["mean"])) / np.sqrt(norm["var"] + 1e-5)
  return jax.nn.softmax(logits * norm["scale"] + norm["bias"])


@pytest.mark.parametrize("options", _IMPLS, ids=str)
@pytest.mark.parametrize("form", [lambda net: net, nnx.graphdef])
def test_nnx_predicts_in_eval_mode_and_stays_as_it_is(nnx_run, form, options):
  net, _, copies = nnx_run
  stacked = history.stack_checkpoints(copies)
  graph, state = nnx.graphdef(net), jax.tree.map(jnp.copy, nnx.state(net))
  options = {**options, "batch_size": 4}
  with jax.numpy_rank_promotion("allow"):
    expected = [_nnx_probs(nnx.to_pure_dict(c), _inputs(6)) for c in copies]
    probs = history.predict_checkpoints(
      form(net), stacked, _inputs(6), **options
    )
    fused = history.fused_predict(
      form(net), stacked, [0.25, 0, 0.75], _inputs(6), **options
    )
    last = history.predict(form(net), nnx.state(net), _inputs(6))
  np.testing.assert_allclose(probs, expected, atol=1e-6)
  np.testing.assert_allclose(
    fused, 0.25 * expected[0] + 0.75 * expected[2], atol=1e-6
  )
  np.testing.assert_allclose(last, expected[2], atol=1e-6)
  assert not net.dropout.deterministic
  assert not net.norm.use_running_average
  assert nnx.graphdef(net) == graph
  pairs = zip(jax.tree.leaves(nnx.state(net)), jax.tree.leaves(state))
  assert all((a == b).all() for a, b in pairs)


def test_nnx_networks_of_one_graph_compile_once(nnx_run, monkeypatch):
  net, _, copies = nnx_run
  stacked, called = history.stack_checkpoints(copies), []
  forward = _Dropped.__call__
  monkeypatch.setattr(
    _Dropped, "__call__", lambda *a: called.append(0) or forward(*a)
  )
  with jax.numpy_rank_promotion("allow"):
    for network in (net, _Dropped(), nnx.graphdef(net)):
      history.predict_checkpoints(network, stacked, _inputs(7))
  assert len(called) == 1


def test_nnx_checkpoints_are_told_apart_by_path(nnx_run):
  net, _, copies = nnx_run
  parameters = history.stack_checkpoints(
    [nnx.filter_state(state, nnx.Param) for state in copies]
  )
  message = "all of nnx.state.*; 'dropout/rngs/count' is in the network alone"
  for network in (net, nnx.graphdef(net)):
    with pytest.raises(ValueError, match=message):
      history.predict_checkpoints(network, parameters, _inputs(2))
  more = {**nnx.to_pure_dict(copies[0]), "more": np.ones(1)}
  with pytest.raises(ValueError, match="'more' is in the checkpoints alone"):
    history.predict(net, more, _inputs(2))
  # As many leaves, which `nnx.merge` alone would take for each other.
  linear = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
  other = {"offset": np.ones((1, 3)), "weight": np.ones((1, 5, 3))}
  with pytest.raises(ValueError, match="'bias' is in the network alone"):
    history.predict_checkpoints(linear, other, _inputs(2))


def test_nnx_checkpoints_may_come_back_as_dicts_with_text_for_indices():
  def make(seed):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(*[nnx.Linear(5, 5, rngs=rngs) for _ in range(11)])

  net = make(0)
  layers = nnx.to_pure_dict(nnx.state(net))["layers"]
  saved = {"layers": {str(place): layers[place] for place in layers}}
  with jax.numpy_rank_promotion("allow"):
    probs = history.predict(make(1), saved, _inputs(3))
    expected = jax.nn.softmax(net(_inputs(3)))
  np.testing.assert_allclose(probs, expected, atol=1e-6)


class _Packed(nnx.Module):
  def __init__(self):
    self.pair = nnx.Param({"w": jnp.zeros((5, 3)), "b": jnp.arange(3.0)})
    self.cache = nnx.Variable(None)

  def __call__(self, x):
    return x @ self.pair["w"] + self.pair["b"][None]


def test_variables_of_nnx_may_hold_dicts_or_nothing():
  probs = history.predict(_Packed(), nnx.state(_Packed()), _inputs(2))
  expected = jax.nn.softmax(jnp.broadcast_to(jnp.arange(3.0), (2, 3)))
  np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_donated_checkpoints_are_named():
  kept = [{"w": jnp.full(2, c)} for c in range(3)]
  kept[1]["w"].delete()
  with pytest.raises(ValueError, match="checkpoint 1 is gone: 'w' was donated"):
    history.stack_checkpoints(kept)
  stacked = {"w": jnp.ones((2, 3))}
  stacked["w"].delete()
  with pytest.raises(ValueError, match="stacked is gone: 'w' was donated"):
    history.predict_checkpoints(lambda v, x: x @ v["w"], stacked, _inputs(2))


@pytest.mark.parametrize("options", _IMPLS, ids=str)
@pytest.mark.parametrize(
  ("num_checkpoints", "batch_size"),
  [(1, None), (1, 4), (5, None), (5, 4), (5, 7), (5, 20)],
)
def test_every_way_gives_the_same(options, num_checkpoints, batch_size):
  checkpoints, inputs = _checkpoints(num_checkpoints), _inputs(7)
  stacked = history.stack_checkpoints(checkpoints)
  expected = _plain_probs(checkpoints, inputs)
  weights = np.arange(1.0, num_checkpoints + 1)
  weights /= weights.sum()
  options = {**options, "batch_size": batch_size}
  probs = history.predict_checkpoints(_network, stacked, inputs, **options)
  fused = history.fused_predict(_network, stacked, weights, inputs, **options)
  assert probs.dtype == fused.dtype == np.float32
  assert isinstance(probs, jax.Array) == (batch_size is None)
  np.testing.assert_allclose(probs, expected, atol=2e-6)
  np.testing.assert_allclose(
    fused, np.einsum("c,cnk->nk", weights, expected), atol=3e-5
  )


@pytest.mark.parametrize("num, num_classes", [(1, 2), (6, 3)])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_predict_one_checkpoint(num, num_classes, batch_size):
  checkpoint = _checkpoints(1, num_classes)[0]
  inputs = _inputs(num)
  actual = history.predict(_network, checkpoint, inputs, batch_size=batch_size)
  expected = _plain_probs([checkpoint], inputs)[0]
  assert actual.shape == (num, num_classes)
  np.testing.assert_allclose(actual, expected, atol=2e-6)


@hypothesis.given(
  num=st.integers(1, 9), batch_size=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_batches_drop_and_repeat_nothing(num, batch_size, seed):
  stacked = history.stack_checkpoints(_checkpoints(2))
  inputs = _inputs(9, seed)
  whole = history.predict_checkpoints(_network, stacked, inputs)
  parts = history.predict_checkpoints(
    _network, stacked, inputs[:num], batch_size=batch_size
  )
  assert parts.shape == (2, num, 3)
  np.testing.assert_allclose(parts, whole[:, :num], atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_inputs_may_be_a_pytree(batch_size):
  checkpoints, inputs = _checkpoints(3), _inputs(6)

  def apply_fn(variables, batch):
    return _network(variables, batch["image"]) + batch["shift"][:, None]

  actual = history.predict_checkpoints(
    apply_fn,
    history.stack_checkpoints(checkpoints),
    {"image": inputs, "shift": np.arange(6.0, dtype=np.float32)},
    batch_size=batch_size,
  )
  np.testing.assert_allclose(
    actual, _plain_probs(checkpoints, inputs), atol=2e-6
  )


def test_softmax_of_half_precision_logits_is_in_float32():
  def apply_fn(variables, inputs):
    return (inputs * variables["w"]).astype(jnp.bfloat16)

  probs = history.predict(apply_fn, {"w": np.float32(1)}, _inputs(4))
  assert probs.dtype == jnp.float32
  np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("options", _IMPLS, ids=str)
def test_members_of_weight_zero_are_not_run(options):
  checkpoints, inputs = _checkpoints(4), _inputs(6)
  checkpoints[1]["dense"][:] = np.nan
  checkpoints[3]["dense"][:] = np.nan
  actual = history.fused_predict(
    _network,
    history.stack_checkpoints(checkpoints),
    jnp.asarray([0.25, 0, 0.75, 0]),
    inputs,
    **options,
  )
  first, _, third, _ = _plain_probs(checkpoints, inputs)
  np.testing.assert_allclose(actual, 0.25 * first + 0.75 * third, atol=2e-6)


@pytest.mark.parametrize("options", _IMPLS, ids=str)
def test_fused_predict_inside_jit_and_grad(options):
  checkpoints, inputs = _checkpoints(3), _inputs(5)
  stacked = history.stack_checkpoints(checkpoints)
  weights = np.asarray([0.5, 0.0, 0.5], np.float32)
  probs = _plain_probs(checkpoints, inputs)

  def total(weights, stacked, inputs):
    fused = history.fused_predict(_network, stacked, weights, inputs, **options)
    return (fused * np.arange(15.0).reshape(5, 3)).sum(), fused

  (_, fused), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
    weights, stacked, inputs
  )
  np.testing.assert_allclose(fused, np.tensordot(weights, probs, 1), atol=2e-6)
  np.testing.assert_allclose(
    gradient, (probs * np.arange(15.0).reshape(5, 3)).sum((1, 2)), rtol=1e-5
  )


@pytest.mark.parametrize("options", _IMPLS, ids=str)
def test_fused_predict_inside_shard_map(options):
  checkpoints, inputs = _checkpoints(3), _inputs(16)
  weights = np.asarray([0.2, 0.3, 0.5], np.float32)
  assert jax.device_count() == 8
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
  spec = jax.sharding.PartitionSpec
  sharded = jax.jit(
    jax.shard_map(
      functools.partial(history.fused_predict, _network, **options),
      mesh=mesh,
      in_specs=(spec(), spec(), spec("data")),
      out_specs=spec("data"),
      check_vma=False,
    )
  )
  actual = sharded(history.stack_checkpoints(checkpoints), weights, inputs)
  expected = np.tensordot(weights, _plain_probs(checkpoints, inputs), 1)
  np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize("impl", ["map", "vmap", "loop"])
def test_second_call_compiles_nothing(impl):
  traces = []

  def apply_fn(variables, inputs):
    traces.append(inputs.shape)
    return _network(variables, inputs)

  weights = np.asarray([0.5, 0.3, 0.2])
  for seed, num in ((0, 7), (1, 7), (2, 5)):
    stacked = history.stack_checkpoints(_checkpoints(3, seed=seed))
    inputs = _inputs(num, seed)
    options = {"batch_size": 4, "impl": impl}
    history.predict_checkpoints(apply_fn, stacked, inputs, **options)
    history.fused_predict(apply_fn, stacked, weights, inputs, **options)
    history.predict(apply_fn, _checkpoints(1)[0], inputs, batch_size=4)
    if seed == 0:
      first = len(traces)
  assert len(traces) == first
  assert set(traces) == {(4, 5)}


@pytest.mark.parametrize(
  "options", [{"impl": "map"}, {"impl": "vmap", "chunk": 4}], ids=str
)
def test_fused_predict_holds_no_stack_of_probabilities(options):
  num_checkpoints, num, num_classes = 50, 64, 100
  fused = functools.partial(
    history.fused_predict, lambda v, x: x @ v, **options
  )
  compiled = (
    jax.jit(fused)
    .lower(
      jnp.zeros((num_checkpoints, 2, num_classes)),
      jnp.ones(num_checkpoints),
      jnp.zeros((num, 2)),
    )
    .compile()
  )
  stack = 4 * num_checkpoints * num * num_classes
  assert compiled.memory_analysis().temp_size_in_bytes < stack / 3


def test_a_stack_in_half_precision_and_integer_leaves():
  stacked = {
    "w": jnp.ones((2, 3), jnp.bfloat16),
    "steps": jnp.asarray([5, 7]),
  }
  probs = history.predict_checkpoints(
    lambda v, x: x[:, :1] * v["w"][None] + v["steps"], stacked, _inputs(4)
  )
  np.testing.assert_allclose(probs, 1 / 3, atol=1e-6)


_GOOD = {"a": {"w": np.zeros(3)}, "b": np.zeros(2)}
_STACKED = history.stack_checkpoints(_checkpoints(3))


def _predict(**changes):
  options = {"stacked": _STACKED, "inputs": _inputs(4), **changes}
  apply_fn = options.pop("apply_fn", _network)
  return history.predict_checkpoints(apply_fn, **options)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: history.stack_checkpoints([]), "checkpoints .* got none"),
    (
      lambda: history.stack_checkpoints(
        [_GOOD, _GOOD, {"a": {"w": np.zeros((3, 1))}, "b": np.zeros(2)}]
      ),
      r"'a/w' has shape \(3,\) .* checkpoint 0 and has shape \(3, 1\) .* 2\.",
    ),
    (
      lambda: history.stack_checkpoints([_GOOD, {"a": {"w": np.zeros(3)}}]),
      r"'b' has shape \(2,\) and dtype float64 .* 0 and is missing in .* 1\.",
    ),
    (
      lambda: history.stack_checkpoints([_GOOD, {**_GOOD, "c": np.zeros(1)}]),
      r"'c' is missing in checkpoint 0 and has shape \(1,\) .* 1\.",
    ),
    (
      lambda: history.take_checkpoints(_STACKED, [0, 3]),
      r"indices must lie in -3..2; got \[0, 3\]",
    ),
    (lambda: history.take_checkpoints(_STACKED, -4), "got -4"),
    (
      lambda: history.num_checkpoints({"a": np.zeros(3), "b": np.zeros(2)}),
      r"stacked .* 'a' has shape \(3,\) and 'b' has \(2,\)",
    ),
    (lambda: history.num_checkpoints({}), "stacked has no leaves"),
    (
      lambda: history.fused_predict(_network, _STACKED, [1.0], _inputs(4)),
      r"weights must have shape \(3,\).* got \(1,\)",
    ),
    (
      lambda: history.fused_predict(_network, _STACKED, [0, 0, 0], _inputs(4)),
      "weights must be 0 or more and sum to 1; .* a sum of 0",
    ),
    (lambda: _predict(impl="scan"), "impl must be one of .* got 'scan'"),
    (lambda: _predict(chunk=0), "chunk must be at least 1; got 0"),
    (lambda: _predict(batch_size=0), "batch_size .* got 0 and 4"),
    (
      lambda: _predict(batch_size=2, inputs=np.zeros((0, 5))),
      "batch_size .* got 2 and 0",
    ),
    (
      lambda: _predict(inputs={"a": np.zeros((2, 5)), "b": np.zeros(3)}),
      r"inputs .* 'a' has shape \(2, 5\) and 'b' has \(3,\)",
    ),
    (
      lambda: _predict(apply_fn=lambda v, x: x.sum(1)),
      r"apply_fn .* \(4, K\) for 4 inputs; got \(4,\)",
    ),
    (
      lambda: _predict(apply_fn=lambda v, x: (_network(v, x), {"s": x})),
      r"apply_fn .* got \(\(4, 3\), \{'s': \(4, 5\)\}\)",
    ),
  ],
)
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
