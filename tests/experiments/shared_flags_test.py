"""Flags of several scripts, in a process of their own."""

import json
import re

import pytest

from experiments import common, shared_flags
from jaxadv import data
from tests.experiments import scripts

# A script of its own, whose flags the module of `experiments` defines.
_SCRIPT = """
import json, pathlib, sys
from absl import app, flags
from experiments import common, shared_flags

shared_flags.workdir(), shared_flags.norm(), shared_flags.eps()
shared_flags.positive("rate", None, "Help.")
flags.DEFINE_string("own", "x", "Help.")
for arguments in json.loads(sys.argv.pop()):
  flags.FLAGS.unparse_flags()
  try:
    common.only_flags(flags.FLAGS(["script", "--workdir=w", *arguments]))
    shared_flags.settle_eps(pathlib.Path(sys.argv[1]), lambda: "mnist")
    print(*common._own_flags())
  except (SystemExit, flags.Error) as error:
    print(error)
  for name in ("norm", "eps", "rate"):
    flags.FLAGS[name].unparse()
"""


@pytest.mark.parametrize(
  ("text", "number"),
  [("8/255", 8 / 255), ("0.3", 0.3), (0.5, 0.5), ("1e-3", 1e-3), (2, 2.0)],
)
def test_numbers_may_be_fractions(text, number):
  assert shared_flags.Number().parse(text) == number


@pytest.mark.parametrize("text", ["", "a", "1/0", "1/2/3", "8/"])
def test_refuses_what_is_no_number(text):
  with pytest.raises(ValueError, match="is not a number"):
    shared_flags.Number().parse(text)


@pytest.mark.parametrize("name", data.DATASETS)
def test_every_data_set_has_a_usual_radius_in_every_norm(name):
  radii = shared_flags.RADII[name]
  assert radii.keys() == common.BALLS.keys()
  # Balls of the same radius are nested, so usual radii grow.
  assert 0 < radii["linf"] <= radii["l2"] <= radii["l1"]


def test_a_run_goes_on_with_the_radius_that_it_began_with(tmp_path):
  common.write_text(tmp_path / "flags.txt", "--eps=0.15\n--norm=linf\n")
  done = scripts.python("-c", _SCRIPT, str(tmp_path), '[[], ["--eps=0.1"]]')
  assert done.returncode == 0, done.stderr
  assert [line.split()[0] for line in done.stdout.splitlines()] == [
    "--eps=0.15",
    "--eps=0.1",
  ]


def test_flags_are_the_script_s_and_are_checked(tmp_path):
  runs = [
    ([], "--eps=0.3 --norm=linf --own=x --workdir=w"),
    (["--norm=l2"], "--eps=2.0 --norm=l2 --own=x --workdir=w"),
    (["--norm=l1"], "--eps=10.0 --norm=l1 --own=x --workdir=w"),
    (["--eps=8/255", "--rate=1/4"], "--eps=0.03137254901960784 --norm=linf "),
    (["--eps=8", "--norm=l2"], "--eps=8.0 --norm=l2 --own=x --workdir=w"),
    (["--eps=8"], "norm=linf, eps=8.0: .* write 8/255 for 8 pixel values"),
    (["--eps=0"], "flag --eps=0.0: must be > 0 and finite"),
    (["--norm=l1", "--eps=inf"], "flag --eps=inf: must be > 0 and finite"),
    (["--eps=nan"], "flag --eps=nan: must be > 0 and finite"),
    (["--rate=-1"], "flag --rate=-1.0: must be > 0 and finite"),
    (["fgsm", "pgd"], "fgsm pgd: no flag; write --flag=value"),
  ]
  given = json.dumps([arguments for arguments, _ in runs])
  done = scripts.python("-c", _SCRIPT, str(tmp_path), given)
  assert done.returncode == 0, done.stderr
  for line, (_, said) in zip(done.stdout.splitlines(), runs, strict=True):
    assert re.search(said, line), line
