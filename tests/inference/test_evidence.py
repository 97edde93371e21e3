"""What is told of an image."""

import datasets
import numpy as np
import pytest
import torch

from medfinetune.evaluation.tasks import Task
from medfinetune.inference.evidence import EvidenceFinder
from medfinetune.inference.index import ImageIndex
from medfinetune.inference.labels import LabelTask
from medfinetune.inference.rows import FEATURES

EMBEDS = np.eye(4, dtype=np.float32)


def pair(identity, language, text, source="reports"):
    return {"id": identity, "text": text, "language": language, "source": source, "label": None}


def finder(known=((), (), (), ()), info=None, sources=(), **options):
    pairs = [
        [pair("a-en", "en", "Clear."), pair("a-zh", "zh", "正常。")],
        [pair("b-zh", "zh", "积液。")],
        [pair("c-en", "en", "Clear.", "knee")],
        [pair("d-en", "en", "Fluid.")],
    ]
    rows = [
        {"pairs": own, "patients": [], "pixels": [str(i)], "known": list(known[i]), "image": ""}
        for i, own in enumerate(pairs)
    ]
    task = Task("fluid", {"no": {"en": ["Clear."]}, "yes": {"en": ["Fluid."], "zh": ["积液。"]}}, sources=sources)
    labels = [LabelTask(task, [torch.tensor(EMBEDS[[0]]), torch.tensor(EMBEDS[[3]])], 10.0, -5.0)]
    index = ImageIndex.build(EMBEDS, datasets.Dataset.from_list(rows, features=FEATURES), labels=labels)
    index.info |= {"known": sorted({name for names in known for name in names})} | (info or {})
    return EvidenceFinder(index, **options)


def query(*cosines):
    return torch.nn.functional.normalize(torch.tensor([cosines], dtype=torch.float32), dim=1)


def test_reports_come_in_the_language_of_the_query_where_there_is_one():
    near = query(3.0, 2.0, 1.0, 0.0)
    assert [n.text for n in finder().find(near, languages=["zh"])[0].neighbours] == ["正常。", "积液。", "Clear."]
    told = finder().find(near)[0].neighbours  # en
    assert [(n.id, n.text) for n in told] == [("a-en", "Clear."), ("b-zh", "积液。"), ("c-en", "Clear.")]
    assert [n.similarity for n in told] == pytest.approx([3 / 14**0.5, 2 / 14**0.5, 1 / 14**0.5], abs=1e-5)


def test_neighbours_are_cut_where_the_similarity_drops():
    near = query(3.0, 2.9, 1.0, 0.0)  # cosines 0.699, 0.676, 0.233
    assert len(finder().find(near)[0].neighbours) == 3
    assert len(finder(max_similarity_drop=0.1).find(near)[0].neighbours) == 2
    assert len(finder(info={"max_similarity_drop": 0.1}).find(near)[0].neighbours) == 2
    assert len(finder(max_similarity_drop=0.0).find(near)[0].neighbours) == 1
    assert len(finder(num_neighbours=1).find(near)[0].neighbours) == 1


def test_labels_are_told_of_images_like_those_that_know_them():
    near, far = query(2.0, 1.0, 0.0, 0.0), query(0.0, 0.0, 0.0, 1.0)
    both = torch.cat([near, far])
    assert [len(e.labels) for e in finder().find(both)] == [1, 1]  # no image knows anything: of all
    assert [len(e.labels) for e in finder(known=(("fluid",), (), (), ())).find(both)] == [1, 0]
    assert [len(e.labels) for e in finder(sources=("knee",)).find(torch.cat([near, query(0, 0, 1, 0)]))] == [0, 1]
    label = finder().find(far)[0].labels[0]
    assert label.best == "yes"
    assert label.statement == {"en": "Fluid.", "zh": "积液。"}
    # Of sigmoid(10 - 5) and sigmoid(0 - 5), the shares.
    one, two = 1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5))
    assert label.probability == pytest.approx(one / (one + two), abs=1e-6)


def test_an_image_unlike_all_others():
    known = finder(info={"unlike_below": 0.9})
    near, unlike = known.find(torch.cat([query(1.0, 0.1, 0.0, 0.0), query(1.0, 1.0, 1.0, 1.0)]))
    assert not known.is_unlike_training(near)
    assert known.is_unlike_training(unlike)
    assert not finder().is_unlike_training(unlike)  # an index that does not know says nothing
