"""Flags of several scripts, in a process of their own."""

import json
import re

import pytest

from experiments import shared_flags
from tests.experiments import scripts

# A script of its own, whose flags the module of `experiments` defines.
_SCRIPT = """
import json, sys
from absl import app, flags
from experiments import common, shared_flags

shared_flags.workdir(), shared_flags.norm(), shared_flags.eps(0.2)
shared_flags.positive("rate", None, "Help.")
flags.DEFINE_string("own", "x", "Help.")
for arguments in json.loads(sys.argv.pop()):
  flags.FLAGS.unparse_flags()
  try:
    common.only_flags(flags.FLAGS(["script", "--workdir=w", *arguments]))
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


def test_flags_are_the_script_s_and_are_checked():
  runs = [
    ([], "--eps=0.2 --norm=linf --own=x --workdir=w"),
    (["--eps=8/255", "--rate=1/4"], "--eps=0.03137254901960784 --norm=linf "),
    (["--eps=8", "--norm=l2"], "--eps=8.0 --norm=l2 --own=x --workdir=w"),
    (["--eps=8"], "norm=linf, eps=8.0: .* write 8/255 for 8 pixel values"),
    (["--eps=0"], "flag --eps=0.0: must be > 0 and finite"),
    (["--norm=l1", "--eps=inf"], "flag --eps=inf: must be > 0 and finite"),
    (["--eps=nan"], "flag --eps=nan: must be > 0 and finite"),
    (["--rate=-1"], "flag --rate=-1.0: must be > 0 and finite"),
    (["fgsm", "pgd"], "fgsm pgd: no flag; write --flag=value"),
  ]
  done = scripts.python("-c", _SCRIPT, json.dumps([given for given, _ in runs]))
  assert done.returncode == 0, done.stderr
  for line, (_, said) in zip(done.stdout.splitlines(), runs, strict=True):
    assert re.search(said, line), line
