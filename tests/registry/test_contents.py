"""The contents of a registry."""

from stylegan.registry.contents import list_versions


def test_versions_have_their_aliases_runs_and_metrics(make_config, make_checkpoint, make_report):
    """The newest first, over more than one page; a registry without a database is empty and stays so."""
    from stylegan.tracking import pages
    from stylegan.tracking.connection import connect, resolve_uri

    uri = resolve_uri(make_config())
    assert list_versions(uri) == ()
    client = connect(uri)
    for name, number in (("cats", 2), ("dogs", 1)):
        client.create_registered_model(name)
        for fid in range(number):
            tags = {
                "stylegan.run_id": f"{name}-{fid}",
                "fid_classifier": str(fid),
                "recall_classifier": "0.5",
                "team": "a",
            }
            client.create_model_version(name, source="file:///nowhere", tags=tags)
    client.set_registered_model_alias("cats", "champion", "1")
    client.set_registered_model_alias("cats", "previous", "1")
    pages.PAGE, page = 1, pages.PAGE
    try:
        found = {(version.name, version.version): version for version in list_versions(uri)}
    finally:
        pages.PAGE = page
    assert set(found) == {("cats", "1"), ("cats", "2"), ("dogs", "1")}
    assert found["cats", "1"].aliases == ("champion", "previous")
    assert found["cats", "2"].aliases == ()
    assert found["cats", "2"].run_id == "cats-1"
    assert list(found["cats", "2"].metrics.items()) == [("fid_classifier", 1.0), ("recall_classifier", 0.5)]
