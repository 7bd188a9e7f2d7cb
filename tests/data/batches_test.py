"""Batches: padding, order, epochs, resuming."""

import itertools

import numpy as np
import pytest

from jaxadv import data


def _examples(num):
  """Each image holds its own index."""
  index = np.arange(num, dtype=np.uint8)
  images = np.broadcast_to(index[:, None, None, None], (num, 2, 2, 1))
  return data.Examples(images, index.astype(np.int32), white=num)


def _take(batches, num):
  return [batch["label"] for batch in itertools.islice(batches, num)]


def test_batch_pads_with_its_first_row():
  batch = data.batch(_examples(10), [4, 7], batch_size=5)
  assert batch["label"].tolist() == [4, 7, 4, 4, 4]
  assert batch["mask"].tolist() == [True, True, False, False, False]
  assert batch["image"].shape == (5, 2, 2, 1)
  np.testing.assert_allclose(batch["image"][:, 0, 0, 0], [0.4, 0.7, *[0.4] * 3])
  assert batch["image"].dtype == np.float32
  assert batch["label"].dtype == np.int32
  assert batch["mask"].dtype == bool


def test_batch_without_a_size_is_not_padded():
  batch = data.batch(_examples(10), np.array([9, 0]))
  assert batch["label"].tolist() == [9, 0]
  assert batch["mask"].all()


@pytest.mark.parametrize(
  ("indices", "size"), [([], None), ([], 3), ([1, 2], 1)]
)
def test_batch_of_an_impossible_size(indices, size):
  with pytest.raises(ValueError, match=f"got {len(indices)} for batch_size"):
    data.batch(_examples(4), indices, batch_size=size)


@pytest.mark.parametrize("size", [1, 4, 5, 10, 16])
def test_eval_batches_show_every_example_once_in_order(size):
  batches = list(data.eval_batches(_examples(10), size))
  assert all(len(batch["label"]) == size for batch in batches)
  seen = [batch["label"][batch["mask"]] for batch in batches]
  np.testing.assert_array_equal(np.concatenate(seen), np.arange(10))


def test_train_batches_permute_anew_in_every_epoch():
  seen = np.concatenate(_take(data.train_batches(_examples(50), 8, seed=1), 25))
  epochs = seen.reshape(4, 50)
  np.testing.assert_array_equal(
    np.sort(epochs, axis=1), np.broadcast_to(np.arange(50), (4, 50))
  )
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert not any((epoch == np.arange(50)).all() for epoch in epochs)


def test_train_batches_resume_exactly():
  examples = _examples(20)
  whole = _take(data.train_batches(examples, 6, seed=3), 12)
  for start in (1, 5, 11):
    rest = _take(
      data.train_batches(examples, 6, seed=3, start_step=start), 12 - start
    )
    np.testing.assert_array_equal(rest, whole[start:])


def test_train_batches_depend_on_the_seed():
  examples = _examples(20)
  one, two = (
    _take(data.train_batches(examples, 20, seed=s), 1) for s in (1, 2)
  )
  assert not np.array_equal(one, two)


def test_train_batches_may_be_larger_than_the_split():
  (batch,) = itertools.islice(data.train_batches(_examples(3), 7, seed=0), 1)
  assert batch["mask"].all()
  assert np.bincount(batch["label"]).min() >= 2


def test_bad_arguments_fail_before_the_first_batch():
  with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
    data.eval_batches(_examples(3), 0)
  with pytest.raises(ValueError, match="batch_size=-1: must be at least 1"):
    data.train_batches(_examples(3), -1, seed=0)
  with pytest.raises(ValueError, match="start_step=-1: must not be negative"):
    data.train_batches(_examples(3), 1, seed=0, start_step=-1)
  with pytest.raises(ValueError, match=r"seed=-1"):
    data.train_batches(_examples(3), 1, seed=-1)
