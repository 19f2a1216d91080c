"""The model that is served is followed: a new version replaces the old one, and whatever goes wrong leaves it as it is."""

import time

import pytest
from served_models import no_means, write_model

from stylegan.drawing.draw import draw
from stylegan.errors import StepError, UnavailableError
from stylegan.serving import models as following
from stylegan.serving.models import Models


@pytest.fixture
def registry(tmp_path):
    """A registry of two versions, of which `now` is the one that the alias names, or an error."""

    class Registry:
        versions = [write_model(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
        now = versions[0]

        def find(self):
            if isinstance(self.now, Exception):
                raise self.now
            return self.now

    return Registry()


def test_another_version_replaces_the_first_in_one_step(registry):
    models = Models(registry.find, "cpu", no_means)
    first = models.current
    models.look()
    assert models.current is first
    registry.now = registry.versions[1]
    models.look()
    assert (first.version, models.current.version) == ("1", "2")
    assert models.current.digest != first.digest
    assert (draw(models.current.generator, [1], labels=[0]) != draw(first.generator, [1], labels=[0])).any()
    registry.now = registry.versions[0]  # a rollback
    models.look()
    assert models.current.digest == first.digest


def test_a_registry_that_is_away_changes_nothing_and_is_told(registry, caplog):
    models = Models(registry.find, "cpu", no_means)
    first, looked = models.current, models.looked
    registry.now = UnavailableError("MLflow at http://x: does not answer")
    models.look()
    models.look()
    assert (models.current, models.trouble, models.looked) == (first, "MLflow at http://x: does not answer", looked)
    assert [record.getMessage() for record in caplog.records] == [
        "digits: version 1 stays: MLflow at http://x: does not answer"
    ]
    registry.now = registry.versions[1]
    models.look()
    assert (models.current.version, models.trouble) == ("2", None)
    assert models.looked > looked


def test_a_version_that_cannot_be_loaded_changes_nothing(registry, tmp_path):
    models = Models(registry.find, "cpu", no_means)
    file = tmp_path / "b" / "generator.safetensors"
    whole = file.read_bytes()
    registry.now = registry.versions[1]
    for broken in (whole[: len(whole) // 2], None):
        if broken is None:
            file.unlink()
        else:
            file.write_bytes(broken)
        models.look()
        assert models.current.version == "1"
        assert "generator" in models.trouble or "gone" in models.trouble
    file.write_bytes(whole)
    models.look()
    assert (models.current.version, models.trouble) == ("2", None)


def test_an_alias_is_followed_by_itself_and_a_single_version_is_not(registry, monkeypatch):
    monkeypatch.setattr(following, "POLL_SECONDS", 0.02)
    models = Models(registry.find, "cpu", no_means)
    models.start()
    registry.now = registry.versions[1]
    deadline = time.monotonic() + 30
    while models.current.version == "1" and time.monotonic() < deadline:
        time.sleep(0.02)
    models.close()
    assert models.current.version == "2"


def test_no_model_is_an_error_at_the_start(tmp_path, registry):
    (tmp_path / "a" / "generator.safetensors").unlink()
    with pytest.raises(StepError, match="is gone; name another model"):
        Models(registry.find, "cpu", no_means)


def test_the_look_comes_often_enough_for_a_promotion_to_be_served_within_a_minute():
    assert following.POLL_SECONDS <= 20
