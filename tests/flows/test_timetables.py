"""Timetables: which are refused before anything is made, and what the definition holds. No server is asked."""

from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import schedule
from flows.cli.main import main
from flows.schedule import Timetable, deployment, parse_timetable
from stylegan.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("cron", "every", "timezone", "says"),
    [
        (None, None, None, "give one of --cron and --every"),
        ("0 3 * * 1", "6h", None, "give one of --cron and --every"),
        ("0 3 * *", None, None, r"--cron '0 3 \* \*': is no cron expression; write five fields"),
        ("61 3 * * 1", None, None, "is no cron expression"),
        ("every monday", None, None, "is no cron expression"),
        ("0 0 30 2 *", None, None, r"--cron '0 0 30 2 \*': never fires"),
        ("H 3 * * 1", None, None, "is no cron expression"),
        (
            "0 3 * * 1",
            None,
            "Europe/Berln",
            r"--timezone Europe/Berln: is no time zone of the IANA; did you mean Europe/Berlin\?",
        ),
        ("0 3 * * 1", None, "Mars", "is no time zone"),
        (None, "0h", None, "--every 0h: must be from 1m to 366d"),
        (None, "5s", None, "must be from 1m"),
        (None, "6", None, "must be from 1m"),
        (None, "-6h", None, "must be from 1m"),
        (None, "400d", None, "must be from 1m"),
    ],
)
def test_what_is_no_timetable_is_one_line(cron, every, timezone, says):
    with pytest.raises(ConfigError, match=says) as caught:
        parse_timetable(cron, every, timezone)
    assert "\n" not in str(caught.value)


def test_timetables_that_hold():
    assert parse_timetable("0 3 29 2 *", None, "Europe/Berlin") == Timetable(
        cron="0 3 29 2 *", timezone="Europe/Berlin"
    )
    assert parse_timetable(None, "90m", None).every == 5400
    assert parse_timetable(None, "1.5h", None).every == 5400
    assert parse_timetable("*/15 * * * mon-fri", None, None).timezone == "UTC"


def test_the_definition_has_no_concurrency_limit_and_no_secret():
    made = deployment("faces", "/faces.yaml", ["seed=1"], Timetable(cron="0 3 * * 1"), "/home")
    assert "concurrency_limit" not in made
    assert made["parameters"] == {"config": "/faces.yaml", "overrides": ["seed=1"]}
    assert "concurrency" not in str(yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text()))


def test_the_automation_waits_for_three_heartbeats_and_takes_any_event_for_a_sign_of_life():
    made = schedule.automation()
    assert made.trigger.within == timedelta(seconds=3 * int(schedule.ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]))
    assert made.trigger.expect == {"prefect.flow-run.*"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pause", "--resume"], "--pause with --resume: give one of them"),
        (["--now", "--delete"], "--delete with --now: give one of them"),
        (["--now", "--show"], "--show with --now: give one of them"),
        (["--show", "--cron", "0 3 * * 1"], "--show with a timetable: give one of them"),
        (["--cron", "0 3 * * 1", "--set", "retrain.notify=['json://x']"], "Prefect would keep and show its secrets"),
        (["--cron", "0 3 * * 1", "--set", "seed=x"], "seed='x'"),
        ([], "give one of --cron and --every"),
        (["--cron", "0 3 * * 1"], "PREFECT_API_URL: is not set, and a schedule needs a Prefect server that stays"),
    ],
)
def test_bad_input_is_one_line_before_a_server_is_asked(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    config = tmp_path / "t.yaml"
    config.write_text("name: t\ndata: {source: digits, resolution: 8}\ntraining: {batch: 4}\n")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):  # no server of other tests
        assert main(["schedule", str(config), *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stylegan: ")]
    assert len(lines) == 1
    assert says in lines[0]
