"""The flow of the schedule: check -> decide -> shard -> train -> evaluate -> register -> gate -> notify -> clean up."""

from __future__ import annotations

from prefect import flow

from flows.train import train_flow
from stylegan.pipeline.steps import Summary

FLOW_NAME = "stylegan-retrain"


@flow(name=FLOW_NAME, persist_result=False)
def retrain_flow(config: str, overrides: list[str] | None = None) -> Summary:
    """Train again if there is reason to.

    Args:
        config: path of the YAML file.
        overrides: `key.path=value` strings on top of it.
    """
    return train_flow(config, overrides)
