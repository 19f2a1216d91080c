"""The steps away from Ray: what is taken from storage, what is refused before any work, and the gate with a real registry."""

import json
import threading
import time
from contextlib import ExitStack, contextmanager

import fsspec
import pytest
import torch
from PIL import Image

from stylegan import storage
from stylegan.cluster import parallel_map
from stylegan.data.dataset_card import CARD, PREVIEW
from stylegan.data.index import read_level
from stylegan.data.loading import loader
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.report import Report
from stylegan.images import png_bytes
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.pipeline import steps
from stylegan.pipeline.course import StageProgress
from stylegan.pipeline.lock import LostError, held, hold, stage_lock
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.steps import Done, Pipeline
from stylegan.registry import versions
from stylegan.registry.contents import list_registered
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.training.state import MARKER, Checkpoint

GRID = png_bytes(Image.new("L", (20, 20)))
SHARDS = ShardSet(uri="x", fingerprint="f1", num_images=9, resolutions=(4, 8), label_names=(), num_rejected=0)


@pytest.fixture
def pipeline(make_config):
    """The steps of a tiny config whose registry is an empty database."""
    with Pipeline(make_config()) as opened:
        yield opened


@pytest.fixture
def trained(pipeline):
    """trained(nimg, fid): the checkpoint of a finished stage and the report on it, as if they had been made."""

    def make(nimg, fid):
        uri = storage.join(pipeline.run(SHARDS).root, "stages", "0008-x", f"checkpoint-{nimg:09d}")
        torch.manual_seed(nimg)
        generator = Generator(pipeline.config.model, resolution=8, channels=1)
        storage.write_bytes(storage.join(uri, "generator.safetensors"), save_generator(generator, ()))
        checkpoint = Checkpoint(uri=uri, run_id="r", resolution=8, nimg=nimg, digest="d")
        report = Report(
            protocol="p", dataset_fingerprint="f1", checkpoint_uri=uri, metrics={"fid_classifier": fid}, figures={}
        )
        return checkpoint, report

    return make


def test_keys_are_computed_once_for_a_data_set(pipeline):
    other = SHARDS.model_copy(update={"fingerprint": "f2"})
    first = pipeline.run(SHARDS)
    assert pipeline.run(SHARDS) is first
    assert pipeline.run(other).run_id != first.run_id


def test_shards_are_taken_from_storage_the_second_time(make_config, image_folder, caplog):
    config = make_config(
        data={"source": str(image_folder), "resolution": 8},
        evaluation={"metrics": []},
        training={"batch": 4},
    )
    first, second = Pipeline(config).shard(), Pipeline(config).shard()
    assert (first.cached, second.cached) == (False, True)
    assert first.record == second.record
    assert first.record.num_images == 12


def test_the_progress_of_a_stage_is_that_of_this_command(make_config, caplog):
    """Points of an earlier command show nothing; the speed is that of the points since, as the curves define it."""
    caplog.set_level("INFO", "stylegan-progress")
    config = make_config(training={"batch": 4, "start_resolution": 4, "fade_kimg": 0, "stable_kimg": 8})
    with Pipeline(config) as pipeline:
        run = pipeline.run(SHARDS)
        job = run.job(run.stages[1], None)
        record = {"run_id": run.run_id, "resolution": 8, "nimg": 10_000, "digest": job.key}
        uri = f"{job.uri}/checkpoint-000010000"
        storage.write_json(f"{uri}/checkpoint.json", record | {"uri": uri})
        rows = [
            {"nimg": nimg, "resolution": 8, "metrics": {"time/sec_per_kimg": seconds, "loss/d": 1.5}}
            for nimg, seconds in ((9000, 100.0), (10_000, 100.0), (11_000, 4.0), (12_000, 6.0))
        ]
        storage.write_bytes(f"{job.uri}/stats.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:2]).encode())
        shower = StageProgress(config, job)
        for number in (2, 4):
            shower.show(rows[:number])
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["train 8x8 (2 of 2): 4,000 of 8,000 img, 200 img/s, 20 s left; D 1.500"]


def test_images_that_could_not_be_read_are_tried_again(make_config, image_folder, tmp_path):
    """An open set counts as cached while nothing changes, and the plan says that it will be tried again."""
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/again/{number}.png": (image_folder / f"cat/{number}.png").read_bytes() for number in range(6)})
    (tmp_path / "list.txt").write_text("".join(f"memory://again/{number}.png\n" for number in range(7)))
    config = make_config(
        data={"source": str(tmp_path / "list.txt"), "resolution": 8, "max_rejected": 1},
        evaluation={"metrics": []},
        training={"batch": 4},
    )
    first, second = Pipeline(config).shard(), Pipeline(config).shard()
    assert (first.cached, second.cached) == (False, True)
    assert first.record == second.record
    assert make_plan(config).steps[0].reason.endswith("; 1 that could not be read are tried again")

    memory.pipe("/again/6.png", (image_folder / "cat/6.png").read_bytes())
    third, fourth = Pipeline(config).shard(), Pipeline(config).shard()
    assert (third.cached, fourth.cached) == (False, True)
    assert (first.record.num_images, third.record.num_images, third.record.num_rejected) == (6, 7, 0)
    assert "tried again" not in make_plan(config).steps[0].reason


def test_weights_that_cannot_be_had_end_a_run_before_anything_is_written(
    make_config, image_folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    gone = str(tmp_path / "gone.pth")
    config = make_config(
        data={"source": str(image_folder), "resolution": 8},
        evaluation={"features": "inception", "metrics": ["fid"], "weights": {"inception": gone}},
        training={"batch": 4},
    )
    with pytest.raises(ConfigError, match=r"gone\.pth"):
        Pipeline(config).shard()
    assert not (tmp_path / "datasets").exists()


def test_a_root_in_memory_is_refused(tiny_config):
    with (
        pytest.raises(ConfigError, match="workers cannot see the memory of another process"),
        Pipeline(tiny_config("memory://root")),
    ):
        pass


def test_steps_out_of_order_name_the_step_that_comes_first(pipeline):
    with pytest.raises(StepError, match=r"tiny: its images are not sharded yet.* `.*stylegan train CONFIG` first"):
        pipeline.evaluate_trained()
    pipeline.shard()
    for step, call in (("evaluate", pipeline.evaluate_trained), ("register", pipeline.register_evaluated)):
        with pytest.raises(
            StepError, match=rf"{step}: stage 8x8 .* not trained yet; run `.*stylegan train CONFIG` first"
        ):
            call()


def test_a_stage_below_a_finished_one_is_not_trained_again(make_config, monkeypatch):
    """Its folder was deleted to save space; asked for by itself it would be trained."""
    monkeypatch.setattr(Pipeline, "_train", lambda _, job, _tracked: pytest.fail(f"trains {job.stage.name}"))
    with Pipeline(make_config(training={"batch": 4, "start_resolution": 4})) as opened:
        run = opened.run(SHARDS)
        low, high = run.stages
        uri, key = f"{run.stage_uri(high)}/checkpoint-000001000", run.stage_key(high)
        record = Checkpoint(uri=uri, run_id="r", resolution=8, nimg=1000, digest=key)
        storage.write_json(f"{record.uri}/checkpoint.json", record.model_dump())
        storage.write_json(f"{run.stage_uri(high)}/done.json", record.model_dump())
        assert opened.train(SHARDS, low, None) == Done(None, cached=True)
        assert opened.train(SHARDS, high, None) == Done(record, cached=True)
        with pytest.raises(pytest.fail.Exception, match="trains 4x4"):
            opened.train(SHARDS, low, None, target=low)


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (StepError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_mlflow_run_ends_as_the_block_does(make_config, error, status):
    opened = Pipeline(make_config())
    with pytest.raises(type(error)) if error else opened, opened:
        run = opened.tracked(SHARDS)
        if error:
            raise error
    assert run.client.get_run(run.mlflow_run_id).info.status == status


def test_a_repeated_registration_and_verdict_are_taken_from_storage(pipeline, trained):
    checkpoint, report = trained(1000, 10.0)
    first, again = (pipeline.register(SHARDS, checkpoint, report) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.record.version == first.record.version
    verdicts = [pipeline.gate(SHARDS, first.record, report) for _ in range(2)]
    assert [done.cached for done in verdicts] == [False, True]
    assert verdicts[0].record == verdicts[1].record
    assert verdicts[0].record.promote
    assert versions.champion(pipeline.config)[0] == first.record.version


def test_a_verdict_that_was_not_applied_is_applied_and_not_judged_again(pipeline, trained, monkeypatch):
    """As after a kill between the verdict and the move of the aliases."""
    checkpoint, report = trained(1000, 10.0)
    version = pipeline.register(SHARDS, checkpoint, report).record
    verdict = pipeline._judge(pipeline.run(SHARDS), version, report)
    assert versions.champion(pipeline.config) is None
    monkeypatch.setattr(steps, "judge", lambda *_, **__: pytest.fail("judges again"))
    done = pipeline.gate(SHARDS, version, report)
    assert (done.record, done.cached) == (verdict, False)
    assert versions.champion(pipeline.config)[0] == version.version


@pytest.mark.parametrize(
    ("of_champion", "of_challenger", "measured_again"),
    [("old", "new", [1000]), ("new", "old", [1000, 2000])],
)
def test_reports_of_another_protocol_are_measured_again_before_they_are_compared(
    of_champion, of_challenger, measured_again, pipeline, trained, monkeypatch
):
    """Both are, if an earlier version of the program has measured the challenger."""
    measured = []

    def evaluate(_shards, uri, *, out):
        nimg = int(uri.rpartition("-")[2])
        measured.append(nimg)
        return trained(nimg, 10.0 if nimg == 1000 else 5.0)[1].model_copy(update={"protocol": "new"})

    monkeypatch.setattr(pipeline, "_evaluate", evaluate)
    decided = []
    for nimg, fid, protocol in ((1000, 10.0, of_champion), (2000, 5.0, of_challenger)):
        checkpoint, report = trained(nimg, fid)
        report = report.model_copy(update={"protocol": protocol})
        version = versions.register(
            pipeline.config,
            mlflow_run_id=pipeline.tracked(SHARDS).mlflow_run_id,
            checkpoint=checkpoint.uri,
            shards=SHARDS,
            report=report,
            key=str(nimg),
        )
        verdict = pipeline._judge(pipeline.run(SHARDS), version, report)
        versions.apply_verdict(pipeline.config, verdict)
        decided.append(verdict.promote)
    assert (decided, measured) == ([True, True], measured_again)


def test_a_stale_verdict_is_judged_again(pipeline, trained):
    """Another version has become champion since: the new verdict compares with that one."""
    checkpoint, report = trained(1000, 10.0)
    version = pipeline.register(SHARDS, checkpoint, report).record
    assert pipeline._judge(pipeline.run(SHARDS), version, report).champion is None
    better_checkpoint, better_report = trained(2000, 5.0)
    other = versions.register(
        pipeline.config,
        mlflow_run_id=pipeline.tracked(SHARDS).mlflow_run_id,
        checkpoint=better_checkpoint.uri,
        shards=SHARDS,
        report=better_report,
        key="another run",
    )
    versions.promote(pipeline.tracked(SHARDS).uri, other.name, version=other.version)
    verdict = pipeline.gate(SHARDS, version, report).record
    assert (verdict.promote, verdict.champion) == (False, other.version)
    assert versions.champion(pipeline.config)[0] == other.version


@pytest.fixture
def small(make_config, image_folder, monkeypatch):
    """small(**sections): the steps of a small run away from Ray, its shards, and the checkpoint of its last stage."""
    monkeypatch.setattr(parallel_map, "parallel_map", lambda function, items, _: map(function, items))
    opened = ExitStack()

    def make(**sections):
        data = {"source": str(image_folder), "resolution": 8} | sections.pop("data", {})
        given = {"evaluation": {"metrics": [], "num_images": 20}, "training": {"batch": 4}} | sections
        pipeline = opened.enter_context(Pipeline(make_config(data=data, **given)))
        shards = pipeline.shard().record
        run = pipeline.run(shards)
        uri = storage.join(run.stage_uri(run.stages[-1]), "checkpoint-000001000")
        generator = Generator(pipeline.config.model, resolution=8, channels=3)
        storage.write_bytes(storage.join(uri, "generator.safetensors"), save_generator(generator, ()))
        storage.write_bytes(storage.join(run.stage_uri(run.stages[-1]), "samples", "000001.png"), GRID)
        return pipeline, shards, Checkpoint(uri=uri, run_id="r", resolution=8, nimg=1000, digest="d")

    with opened:
        yield make


def test_what_is_made_from_records_is_made_again_when_it_is_gone(small, caplog):
    """Page, figures, sample grid and the data set's card; a new report replaces the page of the old one."""
    pipeline, shards, checkpoint = small()
    run = pipeline.run(shards)
    assert not pipeline.evaluate(shards, checkpoint).cached
    figure = storage.join(run.uri, "grid.png")
    made = [
        run.page_uri,
        run.grid_uri,
        run.growth_uri,
        figure,
        *(storage.join(shards.uri, name) for name in (CARD, PREVIEW)),
    ]
    before = {uri: storage.read_bytes(uri) for uri in made}
    for uri in made:
        storage.delete(uri)
    assert pipeline.shard().cached
    assert pipeline.evaluate(shards, checkpoint).cached
    assert {uri: storage.read_bytes(uri) for uri in made} == before

    storage.delete(storage.join(run.uri, "report.json"))
    storage.write_bytes(run.page_uri, b"the page of another report")
    assert not pipeline.evaluate(shards, checkpoint).cached
    assert storage.read_bytes(run.page_uri) == before[run.page_uri]

    # A run of before there were animations: its page gets one.
    storage.delete(run.growth_uri)
    storage.write_bytes(run.page_uri, b"a page without one")
    assert pipeline.evaluate(shards, checkpoint).cached
    assert storage.read_bytes(run.page_uri) == before[run.page_uri]
    assert b"data:image/webp;base64," in before[run.page_uri]

    # What cannot be made again is named, and ends nothing.
    for uri in (
        figure,
        run.grid_uri,
        run.growth_uri,
        checkpoint.uri,
        storage.join(run.stage_uri(run.stages[-1]), "samples"),
    ):
        storage.delete(uri)
    assert pipeline.evaluate(shards, checkpoint).cached
    assert "the figures grid could not be made" in caplog.text
    assert "the sample grid could not be made" in caplog.text
    assert "the animation of the sample grids could not be made" in caplog.text


def test_an_evaluation_tolerates_as_many_damaged_samples_as_training(small, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "AT_ONCE", 0)
    for number, limit in enumerate((1, 0)):
        monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / f"cache-{number}"))
        pipeline, shards, checkpoint = small(data={"max_corrupt": limit}, evaluation={"metrics": [], "seed": number})
        if number == 0:
            index = read_level(shards, 8)
            content = bytearray(storage.read_bytes(index.tars[0].uri))
            content[index.offset[2] + index.size[2] // 2] ^= 4
            storage.write_bytes(index.tars[0].uri, bytes(content))
            assert pipeline.evaluate(shards, checkpoint).record.figures
        else:
            with pytest.raises(StepError, match=r"data\.max_corrupt=0"):
                pipeline.evaluate(shards, checkpoint)


# --- the registry decides what was applied ---


def judged(pipeline, trained, nimg=1000, fid=10.0):
    """Register and judge a version; its record and its verdict."""
    checkpoint, report = trained(nimg, fid)
    version = pipeline.register(SHARDS, checkpoint, report).record
    return version, pipeline.gate(SHARDS, version, report).record


def again(pipeline, trained, nimg=1000, fid=10.0):
    """Do the two last steps as the next command would; their results, and who is champion."""
    with Pipeline(pipeline.config) as other:
        checkpoint, report = trained(nimg, fid)
        version = other.register(SHARDS, checkpoint, report)
        verdict = other.gate(SHARDS, version.record, report)
    champion = versions.champion(pipeline.config)
    return version, verdict, champion and champion[0]


def client_of(pipeline):
    return connect(resolve_uri(pipeline.config))


def test_a_registry_that_was_moved_gets_version_and_alias(pipeline, trained, make_config, tmp_path, caplog):
    """The verdict in storage says promoted, but this registry has never heard of it."""
    caplog.set_level("INFO", "stylegan")
    judged(pipeline, trained)
    elsewhere = make_config(tracking={"uri": f"sqlite:///{tmp_path}/team.db"})
    pipeline._stack.close()
    with Pipeline(elsewhere) as other:
        checkpoint, report = trained(1000, 10.0)
        assert versions.find_version(elsewhere, other.run(SHARDS).keys.registration) is None
        version = other.register(SHARDS, checkpoint, report)
        verdict = other.gate(SHARDS, version.record, report)
    assert (version.cached, verdict.cached, verdict.record.promote) == (False, False, True)
    assert versions.champion(elsewhere)[0] == version.record.version
    assert "team.db does not have this run any more; it is registered again" in caplog.text


def test_a_deleted_model_is_registered_and_promoted_again(pipeline, trained):
    judged(pipeline, trained)
    client_of(pipeline).delete_registered_model("tiny")
    pipeline._stack.close()
    version, verdict, champion = again(pipeline, trained)
    assert (version.cached, verdict.cached, champion) == (False, False, version.record.version)


def test_a_deleted_version_is_registered_and_promoted_again(pipeline, trained):
    version, _ = judged(pipeline, trained)
    client_of(pipeline).delete_model_version("tiny", version.version)
    pipeline._stack.close()
    found, _, champion = again(pipeline, trained)
    assert found.record.version != version.version
    assert champion == found.record.version


def test_an_alias_that_was_removed_by_hand_is_set_again_and_said(pipeline, trained, caplog):
    caplog.set_level("INFO", "stylegan")
    version, _ = judged(pipeline, trained)
    client_of(pipeline).delete_registered_model_alias("tiny", "champion")
    assert versions.champion(pipeline.config) is None
    pipeline._stack.close()
    found, verdict, champion = again(pipeline, trained)
    assert (found.cached, verdict.cached, champion) == (True, False, version.version)
    assert "had lost its alias champion" in caplog.text
    found, verdict, champion = again(pipeline, trained)
    assert (found.cached, verdict.cached) == (True, True)


def test_the_alias_goes_to_who_had_it_last(pipeline, trained):
    """The repeat of an older run does not bring an older model back."""
    judged(pipeline, trained)
    checkpoint, report = trained(2000, 5.0)
    newer = versions.register(
        pipeline.config,
        mlflow_run_id=pipeline.tracked(SHARDS).mlflow_run_id,
        checkpoint=checkpoint.uri,
        shards=SHARDS,
        report=report,
        key="newer",
    )
    versions.promote(resolve_uri(pipeline.config), "tiny", newer.version)
    client_of(pipeline).delete_registered_model_alias("tiny", "champion")
    pipeline._stack.close()
    assert again(pipeline, trained)[2] == newer.version


def test_a_decision_of_a_person_stays(pipeline, trained):
    """Another version is champion since: the repeat of the run changes nothing."""
    judged(pipeline, trained)
    checkpoint, report = trained(2000, 5.0)
    other = versions.register(
        pipeline.config,
        mlflow_run_id=pipeline.tracked(SHARDS).mlflow_run_id,
        checkpoint=checkpoint.uri,
        shards=SHARDS,
        report=report,
        key="other",
    )
    versions.promote(resolve_uri(pipeline.config), "tiny", other.version)
    pipeline._stack.close()
    _, verdict, champion = again(pipeline, trained)
    assert (verdict.cached, champion) == (True, other.version)


def test_a_version_says_what_it_was_trained_on(pipeline, trained):
    pipeline.version_tags = {"stylegan.listing": "abc"}
    judged(pipeline, trained)
    (found,) = list_registered(pipeline.config)
    assert found.tags["stylegan.dataset_key"] == "x"
    assert found.tags["stylegan.num_images"] == "9"
    assert found.tags["stylegan.listing"] == "abc"
    assert found.aliases == ("champion",)
    # Images that were touched but not changed have another listing and make the same run.
    pipeline._stack.close()
    with Pipeline(pipeline.config) as other:
        other.version_tags = {"stylegan.listing": "def"}
        other.register(SHARDS, *trained(1000, 10.0))
    assert list_registered(pipeline.config)[0].tags["stylegan.listing"] == "def"


def another_model(pipeline, fid):
    """Register the model of another run and make it champion; its version."""
    root = pipeline.run(SHARDS).root
    uri = storage.join(root, "stages", "0008-y", "checkpoint-000003000")
    torch.manual_seed(3)
    weights = save_generator(Generator(pipeline.config.model, resolution=8, channels=1), ())
    storage.write_bytes(storage.join(uri, "generator.safetensors"), weights)
    report = Report(protocol="p", dataset_fingerprint="f1", checkpoint_uri=uri, metrics={"fid_classifier": fid})
    other = versions.register(
        pipeline.config,
        mlflow_run_id=pipeline.tracked(SHARDS).mlflow_run_id,
        checkpoint=uri,
        shards=SHARDS,
        report=report,
        key="another",
    )
    versions.promote(resolve_uri(pipeline.config), "tiny", other.version)
    return other


def test_a_verdict_against_another_model_of_the_same_number_is_not_applied(pipeline, trained, make_config, tmp_path):
    """Numbers begin anew in every registry: there version 1 was better, here it is worse."""
    another_model(pipeline, fid=5.0)
    version, verdict = judged(pipeline, trained, fid=10.0)
    assert (version.version, verdict.promote, verdict.champion) == ("2", False, "1")
    pipeline._stack.close()
    with Pipeline(make_config(tracking={"uri": f"sqlite:///{tmp_path}/team.db"})) as other:
        checkpoint, report = trained(1000, 10.0)
        another_model(other, fid=50.0)
        found = other.register(SHARDS, checkpoint, report).record
        verdict = other.gate(SHARDS, found, report).record
        assert (found.version, verdict.promote) == ("2", True)
        assert versions.champion(other.config)[0] == "2"


def test_two_registries_each_keep_their_own_verdict(pipeline, trained, make_config, tmp_path):
    """Back at the first registry, the verdict of the second one is not written to it."""
    another_model(pipeline, fid=50.0)
    version, first = judged(pipeline, trained, fid=10.0)
    assert (version.version, first.promote) == ("2", True)
    pipeline._stack.close()
    with Pipeline(make_config(tracking={"uri": f"sqlite:///{tmp_path}/team.db"})) as other:
        another_model(other, fid=5.0)
        _, second = judged(other, trained, fid=10.0)
        assert not second.promote
    _, verdict, champion = again(pipeline, trained)
    assert (verdict.cached, verdict.record, champion) == (True, first, "2")
    tags = client_of(pipeline).get_model_version("tiny", "2").tags
    assert tags["gate.verdict"] == "promote"


def test_a_verdict_that_a_version_is_champion_already_does_not_move_with_the_root(
    pipeline, trained, make_config, tmp_path
):
    """Another gate finds the champion to be itself. A registry that has no champion yet gets it all the same."""
    judged(pipeline, trained)
    pipeline._stack.close()
    gate = {"gate": {"min_improvement": 0.1}}
    with Pipeline(make_config(registry=gate)) as stricter:
        _, verdict = judged(stricter, trained)
        assert (verdict.promote, verdict.champion) == (False, "1")
        client_of(stricter).delete_registered_model_alias("tiny", "champion")
        assert judged(stricter, trained)[1] == verdict
        assert versions.champion(stricter.config)[0] == "1"
    with Pipeline(make_config(registry=gate, tracking={"uri": f"sqlite:///{tmp_path}/team.db"})) as other:
        _, verdict = judged(other, trained)
        assert (verdict.promote, versions.champion(other.config)[0]) == (True, "1")


def test_a_verdict_of_an_earlier_release_counts_where_the_registry_carries_it(pipeline, trained, make_config, tmp_path):
    """It has the field `applied`, and does not say which models its numbers mean."""
    version, verdict = judged(pipeline, trained)
    path = tmp_path / "runs" / pipeline.run(SHARDS).run_id / "verdict.json"
    record = json.loads(path.read_text())
    del record["models"]
    path.write_text(json.dumps(record | {"applied": True}))
    client_of(pipeline).delete_model_version_tag("tiny", version.version, "gate.key")
    pipeline._stack.close()
    _, found, champion = again(pipeline, trained)
    assert (found.cached, found.record, champion) == (True, verdict, version.version)
    with Pipeline(make_config(tracking={"uri": f"sqlite:///{tmp_path}/team.db"})) as other:
        assert judged(other, trained)[1].promote
        assert versions.champion(other.config)[0] == "1"


def test_a_run_that_another_process_took_over_keeps_its_state_in_mlflow(make_config):
    """That process has set it to running, and goes on with it."""
    pipeline = Pipeline(make_config())

    def work():
        pipeline.tracked(SHARDS).start()
        raise LostError("taken over", 15)

    with pytest.raises(LostError), pipeline:
        work()
    tracked = pipeline.tracked(SHARDS)
    assert tracked.client.get_run(tracked.mlflow_run_id).info.status == "RUNNING"


# --- a stage that another run trains ---


def _finish(run, stage):
    uri = f"{run.stage_uri(stage)}/checkpoint-{stage.end_nimg:09d}"
    record = {"uri": uri, "run_id": "other", "resolution": stage.resolution, "digest": run.stage_key(stage)}
    for file in (f"{uri}/{MARKER}", f"{run.stage_uri(stage)}/done.json"):
        storage.write_json(file, record | {"nimg": stage.end_nimg})


@contextmanager
def _trained_elsewhere(run, stage, *, finish):
    """Another run holds the lock of a stage for a second, on another thread, and may finish the stage before it lets go."""
    begun = threading.Event()

    def train():
        name = stage_lock(storage.name(run.stage_uri(stage)))
        with hold(run.root, name, run_id="other-run", what="stylegan run"):
            begun.set()
            time.sleep(1)
            if finish:
                _finish(run, stage)

    thread = threading.Thread(target=train)
    thread.start()
    begun.wait(10)
    yield
    thread.join()


@pytest.mark.parametrize("finish", [True, False])
def test_a_stage_that_another_run_trains_is_waited_for(pipeline, caplog, monkeypatch, finish):
    """Then it is taken from storage; if the other run has ended before, this one trains it, and holds its lock."""
    monkeypatch.setattr(steps, "STAGE_SECONDS", 0.1)
    run = pipeline.run(SHARDS)
    stage = run.stages[0]
    began = time.monotonic()
    with (
        _trained_elsewhere(run, stage, finish=finish),
        caplog.at_level("INFO", "stylegan"),
        pipeline._sole(run, stage, None) as (found, needed),
    ):
        assert time.monotonic() - began >= 1
        assert (found is not None, needed) == (finish, not finish)
        assert [one.run_id for one in held(run.root)] == ([] if finish else [run.run_id])
    said = f"train {stage.name}: other-run trains this very stage; waiting for its end"
    assert caplog.messages.count(said) == 1
    assert held(run.root) == ()


def test_a_finished_stage_takes_no_lock(pipeline):
    run = pipeline.run(SHARDS)
    stage = run.stages[0]
    _finish(run, stage)
    with pipeline._sole(run, stage, None) as (found, needed):
        assert (found.nimg, needed) == (stage.end_nimg, False)
        assert held(run.root) == ()
