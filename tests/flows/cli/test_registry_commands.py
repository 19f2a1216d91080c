"""Commands on the registry's aliases."""

from command_line import fail


def test_promote_without_a_registry(capsys, monkeypatch, write):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no MLflow registry is named" in fail(capsys, 2, "promote", "m")
    assert "m" in fail(capsys, 2, "rollback", "m", "--config", write())
