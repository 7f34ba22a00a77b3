"""Checkpoints of every format become one network, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy

from kfkd_jax import averaging, checkpoints, cli, merging

NUM = 12  # "10" comes before "2" in the alphabet


def networks(num=NUM):
  rng = np.random.default_rng(0)
  return [
    {
      "layer.weight": rng.standard_normal((30, 4)).astype(np.float32),
      "layer.bias": rng.standard_normal(4).astype(np.float16),
      "double": rng.standard_normal(3),
      "counter": np.array([c, c]),
      "empty": np.zeros((0, 3), np.float32),
    }
    for c in range(num)
  ]


def nested(network):
  """As Orbax has it: with lists, bfloat16, text and nothing in it."""
  return {
    "params": {"w": network["layer.weight"], "b": network["layer.bias"]},
    "state": [network["counter"], {"d": network["double"]}, "text", None],
    "empty": {},
  }


def save_shards(network, folder):
  folder.mkdir()
  names = sorted(network)
  shards = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
  for file, held in shards.items():
    safetensors.numpy.save_file({n: network[n] for n in held}, folder / file)
  index = {"weight_map": {n: f for f, held in shards.items() for n in held}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load_shards(folder):
  index = json.loads((folder / "model.safetensors.index.json").read_text())
  found = {}
  for file in set(index["weight_map"].values()):
    found |= safetensors.numpy.load_file(folder / file)
  assert found.keys() == index["weight_map"].keys()
  return found


def save_single(network, folder):
  folder.mkdir()
  safetensors.numpy.save_file(network, folder / "model.safetensors")


def flat(tree):
  return {
    "layer.weight": tree["params"]["w"],
    "layer.bias": tree["params"]["b"],
    "double": tree["state"][1]["d"],
    "counter": tree["state"][0],
    "empty": np.zeros((0, 3), np.float32),
  }


def save_step(network, folder):
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    tree = ocp.args.PyTreeSave(nested(network))
    writer.save(folder, args=ocp.args.Composite(default=tree))


FORMATS = {
  "safetensors": (
    ".safetensors",
    safetensors.numpy.save_file,
    safetensors.numpy.load_file,
  ),
  "folder": (
    "",
    save_single,
    lambda p: safetensors.numpy.load_file(p / "model.safetensors"),
  ),
  "shards": ("", save_shards, load_shards),
  "npz": (
    ".npz",
    lambda network, path: np.savez(path, **network),
    lambda path: dict(np.load(path)),
  ),
  "compressed": (
    ".npz",
    lambda network, path: np.savez_compressed(path, **network),
    lambda path: dict(np.load(path)),
  ),
  "orbax": (
    "",
    lambda n, p: ocp.PyTreeCheckpointer().save(p, nested(n)),
    lambda p: flat(ocp.PyTreeCheckpointer().restore(p)),
  ),
  "step": (
    "",
    save_step,
    lambda p: flat(ocp.PyTreeCheckpointer().restore(p / "default")),
  ),
}


def saved(folder, kind, num=NUM):
  folder.mkdir()
  suffix, save, _ = FORMATS[kind]
  for c, network in enumerate(networks(num), 1):
    save(network, folder / f"step-{c}{suffix}")
  return folder


def kfkd(*arguments, capsys):
  code = cli.main([str(a) for a in arguments])
  out, err = capsys.readouterr()
  return code, out, err


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_comes_out_as_it_went_in(kind, tmp_path, capsys):
  folder = saved(tmp_path / "in", kind)
  suffix, _, load = FORMATS[kind]
  output = tmp_path / "new" / f"merged{suffix}"
  code, out, _ = kfkd("merge", folder, f"--output={output}", capsys=capsys)
  assert code == 0
  assert "merged 12 of 12 checkpoints (uniform): step-1" in out
  merged, given = load(output), networks()
  for name, last in given[-1].items():
    stack = np.stack([network[name] for network in given])
    mean = last if name == "counter" else stack.mean(0, np.float64)
    assert merged[name].dtype == last.dtype
    tolerance = 1e-3 if last.dtype == np.float16 else 1e-6
    np.testing.assert_allclose(merged[name], mean, atol=tolerance)
  card = (
    output / "card.json"
    if suffix == ""
    else tmp_path / ("new/merged.card.json")
  )
  said = json.loads(card.read_text())
  assert [step["path"] for step in said["checkpoints"]] == [
    str(folder / f"step-{c}{suffix}") for c in range(1, NUM + 1)
  ]
  assert [step["weight"] for step in said["checkpoints"]] == pytest.approx(
    [1 / NUM] * NUM
  )
  assert len(said["taken_from_the_last"]) == 1
  assert {p.name for p in (tmp_path / "new").iterdir()} == {
    output.name, *([card.name] if suffix else []),
  }  # fmt: skip


def test_metadata_of_safetensors_stays(tmp_path):
  for c in (1, 2):
    path = tmp_path / f"{c}.safetensors"
    safetensors.numpy.save_file(networks(1)[0], path, {"format": "pt"})
  found = merging.find(tmp_path)
  merging.write(found, [0.5, 0.5], tmp_path / "new.safetensors")
  with safetensors.safe_open(
    str(tmp_path / "new.safetensors"), framework="numpy"
  ) as file:
    assert file.metadata() == {"format": "pt"}


def test_own_histories_are_merged_by_the_weights_of_fuse(tmp_path, capsys):
  given = networks(4)
  with checkpoints.Checkpoints(tmp_path / "history") as history:
    for c, network in enumerate(given, 1):
      history.save(c, nested(network) | {"state": [network["counter"]]})
  weights = [0.0, 0.75, 0.25, 0.0]
  fused = {"folds": [{"methods": {"kf": {"weights": weights}}}]}
  (tmp_path / "fusion.json").write_text(json.dumps(fused))
  code, out, _ = kfkd(
    "merge", tmp_path / "history", f"--weights={tmp_path / 'fusion.json'}",
    f"--output={tmp_path / 'merged'}", capsys=capsys,
  )  # fmt: skip
  assert code == 0 and "merged 2 of 4 checkpoints" in out
  merged = ocp.PyTreeCheckpointer().restore(tmp_path / "merged" / "tree")
  expected = 0.75 * given[1]["layer.weight"] + 0.25 * given[2]["layer.weight"]
  np.testing.assert_allclose(merged["params"]["w"], expected, atol=1e-6)
  np.testing.assert_array_equal(merged["state"][0], given[3]["counter"])


def test_checksums_of_own_histories_are_asked(tmp_path):
  with checkpoints.Checkpoints(tmp_path / "history") as history:
    for c in (1, 2):
      history.save(c, {"w": W + c, "v": [W]})
  sums = tmp_path / "history" / "2" / "digests" / "metadata"
  sums.write_text(sums.read_text().replace(checkpoints.digests(W + 2)[""], "0"))
  found = merging.find(tmp_path / "history")
  with pytest.raises(ValueError, match=r"2 is damaged: \['w'\] is not what"):
    merging.write(found, [0.5, 0.5], tmp_path / "out")


@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_bfloat16_is_added_in_float32(kind, tmp_path):
  for c in range(30):
    w = jnp.full(5, 1 + c / 128, jnp.bfloat16)
    if kind == "orbax":
      ocp.PyTreeCheckpointer().save(tmp_path / "in" / str(c), {"w": w})
    else:
      (tmp_path / "in").mkdir(exist_ok=True)
      content = np.asarray(w).tobytes()
      head = json.dumps(
        {"w": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}
      ).encode()
      (tmp_path / "in" / f"{c}.safetensors").write_bytes(
        len(head).to_bytes(8, "little") + head + content
      )
  found = merging.find(tmp_path / "in")
  output = tmp_path / ("out" if kind == "orbax" else "out.safetensors")
  weights = merging.weights_for("sqrt", 30)
  merging.write(found, weights, output)
  merged = merging.Checkpoints([type(found.members[0])(output)])[0]["w"]
  assert merged.dtype == jnp.bfloat16
  exact = np.dot(weights.astype(float), 1 + np.arange(30) / 128)
  assert merged.astype(float) == pytest.approx(exact, abs=2**-8)
  assert (merged == np.float32(exact).astype(jnp.bfloat16)).all()


def test_greedy_reads_checkpoints_from_files(tmp_path):
  folder = saved(tmp_path / "in", "npz", 4)
  found = merging.find(folder)
  target = (found[1]["layer.weight"] + found[3]["layer.weight"]) / 2

  def score(network):
    return -float(np.abs(network["layer.weight"] - target).mean())

  weights = averaging.greedy_merge(found, [score(n) for n in found], score)
  assert weights.tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize(
  ("shape", "options", "expected"),
  [
    ("window", {"last": 2}, [0, 0, 0, 0.5, 0.5]),
    ("window", {}, [0.2] * 5),
    ("linear", {}, [0.2] * 5),
    ("sqrt", {"last": 4}, [0, 0.5, 0.2071, 0.1589, 0.1340]),
    ("ema", {"decay": 0.5, "last": 3}, [0, 0, 0.25, 0.25, 0.5]),
    ("exponential", {"decay": 0.5, "last": 3}, [0, 0, 0.5, 0.25, 0.25]),
  ],
)
def test_shapes(shape, options, expected):
  weights = merging.weights_for(shape, 5, **options)
  np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_weights_from_files(tmp_path):
  path = tmp_path / "w.json"
  for content in ([0.5, 0.5], {"weights": [0.5, 0.5]}):
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(merging.weights_for(str(path), 2), 0.5)
  np.savez(tmp_path / "w.npz", kf=[0.0, 1.0], mixture=[0.5, 0.5])
  of = str(tmp_path / "w.npz")
  np.testing.assert_array_equal(merging.weights_for(of, 2), [0, 1])
  np.testing.assert_array_equal(merging.weights_for(f"{of}:mixture", 2), 0.5)
  with pytest.raises(ValueError, match=r"w\.npz: .*shape \(3,\).*got \(2,\)"):
    merging.weights_for(of, 3)
  with pytest.raises(ValueError, match="nor those of 'kf_kd'"):
    merging.weights_for(f"{of}:kf_kd", 2)


def write_two(folder, first, second):
  folder.mkdir()
  np.savez(folder / "1.npz", **first)
  np.savez(folder / "2.npz", **second)


W = np.zeros(3, np.float32)


@pytest.mark.parametrize(
  ("second", "message"),
  [
    ({"w": W, "v": W}, "'v' is missing in .*1.npz and has shape (3,)"),
    ({"w": W[:2]}, "'w' has shape (3,) and dtype float32 in "),
    ({"w": W.astype(np.float16)}, "dtype float16 in "),
    ({"w": W * np.nan}, "2.npz: w holds NaN"),
    ({"w": W.astype("V4")}, "2.npz: w is raw bytes (|V4)"),
    ({"w": np.array([{}])}, "Python objects (a pickle)"),
  ],
)
def test_what_does_not_fit_is_named_in_one_line(
  second, message, tmp_path, capsys
):
  write_two(tmp_path / "in", {"w": W}, second)
  output = tmp_path / "out.npz"
  code, _, err = kfkd(
    "merge", tmp_path / "in", f"--output={output}", capsys=capsys
  )
  assert code == 2 and err.count("\n") == 1
  assert (
    message.partition(".*")[0] in err and message.rpartition(".*")[2] in err
  )
  assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_nan_of_weight_0_is_left_out(tmp_path):
  write_two(tmp_path / "in", {"w": W * np.nan}, {"w": W + 1})
  found = merging.find(tmp_path / "in")
  merging.write(found, [0, 1], tmp_path / "out.npz")
  np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["w"], 1)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["in"], "merge needs checkpoints and --output"),
    (["--output=x"], "merge needs checkpoints and --output"),
    (["in/1.npz", "--output=x.npz"], "in/1.npz is one checkpoint"),
    (["in/1.npz", "in/1.npz", "--output=x.npz"], "in/1.npz is named twice"),
    (["nowhere", "--output=x.npz"], "there is no nowhere"),
    (["in/1.npz", "nowhere", "--output=x.npz"], "nowhere is not there; one is"),
    (["in/3*", "--output=x.npz"], "no file is named in/3*"),
    ([".", "--output=x.npz"], "holds no checkpoint; one is a .safetensors"),
    (["in", "--output=x"], "must end in .npz"),
    (["in", "--output=in/1.npz"], "is there already"),
    (["in", "--output=x.npz", "--weights=cosine"], "none of uniform, window"),
    (["in", "--output=x.npz", "--last=3"], "--last=3 must lie in 1..2"),
    (["in", "--output=x.npz", "--decay=0.5"], "--decay goes with ema and exp"),
    (
      ["in", "--output=x.npz", "--weights=ema", "--decay=2"],
      "must lie in 0..1",
    ),
    (
      ["in", "--output=x.npz", "--config.train.lr=1"],
      "takes no --config",
    ),
  ],
)
def test_mistakes_are_one_line(
  arguments, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  write_two(tmp_path / "in", {"w": W}, {"w": W})
  code, _, err = kfkd("merge", *arguments, capsys=capsys)
  assert code == 2 and err.count("\n") == 1
  assert message in err
  assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_order_of_numbers_and_what_is_passed_over(tmp_path, capsys):
  folder = saved(tmp_path / "in", "npz")
  (folder / "notes.txt").write_text("")
  names = sorted(str(p) for p in folder.glob("*.npz"))  # as a shell has it
  output = f"--output={tmp_path}/a.npz"
  _, out, _ = kfkd("merge", *names, output, capsys=capsys)
  assert "note: the paths count in the order given" in out
  assert "step-1.npz first and step-9.npz last" in out
  output = f"--output={tmp_path}/b.npz"
  _, out, _ = kfkd("merge", folder, output, "--weights=sqrt", capsys=capsys)
  assert "left out: notes.txt" in out and "order given" not in out
  output = f"--output={tmp_path}/c.npz"
  pattern = f"{folder}/*.npz"
  kfkd("merge", pattern, output, "--weights=sqrt", capsys=capsys)
  assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()


def test_batch_statistics_are_said_to_be_averages(tmp_path, capsys):
  write_two(tmp_path / "in", *[{"bn1.running_var": W}] * 2)
  _, out, _ = kfkd(
    "merge", tmp_path / "in", f"--output={tmp_path}/x.npz", capsys=capsys
  )
  assert "1 batch statistics, such as bn1.running_var" in out


@pytest.mark.parametrize(
  "kind",
  ["shards"]
  + [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("safetensors", "npz", "orbax")
  ],
)
def test_killed_in_the_middle_leaves_nothing_under_its_name(kind, tmp_path):
  folder = saved(tmp_path / "in", kind, 2)
  suffix = FORMATS[kind][0]
  output = tmp_path / "out" / f"merged{suffix}"
  # Dies once half of the tensors are summed.
  program = f"""
    import os, sys
    from kfkd_jax import cli, averaging
    from kfkd_jax.merging import writing
    writing._PIECE = 1
    left, merge = [2], averaging.merge
    def dying(*arguments):
      left[0] -= 1
      if not left[0]:
        os.kill(os.getpid(), 9)
      return merge(*arguments)
    averaging.merge = dying
    cli.main(["merge", {str(folder)!r}, "--output={output}"])
  """
  done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)])
  assert done.returncode == -signal.SIGKILL
  assert all(p.name.startswith(".") for p in output.parent.iterdir())
  assert cli.main(["merge", str(folder), f"--output={output}"]) == 0
  FORMATS[kind][2](output)


def test_failed_in_the_middle_leaves_nothing_at_all(tmp_path, monkeypatch):
  found = merging.find(saved(tmp_path / "in", "shards", 2))
  monkeypatch.setattr(averaging, "merge", lambda *a: {"empty": np.zeros(1)} / 0)
  with pytest.raises(TypeError):
    merging.write(found, [0.5, 0.5], tmp_path / "out")
  assert os.listdir(tmp_path) == ["in"]


def damaged_safetensors():
  """Contents that are none, each with what is said of it."""
  entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

  def made(header, data=bytes(8)):
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data

  return {
    "header is not whole": made({"w": entry})[:20],
    "no safetensors": b"",
    "8 bytes": made({"w": entry}, bytes(4)),
    "type F4": made({"w": entry | {"dtype": "F4"}}),
    "not lie where": made({"w": entry | {"data_offsets": [0, 4]}}),
    "does not lie": made({"w": entry | {"shape": [-2, -1]}, "v": entry}),
    "damaged or no": made([1]),
    "or no safetensors file": made({"w": {"dtype": "F32"}}),
  }


@pytest.mark.parametrize("message", damaged_safetensors())
def test_damaged_safetensors_are_named(message, tmp_path):
  good = {"w": np.zeros(2, np.float32)}
  safetensors.numpy.save_file(good, tmp_path / "1.safetensors")
  content = damaged_safetensors()[message]
  (tmp_path / "2.safetensors").write_bytes(content)
  with pytest.raises(ValueError, match=r"2\.safetensors is damaged") as caught:
    merging.find(tmp_path)
  assert message in str(caught.value) or message[0] == "8"


@pytest.mark.parametrize("name", ["../1.safetensors", "/etc/passwd", 3])
def test_an_index_names_only_files_beside_it(name, tmp_path):
  for c in (1, 2):
    save_shards(networks(1)[0], tmp_path / str(c))
  index = tmp_path / "2" / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"w": name}}))
  with pytest.raises(ValueError, match="is no file beside it"):
    merging.find(tmp_path)
  index.write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
  with pytest.raises(ValueError, match=r"'w' in a\.safetensors, which does"):
    merging.find(tmp_path)


def test_several_trees_in_one_step_have_to_be_chosen(tmp_path):
  for c in (1, 2):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
      trees = {n: ocp.args.PyTreeSave({"w": W + c}) for n in ("ema", "raw")}
      writer.save(tmp_path / str(c), args=ocp.args.Composite(**trees))
  with pytest.raises(ValueError, match=r"several trees \(ema, raw\); name one"):
    merging.find(tmp_path)
  found = merging.find([tmp_path / "1" / "ema", tmp_path / "2" / "ema"])
  merging.write(found, [0.5, 0.5], tmp_path / "out")
  merged = ocp.PyTreeCheckpointer().restore(tmp_path / "out")
  np.testing.assert_array_equal(merged["w"], W + 1.5)
