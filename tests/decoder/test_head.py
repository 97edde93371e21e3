"""The head scores labelled positions alone, with the loss of all of them."""

import pytest
import torch
from torch.nn import functional as F

from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.head import score_labels
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from tests.decoder.test_trainer import config


@pytest.fixture
def trainer(tiny_mllama, phantom_dir, tmp_path):
    model, processor = load_decoder(str(tiny_mllama))
    chats = load_chats(phantom_dir / "data", "train").select(range(6))
    return MllamaSFTTrainer(model, config(tmp_path), chats, None, processor)


def batch_of(trainer):
    return trainer.data_collator(list(trainer.train_dataset))


def test_loss_and_gradients_are_those_of_all_positions(trainer):
    model, batch = trainer.model, batch_of(trainer)
    results = []
    for work in (lambda: model(**batch).loss, lambda: trainer.compute_loss(model, dict(batch))):
        model.zero_grad()
        loss = work()
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.detach(), grads))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    assert ((results[1][1] - results[0][1]).norm() / results[0][1].norm()).item() < 1e-5


def test_no_other_position_goes_through_the_head(trainer):
    batch = batch_of(trainer)
    sizes = []
    trainer.model.lm_head.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:-1].numel()))
    trainer.compute_loss(trainer.model, dict(batch))
    num_labelled = int((batch["labels"][:, 1:] != -100).sum())
    assert sum(sizes) == num_labelled < batch["labels"].numel() / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk_positions", [1, 4, 5, 100])
def test_scores_beside_a_plain_loop(dtype, chunk_positions):
    head = torch.nn.Linear(8, 11, bias=False).to(dtype)
    hidden, targets = torch.randn(9, 8, dtype=dtype, requires_grad=True), torch.randint(0, 11, (9,))
    log_probs, entropies, best = score_labels(head, hidden, targets, chunk_positions)
    for i in range(9):
        chances = F.softmax(head(hidden[i]).double(), dim=0)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert log_probs[i].item() == pytest.approx(chances[targets[i]].log().item(), rel=tolerance)
        assert entropies[i].item() == pytest.approx(-(chances * chances.log()).sum().item(), rel=tolerance)
        assert best[i].item() == (chances.argmax() == targets[i]).item()
    assert not entropies.requires_grad


def test_a_batch_without_labels_has_a_loss_of_zero_and_a_gradient(trainer):
    batch = batch_of(trainer)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    assert loss.item() == 0
    assert trainer.model.lm_head.weight.grad.abs().max() == 0


def test_generation_is_not_touched(trainer):
    row = dict(trainer.train_dataset[0])
    inputs = MllamaCollator(trainer.processing_class, 256, for_generation=True)([row])
    model = trainer.model.eval()
    ours = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    del model.forward
    assert torch.equal(ours, model.generate(**inputs, max_new_tokens=4, do_sample=False))
