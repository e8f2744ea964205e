"""The check of a card finds gaps, broken code, missing pictures, and numbers that no row holds."""

import re

import pytest

from softcam_hub.hub.cards import check_card

CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-classification
tags: [timm]
model-index:
- name: m
  results:
  - task: {type: image-classification}
    dataset: {name: d, type: d}
    metrics: [{type: accuracy, value: 0.875}]
---
# Model

In 2024 we had 3 ideas, and 12.5 % of them worked, in `0.777` s. See [paper](https://x.org/1.5).

| score | value |
| --- | ---: |
| batch 8 | 87.5 % |
| time | 31 ms (0.0310 s) |
| error | 8.2e-08 |

```python
print(0.123)
```
"""
ROWS = [{"accuracy": 0.875, "nested": [{"worked": 0.125}], "batch": 8, "seconds": 0.03098, "error": 8.1857e-08}]


def test_a_good_card_passes():
    check_card(CARD, ROWS)
    check_card(CARD)


SPOILED = {
    "number in a table": (("87.5 %", "88.5 %"), "says 88.5 %"),
    "one digit off": (("31 ms", "32 ms"), "says 32 ms"),
    "more digits than the row": (("0.0310 s", "0.0311 s"), "says 0.0311"),
    "number in a sentence": (("12.5 %", "12.6 %"), "says 12.6 %"),
    "decimal in a sentence": (("3 ideas", "3.5 ideas"), "says 3.5"),
    "exponent": (("8.2e-08", "8.2e-07"), "says 8.2e-07"),
    "whole number in a table": (("batch 8", "batch 9"), "says 9"),
    "number in the model-index": (("value: 0.875", "value: 0.8751"), "says 0.8751"),
    "empty cell": (("| 87.5 % |", "|  |"), "empty cell"),
    "empty metadata": (("license: mit", "license: ''"), "lacks license"),
    "missing metadata": (("tags: [timm]\n", ""), "lacks tags"),
    "empty list in metadata": (("tags: [timm]", "tags: [timm]\ndatasets: []"), "leaves datasets empty"),
    "empty name in the model-index": (("name: d,", "name: '',"), "leaves model-index.0.results.0.dataset.name empty"),
    "placeholder": (("3 ideas", "{{ ideas }} ideas"), "gap"),
    "more information": (("3 ideas", "[More Information Needed]"), "gap"),
    "no value": (("87.5 % |", "None |"), "gap"),
    "empty section": (("# Model", "# Empty\n\n# Model"), "says nothing under '# Empty'"),
    "empty last section": (("```python\nprint(0.123)\n```\n", "## End\n"), "says nothing under '## End'"),
    "broken code": (("print(0.123)", "print(0.123"), "does not parse"),
    "open block": (("0.123)\n```", "0.123)"), "does not close"),
    "no heading": (("# Model", "Model"), "no heading"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_card_fails(case):
    (before, after), message = SPOILED[case]
    assert CARD.count(before) == 1
    with pytest.raises(ValueError, match=re.escape(message)):
        check_card(CARD.replace(before, after), ROWS)


def test_pictures_must_be_there():
    card = CARD + "\n![x](a.png) ![y](https://x.org/b.png)\n"
    check_card(card, ROWS, {"a.png"})
    with pytest.raises(ValueError, match=r"shows a\.png"):
        check_card(card, ROWS, set())


def test_a_heading_above_a_heading_of_a_lower_level_is_no_gap():
    check_card(CARD.replace("# Model", "# Model\n\n## Part"), ROWS)
