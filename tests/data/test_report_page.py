import re

import numpy as np
import pytest

from medfinetune.data.prepare import PrepareConfig, prepare
from tests.data.raw_folders import picture, save, write_table


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    rows = []
    for i in range(6):
        save(folder / f"{i}.png", picture(i, (40, 30)))
        text = f"Report <{i} mm." if i < 5 else "<script>alert(1)</script>"
        rows.append({"image": f"{i}.png", "text": text, "label": "ab左"[i % 3], "license": "CC-BY-NC-4.0"})
    almost = np.asarray(picture(0, (40, 30))).copy()
    almost[0, 0] = 255 - almost[0, 0]
    from PIL import Image

    save(folder / "6.png", Image.fromarray(almost))
    rows += [rows[0] | {"image": "6.png", "text": "Almost."}, rows[0], rows[0] | {"image": "none.png"}]
    rows += [rows[1] | {"text": "Report >1 mm."}, rows[1] | {"text": "Another."}]
    write_table(folder / "reports.csv", rows)
    config = PrepareConfig(
        output_dir=str(folder / "out"), reports_file=str(folder / "reports.csv"), validation_fraction=0.3, num_workers=1
    )
    prepare(config)
    return (folder / "out" / "data_report.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(page):
    assert not re.search(r"(src|href)=\"(?!data:)", page.replace('xlink:href="#', ""))
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    assert page.count("data:image/jpeg;base64,") >= 9


@pytest.mark.parametrize(
    "words",
    [
        "11 records came in: 9 pairs are kept",
        "Licences to check",
        "CC-BY-NC-4.0",
        "non-commercial",
        "image file is missing: 1",
        "duplicate: 1",
        "dropped: row 9",
        "1 pairs differ by at most 20 of 255 bits",
        "No patient, image, question about an image or group stands in two splits",
        "cannot tell apart: 1",
        "Report &lt;1 mm. | Report &gt;1 mm.",
        "&lt;script&gt;alert(1)",
        "<h3>reports</h3>",
        "<th>reports: label</th>",
    ],
)
def test_it_says(page, words):
    assert words in page


def test_there_are_charts(page):
    # Image sizes, and the balance of labels.
    assert page.count("<svg") == 2
