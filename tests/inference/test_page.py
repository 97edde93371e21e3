"""The page that a clinician opens."""

import re

from medfinetune.data.evidence import Evidence, LabelEvidence, Neighbour
from medfinetune.inference.page import write_page
from medfinetune.inference.report import Report
from medfinetune.inference.rerank import Candidate


def test_all_that_a_report_rests_on_is_shown(pipeline, image_files, tmp_path):
    reports = pipeline(image_files[:2], ["en", "zh"], num_candidates=3, max_new_tokens=6)
    page = write_page(reports, tmp_path / "index.html", pipeline.finder.index).read_text(encoding="utf-8")
    near = [n for report in reports for n in report.evidence.neighbours]
    assert len(near) > 2
    assert page.count("data:image/jpeg;base64,") == 2 + len(near)
    assert all(n.text in page and n.id in page for n in near)
    assert "Probable labels" in page
    assert '<p class="text" lang="zh">' in page
    # It opens without a network and without a folder beside it.
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_texts_are_no_markup_and_lost_images_are_said(tmp_path):
    evil = "<script>alert(1)</script>"
    label = LabelEvidence("heart_size", {"normal": 0.25, "large": 0.75})
    evidence = Evidence((Neighbour("near", evil, 0.5),), (label,))
    only = Candidate(evil, 1, 0.1, 0.4, 1.0, 1.0)
    report = Report(evil, evil, "en", [str(tmp_path / "gone.png")], evidence, "both", [only], True, ["Beware."], 1.0)
    page = write_page([report], tmp_path / "index.html", num_written=9, num_failed=2).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") == 3
    assert "does not open" in page
    assert "no picture" in page
    assert "large 75% · normal 25%" in page
    assert "Warning: Beware." in page
    assert "9 written, of which the 1 most doubtful" in page
    assert "2 failed (failed.jsonl)" in page


def test_a_report_comes_back_from_json(pipeline, image_files):
    report = pipeline(image_files[:1], num_candidates=2, max_new_tokens=4)[0]
    assert Report.from_dict(report.to_dict()).to_dict() == report.to_dict()
