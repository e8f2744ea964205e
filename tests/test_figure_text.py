"""Text in pictures: only signs that the font has, and lines that fit."""

import pytest

from softcam_hub.figures.text import font, readable, shorten, wrap

LETTERS = font(15)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("−1.5 – µ-CAPE ± 2 · …", "-1.5 - mu-CAPE ± 2 · …"),
        ("façade, Übung, Straße", "facade, Ubung, Strasse"),
        ("猫 cat\n2", "? cat\n2"),
        ("½ H₂O", "1?2 H2O"),
    ],
)
def test_signs_that_the_font_lacks(text, drawn):
    assert readable(text) == drawn


def test_every_sign_that_is_kept_has_a_form_of_its_own():
    forms = {sign: bytes(LETTERS.getmask(sign)) for sign in "·…±aZ09-+%"}
    assert len({*forms.values(), bytes(LETTERS.getmask("猫"))}) == len(forms) + 1


@pytest.mark.parametrize("width", [10, 60, 300])
@pytest.mark.parametrize(
    "text", ["", "word", "Supercalifragilisticexpialidocious", "many short words in one long line of text"]
)
def test_lines_fit(text, width):
    lines = wrap(text, width, LETTERS, most=3)
    assert 1 <= len(lines) <= 3
    assert all(LETTERS.getlength(line) <= width or line == "…" for line in lines)
    assert "".join(lines).replace(" ", "").startswith(text[:1] if width > 20 else "")


def test_short_texts_stay_and_line_breaks_count():
    assert shorten("word", 100, LETTERS) == "word"
    assert wrap("one\ntwo three", 300, LETTERS) == ["one", "two three"]
    assert wrap("one two three", LETTERS.getlength("one two"), LETTERS) == ["one two", "three"]
    cut = wrap("one two three four five six", LETTERS.getlength("one two"), LETTERS)
    assert cut[0] == "one two"
    assert "…" in cut[1]
    assert len(cut) == 2


def test_long_names_that_begin_alike_stay_different():
    names = [f"a very long name of a class of which there are many, number {number}" for number in range(12)]
    assert len({shorten(name, 150, LETTERS) for name in names}) == len(names)
    assert shorten(names[0], 150, LETTERS).startswith("a very")
    assert shorten(names[0], 1, LETTERS) == "…"
