"""Answers that are written and scored at each evaluation of a run."""

import random
from typing import Any

import datasets
from torch.utils.data import Subset
from transformers.integrations import is_deepspeed_zero3_enabled

from medfinetune.data.text import language_of
from medfinetune.decoder.chat_tokens import answer_of
from medfinetune.decoder.collator import undecoded
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.evidence import PromptEvidence
from medfinetune.decoder.generation import generate
from medfinetune.decoder.rows import ReadableRows
from medfinetune.distributed import gather_objects, rank, world_size
from medfinetune.errors import InputError
from medfinetune.evaluation.finding_accuracy import finding_accuracy
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.text import bleu_by_language


class PredictionSample:
    """Some chats of a validation set, always the same, whose answers a model is to write.

    Attributes:
        chats: The sample.
        references: The assistant's words of each chat.
        languages: Each chat's column `language`, or else what its reference is written in.
    """

    def __init__(self, chats: datasets.Dataset, args: MllamaSFTConfig, evidence: PromptEvidence | None = None):
        """
        Args:
            chats: The validation set.
            args: The run's settings.
            evidence: What the prompts tell besides; nothing where left out.

        Raises:
            InputError: A chat has no answer, the lexicon does not open, or no answer states a finding of it.
        """
        size = len(chats) if args.predict_samples == -1 else min(args.predict_samples, len(chats))
        self.chats = chats.select(sorted(random.Random(args.seed).sample(range(len(chats)), size)))
        rows = list(undecoded(self.chats))
        self.references = [answer_of(row) for row in rows]
        self.languages = [
            row.get("language") or language_of(text) for row, text in zip(rows, self.references, strict=True)
        ]
        self._args, self._evidence = args, evidence
        self._lexicon = load_lexicon(args.lexicon) if args.lexicon else None
        if self._lexicon and not finding_accuracy(self.references, self.references, self._lexicon)["num_findings"]:
            raise InputError(
                f"lexicon: none of the {size} answers that predict_samples draws states a finding of {args.lexicon}"
            )

    def predict(self, model: Any, processor: Any) -> list[str | None]:
        """Answers all chats, greedily; the processes share them out, and each gets all answers.

        Returns:
            One text for each chat; None where its image no longer opens.
        """
        # Equally many for each process: under ZeRO-3 they take every step together.
        per_process = -(-len(self.chats) // world_size())
        mine = [i % len(self.chats) for i in range(rank() * per_process, (rank() + 1) * per_process)]
        readable = ReadableRows(self.chats, ", and its own answer is not scored")
        told = self._evidence.put_into(readable, training=False) if self._evidence else readable
        texts = generate(
            model,
            processor,
            Subset(told, mine),
            max_new_tokens=self._args.predict_max_new_tokens,
            batch_size=self._args.per_device_eval_batch_size,
            max_length=self._args.max_length,
            date_string=self._args.date_string,
            progress=rank() == 0 and not self._args.disable_tqdm,
            in_step=is_deepspeed_zero3_enabled(),
        )
        texts = [None if i in readable.replaced else text for i, text in zip(mine, texts, strict=True)]
        everything = [text for part in gather_objects(texts) for text in part]
        return everything[: len(self.chats)]

    def score(self, texts: list[str | None]) -> dict[str, float]:
        """`bleu_<language>` in [0, 100], and with a lexicon `finding_accuracy` in [0, 1]; None is left out."""
        written = [i for i, text in enumerate(texts) if text is not None]
        texts, references, languages = (
            [column[i] for i in written] for column in (texts, self.references, self.languages)
        )
        scores = bleu_by_language(texts, references, languages)
        figures = {f"bleu_{language}": score["score"] for language, score in scores.items()}
        if self._lexicon is not None:
            figures["finding_accuracy"] = finding_accuracy(texts, references, self._lexicon)["finding_accuracy"]
        return figures
