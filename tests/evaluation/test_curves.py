import json
import re
from xml.etree import ElementTree

import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.curves import draw_curves, read_log

LOG = [
    {"step": 10, "loss": 4.0, "temperature": 10.0, "logit_scale": 2.3, "logit_bias": -10.0},
    {"step": 20, "loss": 2.5, "temperature": 12.0, "logit_scale": 2.5, "logit_bias": -11.0},
    {"step": 20, "eval_loss": 3.0, "eval_recall_at_1": 0.5, "eval_image_to_text_recall_at_1_zh": 0.25},
    {"step": 20, "train_runtime": 3.0},
]


def test_one_panel_for_each_group_of_keys():
    panels = {panel["title"]: panel for panel in draw_curves(LOG, "encoder")}
    assert len(panels) == 5
    assert panels["Loss"]["alt"] == "Loss by step: loss from 4 to 2.5; eval_loss from 3 to 3"
    recall = next(panel for title, panel in panels.items() if title.startswith("Recall@1"))
    assert "eval_recall_at_1" in recall["alt"]
    assert "eval_image_to_text_recall_at_1_zh" in recall["alt"]
    assert draw_curves([], "encoder") == []


def test_svgs_fit_into_one_page():
    svgs = [panel["svg"] for prefix in ("encoder", "decoder") for panel in draw_curves(LOG, prefix)]
    identities = [identity for svg in svgs for identity in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(identities) == len(set(identities)) > 10
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "http" not in svg
        assert "currentColor" in svg
        used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg))
        assert {a or b for a, b in used} <= set(identities)


def test_reads_the_run_or_its_last_checkpoint(tmp_path):
    assert read_log(tmp_path) == []
    for step, loss in ((9, 3.0), (10, 2.0)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"log_history": [{"step": step, "loss": loss}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    assert read_log(tmp_path) == [{"step": 10, "loss": 2.0}]
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    assert read_log(tmp_path) == []
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match=r"trainer_state\.json: is no log"):
        read_log(tmp_path)
