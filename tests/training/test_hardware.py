"""Precision and compiled operations: they give the same training, only faster."""

import copy
import os
import platform
import re
import subprocess
import sys

import pytest
import torch
from benchmarks.compare import assert_near

from stylegan.config.file import build
from stylegan.config.sections import TrainingConfig
from stylegan.errors import StepError
from stylegan.networks import normalisation, ops
from stylegan.networks.convolution import input_gradients
from stylegan.networks.weights import load_generator, save_generator
from stylegan.training import hardware
from stylegan.training.hardware import log_once, operations_path, set_precision, tuned
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage
from stylegan.training.step import discriminator_step, generator_step

CPU = torch.device("cpu")
TREE = {
    "name": "t",
    "data": {"source": "digits", "resolution": 16, "channels": 1},
    "model": {"latent_size": 32, "mapping_layers": 2, "mapping_fmaps": 32, "fmap_base": 256, "fmap_max": 32},
    "training": {"start_resolution": 16, "batch": 8, "stable_kimg": 1, "r1_gamma": 1.0, "learning_rate": 0.002},
}


def make(seed=0, **training):
    config = build({**TREE, "seed": seed, "training": {**TREE["training"], **training}})
    stage = stages(config)[0]
    return config, stage, start_stage(config, stage, num_labels=0, previous=None)


def train_on_stripes(steps, seed=0, **training):
    """Train for some steps on images of stripes; return the losses of each step, and the state."""
    config, stage, state = make(seed, **training)
    rows = torch.arange(16)[:, None].expand(16, 16)
    images = torch.stack([((rows + n) % 4 * 80).to(torch.uint8) for n in range(8)])[:, None]
    losses = []
    with tuned(config.training, CPU):
        for _ in range(steps):
            state.sums = {}
            discriminator_step(state, config, stage, images, None)
            generator_step(state, config, stage, None)
            state.nimg += stage.batch
            losses.append([float(state.sums[name]) for name in ("loss/d", "loss/g")])
    return torch.tensor(losses), state


def test_bf16_trains_like_fp32():
    """Over 40 steps the losses are closer to those of fp32 than the losses of another seed are."""
    single, _ = train_on_stripes(40)
    low, state = train_on_stripes(40, precision="bf16")
    other, _ = train_on_stripes(40, seed=1)
    assert 0 < (low - single).abs().mean() < (other - single).abs().mean()
    assert all(p.dtype == torch.float32 for network in state.networks().values() for p in network.parameters())


def test_features_are_bf16_and_the_average_stays_single():
    _, _, state = make(precision="bf16")
    seen = {}
    for name, network in state.networks().items():
        for module in network.modules():
            if isinstance(module, torch.nn.Module) and type(module).__name__ in ("Conv", "UpConv", "DownConv"):
                module.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, set()).add(out.dtype))
    z = torch.randn(8, 32)
    images = state.G(z)
    state.D(images)
    state.G_ema(z)
    assert images.dtype == torch.float32
    assert torch.bfloat16 in seen["G"]
    assert seen["D"] == {torch.bfloat16}
    assert seen["G_ema"] == {torch.float32}
    loaded, _ = load_generator(save_generator(state.G, ()))
    assert loaded.synthesis.compute_dtype is None


def test_grown_networks_keep_their_precision():
    config, _, state = make(precision="bf16")
    state.grow(config)
    assert (state.G.synthesis.compute_dtype, state.D.compute_dtype) == (torch.bfloat16, torch.bfloat16)
    assert state.G_ema.synthesis.compute_dtype is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_operations_give_the_same_gradients(precision):
    """The gradients of one loss of both players with R1, with and without torch.compile."""
    gradients = []
    for compiled in (False, True):
        config, _, state = make(precision=precision, compile=compiled)
        random = torch.Generator().manual_seed(0)
        z, reals = torch.randn(8, 32, generator=random), torch.randn(8, 1, 16, 16, generator=random).requires_grad_()
        try:
            with tuned(config.training, CPU):
                scores = state.D(reals)
                penalty = input_gradients(scores, reals).square().sum()
                (scores.sum() + penalty + state.D(state.G(z)).sum()).backward()
        except StepError as error:
            pytest.skip(str(error))
        found = {name: p.grad for net in (state.G, state.D) for name, p in net.named_parameters() if p.grad is not None}
        del found["synthesis.layers.0.bias"]  # only rounding: the first normalisation removes a constant
        gradients.append(found)
    allowed = {"fp32": 1e-4, "bf16": 0.1}[precision]
    assert_near(gradients[1], gradients[0], allowed=allowed, least=0.1 if precision == "bf16" else 1e-3)


def test_second_derivatives_survive_compilation():
    """Operations that are differentiated twice are not compiled."""
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    with ops.fused():
        assert torch.autograd.gradgradcheck(
            lambda x: normalisation.normalise(x, x.new_ones(1, 2), x.new_zeros(1, 2)), (x,), fast_mode=True
        )


def test_a_missing_compiler_is_an_error_before_training(tmp_path):
    """The check runs in a process that finds no compiler."""
    code = "import torch; from stylegan.training.hardware import check_compiler; check_compiler(torch.device('cpu'))"
    missing = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | missing, capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.search(
        r"StepError: training\.compile=true.*install a C\+\+ compiler.*training\.compile=false",
        ended.stderr.splitlines()[-1],
    )


def kernel_settings():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "benchmark": cudnn.benchmark,
        "tf32": (cudnn.allow_tf32, matmul.allow_tf32),
        "reduced": (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction),
    }


@pytest.mark.parametrize("precision", hardware.COMPUTE_DTYPES)
def test_only_tf32_rounds_what_is_in_single_precision(precision):
    """In half precision dense layers, w and the scores stay in single precision. Afterwards torch is as it was."""
    before = kernel_settings()
    training = make()[0].training.model_copy(update={"precision": precision})
    with tuned(training, CPU):
        rounds = precision == "tf32"
        assert kernel_settings() == {"benchmark": True, "tf32": (rounds, rounds), "reduced": (False, False)}
    assert kernel_settings() == before


def test_every_precision_of_the_config_has_a_type():
    config, _, state = make()
    for precision in type(config.training).model_fields["precision"].annotation.__args__:
        set_precision(copy.deepcopy(state.D), precision)
    assert set(hardware.COMPUTE_DTYPES) == set(type(config.training).model_fields["precision"].annotation.__args__)


def test_the_path_of_operations_follows_from_device_and_config(monkeypatch):
    """On a CPU it is what the config says; a GPU takes the kernels where they work, and never torch.compile."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    paths = {}
    for works in (True, False):
        kernels = object() if works else None
        monkeypatch.setattr(ops, "load_kernels", lambda device, k=kernels: k if device.type == "cuda" else None)
        for compiles in (False, True):
            training = TrainingConfig(compile=compiles)
            paths[works, compiles] = [operations_path(training, device) for device in (cpu, gpu)]
    assert paths == {
        (True, False): ["eager", "fused"],
        (True, True): ["compiled", "fused"],
        (False, False): ["eager", "eager"],
        (False, True): ["compiled", "eager"],
    }


@pytest.mark.parametrize("works", [True, False])
def test_compile_says_once_that_it_does_nothing_on_a_gpu(works, monkeypatch, caplog):
    """Nothing is compiled either."""
    log_once.cache_clear()
    monkeypatch.setattr(ops, "load_kernels", lambda device: object() if works else None)
    for _ in range(2):
        with tuned(TrainingConfig(compile=True), torch.device("cuda")):
            assert not ops._fused
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("training.compile=true does nothing on a GPU: ")


def test_kernels_that_do_not_work_are_a_warning(monkeypatch, caplog):
    """The warning comes once, names the reason, and torch's own operations do the work."""
    ops._try_kernels.cache_clear()
    ops._is_interpreted.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a CPU then takes the kernels, if there were any
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "stylegan.networks.kernels", raising=False)
    try:
        for _ in range(2):
            assert ops.blur(torch.ones(1, 1, 4, 4))[0, 0, 1, 1] == 1
    finally:
        ops._try_kernels.cache_clear()
        ops._is_interpreted.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "do not work" in line
    assert "install the package triton" in line


def test_a_stage_says_on_what_it_was_trained():
    found = hardware.describe_hardware(CPU)
    assert (found.workers, found.hosts, found.torch) == (1, (platform.node(),), torch.__version__)
    assert found.device


def test_without_the_model_of_the_processor_its_architecture_is_told(monkeypatch):
    def no_file(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", no_file)
    assert hardware.describe_hardware(CPU).device == (platform.processor() or platform.machine())
