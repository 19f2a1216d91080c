"""`stylegan shard`: its record, what it prints of a set, and --verify."""

import json
import os

from command_line import fail

from flows.cli.main import main


def test_shard_prints_its_record_as_one_json_line(capsys, write, draw_images, tmp_path):
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    assert main(["shard", write(source), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["num_images"], record["label_names"], record["resolutions"]) == (10, ["a", "b"], [4, 8])


def test_shard_prints_what_the_set_holds_and_what_was_left_out(capsys, write, labelled, tmp_path):
    """Counts by class, rejects by kind with their paths, and where the files are; the same again from storage."""
    config = write(labelled, data={"max_rejected": 1})
    for first in ("done", "taken from storage"):
        assert main(["shard", config]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{first}: 9 images, fingerprint ")
        cells = [
            [cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")
        ]
        assert cells == [
            ["a", "5"],
            ["b [0]", "4"],
            ["duplicate", "1", "a/twin.png"],
            ["truncated", "1", "b [0]/cut.png"],
        ]
        places = dict(line.split(maxsplit=1) for line in out.splitlines() if str(tmp_path / "root") in line)
        assert set(places) == {"rejected", "preview", "shards"}
        assert all(os.path.exists(place) for place in places.values())
    assert "originals   24x20 to 24x20, median 24x20\n" in out


def test_names_do_nothing_to_the_terminal(capsys, write, draw_images, tmp_path):
    """Line breaks and escape codes in the names of classes and files are shown as escapes, in every table and message."""
    source = draw_images(tmp_path / "images", ["a\n\x1b[2Jb/1.png", *(f"c/{number}.png" for number in range(2, 6))])
    (source / "c/\x1b[31mred\n.png").write_bytes(b"junk")
    assert r"c/\x1b[31mred\n.png (not an image in a known format)" in fail(capsys, 1, "shard", write(source))
    assert main(["shard", write(source, data={"max_rejected": 1})]) == 0
    written = capsys.readouterr()
    assert "\x1b" not in written.out + written.err
    assert r"a\n\x1b[2Jb" in written.out
    assert r"c/\x1b[31mred\n.png" in written.out


def test_verify_proves_a_set_or_names_the_damage(capsys, write, labelled, tmp_path):
    """By config or by URI; a flipped byte is a line that names the tar, and the exit code 1."""
    config = write(labelled, data={"max_rejected": 1})
    assert f"stylegan shard {config}` first" in fail(capsys, 1, "shard", config, "--verify")
    assert main(["shard", config]) == 0
    (tar,) = (tmp_path / "root").glob("datasets/*/r0008/*.tar")
    uri = str(tar.parents[1])
    capsys.readouterr()
    for target in (config, uri):
        assert main(["shard", "--verify", target]) == 0
        assert capsys.readouterr().out == f"whole: 9 images in 2 tars of {target} are what their manifest says\n"
    content = bytearray(tar.read_bytes())
    content[1600] ^= 1
    tar.write_bytes(content)
    assert main(["shard", uri, "--verify"]) == 1
    captured = capsys.readouterr()
    problems = captured.out.splitlines()
    assert problems
    assert all(str(tar) in line for line in problems)
    assert f"stylegan: shard --verify {uri}: {len(problems)} problem(s)" in captured.err
    assert main(["shard", uri, "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == problems
    assert "belongs to a config" in fail(capsys, 2, "shard", uri, "--verify", "--set", "seed=1")
    assert main(["shard", "--verify", str(tmp_path)]) == 1
