"""YAML 1.2: what is written is what is read, or one line says why not."""

import math
from itertools import pairwise

import pytest
import yaml as yaml_1_1
from hypothesis import given
from hypothesis import strategies as st

from stylegan.config.yaml_text import read, read_argument, write
from stylegan.errors import ConfigError

# Each line is twenty times the line before it.
LAUGHS = "a: &x [1]\n" + "".join(f"{name}: &{name} [{f'*{last}, ' * 20}]\n" for last, name in ("xb", "bc", "cd", "de"))


def mistake(text: str) -> str:
    """Return the message of the ConfigError that a text causes; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        read(text, "a.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("+5", 5),
        ("-0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5E-1", 0.05),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        # Numbers, truths and dates of YAML 1.1 only.
        ("yes", "yes"),
        ("Off", "Off"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("12:30", "12:30"),
        ("2026-11-26", "2026-11-26"),
        ("=", "="),
        # What is marked as text, or as a number.
        ("'0123'", "0123"),
        ("!!str 123", "123"),
        ("!!int '5'", 5),
    ],
)
def test_values_are_those_of_the_core_schema(text, value):
    found = read(f"a: {text}", "a.yaml").value["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\ntraining: {batch: 8}\ntraining: {mirror: true}", "line 3: training: is given twice (first in line 2)"),
        ("a:\n  b:\n    c: 1\n    d: 2\n    c: 3", "line 5: a.b.c: is given twice (first in line 3)"),
        ("a:\n- x: 1\n  y: 2\n  x: 3", "line 4: a.0.x: is given twice (first in line 2)"),
        ("a: {4: 1, 0x4: 2}", "line 1: a.4: is given twice"),
        ("a: 1\n'a': 2", "line 2: a: is given twice"),
        ("seed: 0123", "line 1: seed: 0123 begins with a zero, which some programs read as octal; write 123"),
        ("seed: -08", "write 8"),
        ("a: {04: 1}", "line 1: a: 04 begins with a zero"),
        ("a: 1\n---\nb: 2", "line 3: a second document begins here"),
        ("a: !home x", "line 1: a: the tag !home of 'x' is not read here; remove it"),
        ("a: !!python/object:os.system x", "the tag !!python/object:os.system"),
        ("a: !!set {b}", "the tag !!set"),
        ("a: !!bool yes", "the tag !!bool of 'yes'"),
        ("true: 1", "line 1: the key true is no name; put it in quotes"),
        ("? [b]\n: 1", "the key in brackets is no name"),
        ("a: b: c", "line 1: not valid YAML (mapping values are not allowed here); put text with a colon in quotes"),
        ("a: @b", "put text that begins with a special character in quotes"),
        ("a: *b", "found undefined alias 'b'"),
        ("a:\tb", "replace the tab by blanks"),
        ("name: x\nseed:1\n", "line 2: not valid YAML (could not find expected ':'); write `key: value`, with a blank"),
        ("a: 'b", "line 1: not valid YAML"),
        ("a: 1\nb: \x07", "line 2: not valid YAML"),
        ("a: &x {b: *x}", "its alias repeats too much or contains itself"),
        ("a: " + "[" * 600, "nested too deeply"),
        (LAUGHS, "repeats too much"),
        ("a: " + "9" * 5000, "line 1: a: a number of more than 100 digits"),
        ("<<: 1", "`<<` must stand once"),
        ("<<: !home {a: 1}", "`<<` must stand once"),
        ("a:\n  <<: {b: 1, b: 2}", "line 2: a.b: is given twice (first in line 2)"),
        ("a:\n  <<: [{b: 1}, {b: 2,\n    b: 3}]", "line 3: a.b: is given twice (first in line 2)"),
        ('a: 1\nb: "\\U00110000"', "line 2: not valid YAML (an escape \\U above \\U0010ffff is no character)"),
    ],
)  # fmt: skip
def test_what_could_be_read_otherwise_is_refused_with_its_line(text, words):
    message = mistake(text)
    assert message.startswith("a.yaml: ")
    assert words in message


def test_anchors_and_merged_tables_are_what_is_written():
    """A key that is written beside `<<` wins; the first of several merged tables wins over the others."""
    text = "x: &x {a: 1, b: {c: 2}}\ny: &y {a: 3, d: 4}\nz:\n  e: *x\n  <<: [*x, *y]\n  b: 5"
    found = read(text, "a.yaml")
    assert found.value["z"] == {"e": {"a": 1, "b": {"c": 2}}, "b": 5, "a": 1, "d": 4}
    assert found.lines[("z", "b")] == 6
    assert ("z", "b", "c") not in found.lines


def test_a_merged_table_has_merged_tables_of_its_own():
    text = "x: &x {a: 1, <<: {a: 2, b: 3}}\nz: {<<: *x, c: 4}\ny: {<<: [*x, *x]}"
    found = read(text, "a.yaml").value
    assert (found["x"], found["z"], found["y"]) == ({"a": 1, "b": 3}, {"c": 4, "a": 1, "b": 3}, {"a": 1, "b": 3})


def test_merging_without_end_is_refused():
    names = "abcdef"
    lines = [
        "a: &a {}",
        *(f"{n}: &{n} {{<<: [{', '.join(['*' + last] * 20)}]}}" for last, n in pairwise(names)),
    ]
    assert "repeats too much" in mistake("\n".join(lines))


def test_every_key_and_entry_has_its_line():
    lines = read("a:\n  b: 1\n  c:\n  - 2\n  - d: 3\n", "a.yaml").lines
    assert lines == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", "0"): 4,
        ("a", "c", "1"): 5,
        ("a", "c", "1", "d"): 5,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("/data/set #2", "/data/set #2"),
        ("a: b", "a: b"),
        ("*.png", "*.png"),
        ("&a", "&a"),
        ("!a", "!a"),
        ("@a", "@a"),
        ("- a", "- a"),
        ("|", "|"),
        ("{000..009}.tar", "{000..009}.tar"),
        ("[0-9].png", "[0-9].png"),
        ("[fid] # or not", "[fid] # or not"),
        ("~/faces", "~/faces"),
        (" 5", " 5"),
        ("yes", "yes"),
        ("'null'", "null"),
        ('"a\\tb"', "a\tb"),
        ("''", ""),
        ("~", None),
        ("null", None),
        ("1e-3", 0.001),
        ("[fid, kid]", ["fid", "kid"]),
        ("{4: 8, 16: 4}", {4: 8, 16: 4}),
    ],
)
def test_text_of_an_argument_is_taken_whole(text, value):
    assert read_argument(text, "--set k") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no value; write null"),
        ("'a' b", "text after its closing quote"),
        ("'a", "no closing quote"),
        ('"\\U00110000"', "no closing quote"),
        ("007", "begins with a zero"),
        ("{4: 1, 4: 2}", "4: is given twice"),
    ],
)
def test_an_argument_that_is_half_yaml_is_refused(text, words):
    with pytest.raises(ConfigError, match=f"^--set k: .*{words}"):
        read_argument(text, "--set k")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["yes", "0123", "1e3", "1_0", "12:30", "2026-11-26", "0b1", "0o7", "~", "<<", "=", " a ", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(value=plain)
def test_what_is_written_reads_back_also_by_rules_of_yaml_1_1(value):
    """A stored config means the same to this program and to people's scripts with PyYAML."""
    text = write({"a": value})
    assert read(text, "a.yaml").value == {"a": value}
    assert yaml_1_1.safe_load(text) == {"a": value}
    assert read(write({"a": value}, inline=True), "a.yaml").value == {"a": value}


def test_lines_are_a_block_except_inside_a_line():
    assert write({"text": "a: 1\nb:\n  - c\n"}) == "text: |\n  a: 1\n  b:\n    - c\n"
    for value in ("a\nb", " a\n", "a \n", "a\n\n", "ä\n"):
        assert write(value).startswith('"')
    for value in ("a\n", ["a\n"]):
        assert "\n" not in write(value, inline=True)
