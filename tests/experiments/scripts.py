"""Scripts in processes of their own, for flags are global to a process."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Runs a script once for each list of arguments, importing it once only.
_SESSION = """
import importlib, json, sys
from absl import flags
script = importlib.import_module("experiments." + sys.argv[1])
exec(sys.argv[2])
for arguments in json.loads(sys.argv[3]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  print("----")
  code = 0
  try:
    script.main(flags.FLAGS([sys.argv[1], *arguments]))
  except (SystemExit, flags.Error) as error:
    code = getattr(error, "code", None)
    print(type(error).__name__, error, flush=True)
sys.exit(code if isinstance(code, int) else 0)
"""


def python(*arguments):
  """What became of `python ARGUMENTS`."""
  return subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )


def session(script, *runs, first="pass"):
  """The command of a session: of a script, several lists of arguments.

  It runs the code `first` and exits as the last run does, with 0 where that
  ends with a message.
  """
  return [sys.executable, "-c", _SESSION, script, first, json.dumps(runs)]


def outputs(script, *runs, first="pass"):
  """What each run of a session prints, after what `first` does."""
  done = python(*session(script, *runs, first=first)[1:])
  assert done.returncode == 0, done.stderr
  return done.stdout.split("----\n")
