"""The scripts: flags, training, evaluation, the demo."""
