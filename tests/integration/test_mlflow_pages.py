"""MLflow's pages as a person opens them, in a browser: the prepared view, and the pages of a model and a version."""

import re
from dataclasses import dataclass
from pathlib import Path

import mlflow_site
import pytest

from stylegan.tracking.connection import connect, resolve_uri
from stylegan.tracking.links import comparison_url, run_url
from stylegan.tracking.views import DIFFERENCE_TAG, VERDICT_TAG

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(mlflow_site.CHROMIUM is None, reason="needs chromium, which is not installed"),
]


@dataclass
class Site:
    url: str
    folder: Path
    config: object
    run: str  # MLflow's id of the second run

    def open(self, path, name):
        """Return the text of a page, which must not be blank."""
        picture = self.folder / f"{name}.png"
        dom = mlflow_site.open_page(f"{self.url}/{path}", picture)
        assert not mlflow_site.is_blank(picture), name
        return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(script|style).*?</\1>", " ", dom)).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_config):
    """A server of MLflow with two runs, of which the second one is champion."""
    folder = tmp_path_factory.mktemp("site")
    config = tiny_config(folder)
    client = None
    for number in (0, 1):
        run, report = mlflow_site.log_run(config, folder, number)
        mlflow_site.register_run(config, run, report)
        client = client or connect(resolve_uri(config))
        client.set_tag(run.mlflow_run_id, VERDICT_TAG, f"promoted {number}")
        client.set_tag(run.mlflow_run_id, DIFFERENCE_TAG, f"training.r1_gamma={number}")
        run.log_note(f"**The note of run {number}**\n\n| metric | value |\n|---|---|\n| FID | 2.9 |")
    with mlflow_site.serving(resolve_uri(config), f"file://{folder}/mlartifacts") as url:
        yield Site(url, folder, config, run.mlflow_run_id)


def path_of(url):
    """Return what is behind the address of the server."""
    return "#" + url.partition("/#")[2]


def test_the_prepared_view_has_its_charts_in_order_and_none_of_a_single_point(site):
    text = site.open(path_of(comparison_url(site.config)), "charts")
    headings = ("Quality over kimg (1)", "Samples at equal kimg (1)", "Losses (3)", "Scores of the discriminator (2)")
    places = [text.find(heading) for heading in (*headings, "Speed (1)")]
    assert -1 not in places
    assert places == sorted(places)
    assert "eval/fid_classifier" not in text
    assert "share key" not in text  # the page's message if it cannot read the view


def test_the_prepared_view_has_the_columns_that_say_how_good_a_run_is(site):
    text = site.open(path_of(comparison_url(site.config, charts=False)), "table")
    for column in ("eval/fid_classifier", "eval/recall_classifier", "progress/kimg", "time/img_per_sec"):
        assert column in text, column
    assert "promoted 1" in text
    assert "training.r1_gamma=1" in text
    assert "loss/d" not in text


def test_the_page_of_a_run_has_its_note_and_its_data_set(site):
    text = site.open(path_of(run_url(site.config, site.run)), "run")
    assert "The note of run 1" in text
    assert "digits" in text


def test_a_version_and_its_model_begin_with_how_good_it_is(site):
    line = "champion (version 2): FID 2.90, 24 % better than version 1"
    assert line in site.open("#/models/tiny/versions/2", "version")
    assert line in site.open("#/models/tiny", "model")
