"""The published figures, and when ours are comparable with them."""

import re
from pathlib import Path

import pytest

from stylegan.errors import ConfigError
from stylegan.evaluation.features.public_weights import KNOWN, join_digests
from stylegan.evaluation.page.published import (
    compare,
    dataset_of,
    describe_incomparable,
    figures_of,
    licence_of,
    row_names,
)
from stylegan.evaluation.report import Report

ABLATIONS = Path(__file__).parents[3] / "configs/ablations"
SSGAN = {"gan": "uncond", "ssgan": "ss", "ssgan-sbn": "ss-sbn", "conditional": "cond"}  # its configs in configs/ssgan/
LPIPS = join_digests([KNOWN["vgg16"].sha256, KNOWN["lpips"].sha256])
SETTINGS = {
    "num_images": 50_000,
    "num_reals": 50_000,
    "ppl_samples": 100_000,
    "ppl_epsilon": 1e-4,
    "ppl_crop": True,
    "separability_samples": 200_000,
    "networks": {"inception": KNOWN["inception"].sha256, "lpips": LPIPS, "attributes": "ab"},
    "resolution": 1024,
}
METRICS = {"fid_inception": 4.6, "ppl_wfull_lpips": 230.0, "ppl_wend_lpips": 190.0, "separability_w_attributes": 3.8}


def measured(metrics=METRICS, *, skipped=None, curves=None, intervals=None, **settings):
    return Report(
        protocol="p",
        dataset_fingerprint="f",
        checkpoint_uri="c",
        metrics=metrics,
        skipped=skipped or {},
        curves=curves or {},
        intervals=intervals or {},
        protocols=dict.fromkeys([*metrics, "fid_mixing_inception"], "p"),
        settings=SETTINGS | settings,
    )


def found(report, metric, *, where="Table 1", dataset="ffhq", row="f", latents=1):
    """Return the only comparison of a metric in a table."""
    rows = [
        c
        for c in compare(report, row=row, dataset=dataset)
        if (c.published.metric, c.published.latents) == (metric, latents)
    ]
    (one,) = [c for c in rows if where in c.published.where]
    return one


def test_the_rows_are_the_configs_of_the_ablations():
    assert list(row_names()) == sorted([*(path.stem for path in ABLATIONS.glob("*.yaml")), *SSGAN])


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_figures_are_those_that_the_configs_tell(path):
    (fid,) = re.findall(r"published FID on FFHQ(?: with one latent)?: ([\d.]+)", path.read_text())
    paper = {figure.value for figure in figures_of(path.stem) if figure.metric == "fid" and "arxiv" in figure.url}
    assert paper == {float(fid)}


@pytest.mark.parametrize("row", SSGAN)
@pytest.mark.parametrize(("dataset", "start"), [("cifar10", "cifar10"), ("imagenet", "128")])
def test_the_figures_of_ssgan_are_those_that_the_configs_tell(row, dataset, start):
    """They were measured on images held out of training, as ours never are, so that they compare with nothing."""
    (figure,) = figures_of(row, dataset)
    path = ABLATIONS.parent / f"ssgan/{start}-{SSGAN[row]}.yaml"
    if path.exists():  # the paper's sBN at 128x128 is --set model.norm=self_modulated
        assert (
            re.search(r"published\s+(?:#\s+)?FID(?: on ImageNet)?: ([\d.]+)", path.read_text())[1]
            == f"{figure.value:.2f}"
        )
    report = measured({"fid_inception": 20.0}, resolution=figure.resolution)
    (one,) = compare(report, row=row, dataset=dataset)
    assert not one.comparable
    assert one.kinds == ("measured otherwise",)


def test_figures_of_ssgan_on_data_without_labels():
    assert {
        row: [figure.value for figure in figures_of(row, "celeba-hq")] for row in ("gan", "ssgan", "ssgan-sbn")
    } == {
        "gan": [23.77],
        "ssgan": [26.11],
        "ssgan-sbn": [24.36],
    }
    assert figures_of("conditional", "lsun-bedroom") == figures_of("conditional", "cifar10")  # which has labels


def test_one_training_with_several_names_has_one_list_of_figures():
    assert figures_of("mixing-090") == figures_of("style-8") == figures_of("f")
    assert figures_of("traditional-0") == figures_of("b") != figures_of("e")


def test_equal_figures_of_several_tables_are_one():
    (figure,) = [figure for figure in figures_of("f") if figure.value == 4.40]
    assert figure.where == ("Table 1", "Table 2", "Table 4")
    assert figure.title == "F: mixing regularization (StyleGAN)"


def test_figures_of_table_2_by_the_number_of_latents():
    rows = {figure.latents: figure for figure in figures_of("mixing-100")}
    assert [rows[latents].value for latents in (1, 2, 3, 4)] == [4.83, 5.17, 6.63, 8.40]
    assert [rows[latents].metric for latents in (1, 2)] == ["fid", "fid_mixing"]
    assert rows[3].name == "Fréchet distance (FID), 3 latents mixed"


def test_figures_of_the_data_set_and_of_ffhq_where_it_has_none():
    assert {figure.dataset for figure in figures_of("f", "celeba-hq")} == {"celeba-hq"}
    assert {figure.dataset for figure in figures_of("style-1", "celeba-hq")} == {"ffhq"}
    assert {figure.dataset for figure in figures_of("f", None)} == {"ffhq"}


def test_an_unknown_row_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="row 'g' is in none of the published tables; known are a, b"):
        figures_of("g")


def test_the_unconfirmed_row_says_so():
    remarks = {figure.metric: figure.remarks for figure in figures_of("mixing-050") if "Table 3" in figure.where}
    assert any("no second transcription" in remark for remark in remarks["ppl_wfull"])


@pytest.mark.parametrize(
    ("metric", "where"),
    [("fid", "Table 1"), ("fid", "Pre-trained"), ("ppl_wfull", "Table 3"), ("ppl_wend", "Pre-trained")],
)
def test_the_published_protocol_compares(metric, where):
    row = found(measured(), metric, where=where)
    assert row.comparable
    assert row.value == METRICS[row.key]


def test_an_interval_is_shown():
    assert found(measured(intervals={"fid_inception": (4.5, 4.7)}), "fid").interval == (4.5, 4.7)


@pytest.mark.parametrize(
    ("change", "metric", "reason"),
    [
        ({"num_images": 1797}, "fid", "1,797 generated images, not 50,000"),
        ({"num_reals": 1797}, "fid", "1,797 real images, not 50,000"),
        ({"resolution": 256}, "fid", "another resolution, 256x256"),
        (
            {"networks": SETTINGS["networks"] | {"inception": "ab"}},
            "fid",
            "the weights of inception are not the public ones",
        ),
        (
            {"networks": SETTINGS["networks"] | {"lpips": KNOWN["vgg16"].sha256}},
            "ppl_wfull",
            "the weights of lpips are not the public ones",
        ),
        ({"ppl_samples": 50_000}, "ppl_wfull", "50,000 pairs, not 100,000"),
        ({"ppl_epsilon": 1e-3}, "ppl_wfull", "ppl_epsilon=0.001, not 0.0001"),
        ({"ppl_crop": False}, "ppl_wfull", "ppl_crop=false, not true"),
        ({"precision": "bf16"}, "fid", "images drawn in bf16, not fp32"),
    ],
)
def test_each_deviation_is_the_reason_why_not(change, metric, reason):
    where = "Table 1" if metric == "fid" else "Table 3"
    assert found(measured(**change), metric, where=where).why_not == (reason,)


def test_the_settings_of_another_metric_do_not_matter():
    others = measured(num_images=1797, num_reals=1797, precision="bf16")
    assert found(others, "ppl_wfull", where="Table 3").comparable
    assert found(measured(ppl_samples=500, ppl_crop=False, separability_samples=10), "fid").comparable


def test_another_network_does_not_compare():
    row = found(measured({"fid_classifier": 4.4}), "fid")
    assert (row.key, row.value) == ("fid_classifier", 4.4)
    assert row.why_not == ("measured by classifier, not Inception-v3 (2015-12-05)",)


def test_of_two_networks_the_published_one_is_taken():
    assert found(measured({"fid_classifier": 1.0, "fid_inception": 2.0}), "fid").value == 2.0


@pytest.mark.parametrize("dataset", [None, "celeba-hq", "lsun-cat"])
def test_other_images_do_not_compare(dataset):
    reasons = {why for row in compare(measured(), row="style-1", dataset=dataset) for why in row.why_not}
    assert "other images than FFHQ" in reasons


def test_separability_never_compares_with_classifiers_of_our_own():
    reasons = found(measured(), "separability_w", where="Table 3").why_not
    assert reasons == ("measured by attributes, not the paper's 40 classifiers of CelebA-HQ attributes",)


def test_a_small_data_set_is_used_up():
    """CelebA-HQ has 30,000 images."""
    assert found(measured(num_reals=30_000), "fid", dataset="celeba-hq").comparable
    assert not found(measured(num_reals=29_999), "fid", dataset="celeba-hq").comparable


def test_genforce_resizes_otherwise():
    rows = [row for row in compare(measured(resolution=256), dataset="ffhq") if row.published.resolution == 256]
    assert [row.why_not for row in rows] == [
        ("it resizes images otherwise before Inception and does not quantise them",)
    ]


def test_mixed_styles_come_from_the_curve():
    curve = {"mixing": [{"latents": 1.0, "fid": 4.6}, {"latents": 2.0, "fid": 5.5}]}
    row = found(measured(curves=curve), "fid_mixing", where="Table 2", latents=2)
    assert (row.published.value, row.value, row.comparable) == (5.11, 5.5, True)
    assert found(measured(curves=curve), "fid_mixing", where="Table 2", latents=3).value is None


def test_what_was_not_measured_says_why():
    row = found(measured(skipped={"ppl_zfull_lpips": "too small."}), "ppl_zfull", where="Pre-trained")
    assert (row.key, row.value, row.why_not) == ("ppl_zfull_lpips", None, ("not measured: too small",))
    assert found(measured(), "ppl_zend", where="Pre-trained").why_not == ("not measured",)


def test_a_report_without_settings_compares_with_nothing():
    old = Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics=METRICS)
    assert not any(row.comparable for row in compare(old, dataset="ffhq"))


@pytest.mark.parametrize(
    ("source", "num_images", "name"),
    [
        ("s3://bucket/ffhq/images1024x1024", 70_000, "ffhq"),
        ("/data/FFHQ-256.zip", 70_000, "ffhq"),
        ("s3://bucket/ffhq/images1024x1024", 69_999, None),
        ("/data/celeba-hq", 30_000, "celeba-hq"),
        ("/data/CelebA_HQ.zip", 30_000, "celeba-hq"),
        ("/data/faces", 70_000, None),
        ("/lsun/cat", 1_657_266, "lsun-cat"),
        ("/scattered", 1_657_266, None),
        ("digits", 1797, "digits"),
        ("/data/cifar10-train.zip", 50_000, "cifar10"),
        ("/data/CIFAR-10", 50_000, "cifar10"),
        ("/data/cifar100", 50_000, None),
        ("s3://sets/imagenet", 1_281_167, "imagenet"),
        ("/scans/digits", 1798, None),
    ],
)
def test_a_data_set_is_told_by_its_path_and_its_size(source, num_images, name):
    assert dataset_of(source, num_images) == name


def test_only_public_data_sets_have_a_licence_that_is_known():
    assert licence_of("digits") == "CC BY 4.0"
    assert licence_of(None) is None


def test_figures_that_do_not_compare_are_one_line_with_the_kinds_of_reasons():
    """Figures that were not measured come last; without such figures there is no line."""
    rows = compare(Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics={"fid_classifier": 2.0}))
    line = describe_incomparable(rows)
    kinds = "other network, other settings, other data"
    assert line.startswith(f"{len(rows)} published figures do not compare: {kinds}, ")
    assert line.endswith(", not measured")
    assert describe_incomparable(rows[:1]).startswith("1 published figure does not compare: ")
    assert describe_incomparable([]) == ""
