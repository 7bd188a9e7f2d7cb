"""Scripts that compose jaxadv into experiments; run them with `python -m`.

The libraries take seconds to import: Ctrl-C within them ends in one line, too.
"""

import os
import signal
import sys
from types import FrameType


def leave(number: int, frame: FrameType | None) -> None:
  """Ends the process with the code that shells give to Ctrl-C."""
  del frame
  print("\ninterrupted; run the same command again", file=sys.stderr)
  sys.stderr.flush()
  os._exit(128 + number)


# So it is while `python -m experiments.SCRIPT` looks for the script, and in no
# program that imports this package. Where Ctrl-C is ignored it stays so.
_started = sys.argv[:1] == ["-m"]
if _started and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, leave)
