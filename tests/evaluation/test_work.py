"""The work of a worker on one chunk: what is drawn in which precision, joined for the networks, and refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resnets import make_resnet, write_features, write_resnet
from torch.fx.experimental.proxy_tensor import make_fx

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation import generate, work
from stylegan.evaluation.features.embedded import load_features
from stylegan.evaluation.features.spaces import Network, Spaces, embedded_network, obtain_spaces
from stylegan.evaluation.generate import (
    CHUNK_SIZE,
    GENERATED,
    Pass,
    SampleChunk,
    Subject,
    batch_size,
    generator_of,
    read_generator,
    sha256,
)
from stylegan.evaluation.work import PictureRequest, draw_pictures, images_at_once, measure_chunk
from stylegan.networks.generator import Generator
from stylegan.networks.resnet import LatentMapping

INCEPTION = Spaces({"pooled": Network("inception", ("i.pth",), "a" * 64, 2048)})


@pytest.fixture
def make_chunk(shards: ShardSet, evaluation: EvaluationConfig, checkpoint: Callable[..., str]) -> Callable:
    """Return `make_chunk(precision="fp32", change=None)`: a chunk of five latents of a tiny generator."""

    def make(precision: str = "fp32", change: Callable[[Generator], object] | None = None) -> SampleChunk:
        uri = storage.join(checkpoint(change=change), "generator.safetensors")
        settings = evaluation.model_copy(update={"precision": precision})
        subject = Subject(uri, sha256(read_generator(uri)), None, shards, (), Spaces({}), settings, "cpu")
        return SampleChunk(subject, GENERATED, (("z", 5),), 0)

    return make


def spoil(generator: Generator) -> None:
    generator.synthesis.to_rgb[-1].weight.fill_(3e38)  # type: ignore[union-attr,operator]


def test_images_that_are_not_finite_stop_the_evaluation(make_chunk: Callable[..., SampleChunk]) -> None:
    chunk = make_chunk(change=spoil)
    line = r"generator.safetensors: makes images with values that are not finite \(first seen in generated\); the train"
    with pytest.raises(StepError, match=line):
        measure_chunk(chunk)
    with pytest.raises(StepError, match=line):
        draw_pictures(PictureRequest(chunk, (3,)))


def test_what_fp16_cannot_hold_is_said_to_be_its_fault(make_chunk: Callable[..., SampleChunk]) -> None:
    with pytest.raises(StepError, match=r"fp16 may be too narrow for them: set evaluation.precision to bf16 or fp32"):
        make_chunk("fp16").require_finite(False)


def test_the_precision_is_that_of_the_images_and_not_of_path_lengths(
    make_chunk: Callable[..., SampleChunk], evaluation: EvaluationConfig, shards: ShardSet, root: str
) -> None:
    """Rounded to 8 bits, both ends of a step of 1e-4 would be one image. z and w do not depend on the precision."""
    drawn, lengths, products = {}, {}, {}
    spaces = obtain_spaces(evaluation, shards, root=root)
    for precision in ("fp32", "bf16", "fp32 again"):
        chunk = make_chunk(precision.split()[0])
        _, _, _, drawn[precision] = next(chunk.samples(generator_of(chunk.subject)))
        path = Pass("ppl_wend", path="ppl_wend")
        of_path = replace(chunk, subject=replace(chunk.subject, spaces=spaces), source=path, wants=(("lengths", 5),))
        lengths[precision] = measure_chunk(of_path)["lengths"]
        products[precision] = measure_chunk(replace(chunk, wants=(("z", 5), ("w", 5))))
    assert torch.equal(drawn["fp32"], drawn["fp32 again"])
    assert not torch.equal(drawn["fp32"], drawn["bf16"])
    assert drawn["bf16"].dtype == torch.float32
    torch.testing.assert_close(drawn["bf16"], drawn["fp32"], rtol=0.1, atol=0.1)
    for name in ("bf16", "fp32 again"):
        assert (lengths[name] == lengths["fp32"]).all()
        assert (products[name]["w"] == products["fp32"]["w"]).all()


def test_path_lengths_of_a_resnet_are_those_of_latents_as_long_as_it_was_trained_on(
    make_chunk: Callable[..., SampleChunk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of normal numbers, where StyleGAN's are on the unit sphere."""
    uri = storage.join(write_resnet(tmp_path, "a", "b"), "generator.safetensors")
    distance = embedded_network(load_features(write_features(tmp_path, make_resnet(2), "a", "b")))
    seen: list[torch.Tensor] = []
    forward = LatentMapping.forward

    def note(self: LatentMapping, z: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(z)
        return forward(self, z, labels)

    monkeypatch.setattr(LatentMapping, "forward", note)
    chunk = make_chunk()
    subject = replace(
        chunk.subject,
        generator_uri=uri,
        generator_sha256=sha256(read_generator(uri)),
        label_weights=(0.5, 0.5),
        spaces=Spaces({"distance": distance}),
    )
    source = Pass("ppl_zfull", path="ppl_zfull")
    lengths = measure_chunk(replace(chunk, subject=subject, source=source, wants=(("lengths", 5),)))["lengths"]
    first, second = seen[0].chunk(2)
    assert torch.cat(seen).norm(dim=1).mean() > 2  # sqrt(8) is 2.8
    assert 0 < (first - second).norm(dim=1).max() < 1e-2
    assert (lengths > 0).all()


def test_a_recording_of_the_generator_draws_the_same_images(
    make_chunk: Callable[..., SampleChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a trace of the tensor operations stands for a CUDA graph: both know new values of their inputs only.

    Tracing fails, like a CUDA graph, where the host reads a value.
    """

    def let_noise_count(generator: Generator) -> None:
        for layer in generator.synthesis.layers:
            layer.noise_weight.fill_(1.0)  # type: ignore[union-attr,operator]

    chunk = replace(make_chunk("bf16", change=let_noise_count), wants=(("z", CHUNK_SIZE - 10),))
    with torch.no_grad():
        plain = torch.cat([images for *_, images in chunk.samples(generator_of(chunk.subject))])
    traces = []

    def trace(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
        traces.append(make_fx(function)(*inputs))
        return traces[-1]

    monkeypatch.setattr(generate, "recorder_for", lambda device: trace)
    generate._synthesis.cache_clear()
    with torch.no_grad():
        replayed = torch.cat([images for *_, images in chunk.samples(generator_of(chunk.subject))])
    generate._synthesis.cache_clear()
    assert torch.equal(plain, replayed)
    assert len(traces) == 1  # for three batches of 64; the last one, of 54, is computed plainly


@pytest.mark.parametrize(("resolution", "count"), [(8, 256), (256, 256), (512, 64), (1024, 16)])
def test_inception_sees_more_images_at_once_on_a_gpu(
    make_chunk: Callable[..., SampleChunk], resolution: int, count: int
) -> None:
    chunk = make_chunk()
    on_gpu = replace(chunk, subject=replace(chunk.subject, device="cuda", spaces=INCEPTION))
    assert images_at_once(on_gpu, resolution) == count
    assert count % batch_size(resolution) == 0
    others = [chunk, replace(on_gpu, subject=replace(on_gpu.subject, device="cpu"))]
    others += [replace(on_gpu, subject=replace(on_gpu.subject, spaces=Spaces({})))]
    assert [images_at_once(other, resolution) for other in others] == [batch_size(resolution)] * 3


@pytest.mark.parametrize("count", [CHUNK_SIZE, 150])
def test_joined_batches_are_the_chunk(make_chunk: Callable[..., SampleChunk], count: int) -> None:
    chunk = replace(make_chunk(), wants=(("pooled", count),))
    batches = [(batch, {"images": torch.rand(batch.stop - batch.start, 1, 8, 8)}) for batch in chunk.batches(8)]
    whole = torch.cat([tensors["images"] for _, tensors in batches])
    assert [batch for batch, _ in work._joined(chunk, iter(batches))] == [batch for batch, _ in batches]
    on_gpu = replace(chunk, subject=replace(chunk.subject, device="cuda", spaces=INCEPTION))
    ((batch, tensors),) = work._joined(on_gpu, iter(batches))
    assert batch == slice(0, count)
    assert torch.equal(tensors["images"], whole)


def test_no_network_sees_more_images_than_are_generated_at_once_but_inception(
    make_chunk: Callable[..., SampleChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG16 and the attribute networks need more memory for an image than Inception, or see larger ones."""
    seen: dict[str, list[int]] = {"pooled": [], "manifold": []}

    def look(role: str) -> Callable:
        def look_at(spaces: Spaces, images: torch.Tensor, device: str) -> object:
            seen[role].append(len(images))
            features = images.flatten(1)
            return (features, features) if role == "pooled" else features

        return look_at

    monkeypatch.setattr(work, "recognise", look("pooled"))
    monkeypatch.setattr(work, "manifold_features", look("manifold"))
    vgg16 = Network("vgg16", ("v.pth",), "b" * 64, 4096)
    chunk = make_chunk()
    subject = replace(chunk.subject, spaces=Spaces({**INCEPTION.networks, "manifold": vgg16}))
    chunk = replace(chunk, subject=subject, wants=(("pooled", 200), ("manifold", 200)))
    images = torch.rand(200, 1, 8, 8)
    products = work._measure_batch(chunk, slice(0, 200), {"images": images})
    assert seen == {"pooled": [200], "manifold": [64, 64, 64, 8]}
    assert torch.equal(products["pooled"], products["manifold"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_gpu_measures_every_precision(make_chunk: Callable[..., SampleChunk], precision: str) -> None:
    """The graph is replayed from the third batch on; the images do not depend on that."""
    chunk = replace(make_chunk(precision), wants=(("z", CHUNK_SIZE),))
    chunk = replace(chunk, subject=replace(chunk.subject, device="cuda"))
    with torch.no_grad():
        first, second = (torch.cat([images for *_, images in chunk.samples(generator_of(chunk.subject))]) for _ in "12")
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)
    assert measure_chunk(chunk)["z"].shape == (CHUNK_SIZE, 16)
