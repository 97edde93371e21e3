"""The scores of texts as metrics of `evaluate`, which work without a network; those of numbers are in `number_metrics`.

They stand in a file of their own: a script in `recipes/` cannot import the package `evaluate`, because Python looks for
it in the script's folder first and finds `recipes/evaluate.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate

from medfinetune.errors import InputError
from medfinetune.evaluation.answers import closed_open_accuracy
from medfinetune.evaluation.finding_accuracy import finding_accuracy
from medfinetune.evaluation.lexicon import load_lexicon
from medfinetune.evaluation.text import bleu, chrf, exact_match, is_mostly_chinese, languages_of, rouge_l, token_f1

_TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})

_BLEU = """@inproceedings{papineni2002bleu,
  title={{BLEU}: a Method for Automatic Evaluation of Machine Translation},
  author={Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing},
  booktitle={Proceedings of ACL}, year={2002}, pages={311--318}}
@inproceedings{post2018call,
  title={A Call for Clarity in Reporting {BLEU} Scores}, author={Post, Matt},
  booktitle={Proceedings of WMT}, year={2018}, pages={186--191}}"""
_CHRF = """@inproceedings{popovic2015chrf,
  title={{chrF}: character n-gram {F}-score for automatic {MT} evaluation}, author={Popovi{\\'c}, Maja},
  booktitle={Proceedings of WMT}, year={2015}, pages={392--395}}"""
_ROUGE = """@inproceedings{lin2004rouge,
  title={{ROUGE}: A Package for Automatic Evaluation of Summaries}, author={Lin, Chin-Yew},
  booktitle={Text Summarization Branches Out}, year={2004}, pages={74--81}}"""
_SQUAD = """@inproceedings{rajpurkar2016squad,
  title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle={Proceedings of EMNLP}, year={2016}, pages={2383--2392}}"""
_ANSWERS = """@inproceedings{li2023llavamed,
  title={{LLaVA-Med}: Training a Large Language-and-Vision Assistant for Biomedicine in One Day},
  author={Li, Chunyuan and Wong, Cliff and Zhang, Sheng and Usuyama, Naoto and Liu, Haotian and Yang, Jianwei and
    Naumann, Tristan and Poon, Hoifung and Gao, Jianfeng},
  booktitle={NeurIPS Datasets and Benchmarks}, year={2023}}
@article{zhang2024lmmseval,
  title={{LMMs-Eval}: Reality Check on the Evaluation of Large Multimodal Models},
  author={Zhang, Kaichen and Li, Bo and Zhang, Peiyuan and Pu, Fanyi and Cahyono, Joshua Adrian and Hu, Kairui and
    Liu, Shuai and Zhang, Yuanhan and Yang, Jingkang and Li, Chunyuan and Liu, Ziwei},
  journal={arXiv:2407.12772}, year={2024}}"""


class FindingAccuracy(evaluate.Metric):
    """`finding_accuracy` as a metric of `evaluate`; works without a network.

    Args:
        lexicon: The name of a lexicon that comes with the library, or a YAML file.
    """

    def __init__(self, lexicon: str | Path = "phantom", **kwargs: Any):
        self.lexicon = load_lexicon(lexicon)
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the references' findings (attribute, negation, side, grade) that the predictions "
            "state rightly; one left out counts as wrong.",
            citation="The recall side of FindingF1; read by rules as in Irvin et al. 2019, CheXpert, arXiv:1901.07031",
            inputs_description="predictions and references: texts, in [0, 1]; languages: optional, one for each text.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        return finding_accuracy(predictions, references, self.lexicon, languages)


class Bleu(evaluate.Metric):
    """`bleu` as a metric of `evaluate`; works without a network, unlike the hub's.

    Args:
        language: Of the texts; decides how they are cut into tokens.
    """

    def __init__(self, language: str = "en", **kwargs: Any):
        self.language = language
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU of texts in one language, by sacrebleu.",
            citation=_BLEU,
            inputs_description="predictions and references: texts; languages: optional, all alike; score in [0, 100], "
            "higher is better.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        language = _only("BLEU", languages, self.language)
        if not language.startswith("zh"):
            chinese = next((i for i, text in enumerate(references, start=1) if is_mostly_chinese(text)), None)
            if chinese is not None:
                # Cut as English, a Chinese sentence is one token.
                raise InputError(f"BLEU: reference {chinese} is in Chinese, not in {language}; name its language")
        return bleu(predictions, references, language)


class ChrF(evaluate.Metric):
    """`chrf` as a metric of `evaluate`; of texts in one language."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus chrF of texts in one language, by sacrebleu: F2 of character 1- to 6-grams.",
            citation=_CHRF,
            inputs_description="predictions and references: texts; languages: optional, all alike; chrf in [0, 100], "
            "higher is better.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        _only("chrF", languages, "")
        found = chrf(predictions, references)
        return {"chrf": found["score"], "chrf_signature": found["signature"]}


class RougeL(evaluate.Metric):
    """`rouge_l` as a metric of `evaluate`; the language shows in the texts."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean ROUGE-L over texts: F1 by the longest common subsequence of tokens. A Chinese character "
            "is a token, and so is a run of letters or digits, lower-cased; nothing is stemmed.",
            citation=_ROUGE,
            inputs_description="predictions and references: texts; languages: optional, they change nothing; rouge_l "
            "in [0, 1], higher is better.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        return {"rouge_l": _mean([rouge_l(*pair) for pair in zip(predictions, references, strict=True)])}


class ExactMatch(evaluate.Metric):
    """`exact_match` as a metric of `evaluate`.

    Args:
        language: Of the texts; articles are left out of English ones.
    """

    def __init__(self, language: str = "en", **kwargs: Any):
        self.language = language
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of texts that equal their reference but for case, punctuation and articles. Unlike "
            "SQuAD's script, a decimal point and a comparison before a number count.",
            citation=_SQUAD,
            inputs_description="predictions and references: texts; languages: optional, one for each text; "
            "exact_match in [0, 1], higher is better.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        rows = _rows("exact match", predictions, references, languages, self.language)
        return {"exact_match": _mean([exact_match(*row) for row in rows])}


class TokenF1(evaluate.Metric):
    """`token_f1` as a metric of `evaluate`.

    Args:
        language: Of the texts; articles are left out of English ones.
    """

    def __init__(self, language: str = "en", **kwargs: Any):
        self.language = language
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean F1 of the bags of tokens of prediction and reference, without punctuation and articles; "
            "a Chinese character is a token.",
            citation=_SQUAD,
            inputs_description="predictions and references: texts; languages: optional, one for each text; "
            "token_f1 in [0, 1], higher is better.",
            features=_TEXTS,
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], languages: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        rows = _rows("token F1", predictions, references, languages, self.language)
        return {"token_f1": _mean([token_f1(*row) for row in rows])}


class ClosedOpenAccuracy(evaluate.Metric):
    """`closed_open_accuracy` as a metric of `evaluate`.

    Args:
        language: Of the texts.
    """

    def __init__(self, language: str = "en", **kwargs: Any):
        self.language = language
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Answers to closed and open questions, by the rules of LLaVA-Med (closed: the reference stands "
            "in the prediction; open: recall of words) and of lmms-eval (exact match of normalised answers).",
            citation=_ANSWERS,
            inputs_description="predictions and references: answers; languages and answer_types (open or closed): "
            "optional, one for each. Accuracies and recall in [0, 1], higher is better.",
            features=_TEXTS,
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        languages: str | Sequence[str] | None = None,
        answer_types: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        languages = self.language if languages is None else languages
        return closed_open_accuracy(predictions, references, languages, answer_types)


def _only(name: str, languages: str | Sequence[str] | None, language: str) -> str:
    """The one language of all texts: a score over two is of neither."""
    spoken = [languages] if isinstance(languages, str) else sorted(set(languages or [language]))
    if len(spoken) > 1:
        raise InputError(f"{name}: texts in {' and '.join(spoken)}; score each language by itself")
    return spoken[0]


def _rows(
    name: str,
    predictions: Sequence[str],
    references: Sequence[str],
    languages: str | Sequence[str] | None,
    language: str,
) -> list[tuple[str, str, str]]:
    spoken = languages_of(name, language if languages is None else languages, len(references))
    return list(zip(predictions, references, spoken, strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
