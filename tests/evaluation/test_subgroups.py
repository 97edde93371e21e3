from dataclasses import dataclass, field

import pytest

from medfinetune.evaluation.subgroups import age_band, groups_of, sex, skin_type


@dataclass
class Told:
    language: str = "en"
    source: str = "pad_ufes"
    label: str | None = None
    metadata: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("age", "band"),
    [
        *(("0", "0-17"), (17.9, "0-17"), (18, "18-39"), ("40", "40-64"), ("64.0", "40-64"), (65, "65-79")),
        *(
            (80, "80+"),
            ("95", "80+"),
            ("045Y", "40-64"),
            ("018M", "0-17"),
            ("300D", "0-17"),
            ("45 years", "40-64"),
            ("45岁", "40-64"),
            (-1, None),
            (121, None),
            ("", None),
            (None, None),
            ("unknown", None),
            ("nan", None),
        ),
    ],
)
def test_age_bands(age, band):
    assert age_band(age) == band


def test_sex_and_skin_type_are_read_as_sources_write_them():
    words = ("female", "F", "男", "other", "", None, "N/A", float("nan"), "Unknown")
    assert [sex(word) for word in words] == ["female", "female", "male", "other", *[None] * 5]
    assert [skin_type(word) for word in ("2.0", 3, "IV", "7", "", None)] == ["2", "3", "4", None, None, None]


def test_each_case_is_in_one_group_of_a_way_or_in_none():
    cases = [
        Told(label="NEV", metadata={"age": "70", "sex": "female", "skin_type": "2.0"}),
        Told("zh", label="BCC", metadata={"age": "7"}),
        Told("zh", "knee", label="NEV"),
        Told(label="NEV", metadata={"age": "82"}),
    ]
    assert groups_of(cases) == {
        "language": {"en": [0, 3], "zh": [1, 2]},
        "source": {"knee": [2], "pad_ufes": [0, 1, 3]},
        "label": {"NEV": [0, 2, 3], "BCC": [1]},
        "age": {"0-17": [1], "65-79": [0], "80+": [3]},
        "sex": {"female": [0]},
        "skin_type": {"2": [0]},
    }
    assert list(groups_of(cases)["label"]) == ["NEV", "BCC"]
    assert groups_of(cases, max_groups=1)["label"] == {"NEV": [0, 2, 3]}
    assert "label" not in groups_of([Told(), Told()])
