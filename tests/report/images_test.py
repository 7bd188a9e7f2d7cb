import numpy as np
import pytest

from jaxadv.report import images, style

NAMES = ["airplane", "automobile", "cat"]


def shown(ax):
  (image,) = ax.get_images()
  return np.asarray(image.get_array())


@pytest.mark.parametrize(
  ("shape", "displayed"),
  [
    ((5, 6, 1), (5, 6)),
    ((5, 6), (5, 6)),
    ((5, 6, 3), (5, 6, 3)),
    ((784,), (28, 28)),
  ],
)
def test_grid_shows_every_form_of_image(shape, displayed):
  rows = [np.full((2, *shape), value, np.float32) for value in (0.25, 0.75)]
  fig = images.grid(rows, ["low", "high"], ["first", "second"])
  assert len(fig.axes) == 4
  assert [shown(ax).shape for ax in fig.axes] == [displayed] * 4
  assert [shown(ax).flat[0] for ax in fig.axes] == [0.25, 0.25, 0.75, 0.75]
  assert [ax.get_ylabel() for ax in fig.axes] == ["low", "", "high", ""]
  assert [ax.get_title() for ax in fig.axes] == ["first", "second", "", ""]


def test_grey_is_absolute():
  (ax,) = images.grid([np.full((1, 4, 4, 1), 0.5)], ["grey"]).axes
  assert ax.get_images()[0].get_clim() == (0.0, 1.0)


@pytest.mark.parametrize(
  ("rows", "titles", "columns", "match"),
  [
    ([], [], None, "images per row"),
    ([np.zeros((0, 4, 4))], ["a"], None, "at least one"),
    ([np.zeros((1, 4, 4)), np.zeros((2, 4, 4))], "ab", None, "same number"),
    ([np.zeros((1, 4, 4))], ["a", "b"], None, "one title each"),
    ([np.zeros((1, 4, 4))], ["a"], ["b", "c"], "one title each"),
    ([np.zeros((1, 10))], ["a"], None, "square size"),
    ([np.zeros((1, 4, 4, 2))], ["a"], None, "shape"),
    ([np.full((1, 4, 4), 255.0)], ["a"], None, "scale the images"),
    ([np.full((1, 4, 4), np.nan)], ["a"], None, "scale the images"),
  ],
)
def test_grid_refuses_bad_input(rows, titles, columns, match):
  with pytest.raises(ValueError, match=match):
    images.grid(rows, titles, columns)


def make(shape=(4, 4, 1)):
  x = np.full((3, *shape), 0.5, np.float32)
  x_adv = x.copy()
  x_adv[0].flat[0] += 0.2
  x_adv[1].flat[0] -= 0.1
  return x, x_adv, np.array([0, 1, 2]), np.array([0, 1, 1]), np.array([1, 1, 0])


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 4, 3), (16,)])
def test_perturbation_has_a_symmetric_scale_of_its_own(shape):
  fig = images.adversarial_grid(*make(shape), NAMES)
  middle = fig.axes[3:6]
  assert middle[0].get_ylabel() == "perturbation\n±0.2"
  np.testing.assert_allclose(shown(middle[0]).flat[0], 1.0, atol=1e-6)
  np.testing.assert_allclose(shown(middle[1]).flat[0], 0.25, atol=1e-6)
  np.testing.assert_allclose(shown(middle[2]), 0.5)


def test_captions_say_label_and_prediction_and_mark_errors():
  fig = images.adversarial_grid(*make(), NAMES)
  captions = [ax.get_xlabel() for ax in fig.axes]
  assert captions[:3] == [
    "airplane\n→ airplane",
    "automobile\n→ automobile",
    "cat\n→ automobile",
  ]
  assert captions[3:6] == ["", "", ""]
  assert captions[6] == "airplane\n→ automobile"
  colors = [ax.xaxis.label.get_color() for ax in fig.axes]
  assert colors[:3] == [style.RIGHT, style.RIGHT, style.WRONG]
  assert colors[6:] == [style.WRONG, style.RIGHT, style.WRONG]


def test_num_limits_the_columns_and_short_names_share_a_line():
  fig = images.adversarial_grid(*make(), ["0", "1", "2"], num=2)
  assert len(fig.axes) == 6
  captions = [ax.get_xlabel() for ax in fig.axes]
  assert captions == ["0 → 0", "1 → 1", "", "", "0 → 1", "1 → 1"]


def test_no_perturbation_is_grey():
  x, _, *classes = make()
  fig = images.adversarial_grid(x, x, *classes, NAMES)
  np.testing.assert_array_equal(shown(fig.axes[3]), 0.5)


def test_adversarial_grid_refuses_bad_input():
  x, x_adv, labels, clean, adv = make()
  with pytest.raises(ValueError, match="x_adv"):
    images.adversarial_grid(x, x_adv[:, :2], labels, clean, adv, NAMES)
  with pytest.raises(ValueError, match="num is 0"):
    images.adversarial_grid(x, x_adv, labels, clean, adv, NAMES, num=0)
  with pytest.raises(ValueError, match="predictions_adv has shape"):
    images.adversarial_grid(x, x_adv, labels, clean, adv[:2], NAMES)
  with pytest.raises(ValueError, match="labels has shape"):
    images.adversarial_grid(x, x_adv, labels, clean, adv, NAMES[:2])
