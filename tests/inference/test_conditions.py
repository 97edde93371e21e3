import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.report_suite import CONDITIONS
from medfinetune.inference.conditions import CONTROLS, COPIED, STATED, conditions_of


def test_every_control_is_put_in_words():
    assert {"own", *CONTROLS, COPIED, STATED} == set(CONDITIONS)


def test_a_system_that_is_told_nothing_has_no_controls_of_evidence():
    assert list(conditions_of("none")) == ["own", "shuffled_everything", "blank_image"]
    assert list(conditions_of("both")) == ["own", *CONTROLS]
    assert conditions_of("both")["own"].kind is None  # the system's


def test_variants_differ_from_the_system_in_one_thing():
    found = conditions_of("both", ["labels", "reranked_8"])
    assert (found["evidence_labels"].kind, found["evidence_labels"].num_candidates) == ("labels", None)
    assert (found["reranked_8"].kind, found["reranked_8"].num_candidates) == (None, 8)


@pytest.mark.parametrize("variant", ["none", "reranked_1", "reranked_", "reranked_²", "reranked", "all"])
def test_an_unknown_variant_is_refused(variant):
    with pytest.raises(InputError, match="is none of labels, reports, both, reranked_8"):
        conditions_of("both", [variant])
