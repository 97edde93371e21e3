import re

import numpy as np
import pytest
from PIL import Image

from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.data.report import natural
from tests.data.raw_folders import picture, save, write_knee, write_table


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
    # Pictures stand in the page; their links lead to the images beside it.
    links = re.findall(r"(?<!xlink:)(?:src|href)=\"([^\"]*)\"", page)
    assert all(re.match(r"data:image/jpeg|images/[0-9a-f]{2}/|#near", link) for link in links)
    assert any(link.startswith("images/") for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    assert page.count("data:image/jpeg;base64,") >= 9


@pytest.mark.parametrize(
    "words",
    [
        "11 records came in: 9 pairs are kept",
        "Licences to check",
        "CC-BY-NC-4.0",
        "non-commercial",
        '<td>image file is missing</td><td class="n">1</td>\n<td>reports 1</td>',
        '<td>duplicate</td><td class="n">1</td>',
        "<p>1 of 1.</p>",
        'train</th><th class="n">validation</th><th class="n">all</th>',
        "<h3>reports: 8 of 9</h3>",
        "train, en, label a",
        "How it was made",
        "<td><code>validation_fraction</code></td><td>0.3</td>",
        "<td>pillow</td><td>",
        "<td><code>seed</code></td><td>0</td>",
        'dropped: <span title="row 9">row 9</span>',
        "1 pairs differ by at most 20 of 255 bits",
        "No patient, image, question about an image or group stands in two splits",
        "cannot tell apart: 1",
        "Report &lt;1 mm. | Report &gt;1 mm.",
        "&lt;script&gt;alert(1)",
        "<h3>reports</h3>",
        "<h2>Labels by split</h2>",
        "<th>reports: label</th>",
    ],
)
def test_it_says(page, words):
    assert words in page


def test_there_are_charts(page):
    # Image sizes, and the balance of labels.
    assert page.count("<svg") == 2


def test_a_small_plain_folder_with_a_trap(tmp_path):
    """Almost the same image in two splits, no label, one size, and a file deep in folders."""
    first = np.asarray(picture(0, (40, 30))).copy()
    save(tmp_path / "a" / "b" / "0.png", picture(0, (40, 30)))
    first[0, 0] = 255 - first[0, 0]
    save(tmp_path / "1.png", Image.fromarray(first))
    rows = [
        {"image": "a/b/0.png", "text": "One.", "split": "train"},
        {"image": "1.png", "text": "Two.", "split": "test"},
    ]
    write_table(tmp_path / "reports.csv", rows)
    report = prepare(
        PrepareConfig(output_dir=str(tmp_path / "out"), reports_file=str(tmp_path / "reports.csv"), num_workers=1)
    )
    page = (tmp_path / "out" / "data_report.html").read_text(encoding="utf-8")
    assert report["by_language_and_split"] == {"en": {"train": 1, "test": 1}}
    assert '<p class="bad">But 1 pairs of images that look almost alike stand in two splits' in page
    assert "Labels by split" not in page
    # One bar in each chart, and whole numbers beside it.
    chart = page[page.index("<h2>Images") : page.index("<h2>Texts")]
    assert re.findall(r"<!-- (\d+) -->", chart) == ["40", "0", "1", "2", "30", "0", "1", "2"]


def test_captions_name_the_file_alone(tmp_path):
    write_knee(tmp_path / "knee", {1: (2, 2), 2: (3, 3)})
    prepare(PrepareConfig(output_dir=str(tmp_path / "out"), knee_dir=str(tmp_path / "knee"), num_workers=1))
    page = (tmp_path / "out" / "data_report.html").read_text(encoding="utf-8")
    where = "Digital Knee X-ray Images/Knee X-ray Images/MedicalExpert-II/2Mild/MildG2 (1).png"
    assert f'dropped: <span title="{where}">MildG2 (1).png</span>' in page


def test_names_are_sorted_as_one_counts():
    assert sorted(["grade 10", "grade 2", "Grade 1", "3", "b"], key=natural) == [
        "3",
        "b",
        "Grade 1",
        "grade 2",
        "grade 10",
    ]
