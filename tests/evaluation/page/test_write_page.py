"""Reports and pages in storage: a page is written once, with the figures that exist and the right published figures."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from stylegan.config.file import build, load
from stylegan.data.dataset_card import read_card
from stylegan.evaluation.page.html import page_format
from stylegan.evaluation.page.write_page import compare_published, missing_figures, read_report, write_page
from stylegan.evaluation.report import Report
from stylegan.images import animation_bytes

CONFIGS = Path(__file__).parents[3] / "configs"


def test_a_page_is_written_once_with_the_figures(measured: Report, tmp_path, caplog):
    """A figure that is gone is omitted with a warning."""
    report = measured.model_copy(update={"figures": measured.figures | {"extra": str(tmp_path / "gone.png")}})
    with caplog.at_level(logging.WARNING, "stylegan"):
        uri = write_page(report, str(tmp_path), title="first")
    page = (tmp_path / "report.html").read_text()
    assert uri == str(tmp_path / "report.html")
    assert page.count("data:image/png;base64,") == len(measured.figures) == 5
    assert "figure extra is gone" in caplog.text
    write_page(report, str(tmp_path), title="second")
    assert (tmp_path / "report.html").read_text() == page
    (tmp_path / "report.html").unlink()
    write_page(report, str(tmp_path), title="third")
    assert "third" in (tmp_path / "report.html").read_text()


def test_a_new_report_gets_a_new_page(measured: Report, tmp_path):
    write_page(measured, str(tmp_path), title="first")
    write_page(measured, str(tmp_path), title="second", anew=True)
    assert "second" in (tmp_path / "report.html").read_text()


def test_the_page_of_a_run_shows_how_it_grew(measured: Report, tmp_path):
    write_page(measured, str(tmp_path), title="t")
    assert "data:image/webp" not in (tmp_path / "report.html").read_text()
    (tmp_path / "growth.webp").write_bytes(animation_bytes([Image.new("L", (9, 9), shade) for shade in (0, 200)]))
    write_page(measured, str(tmp_path), title="t", anew=True)
    assert (tmp_path / "report.html").read_text().count("data:image/webp;base64,") == 1


def test_a_page_of_another_format_is_written_again_while_its_figures_exist(measured: Report, tmp_path):
    """A stored page keeps the only copy of a picture whose file is gone."""
    write_page(measured, str(tmp_path), title="first")
    page = tmp_path / "report.html"
    page.write_text(page.read_text().replace(page_format(), "an earlier one"))
    gone = measured.model_copy(update={"figures": measured.figures | {"extra": str(tmp_path / "gone.png")}})
    write_page(gone, str(tmp_path), title="second")
    assert "first" in page.read_text()
    write_page(measured, str(tmp_path), title="third")
    assert "third" in page.read_text()
    assert page_format() in page.read_text()


def test_figures_that_are_gone_are_named(measured: Report, tmp_path):
    assert missing_figures(measured) == set()
    report = measured.model_copy(update={"figures": measured.figures | {"extra": str(tmp_path / "gone.png")}})
    assert missing_figures(report) == {"extra"}


def test_a_page_describes_the_data_set(measured: Report, shards, tmp_path):
    """The page describes it with the card of the shards."""
    write_page(measured, str(tmp_path), title="t", data=read_card(shards.uri))
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Data set</h2>" in page
    assert shards.fingerprint in page


def test_a_report_is_read_with_its_figures_beside_it(measured: Report, tmp_path):
    assert read_report(str(tmp_path)) is None
    (tmp_path / "report.json").write_text(measured.model_dump_json())
    found = read_report(str(tmp_path))
    assert found is not None
    assert found.metrics == measured.metrics
    assert found.figures["best"] == str(tmp_path / "best.png")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("quickstart", "f"),
        ("table1-a", "a"),
        ("table2-mixing-050", "mixing-050"),
        ("faces-table1-a", "a"),
        ("table9-x", "f"),
    ],
)
def test_configs_of_the_tables_stand_beside_their_own_row(measured: Report, name: str, row: str):
    config = build({"name": name, "data": {"source": "s3://b/ffhq.zip", "resolution": 1024}})
    rows = compare_published(measured, config, 70_000)
    assert row in {comparison.published.row for comparison in rows}
    assert not any("other images" in why for comparison in rows for why in comparison.why_not)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cifar10-uncond", {19.73}),
        ("cifar10-ss", {17.11}),
        ("cifar10-ss-sbn", {15.65}),
        ("cifar10-cond", {15.60}),
        ("128-cond", {15.60}),  # of images that are not known to be ImageNet: the first table of the paper
        ("cifar10-alpha-decay", set()),
        ("rotation-only", set()),
    ],
)
def test_configs_of_ssgan_stand_beside_their_own_row(measured: Report, name: str, values: set[float]):
    config = load(CONFIGS / f"ssgan/{name}.yaml")
    assert {comparison.published.value for comparison in compare_published(measured, config, 50_000)} == values
