"""Text in pictures: only characters that the font has, and lines that fit."""

import pytest

from softcam_hub.figures.text import font, readable, shorten, wrap

LETTERS = font(15)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("−1.5 – µ-CAPE μ-CAPE ± 2 · …", "−1.5 – µ-CAPE μ-CAPE ± 2 · …"),
        ("façade, Übung, Straße, fac\u0327ade", "façade, Übung, Straße, façade"),
        ("猫 cat\n2\t3", "? cat\n2?3"),
        ("½ H₂O, λ₁", "½ H₂O, λ₁"),
    ],
)
def test_only_characters_that_the_font_lacks_are_replaced(text, drawn):
    assert readable(text) == drawn


def test_every_kept_character_has_a_form_of_its_own():
    forms = {char: bytes(LETTERS.getmask(char)) for char in "·…±aZ09-+%µéüλ"}
    assert len({*forms.values(), bytes(LETTERS.getmask("猫"))}) == len(forms) + 1


@pytest.mark.parametrize("width", [10, 60, 300])
@pytest.mark.parametrize(
    "text", ["", "word", "Supercalifragilisticexpialidocious", "many short words in one long line of text"]
)
def test_wrapped_lines_fit_their_width(text, width):
    lines = wrap(text, width, LETTERS, most=3)
    assert 1 <= len(lines) <= 3
    assert all(LETTERS.getlength(line) <= width or line == "…" for line in lines)
    assert "".join(lines).replace(" ", "").startswith(text[:1] if width > 20 else "")


def test_short_texts_stay_whole_and_line_breaks_are_kept():
    assert shorten("word", 100, LETTERS) == "word"
    assert wrap("one\ntwo three", 300, LETTERS) == ["one", "two three"]
    assert wrap("one two three", LETTERS.getlength("one two"), LETTERS) == ["one two", "three"]
    lines = wrap("one two three four five six", LETTERS.getlength("one two"), LETTERS)
    assert lines[0] == "one two"
    assert "…" in lines[1]
    assert len(lines) == 2


def test_long_names_that_begin_alike_stay_different():
    names = [f"a very long name of a class of which there are many, number {number}" for number in range(12)]
    assert len({shorten(name, 150, LETTERS) for name in names}) == len(names)
    assert shorten(names[0], 150, LETTERS).startswith("a very")
    assert shorten(names[0], 1, LETTERS) == "…"
