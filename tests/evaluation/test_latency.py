import pytest
import torch

from medfinetune.errors import InputError
from medfinetune.evaluation.latency import STAGES, StageClock, latency_figures


class Hand:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def hand():
    return Hand()


def test_seconds_are_of_the_stage_alone_and_by_item(hand):
    clock = StageClock(clock=hand)
    for seconds, items in ((4.0, 4), (3.0, 1), (8.0, 4)):
        hand.now += 50  # between stages: nobody's
        with clock.stage("lookup", items):
            hand.now += seconds
    with clock.stage("embedding"):
        hand.now += 0.5
    figures = clock.figures()
    assert list(figures) == ["embedding", "lookup"]
    assert figures["lookup"] == {
        "median_s": 2.0,
        "p95_s": pytest.approx(2.9),
        "mean_s": pytest.approx(15 / 9),
        "total_s": 15.0,
        "num_runs": 3,
        "num_items": 9,
    }
    assert figures["embedding"]["median_s"] == 0.5


def test_what_raises_and_what_handles_nothing_is_not_counted(hand):
    clock = StageClock(clock=hand)
    with pytest.raises(RuntimeError, match="out of"), clock.stage("lookup"):
        raise RuntimeError("out of something")
    with clock.stage("per_token", 0):
        hand.now += 1
    assert clock.figures() == {}


def test_clocks_are_merged_and_other_stages_come_last():
    one, other = StageClock(), StageClock()
    one.add("mine", 1.0)
    one.add("per_token", 2.0, 4)
    other.add("per_token", 1.0, 1)
    one.merge(other)
    figures = one.figures()
    assert list(figures) == ["per_token", "mine"]
    assert figures["per_token"]["num_items"] == 5
    assert other.figures()["per_token"]["num_runs"] == 1


def test_a_gpu_is_waited_for_before_and_after(hand, monkeypatch):
    waited = []

    def synchronize(device):
        waited.append(device)
        hand.now += 10  # what was still running

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock = StageClock("cuda:0", hand)
    with clock.stage("first_token"):
        hand.now += 1
    assert waited == [torch.device("cuda:0")] * 2
    assert clock.figures()["first_token"]["total_s"] == 11.0
    with StageClock("cpu", hand).stage("first_token"):
        pass
    assert len(waited) == 2


def test_wrong_input_is_named():
    assert latency_figures({name: [] for name in STAGES}) == {}
    with pytest.raises(InputError, match="latency of lookup: 2 times for 1 counts"):
        latency_figures({"lookup": [1.0, 2.0]}, {"lookup": [1]})
    for times, counts in (([-1.0], [1]), ([float("nan")], [1]), ([1.0], [0])):
        with pytest.raises(InputError, match="latency of lookup: times must be"):
            latency_figures({"lookup": times}, {"lookup": counts})
