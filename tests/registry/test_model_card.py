"""The model card: what it says, and that it fits into every database of MLflow."""

from stylegan.registry.model_card import MAX_CARD, write_card


def test_a_card_holds_every_metric_and_how_to_draw(make_config, make_report):
    card = write_card(make_config(), make_report(12.5, recall_classifier=0.5), "tiny-0123")
    assert "| fid_classifier | 12.5 |" in card
    assert "| recall_classifier | 0.5 |" in card
    assert 'mlflow.pyfunc.load_model("models:/tiny@champion")' in card


def test_a_card_too_long_for_mlflow_is_cut_in_its_table_only(make_config, make_report):
    """PostgreSQL, MySQL and SQL Server refuse a description of more than 5,000 characters."""
    many = {f"metric_{i:03}_classifier": float(i) for i in range(400)}
    report = make_report(12.5, checkpoint="s3://bucket/" + "c" * 3000, **many)
    report = report.model_copy(update={"skipped": {"ppl": "why " * 2000}})
    card = write_card(make_config(), report, "tiny-0123")
    assert 4900 < len(card) <= MAX_CARD
    assert "| fid_classifier | 12.5 |" in card
    rows = card.count("| metric_")
    assert f"| and {402 - 1 - rows} more | see report.html of the run |" in card
    assert card.rstrip().endswith("```")
    assert "load_model" in card
