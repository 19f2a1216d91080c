"""Messages are one line, whatever the names in them contain."""

import pickle

import pytest

from stylegan.errors import ConfigError, StepError, UnavailableError, decoration, one_line, printable, shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc\x85d\u2028e", r"a\nb\r\tc\x85d\u2028e"),
        ("\x1b[31mred\x9b0m\x07\x00", r"\x1b[31mred\x9b0m\x07\x00"),
        ("\u202egnp.exe\u200f", r"\u202egnp.exe\u200f"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("猫\u3000é e\u0301 \u00a0 👩\u200d🎨 a\\nb", "猫\u3000é e\u0301 \u00a0 👩\u200d🎨 a\\nb"),
    ],
)
def test_printable(text, shown):
    """What acts on a terminal or ends a line is escaped; words of all languages stay, and a second pass changes nothing."""
    assert printable(text) == shown
    assert printable(shown) == shown
    assert shown.encode()


@pytest.mark.parametrize("kind", [ConfigError, StepError])
def test_errors_of_users_are_one_line(kind):
    """A name inside a message cannot break its line, here or in another process."""
    error = pickle.loads(pickle.dumps(kind("data.source=a\n\x1b[2J: wrong")))
    assert str(error) == r"data.source=a\n\x1b[2J: wrong"


def test_one_line():
    """An error of another library becomes one line, without its line breaks."""
    assert one_line(ValueError("two\n  lines \x1b[0m")) == r"two lines \x1b[0m"
    assert one_line(ValueError()) == "ValueError"


def test_foreign_texts_are_shown_on_one_line():
    """Letters of any alphabet stay; what would change the line, its direction or the terminal is escaped; long texts end."""
    assert shown("Katze 猫 קוט 😀") == "Katze 猫 קוט 😀"
    assert shown("a\nb\x1b[2J\u202e\ud800\x00") == r"a\nb\x1b[2J\u202e\ud800\x00"
    assert shown("x" * 5000) == "x" * 79 + "\u2026"
    assert len(shown("\n" * 5000)) == 80


def test_a_failed_decoration_is_a_warning_of_one_line(caplog):
    """What only people look at fails no step. A store that is away for a moment still does: a repeat makes it."""
    with decoration("the card"):
        raise TypeError("two\nlines")
    assert [record.getMessage() for record in caplog.records] == ["the card could not be made: TypeError: two lines"]
    with decoration("the card"):
        raise StepError("x.png is damaged")
    assert caplog.records[-1].getMessage() == "the card could not be made: x.png is damaged"
    with pytest.raises(UnavailableError), decoration("the card"):
        raise UnavailableError("the store does not answer")
