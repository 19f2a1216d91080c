"""The services of the stack, in the order of their start; the worker is the first to end, because its runs use the others."""

from __future__ import annotations

from infra.stack.mlflow_server import MLFLOW
from infra.stack.object_store import S3
from infra.stack.postgres import POSTGRES
from infra.stack.prefect_server import PREFECT, WORKER
from infra.stack.ray_nodes import HEAD, NODE

SERVICES = (S3, POSTGRES, MLFLOW, PREFECT, HEAD, NODE, WORKER)
