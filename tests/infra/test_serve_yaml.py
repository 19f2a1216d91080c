"""The config of Ray Serve in infra: Ray reads it, and the app takes its arguments."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from stylegan.errors import ConfigError
from stylegan.verbs.serve import Replicas, replicas

TREE = yaml.safe_load((Path(__file__).parents[2] / "infra" / "serve.yaml").read_text())


def test_ray_serve_reads_it_and_finds_the_app():
    from ray.serve.schema import ServeDeploySchema

    read = ServeDeploySchema.model_validate(TREE)
    (application,) = read.applications
    module, _, name = application.import_path.partition(":")
    assert getattr(import_module(module), name) is replicas
    assert Replicas.model_validate(application.args).model == "faces@champion"
    made = replicas(application.args)
    assert [made._bound_deployment.name] == [one.name for one in application.deployments]


def test_no_secret_is_in_it():
    assert "runtime_env" not in TREE["applications"][0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "args.model: Field required; the arguments are model, config and device"),
        ({"model": "x", "port": 1}, "args.port: Extra inputs are not permitted"),
        ({"model": "x", "device": "tpu"}, "args.device: tpu: must be cpu, cuda, cuda:N or auto"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, says):
    with pytest.raises(ConfigError, match=says):
        replicas(arguments)
