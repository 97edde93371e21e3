"""What a decoder's run is told: whether the index is built, taken as it is, or refused."""

import pytest

from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.errors import InputError
from medfinetune.inference.training_evidence import describe_training_evidence, training_evidence

KEYS = {"use_cpu": True, "bf16": False, "eval_strategy": "no"}


@pytest.fixture
def keys(phantom_dir, tiny_siglip, tmp_path):
    data = {"data_dir": str(phantom_dir / "data"), "output_dir": str(tmp_path / "run")}
    return KEYS | data | {"evidence_index": str(tmp_path / "index"), "evidence_encoder": str(tiny_siglip)}


def test_without_evidence_nothing_is_built(keys, tmp_path):
    args = MllamaSFTConfig(**keys)
    assert training_evidence(args) is None
    assert describe_training_evidence(args, ["a"]) == ""
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evidence_index": ""}, "^evidence_index: is missing; evidence: both needs the folder of an index"),
        ({"evidence_encoder": ""}, "^evidence_encoder: .*index is no index yet; name the SigLIP"),
        ({}, "^evidence_tasks: evidence: both needs the zero-shot files"),
        ({"evidence_tasks": ["nothing"]}, "zero_shot_file nothing: no such file"),
    ],
)
def test_what_is_missing_is_told_in_a_dry_run_too(keys, changes, message):
    args = MllamaSFTConfig(**(keys | changes), evidence="both")
    for ask in (training_evidence, lambda args: describe_training_evidence(args, [])):
        with pytest.raises(InputError, match=message):
            ask(args)


def test_an_index_is_built_once_and_must_be_what_is_asked_for(keys, tmp_path):
    args = MllamaSFTConfig(**keys, evidence="reports", evidence_num_neighbours=2)
    assert "index is no index yet; it would be built by" in describe_training_evidence(args, [])
    found = training_evidence(args)
    assert {len(evidence.neighbours) for evidence in found.values()} <= {0, 1, 2}
    written = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    assert training_evidence(args) == found
    some = [*list(found)[:5], "another"]
    assert "knows 5 of 6 chats" in describe_training_evidence(args, some)

    other = MllamaSFTConfig(**keys, evidence="reports", evidence_num_neighbours=3)
    with pytest.raises(InputError, match=r"^evidence_index: .*index of other keys.* leave out evidence_encoder to use"):
        training_evidence(other)
    as_it_is = MllamaSFTConfig(**(keys | {"evidence_encoder": ""}), evidence="reports")
    assert training_evidence(as_it_is) == found
    with pytest.raises(InputError, match=r"^evidence: labels, but .* tells no labels; build one with evidence_tasks"):
        training_evidence(MllamaSFTConfig(**(keys | {"evidence_encoder": ""}), evidence="labels"))
    assert (tmp_path / "index" / "index.json").stat().st_mtime_ns == written
