import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from experiments import common, manners, networks
from jaxadv import engine


@pytest.mark.parametrize("name", list(networks.MODELS))
@pytest.mark.parametrize("dataset", ["mnist", "cifar100"])
def test_builds_every_network(name, dataset):
  num_classes, shape = (10, (28, 28, 1))
  if dataset == "cifar100":
    num_classes, shape = (100, (32, 32, 3))
  module = networks.build_model(name, dataset, num_classes)
  x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  logits, _ = jax.eval_shape(
    lambda key, x: module.init_with_output(key, x), jax.random.key(0), x
  )
  assert logits.shape == (2, num_classes)


def _script(monkeypatch, *arguments):
  values = flags.FlagValues()
  for name, default in (("workdir", None), ("data_dir", None), ("eps", "0.1")):
    flags.DEFINE_string(name, default, "Help.", flag_values=values)
  flags.DEFINE_string(
    "other", "x", "Of another module.", flag_values=values, module_name="other"
  )
  values(["script", *arguments])
  monkeypatch.setattr(flags, "FLAGS", values)


def test_a_folder_belongs_to_its_flags(tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  _script(monkeypatch, "--workdir=here", "--eps=0.2")
  common.claim(workdir)
  assert (workdir / "flags.txt").read_text() == "--eps=0.2\n--workdir=here\n"
  _script(monkeypatch, "--workdir=moved", "--eps=0.2", "--data_dir=x")
  common.claim(workdir)
  _script(monkeypatch, "--workdir=here", "--eps=0.3")
  with pytest.raises(SystemExit, match=r"has --eps=0\.2 where .* --eps=0\.3"):
    common.claim(workdir)


def test_a_folder_of_another_script_is_refused(tmp_path, monkeypatch):
  _script(monkeypatch, "--workdir=here")
  common.write_text(tmp_path / "flags.txt", "--attacks=fgsm\n--workdir=here\n")
  with pytest.raises(SystemExit, match="another script, with --attacks=fgsm"):
    common.finished(tmp_path)


def test_a_folder_that_cannot_be_is_refused(tmp_path, monkeypatch):
  _script(monkeypatch, "--workdir=here")
  (tmp_path / "file").touch()
  with pytest.raises(SystemExit, match=r"^--workdir=.* choose another"):
    common.claim(tmp_path / "file")


def test_flags_run_the_script_again(tmp_path, monkeypatch):
  _script(monkeypatch, "--workdir=here", "--eps=0.2")
  common.claim(tmp_path)
  _script(monkeypatch, f"--flagfile={tmp_path / 'flags.txt'}")
  assert flags.FLAGS.eps == "0.2"


def test_a_finished_run_says_so_and_another_is_refused(
  tmp_path, monkeypatch, capsys
):
  _script(monkeypatch, "--workdir=here", "--eps=0.2")
  assert not common.finished(tmp_path)
  assert not list(tmp_path.iterdir())
  common.claim(tmp_path)
  assert not common.finished(tmp_path)
  common.write_json(tmp_path / "results.json", {})
  assert common.finished(tmp_path)
  assert "already finished: " in capsys.readouterr().out
  _script(monkeypatch, "--workdir=here", "--eps=0.3")
  with pytest.raises(SystemExit, match=r"has --eps=0\.2 where .* --eps=0\.3"):
    common.finished(tmp_path)


def test_what_is_interrupted_can_be_run_again(capsys):
  with pytest.raises(SystemExit) as caught, manners.preemptible():
    raise engine.Interrupted
  assert caught.value.code == manners.PREEMPTED
  assert "run the same command again" in capsys.readouterr().out


def test_too_little_memory_names_the_flag_of_slots():
  with (
    pytest.raises(SystemExit, match=r"^--slots: slots=256 are too many$"),
    manners.preemptible(),
  ):
    raise MemoryError("slots=256 are too many")


def test_what_is_refused_names_the_flag():
  with (
    pytest.raises(SystemExit, match=r"^--number=7: too many$"),
    common.explained("--number=7"),
  ):
    raise ValueError("too many")


def test_metrics_end_at_the_step_that_a_run_goes_on_from(tmp_path):
  for step in (1, 2, 3):
    common.append_metrics(tmp_path, step, {"loss": step / 7})
  path = tmp_path / "metrics.jsonl"
  whole = path.read_text()
  with open(path, "a") as file:
    file.write('{"step": 4, "lo')
  common.truncate_metrics(tmp_path, 9)
  assert path.read_text() == whole
  common.truncate_metrics(tmp_path, 2)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == [{"step": 1, "loss": 1 / 7}, {"step": 2, "loss": 2 / 7}]


def test_json_is_written_whole(tmp_path):
  path = tmp_path / "new" / "results.json"
  common.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    common.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": 1}
  assert os.listdir(path.parent) == ["results.json"]


def test_sigterm_is_noticed():
  before = signal.getsignal(signal.SIGTERM)
  try:
    stop = manners.on_sigterm()
    assert not stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_missing_model_is_explained(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"experiments\.train"):
    networks.load_model(tmp_path)
  info = {
    "dataset": "digits",
    "model": "mlp",
    "num_classes": 10,
    "image_shape": [8, 8, 1],
  }
  common.write_json(tmp_path / "model.json", info)
  with pytest.raises(FileNotFoundError, match="no checkpoint"):
    networks.load_model(tmp_path)
  with pytest.raises(ValueError, match="which='first'"):
    networks.load_model(tmp_path, "first")


@pytest.mark.parametrize("text", ['{"model": ', '{"model": "mlp"}', '{"a": 1}'])
def test_a_description_that_is_none_is_explained(text, tmp_path):
  common.write_text(tmp_path / "model.json", text)
  with pytest.raises(ValueError, match=r"model\.json is not as .* train the"):
    networks.load_model(tmp_path)


def test_a_damaged_checkpoint_is_explained(model_dir, tmp_path):
  place = tmp_path / "copy"
  shutil.copytree(model_dir, place)
  for path in (place / "checkpoints").glob("*/best/_METADATA"):
    path.write_text("x")
  with pytest.raises(
    ValueError, match=r"cannot be read .*train the model anew"
  ):
    networks.load_model(place)
  networks.load_model(place, "last")


_EVERY_CORE = """
import os
os.sched_getaffinity = lambda process: {0, 1, 2}
from experiments import common
common.every_core()
common.setup()
import jax
print(jax.local_device_count(), common.slots_each(256))
common.every_core()
"""


@pytest.mark.parametrize(
  ("variables", "expected"),
  [
    ({}, "3 86"),
    ({"JAX_NUM_CPU_DEVICES": "1"}, "1 256"),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, "2 128"),
  ],
)
def test_every_core_is_a_device_unless_told_otherwise(variables, expected):
  root = pathlib.Path(common.__file__).parents[1]
  given = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "XLA_FLAGS": ""}
  done = subprocess.run(
    [sys.executable, "-c", _EVERY_CORE],
    env=os.environ | given | variables,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == expected


@pytest.mark.parametrize("script", ["compare", "demo", "evaluate"])
def test_scripts_that_attack_make_their_devices_first(script):
  """Later than `setup`, which looks for devices, it would be too late."""
  folder = pathlib.Path(common.__file__).parent
  source = (folder / f"{script}.py").read_text()
  made, looked = map(source.index, ("common.every_core()", "common.setup()"))
  assert made < looked
