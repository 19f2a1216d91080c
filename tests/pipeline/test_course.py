"""The steps of a run and what they are expected to take."""

from stylegan import storage
from stylegan.config.file import build
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.pipeline.course import EVALUATE_SECONDS, STAGE_SECONDS, course_steps
from stylegan.pipeline.run import Run
from stylegan.training.cost import counted_seconds, speed_record
from stylegan.training.schedule import stages


def test_what_is_left_of_a_run_and_what_it_takes(tmp_path, image_folder):
    """Nothing is sharded; then one stage is finished and another half done; then its speed is known from storage."""
    tree = {
        "name": "t",
        "storage": {"root": str(tmp_path / "root")},
        "data": {"source": str(image_folder), "resolution": 16},
        "training": {"start_resolution": 4, "batch": 4, "fade_kimg": 0, "stable_kimg": 10},
        "evaluation": {"metrics": ["fid"], "features": "rotation", "num_images": 100},
        "registry": {"gate": {"metric": "fid"}},
    }
    config = build(tree)
    wanted = stages(config)
    names = ["shard", "train 4x4", "train 8x8", "train 16x16", "evaluate", "register", "gate"]
    steps = course_steps(config, None, wanted, shards_done=False, to_end=True)
    assert [(step.name, step.state) for step in steps] == [(name, "run") for name in names]
    assert steps[0].unknown
    assert [step.counted for step in steps[1:4]] == [10_000 * counted_seconds(config, stage) for stage in wanted]
    assert (steps[4].known, steps[4].counted > 0) == (EVALUATE_SECONDS, True)

    run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
    for number, nimg, done in ((0, 10_000, True), (1, 15_000, False)):
        folder = run.stage_uri(run.stages[number])
        record = {"uri": f"{folder}/checkpoint-{nimg:09d}", "run_id": "r", "resolution": run.stages[number].resolution}
        record |= {"nimg": nimg, "digest": run.stage_key(run.stages[number])}
        storage.write_json(f"{record['uri']}/checkpoint.json", record)
        if done:
            storage.write_json(f"{folder}/done.json", record)
    steps = course_steps(config, run, wanted, shards_done=True, to_end=False)
    assert [step.state for step in steps] == ["cached", "cached", "run", "run"]
    assert steps[2].counted == 5_000 * counted_seconds(config, wanted[1])
    storage.write_json(f"{tmp_path}/root/stages/0016-abc/done.json", speed_record(config, 100.0))
    known = course_steps(config, run, wanted, shards_done=True, to_end=False)[3]
    assert (known.known, known.counted) == (STAGE_SECONDS + 100, 0)
