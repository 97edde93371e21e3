import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from medfinetune.evaluation.probes import linear_probe, nearest, vote


def drawn(size, seed, num_classes=3, noise=0.8):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(9))
    truths = torch.arange(size) % num_classes
    return F.normalize(centres[truths] + noise * torch.randn(size, 8, generator=generator), dim=-1), truths.numpy()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_equal_those_of_scikit_learn(k):
    (train, classes), (queries, _) = drawn(90, 0), drawn(40, 1)
    found, cosines = nearest(queries, train, 20, chunk_rows=7)
    shares, winner = vote(cosines[:, :k], classes[found[:, :k]], 3)
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train.numpy(), classes)
    np.testing.assert_allclose(shares, reference.predict_proba(queries.numpy()))
    clear = np.sort(shares, axis=1)[:, -1] > np.sort(shares, axis=1)[:, -2]
    assert clear.sum() > 20
    assert (winner == reference.predict(queries.numpy()))[clear].all()


def test_of_equal_votes_the_nearer_win():
    cosines, classes = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]]), np.array([[2, 1, 1, 2, 0]])
    shares, winner = vote(cosines, classes, 3)
    assert shares.tolist() == [[0.2, 0.4, 0.4]]
    assert winner.tolist() == [1]  # 0.8 + 0.7 over 0.9 + 0.6 is a tie: the first
    assert vote(np.array([[0.95, 0.8, 0.7, 0.6]]), np.array([[2, 1, 1, 2]]), 3)[1].tolist() == [2]
    # A single vote never beats two, however near it is.
    assert vote(np.array([[1.0, -0.9, -1.0]]), np.array([[0, 1, 1]]), 2)[1].tolist() == [1]


def test_same_pixels_and_same_patient_are_never_neighbours():
    embeds, _ = drawn(12, 0)
    owners = [(f"image {i}", f"patient {i // 4}" if i < 8 else None) for i in range(12)]
    found, cosines = nearest(embeds, embeds, 12, owners, owners)
    for query, (row, near) in enumerate(zip(found, cosines, strict=True)):
        kept = set(row[np.isfinite(near)].tolist())
        # Nobody knows the patients of the last four: each is kept from itself alone.
        barred = {i for i in range(12) if i == query or (query < 8 and i < 8 and i // 4 == query // 4)}
        assert kept == set(range(12)) - barred
        assert np.all(np.diff(near[np.isfinite(near)]) <= 0)
    nobody = vote(np.full((1, 3), -np.inf), np.zeros((1, 3), dtype=int), 2)
    assert nobody[0].tolist() == [[0.5, 0.5]]


def test_fewer_images_than_neighbours():
    embeds, _ = drawn(3, 0)
    assert nearest(embeds, embeds, 20)[0].shape == (3, 3)


def test_probe_is_scikit_learns_at_the_strength_that_validation_likes_best():
    (train, classes), (held_out, wanted), (queries, _) = drawn(60, 0, noise=2.0), drawn(45, 1, noise=2.0), drawn(30, 2)
    found, strength = linear_probe(train.numpy(), classes, held_out.numpy(), wanted, queries.numpy(), 3)
    losses = {}
    for candidate in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0):
        probe = LogisticRegression(C=candidate, max_iter=2000).fit(train.double().numpy(), classes)
        stated = probe.predict_proba(held_out.double().numpy())
        right = balanced_accuracy_score(wanted, stated.argmax(axis=1))
        losses[candidate] = (-right, log_loss(wanted, stated))
    assert len({right for right, _ in losses.values()}) > 2
    assert strength == min(losses, key=losses.get)
    expected = LogisticRegression(C=strength, max_iter=2000).fit(train.double().numpy(), classes)
    np.testing.assert_allclose(found, expected.predict_proba(queries.double().numpy()))


def test_without_validation_the_strength_is_1_and_unseen_classes_get_nothing():
    (train, classes), (queries, _) = drawn(60, 0), drawn(5, 2)
    none = np.zeros((0, 8)), np.zeros(0, dtype=int)
    found, strength = linear_probe(train.numpy(), classes * 2, *none, queries.numpy(), 5)
    assert strength == 1.0
    assert found.shape == (5, 5)
    assert (found[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    # A validation image of a class that training never shows is no reason to fail.
    linear_probe(train.numpy(), classes * 2, queries.numpy(), np.arange(5), queries.numpy(), 5)
