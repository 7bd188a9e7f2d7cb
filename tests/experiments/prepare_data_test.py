"""The script, in a process of its own: flags are global to a process."""

import jaxadv.data
from tests.experiments import scripts

# Stands in for the official files: 20 + 10 black images.
_RUN = """
import numpy as np
from absl import app
from experiments import prepare_data
from jaxadv.data import raw

def split(num):
  images = np.zeros((num, 28, 28, 1), np.uint8)
  return raw.Split(images, {"label": np.arange(num) % 10})

raw.read = lambda *_: raw.Raw({"train": split(20), "test": split(10)}, {})
app.run(prepare_data.main)
"""


def test_says_where_the_data_set_is_and_how_to_use_it(tmp_path):
  run = scripts.python(
    "-c", _RUN, "--dataset=mnist", "--source_dir=x", f"--data_dir={tmp_path}"
  )
  assert run.returncode == 0, run.stderr
  assert f"mnist is in {tmp_path / 'mnist' / '3.0.1'}" in run.stdout
  code = run.stdout.split("To use it: ")[1].strip()
  assert len(eval(code, {"jaxadv": jaxadv}).test.labels) == 10


def test_missing_files_are_named(tmp_path):
  run = scripts.python(
    *("-m", "experiments.prepare_data", "--dataset=cifar10"),
    *(f"--source_dir={tmp_path}", f"--data_dir={tmp_path / 'out'}"),
  )
  assert run.returncode != 0
  named = f"--source_dir={tmp_path} --data_dir={tmp_path / 'out'}: "
  assert run.stderr.startswith(named)
  assert "lacks cifar-10-batches-py/batches.meta" in run.stderr
  assert not (tmp_path / "out").exists()
