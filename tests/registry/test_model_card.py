"""The model card: what it says, and that it fits into every database of MLflow."""

import pytest

from stylegan.config.sections import ModelConfig
from stylegan.registry.model_card import MAX_CARD, write_card

PLACE = {"run_id": "tiny-0123", "mlflow_run_id": "0a1b", "version": "7", "tracking_uri": "https://mlflow.internal"}


def test_a_card_holds_every_metric_as_people_read_it_and_how_to_draw(make_config, make_report, shards):
    """The rows have the order of all tables of metrics, and the commands draw with the very version of the card."""
    report = make_report(12.5, recall_classifier=0.5).model_copy(update={"skipped": {"is_classifier": "no | labels"}})
    card = write_card(make_config(), report, shards, **PLACE)
    assert "trained on 1,797 images" in card
    rows = [line for line in card.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| Fréchet distance (FID), classifier ↓ | 12.50 |  | How far the generated images are from the real ones | `fid_classifier` |",
        "| Recall, classifier ↑ | 0.500 |  | Share of the real images that the model can draw | `recall_classifier` |",
        r"| Inception score, classifier | not measured | | no \| labels | `is_classifier` |",
    ]
    assert "export MLFLOW_TRACKING_URI=https://mlflow.internal" in card
    assert "stylegan sample models:/tiny/7 --seeds 0-15" in card
    assert "mlflow.pyfunc.load_model('models:/tiny/7')" in card
    assert "Warning" not in card


def test_the_card_of_a_resnet_draws_without_truncation(make_config, make_report, shards):
    config = make_config()
    assert "--psi 0.7" in write_card(config, make_report(), shards, **PLACE)
    config = config.model_copy(update={"model": ModelConfig(architecture="resnet", latent_size=128)})
    card = write_card(config, make_report(), shards, **PLACE)
    assert "A ResNet generator (Miyato et al. 2018) of grey images" in card
    assert "psi" not in card
    assert "stylegan sample models:/tiny/7 --seeds 0-15 --out grid.png" in card
    assert "model.predict(rows)  #" in card


def test_a_card_warns_first(make_config, make_report, shards):
    card = write_card(make_config(), make_report(12.5, recall_classifier=0.01), shards, **PLACE)
    assert card.index("**Warning:** Recall is 0.010: ") < card.index("## Draw images")


def test_a_card_shows_the_samples_of_its_run_if_there_are_any(make_config, make_report, shards):
    report = make_report()
    assert "![" not in write_card(make_config(), report, shards, **PLACE)
    report = report.model_copy(update={"figures": {"grid": "s3://b/grid.png"}})
    assert "](get-artifact?path=figures%2Fgrid.png&run_uuid=0a1b)" in write_card(make_config(), report, shards, **PLACE)


@pytest.mark.parametrize(
    ("source", "says"), [("digits", "licence: CC BY 4.0"), ("/my/faces", "licence: not known to this program")]
)
def test_a_card_names_the_licence_of_public_images(make_config, make_report, shards, source, says):
    config = make_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    assert says in write_card(config, make_report(), shards, **PLACE)


def test_a_card_too_long_for_mlflow_is_cut_in_its_table_only(make_config, make_report, shards):
    """PostgreSQL, MySQL and SQL Server refuse a description of more than 5,000 characters."""
    many = {f"metric_{i:03}_classifier": float(i) for i in range(400)}
    report = make_report(12.5, checkpoint="s3://bucket/" + "c" * 3000, **many)
    report = report.model_copy(update={"skipped": {"ppl": "why " * 2000}})
    card = write_card(make_config(), report, shards, **PLACE | {"tracking_uri": "https://" + "m" * 3000})
    assert MAX_CARD - 200 < len(card) <= MAX_CARD
    assert "| Fréchet distance (FID), classifier ↓ | 12.50 |" in card
    rows = card.count("| metric ")
    assert f"| and {402 - (rows - 1) - 1} more |" in card
    assert "load_model" in card
    assert card.rstrip().endswith("- evaluation protocol: `p1`")
