"""Texts of errors."""

from stylegan.errors import shown


def test_foreign_texts_are_shown_on_one_line():
    """Letters of any alphabet stay; what would change the line, its direction or the terminal is escaped; long texts end."""
    assert shown("Katze 猫 קוט 😀") == "Katze 猫 קוט 😀"
    assert shown("a\nb\x1b[2J\u202e\ud800\x00") == r"a\nb\x1b[2J\u202e\ud800\x00"
    assert shown("x" * 5000) == "x" * 79 + "\u2026"
    assert len(shown("\n" * 5000)) == 80
