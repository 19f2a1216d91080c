"""A real MLflow server that asks for a login: `python mlflow_with_login.py FOLDER USER PASSWORD` prints its port.

MLflow's own basic-auth app needs further packages; here the same handlers are behind a check of the header.
"""

import base64
import os
import sys

folder, user, password = sys.argv[1:]
os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/mlflow.db"
os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = f"{folder}/artifacts"
os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"

from mlflow.server import app  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

WANTED = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def with_login(environment, start_response):
    """Answer 401 to a request without the login."""
    if environment.get("HTTP_AUTHORIZATION") == WANTED:
        return app(environment, start_response)
    start_response("401 Unauthorized", [("WWW-Authenticate", "Basic"), ("Content-Type", "text/plain")])
    return [b"You are not authenticated."]


server = make_server("127.0.0.1", 0, with_login, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
