import numpy as np
import pytest

from jaxadv.report import curves, style


def line(ax, label):
  (found,) = [x for x in ax.get_lines() if x.get_label() == label]
  return found


def texts(ax):
  return [text.get_text() for text in ax.texts]


def test_robustness_curve_is_in_percent_from_0_to_100():
  fig = curves.robustness_curve(
    {
      "plain": ([0.0, 0.1, 0.3], [0.9, 0.2, 0.0]),
      "robust": ([0.0, 0.1, 0.3], [0.8, 0.7, 0.5]),
    },
    xlabel="L2 radius",
    title="MNIST",
  )
  (ax,) = fig.axes
  assert ax.get_ylim() == (0, 100)
  assert ax.get_xlim() == (0.0, 0.3)
  assert ax.get_xlabel() == "L2 radius"
  assert ax.get_title("left") == "MNIST"
  np.testing.assert_allclose(line(ax, "plain").get_ydata(), [90, 20, 0])
  np.testing.assert_allclose(line(ax, "robust").get_xdata(), [0, 0.1, 0.3])
  assert texts(ax) == ["plain", "robust"]
  assert line(ax, "plain").get_color() != line(ax, "robust").get_color()


def test_robustness_curve_draws_the_bands_it_is_given():
  series = {"a": ([0, 1], [0.9, 0.5]), "b": ([0, 1], [0.8, 0.4])}
  fig = curves.robustness_curve(series, bands={"b": ([0.7, 0.3], [0.9, 0.6])})
  (band,) = fig.axes[0].collections
  vertices = band.get_paths()[0].vertices
  assert vertices[:, 1].min() == pytest.approx(30)
  assert vertices[:, 1].max() == pytest.approx(90)


@pytest.mark.parametrize(
  ("series", "bands", "match"),
  [
    ({}, None, "curves is empty"),
    ({"a": ([0, 1], [0.9])}, None, "has shape"),
    ({"a": ([], [])}, None, "at least one, ascending"),
    ({"a": ([1, 0], [0.9, 0.8])}, None, "ascending"),
    ({"a": ([0, 1], [90, 80])}, None, "not percents"),
    ({"a": ([0, 1], [np.nan, 0.5])}, None, "fractions"),
    ({"a": ([0], [1.0])}, {"b": ([1], [1])}, "bands has labels"),
    ({"a": ([0], [1.0])}, {"a": ([2], [1])}, "bands.'a'."),
  ],
)
def test_robustness_curve_refuses_bad_input(series, bands, match):
  with pytest.raises(ValueError, match=match):
    curves.robustness_curve(series, bands=bands)


def test_a_single_radius_has_room_around_it():
  (ax,) = curves.robustness_curve({"a": ([0.3], [0.5])}).axes
  low, high = ax.get_xlim()
  assert low < 0.3 < high


def test_success_counts_broken_examples_up_to_each_step():
  steps = np.array([0, 2, 2, 5])
  success = np.array([True, True, False, True])
  fig = curves.success_against_steps(
    {"pgd": (steps, success), "none": ([9, 9], [False, False])}
  )
  (ax,) = fig.axes
  found = line(ax, "pgd")
  assert found.get_drawstyle() == "steps-post"
  np.testing.assert_array_equal(found.get_xdata(), [0, 0, 2, 5, 9])
  np.testing.assert_allclose(found.get_ydata(), [0, 25, 50, 75, 75])
  np.testing.assert_allclose(line(ax, "none").get_ydata(), [0, 0])
  assert ax.get_ylim() == (0, 100)
  assert ax.get_xlim() == (0, 9)


def test_success_refuses_bad_input():
  with pytest.raises(TypeError, match="boolean"):
    curves.success_against_steps({"pgd": ([1, 2], [0.5, 1.0])})
  with pytest.raises(ValueError, match="one of each per example"):
    curves.success_against_steps({"pgd": ([1, 2], [True])})
  with pytest.raises(ValueError, match="results is empty"):
    curves.success_against_steps({})


def test_training_curves_sort_metrics_into_two_panels():
  records = [
    {"step": 10, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1},
    {"step": 0, "loss": 2.0, "accuracy": 0.1, "eval_accuracy": 0.2},
    {"step": 20, "loss": float("nan"), "eval_accuracy": 0.7},
  ]
  fig = curves.training_curves(records, title="MNIST")
  loss, accuracy = fig.axes
  np.testing.assert_allclose(line(loss, "loss").get_xdata(), [0, 10])
  np.testing.assert_allclose(line(loss, "loss").get_ydata(), [2, 1])
  assert loss.get_ylim()[0] == 0
  assert loss.get_title("left") == "MNIST"
  np.testing.assert_allclose(
    line(accuracy, "eval_accuracy").get_ydata(), [20, 70]
  )
  assert sorted(texts(accuracy)) == ["accuracy", "eval_accuracy"]
  assert accuracy.get_ylim() == (0, 100)


def test_training_curves_of_one_kind_have_one_panel():
  records = [{"step": 0, "loss": -2.0}, {"step": 1, "loss": -3.0}]
  (ax,) = curves.training_curves(records).axes
  assert ax.get_ylim()[0] < -3


def test_training_curves_refuse_rows_they_cannot_draw():
  with pytest.raises(ValueError, match="'step'"):
    curves.training_curves([{"loss": 1.0}])
  with pytest.raises(ValueError, match="none with 'loss'"):
    curves.training_curves([{"step": 1, "speed": 3.0}])


def test_confidence_histogram_shares_sum_to_100():
  fig = curves.confidence_histogram(
    {"pgd": [0.99, 0.98, 0.51, 1.0], "clean": []}, num_bins=10
  )
  (ax,) = fig.axes
  outlines = {p.get_label(): p for p in ax.patches if "n =" in p.get_label()}
  assert list(outlines) == ["pgd  (n = 4)", "clean  (n = 0)"]
  shares, edges, _ = outlines["pgd  (n = 4)"].get_data()
  np.testing.assert_allclose(shares, [0] * 5 + [25, 0, 0, 0, 75])
  assert len(edges) == 11
  assert ax.get_xlim() == (0, 100)
  assert ax.get_ylim()[0] == 0


def test_confidences_are_fractions():
  with pytest.raises(ValueError, match="fractions"):
    curves.confidence_histogram({"pgd": [99.0]})


def test_labels_of_equal_ends_are_spread_within_the_axes():
  assert style.spread([0.0, 0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1, 0.2])
  assert style.spread([0.9, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
  assert style.spread([0.2, 0.7], 0.1) == [0.2, 0.7]
  assert style.spread([0.5] * 21, 0.1)[-1] == pytest.approx(1.0)


def test_series_looks_are_distinct():
  looks = {tuple(style.series_style(i).items()) for i in range(28)}
  assert len(looks) == 28
