"""Chunks: the same samples for everyone who draws them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from stylegan import storage
from stylegan.config import EvaluationConfig
from stylegan.data.shards import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.generate import CHUNK, Chunk, Subject, generator_of, read_generator, sha256
from stylegan.networks.generator import Generator


@pytest.fixture
def chunk(shards: ShardSet, evaluation: EvaluationConfig, checkpoint: Callable[..., str]) -> Chunk:
    uri = storage.join(checkpoint(), "generator.safetensors")
    subject = Subject(uri, sha256(read_generator(uri)), "", "", shards, (), evaluation, "cpu")
    return Chunk(subject, "fid", 0, CHUNK)


def test_latents_depend_on_seed_work_and_chunk_alone(chunk: Chunk) -> None:
    first = chunk.latents(16)
    torch.rand(1)
    assert torch.equal(first, chunk.latents(16))
    seeded = replace(chunk, subject=replace(chunk.subject, evaluation=chunk.subject.evaluation.model_copy(update={"seed": 1})))
    others = [replace(chunk, index=1).latents(16), replace(chunk, work="separability").latents(16), seeded.latents(16)]
    others.append(chunk.latents(16, name="z1"))
    assert not any(torch.equal(first, other) for other in others)


def test_a_short_chunk_is_the_beginning_of_a_whole_one(chunk: Chunk) -> None:
    chunk = replace(chunk, subject=replace(chunk.subject, label_weights=(0.5, 0.5)))
    short = replace(chunk, count=5)
    assert torch.equal(short.latents(3), chunk.latents(3)[:5])
    assert torch.equal(short.places(), chunk.places()[:5])
    assert torch.equal(short.labels(), chunk.labels()[:5])  # type: ignore[index,arg-type]


def test_labels_are_drawn_as_often_as_the_data_has_them(chunk: Chunk) -> None:
    assert chunk.labels() is None
    weighted = replace(chunk, subject=replace(chunk.subject, label_weights=(0.0, 0.75, 0.25)))
    drawn = torch.cat([replace(weighted, index=i).labels() for i in range(10)])  # type: ignore[misc]
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert share[0] == 0
    assert share[1] == pytest.approx(0.75, abs=0.05)


def test_batches_cover_the_chunk_and_shrink_with_the_resolution(chunk: Chunk) -> None:
    for resolution, size in ((8, 64), (256, 32), (1024, 4)):
        batches = list(replace(chunk, count=70).batches(resolution))
        assert [i for batch in batches for i in range(batch.start, batch.stop)] == list(range(70))
        assert batches[0].stop == size


def test_shared_noise_is_one_draw_per_layer_and_batch(chunk: Chunk) -> None:
    noise = chunk.shared_noise(0)
    assert noise(2, 6, 8).shape == (1, 1, 8, 8)
    assert torch.equal(noise(2, 6, 8), noise(2, 3, 8))
    assert not torch.equal(noise(2, 6, 8), noise(3, 6, 8))
    assert not torch.equal(noise(2, 6, 8), chunk.shared_noise(64)(2, 6, 8))


def test_random_noise_differs_between_images_and_comes_again(chunk: Chunk) -> None:
    drawn = chunk.random_noise(0)(0, 2, 4)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, chunk.random_noise(0)(0, 2, 4))


def test_images_are_those_of_the_generator(chunk: Chunk) -> None:
    generator = generator_of(chunk.subject)
    z = chunk.latents(16)[:3]
    images = chunk.synthesise(generator, generator.mapping(z), chunk.random_noise(0))
    torch.testing.assert_close(images, generator(z, noise=chunk.random_noise(0)))


def test_images_that_are_not_finite_stop_the_evaluation(chunk: Chunk, checkpoint: Callable[..., str]) -> None:
    def spoil(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].bias.fill_(float("nan"))  # type: ignore[union-attr,operator]

    uri = storage.join(checkpoint(change=spoil), "generator.safetensors")
    subject = replace(chunk.subject, generator_sha256=sha256(read_generator(uri)))
    generator = generator_of(subject)
    with pytest.raises(StepError, match=r"generator.safetensors: makes images with values that are not finite \(first seen in fid\)"):
        chunk.synthesise(generator, generator.mapping(chunk.latents(16)[:2]), chunk.random_noise(0))


def test_a_replaced_file_is_not_mistaken_for_the_old_one(chunk: Chunk, checkpoint: Callable[..., str]) -> None:
    generator_of(chunk.subject)
    checkpoint(change=lambda generator: generator.w_avg.fill_(1.0))
    data = read_generator(chunk.subject.generator_uri)
    assert generator_of(replace(chunk.subject, generator_sha256=sha256(data))).w_avg[0] == 1
    with pytest.raises(StepError, match="changed during the evaluation"):
        generator_of(chunk.subject)


def test_a_missing_generator_is_one_line(tmp_path: object) -> None:
    with pytest.raises(StepError, match="there is no such file; give the URI of a checkpoint"):
        read_generator(f"{tmp_path}/generator.safetensors")
