"""Drivers: the place that jits and loops.

`run` is pure and serves inside a training step; `craft` takes a data set of any
size through a fixed number of slots on all local devices.
"""

from jaxadv.engine.batch import run
from jaxadv.engine.craft import Interrupted, craft
from jaxadv.engine.record import Damaged, Record

__all__ = ["Damaged", "Interrupted", "Record", "craft", "run"]
