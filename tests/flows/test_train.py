"""The config of a flow in its three forms, and what Prefect may keep in its log."""

import logging

import pytest

from flows.beginning import redacted
from flows.train import _checked, train_flow
from stylegan.errors import ConfigError

pytestmark = pytest.mark.usefixtures("prefect_api")
TREE = {"name": "t", "data": {"source": "digits", "resolution": 8}, "training": {"batch": {"4": 8}}}


def test_every_form_of_a_config_is_checked_by_the_same_rules(tmp_path):
    """A file, the JSON of a deployment, and a config from Python; overrides hold for each."""
    file = tmp_path / "t.yaml"
    file.write_text("name: t\ndata: {source: digits, resolution: 8}\ntraining: {batch: {4: 8}}\n")
    config = _checked(TREE, [])
    assert _checked(str(file), []) == _checked(config, []) == config
    for form in (TREE, str(file), config):
        assert _checked(form, ["seed=7"]).seed == 7
        with pytest.raises(ConfigError, match=r"seed='x': must be a whole number"):
            _checked(form, ["seed=x"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "1"}, r"config: seed='1': must be a whole number; write 1"),
        ({"training": {"btach": 4}}, r"unknown key training\.btach; did you mean training\.batch\?"),
        ({"tracking": {"uri": "http://me:CANARY@host"}}, r"tracking\.uri=http://me:\*\*\*@host: carries credentials"),
    ],
)
def test_a_deployment_with_a_wrong_config_ends_with_one_line(changes, says):
    with pytest.raises(ConfigError, match=says) as caught:
        train_flow(TREE | changes)
    assert "\n" not in str(caught.value)


def test_the_log_of_a_run_isredacted_with_its_tracebacks(caplog):
    logger = logging.getLogger("stylegan")
    logger.addFilter(redacted)
    try:
        raise ConnectionError("Max retries exceeded with url: https://host/x?sig=CANARY")
    except ConnectionError:
        logger.exception("cannot read %s", "s3://me:CANARY@bucket")
    assert "cannot read s3://me:***@bucket" in caplog.text
    assert "sig=***" in caplog.text
    assert "CANARY" not in caplog.text
