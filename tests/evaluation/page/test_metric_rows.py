"""The rows of values that terminal, page, model card and Prefect share, and the warnings about values."""

import math

import pytest

from stylegan.evaluation.page.metric_rows import curve_cells, metric_rows, number, skipped_rows, warnings
from stylegan.evaluation.page.published import figures_of, row_names
from stylegan.evaluation.report import Report


def report(metrics, **more):
    return Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics=metrics, **more)


def shares(*values):
    return {
        str(k): {"entropy_w": 0.1, "entropy_z": 0.1, "share": value, "error": None} for k, value in enumerate(values)
    }


def test_rows_have_the_order_of_the_table_of_metrics_and_names_for_people():
    metrics = {"classifier_accuracy": 1.0, "recall_vgg16": 0.4, "is_std_inception": 0.1, "fid_inception": 4.4}
    rows = metric_rows(report(metrics, intervals={"fid_inception": (4.3, 4.5)}, protocols={"fid_inception": "q"}))
    assert [(row.name, row.arrow, row.value, row.interval, row.key, row.protocol) for row in rows] == [
        ("Fréchet distance (FID), inception", "↓", "4.400", "4.300 to 4.500", "fid_inception", "q"),
        ("Inception score, spread, inception", "", "0.100", "", "is_std_inception", "p"),
        ("Recall, vgg16", "↑", "0.400", "", "recall_vgg16", "p"),
        ("classifier accuracy", "", "1.000", "", "classifier_accuracy", "p"),
    ]
    assert [row.key for row in rows if not row.of_model] == ["is_std_inception", "classifier_accuracy"]
    assert rows[2].short_meaning == "Share of the real images that the model can draw"
    assert all(row.meaning for row in rows)


def test_what_was_skipped_has_the_same_order():
    rows = skipped_rows(report({}, skipped={"ppl_wend_lpips": "too small", "fid_inception": "too few"}))
    assert [(row.name, row.reason) for row in rows] == [
        ("Fréchet distance (FID), inception", "too few"),
        ("Path length in W, ends, lpips", "too small"),
    ]


@pytest.mark.parametrize(
    ("metrics", "more", "says"),
    [
        ({"recall_classifier": 0.013}, {}, "Recall is 0.013: the images have few varieties"),
        ({"precision_vgg16": 0.2}, {}, "Precision is 0.200: most generated images are unlike any real one"),
        ({"coverage_vgg16": 0.21}, {}, "Coverage is 0.210: most real images have no generated one near them"),
        ({"fid_x": 4.0}, {"intervals": {"fid_x": (2.9, 5.1)}}, "its 95 % interval is wide"),
        ({"ppl_zend_classifier": 0.01}, {}, "the images hardly change with z, so the latent is ignored"),
        ({"ppl_wfull_lpips": 0.0}, {}, "the images hardly change with w"),
        ({"is_inception": 1.0}, {}, "Inception score is 1.000: the network sees one class in all images"),
        ({"separability_w_x": 2.0}, {"attributes": shares(0.5)}, "w says nothing about any attribute"),
        (
            {"separability_w_x": math.nan},
            {},
            "Separability in W is not a number: the model or its measurement has failed",
        ),
        ({"fid_x": math.inf}, {}, "Fréchet distance (FID) is ∞"),
    ],
)
def test_a_value_that_means_trouble_is_warned_of(metrics, more, says):
    (warning,) = warnings(report(metrics, **more))
    assert says in warning
    assert warning.endswith(".")


@pytest.mark.parametrize(
    ("metrics", "more"),
    [
        ({"recall_classifier": 0.3, "precision_classifier": 0.6, "coverage_classifier": 0.5}, {}),
        ({"kid_inception": -0.0004}, {}),  # it is unbiased, so it may be below 0
        ({"fid_x": 2.64}, {"intervals": {"fid_x": (2.36, 2.93)}}),
        ({"is_rotation": 1.0}, {}),  # upright images are of one class to it
        ({"separability_w_x": 1.0, "separability_z_x": 24.96}, {"attributes": shares(*[0.1] * 10)}),  # class labels
        # A perfect model has no more coverage than this with so few images.
        ({"coverage_vgg16": 0.09}, {"settings": {"num_reals": 50_000, "num_images": 1000}}),
        ({"unknown": 0.0}, {}),
    ],
)
def test_a_value_that_means_no_trouble_is_not(metrics, more):
    assert warnings(report(metrics, **more)) == []


@pytest.mark.parametrize("row", row_names())
def test_no_published_model_is_warned_of(row):
    """Their separability is that of 40 attributes, each of which half of the images have, at most."""
    figures = figures_of(row)
    assert figures
    for figure in figures:
        found = report(
            {f"{figure.metric}_x": figure.value},
            intervals={f"{figure.metric}_x": (0.98 * figure.value, 1.02 * figure.value)},
            attributes=shares(*[0.5] * 40),
        )
        assert warnings(found) == [], figure


def test_the_cells_of_a_curve_begin_with_its_axis():
    rows = [{"recall": 0.25, "fid": 3.0, "psi": 0.5}, {"fid": 2.0, "psi": 1.0}]
    assert curve_cells(rows) == (["ψ", "FID", "Recall"], [["0.5", "3.000", "0.250"], ["1", "2.000", "\N{EN DASH}"]])
    assert curve_cells([]) == ([], [])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4.4159, "4.416"),
        (234.04, "234.0"),
        (999.96, "1,000"),
        (12345.6, "12,346"),
        (0.72134, "0.721"),
        (0.00061234, "0.000612"),
        (0.0, "0"),
        (-0.0021, "\N{MINUS SIGN}0.00210"),
        (math.nan, "not a number"),
        (math.inf, "∞"),
        (-math.inf, "\N{MINUS SIGN}∞"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_as_people_read_them(value, shown):
    assert number(value) == shown
