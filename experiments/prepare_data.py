"""Makes a data set ready for `jaxadv.data.load`, from its official files.

TensorFlow is not needed. Download the official files of the data set first
(archives may stay packed), then for example:

  python -m experiments.prepare_data --dataset=cifar10 --source_dir=downloads
"""

from absl import app, flags, logging

from experiments import common, manners
from jaxadv.data import prepare, raw

_DATASET = flags.DEFINE_enum(
  "dataset",
  None,
  sorted(raw.SOURCES),
  "The data set to prepare.",
  required=True,
)
_SOURCE_DIR = flags.DEFINE_string(
  "source_dir",
  None,
  "The folder of the official files, or the archive they came in.",
  required=True,
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "Where to write; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.",
)


@manners.script
def main(argv: list[str]) -> None:
  """Prepares the data set that the flags name."""
  common.only_flags(argv)
  logging.set_verbosity(logging.WARNING)
  name, data_dir = _DATASET.value, _DATA_DIR.value
  named = f"--source_dir={_SOURCE_DIR.value}"
  if data_dir is not None:
    named += f" --data_dir={data_dir}"
  with common.explained(named):
    place = prepare.prepare(name, _SOURCE_DIR.value, data_dir=data_dir)
  argument = f", data_dir={data_dir!r}" if data_dir else ""
  print(f"{name} is in {place}")
  print(f"To use it: jaxadv.data.load({name!r}{argument})")


if __name__ == "__main__":
  app.run(main)
