"""What is proved of the GPU benchmark without a GPU: what it makes of a profile, its floors and its table; one run."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import bench_gpu
from benchmarks.bench_gpu import (
    MAIN,
    PLAIN,
    PLAN,
    SPEED_FLOORS,
    VARIANTS,
    Measured,
    Result,
    Work,
    covered,
    floors,
    is_convolution,
    main,
    parsed,
    plan,
    report,
    share_of_floor,
)

H200 = "NVIDIA H200"
FACTS = {"device": H200, "driver": "driver 580.1", "torch": "torch 2.11", "date": "2026-01-01", "commit": "commit abc"}


def options(*arguments: str) -> argparse.Namespace:
    return parsed(arguments)


@pytest.mark.parametrize(
    "name",
    [
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_cudnn",
        "sm80_xmma_wgrad_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_256x64_32x4_nhwc_align8>",
        "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, false, true>(int, int, int)",
        "void cudnn::winograd_nonfused::winogradForwardOutput4x4<float, float>",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN",
        "ampere_sgemm_128x64_tn",
    ],
)
def test_what_convolves(name: str) -> None:
    assert is_convolution(name)


@pytest.mark.parametrize(
    "name",
    [
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
        "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>",
        "void cudnn::cnn::conv2d_grouped_direct_kernel<false, true, true, false, 0, 0, int, float, float>",
        "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>",
        "cudnn::ops::convertTensor_kernel<float, float, float>",
        "triton_red_fused_convolution_backward_sum_1",
        "_act_blur_kernel",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>",
    ],
)
def test_what_only_passes_over_memory(name: str) -> None:
    """A blur is computed as a convolution of one channel each, and layouts are changed by cuDNN."""
    assert not is_convolution(name)


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(0, 2), (5, 6)], 3), ([(4, 6), (0, 5)], 6), ([(0, 10), (2, 3), (9, 12)], 12), ([(1, 1)], 0)],
)
def test_overlapping_work_counts_once(intervals: list[tuple[float, float]], length: float) -> None:
    assert covered(intervals) == length


def event(cat: str, name: str, ts: float, dur: float) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}


def test_a_profile_is_summed_up_for_one_step() -> None:
    """Two steps: two convolutions of 300 us, an activation of 200 us beside the second, a copy; a graph and two kernels."""
    events = [
        event("kernel", "sm90_xmma_fprop_implicit_gemm", 0, 300),
        event("kernel", "sm90_xmma_fprop_implicit_gemm", 1000, 300),
        event("kernel", "elementwise_kernel", 1200, 200),
        event("gpu_memcpy", "Memcpy HtoD", 2000, 100),
        event("cuda_runtime", "cudaLaunchKernel", 0, 5),
        event("cuda_driver", "cuLaunchKernelEx", 0, 5),
        event("cuda_runtime", "cudaGraphLaunch", 0, 5),
        event("cuda_runtime", "cudaMemcpyAsync", 0, 5),
        event("cpu_op", "aten::conv2d", 0, 5),
        {"ph": "M", "name": "process_name"},
    ]
    work = Work.of(events, steps=2)
    assert (work.kernel_ms, work.convolutions, work.busy_ms) == pytest.approx((0.4, 0.75, 0.4))
    assert (work.launches, work.kernels) == (1.5, 1.5)
    assert work.idle(step_ms=1.0) == pytest.approx(0.6)
    assert work.idle(step_ms=0.3) == 0  # the profiler slowed the kernels down
    assert Work.of([], steps=1).convolutions == 0


def results(rate: float = 700, *, size: tuple[int, int] = (256, 32), name: str = MAIN, **work: float) -> Measured:
    """Return one result, whose step takes 32 / rate seconds."""
    done = {"kernel_ms": 40.0, "convolutions": 0.61, "busy_ms": 44.0, "launches": 9.0, "kernels": 1500.0} | work
    result = Result(size, name, (rate - 1, rate, rate + 2), 300.0, (4500.4, 6000.0), Work(**done))
    return Measured({(size, name): result}, peaks={"bf16": 810.0})


@pytest.mark.parametrize(
    ("device", "share"),
    [
        (H200, 1.0),
        ("NVIDIA H100 80GB HBM3", 0.8),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_floors_are_known_for_two_devices(device: str, share: float | None) -> None:
    assert share_of_floor(device) == share
    assert bool(floors(results(), device, 512)) == (share is not None)
    assert floors(results(), H200, 128) == []


@pytest.mark.parametrize(
    ("rate", "device", "held"),
    [(650, H200, True), (586, H200, True), (584, H200, False), (469, "NVIDIA H100", True), (467, "NVIDIA H100", False)],
)
def test_a_speed_may_miss_its_floor_by_a_tenth(rate: float, device: str, held: bool) -> None:
    (speed,) = [floor for floor in floors(results(rate), device, 512) if floor.kind == "img/s"]
    assert speed.held == held


@pytest.mark.parametrize(("share", "held"), [(0.6, True), (0.55, True), (0.53, False)])
def test_convolutions_have_a_floor(share: float, held: bool) -> None:
    found = floors(results(convolutions=share), H200, 512)
    assert [floor.held for floor in found if floor.kind == "convolutions"] == [held]
    assert "convolutions" not in {floor.kind for floor in floors(results(size=(64, 64)), H200, 512)}


@pytest.mark.parametrize(("busy", "held"), [(100, True), (89.5, True), (88, False)])
def test_idle_time_has_a_ceiling_at_every_size(busy: float, held: bool) -> None:
    """A step takes 100 ms. The yardstick and other variants may be idle."""
    found = floors(results(640, size=(64, 64), busy_ms=busy), H200, 512)
    assert [floor.held for floor in found if floor.kind == "idle"] == [held]
    assert floors(results(640, size=(64, 64), name=PLAIN, busy_ms=busy), H200, 512) == []


def test_what_was_to_be_measured_and_was_not_is_missed() -> None:
    measured = Measured(left_out={((256, 32), MAIN): "OutOfMemoryError"})
    assert {(floor.kind, floor.measured, floor.held) for floor in floors(measured, H200, 512)} == {
        ("img/s", None, False),
        ("convolutions", None, False),
        ("idle", None, False),
    }
    assert floors(Measured(left_out={((256, 32), PLAIN): "the time was up"}), H200, 512) == []


def test_the_report_has_all_of_it() -> None:
    measured = results()
    plain = Result((256, 32), PLAIN, (90.0, 87.5, 91.0), 41.0, (12000.0, 13000.0), None)
    measured.results[(256, 32), PLAIN] = plain
    measured.left_out[(8, 128), MAIN] = "the time was up"
    given = options("--rounds", "3")
    text = report(given, measured, FACTS | {"command": "python -m benchmarks.bench_gpu --rounds 3"})
    assert text.startswith(
        "## Training on one NVIDIA H200\n\n`python -m benchmarks.bench_gpu --rounds 3`, driver 580.1, "
    )
    assert "torch 2.11, 2026-01-01, commit abc; `fmap_max` 512, 3 turns" in text
    assert "Convolutions alone reach bf16 810 TFLOP/s" in text
    rows = [line for line in text.splitlines() if line.startswith("| 256x256, batch 32 |")]
    assert rows == [
        "| 256x256, batch 32 | plain, tf32 | 90 (87.5-91) | 1.00 | 356 | 41 | 12,000 / 13,000 |  |  |  |  |  |",
        "| 256x256, batch 32 | bf16 lazy | 700 (699-702) | 7.78 | 45.7 | 300 (37%) | 4,500 / 6,000 | 40 | 61% | 4% | 9 "
        "| 1,500 |",
    ]
    assert "| 256x256, batch 32, bf16 lazy | 650 img/s | 700 | held |" in text
    assert "| 8x8, batch 128, bf16 lazy | 8,000 img/s | not measured | **missed** |" in text
    assert text.endswith("Left out:\n\n- 8x8, batch 128, bf16 lazy: the time was up\n")
    assert "There are no floors for this device" in report(given, measured, FACTS | {"device": "A100", "command": ""})


def test_every_floor_is_measured_first_and_beside_the_yardstick() -> None:
    first = len({size for size, _ in SPEED_FLOORS})
    for size, name in SPEED_FLOORS:
        assert (size, [PLAIN, MAIN, *([name] if name != MAIN else [])]) in [
            (size, names if name != MAIN else names[:2]) for size, names in PLAN[:first]
        ]
    planned = [(size, name) for size, names in PLAN for name in names]
    assert len(set(planned)) == len(planned)
    assert {size[0] for size, _ in planned} == {8, 16, 32, 64, 128, 256, 512, 1024}
    assert {name for _, name in planned} == set(VARIANTS)


def test_sizes_and_variants_can_be_chosen() -> None:
    assert plan(options()) == PLAN
    assert plan(options("--sizes", "1024:8")) == [row for row in PLAN if row[0] == (1024, 8)]
    assert plan(options("--sizes", "8:4")) == [((8, 4), list(VARIANTS))]
    assert plan(options("--sizes", "256:32", "--variants", MAIN)) == [((256, 32), [MAIN])]
    assert {name for _, names in plan(options("--variants", MAIN)) for name in names} == {MAIN}


@pytest.mark.parametrize("size", ["256", "100:8", "8:0", "8:x"])
def test_a_size_that_is_none_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        options("--sizes", size)
    assert caught.value.code == 2
    assert size in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", ["bench_gpu", "bench"])
def test_without_a_gpu_there_is_one_line(program: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{program}", "--device", "cuda"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--device cuda: torch ")
    assert len(done.stderr.splitlines()) == 1


def test_when_the_time_is_up_the_rest_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_gpu, "measure_peaks", lambda _: {})
    assert main(["--device", "cpu", "--minutes", "0", "--sizes", "256:32", "--out", str(tmp_path / "t.md")]) == 1
    text = (tmp_path / "t.md").read_text()
    assert "- 256x256, batch 32, bf16 lazy: the time was up" in text
    assert capsys.readouterr().out.strip() == text.strip()


@pytest.mark.long
def test_a_run_on_a_cpu_measures_what_works_there_and_says_what_does_not(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "table.md"
    tiny = ["--sizes", "8:4", "--fmap-max", "8", "--rounds", "2", "--minutes", "5"]
    names = [PLAIN, MAIN, "bf16 lazy, no kernels", "fp16 lazy"]
    assert main(["--device", "cpu", *tiny, "--variants", *names, "--out", str(out)]) == 0
    text = out.read_text()
    for name in (PLAIN, MAIN):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| 8x8, batch 4 | {name} |")]
        rate, low, high = (float(word.strip("()")) for word in row.split("|")[3].replace("-", " ").split())
        assert 0 < low <= rate <= high
    assert "- 8x8, batch 4, fp16 lazy: ConfigError: " in text
    assert "There are no floors" in text


def test_neither_engines_nor_what_reads_data_is_needed() -> None:
    """A GPU can be measured on a machine that has torch and a few small packages."""
    program = """
import sys, torch, benchmarks.bench_gpu as b
config = b.make_config(8, 8, 4, {"precision": "bf16", "penalty_interval": 2})
with b.tuned(config.training, torch.device("cpu")):
    step, _ = b.own_steps(config, torch.device("cpu"))
    step(), step()
print({name.split(".")[0] for name in sys.modules} & {
    "ray", "prefect", "mlflow", "sklearn", "scipy", "pyarrow", "webdataset", "s3fs", "aiohttp", "cyclopts", "rich"})
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
