"""The prepared view and the links to it, in a real store."""

import pytest

from stylegan.tracking import views
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.tracking.links import comparison_url, run_url, server_command
from stylegan.tracking.metric_names import TABLE


@pytest.fixture
def experiment(make_config):
    """prepared(tags): an experiment with these tags, after `prepare_experiment`; its tags, and a function that repeats it."""
    client = connect(resolve_uri(make_config()))

    def prepared(tags=None, name="stylegan"):
        experiment_id = client.create_experiment(name, tags=tags)

        def again():
            views.prepare_experiment(client, client.get_experiment(experiment_id))
            return client.get_experiment(experiment_id).tags

        return again(), again

    return prepared


def test_an_experiment_gets_the_view_and_a_note_that_leads_to_it(experiment):
    tags, again = experiment()
    assert views.unpack(tags[views.VIEW_TAG]) == views.view_state()
    assert f"viewStateShareKey={views.SHARE_KEY}" in tags[views.NOTE_TAG]
    assert len(tags[views.VIEW_TAG]) < 5000
    assert again() == tags


def test_what_people_wrote_stays(experiment):
    theirs = {views.NOTE_TAG: "our own words", "mlflow.sharedViewState.theirs": "{}"}
    tags, _ = experiment(theirs)
    assert theirs.items() <= tags.items()


def test_a_damaged_or_older_view_is_written_again_and_a_newer_one_is_left(experiment):
    for number, text in enumerate(("deflate;nonsense", "{}", "[]")):
        assert (
            views.unpack(experiment({views.VIEW_TAG: text}, f"old-{number}")[0][views.VIEW_TAG]) == views.view_state()
        )
    newer = views.pack({"stylegan": views.VERSION + 1})
    assert experiment({views.VIEW_TAG: newer}, "new")[0][views.VIEW_TAG] == newer


def test_every_chart_is_of_a_metric_that_is_logged_and_in_a_section():
    state = views.view_state()
    sections = {section["uuid"] for section in state["compareRunSections"]}
    names = {row.name for row in TABLE}
    for card in state["compareRunCharts"]:
        assert card["metricSectionId"] in sections
        name = card.get("metricKey", "")
        assert not name or name in names or name.startswith(("quick/", "eval/"))
    assert len({card["uuid"] for card in state["compareRunCharts"]}) == len(state["compareRunCharts"])


def test_links_of_an_embedded_store_say_how_to_open_it(make_config):
    config = make_config()
    assert run_url(config, "0" * 32) is None  # nothing was logged yet
    client = connect(resolve_uri(config))
    experiment_id = client.create_experiment(config.tracking.experiment)
    assert run_url(config, "0" * 32) == f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs/{'0' * 32}"
    assert "compareRunsMode=CHART" in comparison_url(config)
    assert "compareRunsMode" not in comparison_url(config, charts=False)
    assert server_command(config).endswith("mlflow.db --port 5000")


def test_a_server_that_is_away_gives_no_link(make_config):
    config = make_config(tracking={"uri": "http://127.0.0.1:1"})
    assert comparison_url(config) is None
    assert server_command(config) is None
