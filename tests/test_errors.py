"""Texts of errors."""

import pytest

from stylegan.errors import StepError, decoration, shown


def test_foreign_texts_are_shown_on_one_line():
    """Letters of any alphabet stay; what would change the line, its direction or the terminal is escaped; long texts end."""
    assert shown("Katze 猫 קוט 😀") == "Katze 猫 קוט 😀"
    assert shown("a\nb\x1b[2J\u202e\ud800\x00") == r"a\nb\x1b[2J\u202e\ud800\x00"
    assert shown("x" * 5000) == "x" * 79 + "\u2026"
    assert len(shown("\n" * 5000)) == 80


def test_a_failed_decoration_is_a_warning_of_one_line(caplog):
    """What only people look at fails no step; what has a message for the user still does."""
    with decoration("the card"):
        raise TypeError("two\nlines")
    assert [record.getMessage() for record in caplog.records] == ["the card could not be made: TypeError: two lines"]
    with pytest.raises(StepError), decoration("the card"):
        raise StepError("the store does not answer")
