"""`configs/quickstart.ipynb`: its cells on a finished run, and its stored outputs beside the config."""

import ast
import json
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from PIL import Image

from stylegan.config.file import load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.pipeline.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"
NOTEBOOK = json.loads((CONFIGS / "quickstart.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def execute(cell: dict, names: dict) -> object:
    """Run a cell as Jupyter does, and return the value of its last expression."""
    *body, last = ast.parse("".join(cell["source"])).body
    exec(compile(ast.Module(body, []), cell["id"], "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
    exec(compile(ast.Module([last], []), cell["id"], "exec"), names)
    return None


@pytest.fixture(scope="module")
def ran(finished, tmp_path_factory):
    """Run all cells on the tiny finished run; return the value of each, the pictures they display, and their names."""
    place, _ = finished
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "configs").mkdir()
    shutil.copy(place.config, folder / "configs" / "quickstart.yaml")
    (folder / "quickstart-data").symlink_to(place.root)
    displayed: list[Image.Image] = []
    names = {"display": displayed.append}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "agg")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # put back at the end; a cell sets it
        patch.chdir(folder / "configs")
        try:
            values = [execute(cell, names) for cell in CELLS]
        finally:
            mlflow.set_tracking_uri(None)
    return values, displayed, names


@pytest.mark.long
def test_the_cells_show_the_run(ran, finished):
    (run_id, _, _, metrics, *_, table, _), displayed, names = ran
    assert run_id == finished[1]["run_id"]
    assert (list(names["lines"]), names["lines"].index[-1]) == (["loss/d", "loss/g"], 2.2)
    assert len(displayed) == 2  # a grid for each stage
    assert list(metrics.index) == ["fid_classifier", "ppl_wend_classifier", "classifier_accuracy"]
    assert table.loc["fid_classifier", "the report"] == metrics.loc["fid_classifier", "value"]
    assert table.loc["fid_classifier", "500 images"] != metrics.loc["fid_classifier", "value"]


@pytest.mark.long
def test_the_cells_draw_what_their_texts_say(ran):
    values, displayed, names = ran
    mean, full = names["truncated"][0], names["truncated"][-1]
    torch.testing.assert_close(mean, mean[:1].expand_as(mean))
    assert full.std(dim=0).max() > 0
    ends = names["generator"].synthesis(names["ws"]).unflatten(0, (5, 10))
    torch.testing.assert_close(names["mixed"][-1], ends[:, 0])  # the first latents alone
    torch.testing.assert_close(names["mixed"][0], ends[:, -1])  # the second ones alone
    assert names["draws"].shape == (100, 10, 1, 8, 8)
    assert names["spread"].max() > 0
    assert names["images"].shape == (10, 8, 8, 1)
    pictures = [value for value in values if isinstance(value, Image.Image)]
    assert len(pictures) == 6
    assert all(len(picture.getcolors(2**16)) > 2 for picture in [*displayed, *pictures])


def test_the_stored_outputs_are_those_of_the_shipped_config(tmp_path):
    """`make notebook` writes them. They belong to this config, and hold no path of the machine that made them."""
    config = load(CONFIGS / "quickstart.yaml", [f"storage.root={tmp_path}"])
    run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
    assert [output["data"]["text/plain"] for output in CELLS[0]["outputs"]] == [[f"'{run.run_id}'"]], (
        "run `make notebook`"
    )
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1)), "run `make notebook`"
    kinds = {output["output_type"] for cell in CELLS for output in cell["outputs"]}
    assert kinds <= {"execute_result", "display_data"}  # neither errors nor warnings
    text = json.dumps([cell["outputs"] for cell in CELLS])
    assert not [place for place in ("/home/", "/tmp/", "/Users/", str(CONFIGS.parent)) if place in text]
    assert len(text) < 400_000


def kind(value: object) -> str:
    """Return the type of the output that Jupyter keeps of a value; cells without a value display pictures."""
    if isinstance(value, pd.DataFrame):
        return "text/html"
    return "text/plain" if isinstance(value, str) else "image/png"


@pytest.mark.long
def test_the_stored_outputs_are_of_the_kinds_that_the_cells_give(ran):
    """A cell that was changed without `make notebook` is noticed where it shows something else now."""
    kept = [{kind for output in cell["outputs"] for kind in output["data"]} for cell in CELLS]
    assert [number for number, value in enumerate(ran[0]) if kind(value) not in kept[number]] == []
