"""Write the Secrets of a cluster, with random passwords, as one file for `kubectl apply`: `make_secrets.py secrets.json`.

It needs nothing but Python 3. The file can be read by you alone. One that is there is left as it is: the databases of the
cluster know its passwords. For a PostgreSQL or a bucket of your own change the addresses and keys in the file.
"""

import json
import os
import secrets
import sys

DATABASE = "postgres.stores.svc:5432"
S3 = "http://s3.stores.svc:8333"
MLFLOW_USER = "admin"


def main() -> int:
    """Write the file, or say in one line why not."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".json"):
        print("usage: make_secrets.py FILE.json", file=sys.stderr)
        return 2
    path = sys.argv[1]
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(
            f"{path} is there and stays as it is; delete it to get new passwords, before the cluster has the old ones"
        )
        return 0
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return 1
    with os.fdopen(opened, "w") as file:
        json.dump({"apiVersion": "v1", "kind": "List", "items": list(make_secrets())}, file, indent=2)
        file.write("\n")
    print(f"{path}: passwords for PostgreSQL, S3, MLflow and Prefect; keep it out of version control, and keep it")
    return 0


def make_secrets():
    """Yield every Secret, with passwords that nobody has seen."""
    of_mlflow, of_prefect = secrets.token_hex(24), secrets.token_hex(24)
    database = {"mlflow": secrets.token_hex(24), "prefect": secrets.token_hex(24)}
    s3 = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10).upper(), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    s3 |= {"AWS_ENDPOINT_URL": S3, "AWS_REGION": "us-east-1"}
    yield secret(
        "stores",
        "postgres",
        {
            "POSTGRES_PASSWORD": secrets.token_hex(24),
            "MLFLOW_PASSWORD": database["mlflow"],
            "PREFECT_PASSWORD": database["prefect"],
        },
    )
    credentials = [{"accessKey": s3["AWS_ACCESS_KEY_ID"], "secretKey": s3["AWS_SECRET_ACCESS_KEY"]}]
    identity = {
        "name": "stylegan",
        "credentials": credentials,
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    yield secret("stores", "s3", {"s3.json": json.dumps({"identities": [identity]})})
    address = f"postgresql://mlflow:{database['mlflow']}@{DATABASE}/mlflow"
    login = {"MLFLOW_TRACKING_USERNAME": MLFLOW_USER, "MLFLOW_TRACKING_PASSWORD": of_mlflow}
    yield secret(
        "mlflow",
        "mlflow",
        {
            "MLFLOW_BACKEND_STORE_URI": address,
            "MLFLOW_S3_ENDPOINT_URL": S3,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": of_mlflow,
            **login,
            **s3,
        },
    )
    # The logins are tables of their own in the same database; without a login nothing can be read.
    settings = (
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {address}\nadmin_username = {MLFLOW_USER}\n"
    )
    yield secret("mlflow", "mlflow-auth", {"basic_auth.ini": settings})
    string = f"postgresql+asyncpg://prefect:{database['prefect']}@{DATABASE}/prefect"
    yield secret("prefect", "prefect", {"connection-string": string, "auth-string": f"admin:{of_prefect}"})
    shown = {
        "PREFECT_API_URL": "http://prefect-server.prefect.svc:4200/api",
        "PREFECT_API_AUTH_STRING": f"admin:{of_prefect}",
    }
    yield secret("stylegan", "stylegan", {**s3, **login, **shown})


def secret(namespace, name, values):
    """Return a Secret."""
    metadata = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "stylegan"}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": values}


if __name__ == "__main__":
    sys.exit(main())
