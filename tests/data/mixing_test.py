import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.data import augment, mixing

_KEYS = jax.random.split(jax.random.key(0), 40)


def _batch(num_rows=6, side=8):
  # Image i is i everywhere, so pixels tell where they come from.
  images = np.broadcast_to(
    np.arange(num_rows, dtype=np.float32)[:, None, None, None],
    (num_rows, side, side, 1),
  )
  labels = np.arange(num_rows, dtype=np.int32)
  return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


def _draws(transform, batch):
  return jax.jit(jax.vmap(lambda key: transform(key, batch)))(_KEYS)


@jax.jit
def _mixed(alpha, batch):
  # One program for every alpha: sampling from Beta takes long to compile.
  transform = mixing.mixup(6, alpha=alpha)
  return jax.vmap(lambda key: transform(key, batch))(_KEYS)


def test_mixup_mixes_images_as_labels():
  found = _mixed(1.0, _batch())
  images, labels = np.asarray(found["image"]), np.asarray(found["label"])
  np.testing.assert_allclose(labels.sum(-1), 1.0, rtol=1e-5)
  # The mean class number of the label is the value of the image.
  np.testing.assert_allclose(
    images[..., 0, 0, 0], labels @ np.arange(6), rtol=1e-4, atol=1e-5
  )
  # One share for the batch, uniform as Beta(1, 1) over draws.
  share = labels[:, np.arange(6), np.arange(6)]
  shared = np.where(share > 1 - 1e-6, np.nan, share)
  assert np.nanmax(np.nanstd(shared, axis=1)) < 1e-6
  assert np.nanstd(np.nanmean(shared, axis=1)) == pytest.approx(0.29, abs=0.08)


def test_mixup_of_soft_labels_and_sharp_shares():
  batch = _batch()
  soft = {**batch, "label": jax.nn.one_hot(batch["label"], 6)}
  np.testing.assert_array_equal(
    _mixed(1.0, batch)["label"], _mixed(1.0, soft)["label"]
  )
  sharp = np.asarray(_mixed(0.01, batch)["label"])
  assert np.mean(np.abs(sharp - 0.5) > 0.49) > 0.95


def test_cutmix_labels_follow_the_pixels():
  found = _draws(mixing.cutmix(6), _batch())
  images, labels = np.asarray(found["image"]), np.asarray(found["label"])
  counts = (images[..., None] == np.arange(6)).mean(axis=(2, 3, 4))
  np.testing.assert_allclose(labels, counts, atol=1e-5)
  # Boxes: the pasted pixels are a rectangle.
  for image, row in zip(images[:, 0, :, :, 0], range(len(images)), strict=True):
    pasted = image != 0
    rows, columns = pasted.any(1), pasted.any(0)
    assert (pasted == rows[:, None] & columns[None]).all(), row
  assert 0 < np.mean(images[:, 0] != 0) < 1


def test_cutmix_with_a_probability():
  always = _draws(mixing.cutmix(6), _batch())["image"]
  never = _draws(mixing.cutmix(6, probability=0.0), _batch())["image"]
  np.testing.assert_array_equal(
    never, np.broadcast_to(_batch()["image"], never.shape)
  )
  half = _draws(mixing.cutmix(6, probability=0.5), _batch())["image"]
  changed = lambda images: int(
    np.sum(np.any(images != never, axis=(1, 2, 3, 4)))
  )
  assert 0.25 < changed(half) / changed(always) < 0.75


def test_label_smoothing_is_for_the_loss_alone():
  batch = _batch(3)
  found = mixing.label_smoothing(3)(_KEYS[0], batch)
  expected = 0.9 * np.eye(3) + 0.1 / 3
  np.testing.assert_allclose(found["target"], expected, rtol=1e-6)
  np.testing.assert_array_equal(found["label"], batch["label"])


def test_chains_with_independent_keys():
  noise = mixing.on_images(lambda key, x: x + jax.random.normal(key, x.shape))
  batch = _batch()
  once = noise(_KEYS[0], batch)["image"] - batch["image"]
  twice = mixing.chain(noise, noise)(_KEYS[0], batch)["image"] - batch["image"]
  assert float(jnp.std(twice)) == pytest.approx(np.sqrt(2), rel=0.15)
  assert float(jnp.std(once)) == pytest.approx(1.0, rel=0.15)
  soft = lambda key, batch: {**batch, "label": jnp.full((6, 6), 1 / 6)}
  found = mixing.chain(soft, mixing.label_smoothing(6))(_KEYS[0], batch)
  np.testing.assert_allclose(found["target"], 1 / 6, rtol=1e-5)


def test_gaussian_noise():
  images = jnp.full((50, 8, 8, 1), 0.5)
  noisy = augment.gaussian_noise(_KEYS[0], images, sigma=0.05)
  assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
  assert float(noisy.mean()) == pytest.approx(0.5, abs=0.01)
  wide = augment.gaussian_noise(_KEYS[0], images, sigma=0.5)
  assert float(wide.min()) == 0.0 and float(wide.max()) == 1.0
  free = augment.gaussian_noise(_KEYS[0], images, sigma=0.5, bounds=None)
  assert float(free.std()) == pytest.approx(0.5, rel=0.05)
  np.testing.assert_allclose(jnp.clip(free, 0, 1), wide)


@pytest.mark.parametrize(
  "make",
  [
    lambda: mixing.mixup(3, alpha=0.0),
    lambda: mixing.cutmix(3, probability=1.5),
    lambda: mixing.label_smoothing(3, smoothing=-0.1),
    lambda: augment.gaussian_noise(_KEYS[0], jnp.zeros((1, 2)), sigma=-1.0),
  ],
)
def test_refuses_numbers_out_of_range(make):
  with pytest.raises(ValueError, match="must be"):
    make()
