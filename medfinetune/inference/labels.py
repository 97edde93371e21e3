"""Zero-shot labels of an image as evidence, with probabilities that were made honest on the validation split."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from medfinetune.data.evidence import LabelEvidence
from medfinetune.evaluation.calibration import fit_classes, refitted_probabilities
from medfinetune.evaluation.embedded import EmbeddedSplit
from medfinetune.evaluation.tasks import Task
from medfinetune.evaluation.zero_shot import embed_classes

LANGUAGES = ("en", "zh")
_MIN_TRUTHS = 10
_STARTS = (1.0, 0.25, 0.05)


@dataclass(frozen=True)
class LabelTask:
    """A task with its embedded prompts and the scale and bias that its probabilities are computed with.

    Attributes:
        task: Its classes.
        class_embeds: For each class `(num_prompts, D)`, unit norm.
        scale: Already exponentiated.
        bias: In logits.
        num_truths: Validation images that scale and bias were fitted on; 0 where they are the encoder's own.
    """

    task: Task
    class_embeds: Sequence[Tensor]
    scale: float
    bias: float
    num_truths: int = 0

    def evidence(self, image_embeds: Tensor) -> list[LabelEvidence]:
        """One for each image.

        Args:
            image_embeds: `(Q, D)`, unit norm.
        """
        table = refitted_probabilities(image_embeds, list(self.class_embeds), (self.scale, self.bias))
        values = self.task.values
        found = []
        for row in table:
            best = values[int(row.argmax())]
            stated = {language: self.task.statement(best, language) for language in LANGUAGES}
            probabilities = {value: round(float(p), 6) for value, p in zip(values, row, strict=True)}
            found.append(LabelEvidence(self.task.name, probabilities, stated))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All but the embeddings, as JSON can hold it; of a class's prompts the first, which may state it."""
        told = asdict(self.task)
        for value, prompts in self.task.classes.items():
            told["classes"][value] = {language: texts[:1] for language, texts in prompts.items()}
        return {"scale": self.scale, "bias": self.bias, "num_truths": self.num_truths, **told}

    @classmethod
    def from_dict(cls, given: dict[str, Any], class_embeds: Sequence[Tensor]) -> "LabelTask":
        """What `to_dict` wrote; it tells the same evidence."""
        task = {name: given[name] for name in Task.__dataclass_fields__}
        task["sources"] = tuple(task["sources"])
        return cls(Task(**task), class_embeds, given["scale"], given["bias"], given["num_truths"])


def calibrated_task(
    task: Task,
    embed_texts: Callable[[list[str]], Tensor],
    languages: Collection[str],
    scale: float,
    bias: float,
    validation: EmbeddedSplit | None = None,
) -> LabelTask:
    """Embeds a task's prompts, and fits scale and bias where the validation split knows enough truths.

    Args:
        task: Its classes and prompts.
        embed_texts: Texts -> `(N, D)`, unit norm.
        languages: That the encoder was trained in; prompts in others are left out where every class has some.
        scale: The encoder's own, already exponentiated.
        bias: The encoder's own.
        validation: At least 10 of its images must know their class, or scale and bias stay the encoder's.

    Raises:
        InputError: A row of the validation split holds a value that is no class of the task.
    """
    class_embeds = embed_classes(task.prompts(languages), embed_texts)
    if validation is not None:
        images, truths = validation.truths(task)
        if len(images) >= _MIN_TRUTHS:
            fitted = _fit(validation.embeds[images], class_embeds, truths, scale, bias)
            return LabelTask(task, class_embeds, *fitted, num_truths=len(images))
    return LabelTask(task, class_embeds, scale, bias)


def _fit(
    embeds: Tensor, class_embeds: Sequence[Tensor], truths: np.ndarray, scale: float, bias: float
) -> tuple[float, float]:
    """The best of several starts: from an encoder that is far too sure, the search may end where all is equal."""

    def loss(fitted: tuple[float, float]) -> float:
        stated = refitted_probabilities(embeds, list(class_embeds), fitted)[np.arange(len(truths)), truths]
        return -float(np.log(np.maximum(stated, 1e-300)).mean())

    starts = [(scale * share, bias * share) for share in _STARTS]
    return min((fit_classes(embeds, class_embeds, truths, *start) for start in starts), key=loss)
