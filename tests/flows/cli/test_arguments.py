"""Arguments that are read in a way of their own."""

import pytest

from flows.cli.arguments import parse_metrics, parse_seeds
from stylegan.errors import ConfigError


def test_names_of_metrics():
    assert parse_metrics("kid") == ("kid",)
    assert parse_metrics("fid, ppl,ppl_wend") == ("fid", "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend")
    for text in ("", "fid,,kid", "FID", "fid_inception"):
        with pytest.raises(
            ConfigError, match=r"no metric is called '.*'; known are fid, kid, .*, and ppl for all of ppl_\*"
        ):
            parse_metrics(text)


def test_seeds():
    assert parse_seeds("0-3,7, 9-9") == [0, 1, 2, 3, 7, 9]
    for text in ("3-1", "x", "", "1,", "-1", "0-99999"):
        with pytest.raises(ConfigError, match=r"^--seeds"):
            parse_seeds(text)
