"""The web app on small models."""

import pytest
from served_models import no_means, write_model
from starlette.testclient import TestClient

from stylegan.serving.app import make_app
from stylegan.serving.models import Models


@pytest.fixture
def found(tmp_path):
    """A class-conditional 16x16 model."""
    return write_model(tmp_path / "model")


@pytest.fixture
def open_app():
    """open_app(found, token=, means_of=): a client of the app on a model, which answers on localhost."""
    clients = []

    def make(found, *, token=None, means_of=no_means, host="localhost"):
        models = Models(lambda: found, "cpu", means_of)
        client = TestClient(make_app(models, token=token), base_url=f"http://{host}")
        client.models = models
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(open_app, found):
    """A client of the app on the class-conditional model, without a token."""
    return open_app(found)
