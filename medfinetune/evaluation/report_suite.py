"""What the written reports are worth: each figure with its interval, and beside it what controls reach.

No model runs here: texts go in, figures come out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import numpy as np

from medfinetune.errors import InputError
from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.case_statistics import CaseStatistics
from medfinetune.evaluation.finding_f1 import counts_of
from medfinetune.evaluation.findings import read_statements
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.evaluation.paired import OWN, finite_limits, paired_differences
from medfinetune.evaluation.report_cases import ReportCase
from medfinetune.evaluation.report_figures import (
    CountFindings,
    count_all,
    finding_statistics,
    kind_of,
    report_statistics,
)
from medfinetune.evaluation.subgroups import SMALL, groups_of
from medfinetune.evaluation.text import bleu, chrf

CONDITIONS = {
    OWN: "the system: own image, own evidence",
    "shuffled_everything": "the image of another case from the start: search, labels and decoder see that one",
    "shuffled_decoder": "own evidence, but the decoder sees the image of another case",
    "blank_image": "own evidence, but the decoder sees an empty image",
    "no_evidence": "own image, and nothing else",
    "random_evidence": "own image, evidence of another case drawn at random",
    "true_report_as_evidence": "own image, its true report as evidence: the ceiling",
    "nearest_report_copied": "no decoder: the report of the nearest training image as it stands",
    "labels_stated": "no decoder: the encoder's most probable labels, a sentence each",
}
"""The system and its controls; an evaluation may give others by any name, e.g. `evidence_labels`."""

_GROUP_CONTROLS = ("shuffled_everything", "shuffled_decoder", "blank_image", "no_evidence")
_OF_EACH = ("finding_f1", "rouge_l", "token_f1", "exact_match", "encoder_similarity")
_NUM_WORST = 100
_COUNTS = ("num_right", "num_stated", "num_true")
Likelihoods = tuple[Sequence[float], Sequence[float]]


def score_reports(
    cases: Sequence[ReportCase],
    texts: Mapping[str, Sequence[str]],
    lexicon: Lexicon | None = None,
    *,
    count_findings: CountFindings | None = None,
    similarities: Mapping[str, Sequence[float]] | None = None,
    likelihoods: Mapping[str, Likelihoods] | None = None,
    evidence: Sequence[Mapping[str, Any]] | None = None,
    compared_with: Mapping[str, Sequence[str]] | None = None,
    latency: Mapping[str, Any] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores a system's texts beside those of its controls, and of other systems.

    Args:
        cases: `N`, from `report_cases`.
        texts: Condition -> a text for each case. `own` is the system; see `CONDITIONS`.
        lexicon: For finding F1, which is left out without it.
        count_findings: Prediction and reference to `FindingCounts`; those of the lexicon where left out.
        similarities: Condition -> of each case the cosine of its own image and the text, in [-1, 1]; nan where unknown.
        likelihoods: Condition -> of each case the summed negative log likelihood of its reference in nats, and its
            tokens; for perplexity.
        evidence: Of each case what the system was told, as `Evidence.to_dict` gives it; for the page.
        compared_with: Another system's name -> its texts, e.g. from `paired.read_texts`.
        latency: Of the system, from `StageClock.figures`; it is passed on.
        num_resamples: Of the intervals.
        seed: Draws them.

    Returns:
        The figures as a plain dict that JSON can hold, described in docs/scores.md; and a row for each case: `id`,
        `language`, `source`, `label`, `task`, `question`, `reference`, `generated`, `generated_<condition>`, `scores`,
        with findings `finding_counts` and `by_finding`, and `evidence` if it is given.

    Raises:
        InputError: There are no cases, an id comes twice, there is no `own`, or a list does not fit the cases.
    """
    others = dict(compared_with or {})
    _check(cases, texts, others, similarities or {}, likelihoods or {}, evidence)
    if count_findings is None and lexicon is not None:
        count_findings = _counter(lexicon)
    counts, systems = _statistics(cases, dict(texts) | others, count_findings, similarities or {}, likelihoods or {})
    bootstrap = Bootstrap([case.cluster for case in cases], num_resamples, seed)
    describe = partial(_figures, bootstrap)
    differ = partial(paired_differences, bootstrap, systems[OWN])
    result = _about(cases, bootstrap, systems[OWN], texts[OWN]) | {
        "lexicon": lexicon.name if lexicon is not None else None,
        "conditions": {name: describe(systems[name]) | _sums(counts.get(name)) for name in texts},
        "differences": {name: differ(systems[name]) for name in texts if name != OWN},
        "compared_with": {
            name: {"figures": describe(systems[name]) | _sums(counts.get(name)), "differences": differ(systems[name])}
            for name in others
        },
    }
    result |= _by_group(cases, bootstrap, systems)
    if counts:
        result["by_finding"] = _by_finding(bootstrap, counts[OWN], counts.get(result["group_control"]))
    rows = _rows(cases, texts, systems[OWN], counts.get(OWN), evidence)
    result["worst_cases"] = [rows[i]["id"] for i in worst_first(rows)[:_NUM_WORST]]
    if latency is not None:
        result["latency"] = dict(latency)
    return result, rows


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The places of the rows by finding F1, then token F1, the worst first; equal ones by their id.

    A case without any finding has nothing that could be wrong: it stands behind those that have.
    """

    def badness(i: int) -> tuple[float, float, str]:
        scores = rows[i]["scores"]
        f1 = scores.get("finding_f1")
        return (1.0 if f1 is None else f1, scores["token_f1"], rows[i]["id"])

    return sorted(range(len(rows)), key=badness)


def _counter(lexicon: Lexicon) -> CountFindings:
    # Every condition is held against the same references, and most of them write many texts alike.
    read = cache(lambda text: read_statements(text, lexicon))
    return lambda prediction, reference: counts_of(read(prediction), read(reference))


def _statistics(
    cases: Sequence[ReportCase],
    texts: Mapping[str, Sequence[str]],
    count_findings: CountFindings | None,
    similarities: Mapping[str, Sequence[float]],
    likelihoods: Mapping[str, Likelihoods],
) -> tuple[dict[str, list[Any]], dict[str, dict[str, CaseStatistics]]]:
    """Of each system its findings, case by case, and what each case adds to its figures."""
    truths = [case.reference for case in cases]
    counts: dict[str, list[Any]] = {}
    if count_findings is not None:
        seen: dict[tuple[str, str], Any] = {}
        counts = {name: count_all(count_findings, written, truths, seen) for name, written in texts.items()}
    return counts, {
        name: report_statistics(cases, written, counts.get(name), similarities.get(name), likelihoods.get(name))
        for name, written in texts.items()
    }


def _about(
    cases: Sequence[ReportCase], bootstrap: Bootstrap, own: Mapping[str, CaseStatistics], texts: Sequence[str]
) -> dict[str, Any]:
    signatures = {}
    for language in sorted({case.language for case in cases}):
        rows = [i for i, case in enumerate(cases) if case.language == language]
        chosen = [texts[i] for i in rows], [cases[i].reference for i in rows]
        signatures[f"bleu_{language}"] = bleu(*chosen, language)["signature"]
        signatures[f"chrf_{language}"] = chrf(*chosen)["signature"]
    return {
        "num_cases": len(cases),
        "num_cases_by_language": dict(sorted(Counter(case.language for case in cases).items())),
        "num_cases_by_task": dict(sorted(Counter(case.task for case in cases).items())),
        "num_clusters": bootstrap.num_clusters,
        "num_cases_of_known_patients": sum(bool(case.patient) for case in cases),
        "num_resamples": len(bootstrap.counts),
        "figures": {name: asdict(kind_of(name)) | {"num_cases": one.num_cases()} for name, one in own.items()},
        "signatures": signatures,
    }


def _figures(
    bootstrap: Bootstrap, statistics: Mapping[str, CaseStatistics], rows: Sequence[int] | None = None
) -> dict[str, Any]:
    """Figure -> its value, and figure with `_ci` -> its interval; those of no case are left out."""
    known = {name: one for name, one in statistics.items() if one.figure(rows) is not None}
    values = bootstrap.figures(list(known.values()), rows)
    enough = bootstrap.num_clusters_of(rows) > 1
    result: dict[str, Any] = {}
    for (name, one), drawn in zip(known.items(), values, strict=True):
        result[name] = one.figure(rows)
        result[f"{name}_ci"] = finite_limits(bootstrap.interval(drawn)) if enough else None
    return result


def _sums(counts: Sequence[Any] | None) -> dict[str, int]:
    return {} if counts is None else {name: int(sum(getattr(one, name) for one in counts)) for name in _COUNTS}


def _by_group(
    cases: Sequence[ReportCase], bootstrap: Bootstrap, systems: Mapping[str, Mapping[str, CaseStatistics]]
) -> dict[str, Any]:
    control = next((name for name in _GROUP_CONTROLS if name in systems), None)
    result: dict[str, Any] = {"group_control": control}
    for way, groups in groups_of(cases).items():
        result[f"by_{way}"] = {}
        for group, rows in groups.items():
            told = {
                "num_cases": len(rows),
                "num_clusters": bootstrap.num_clusters_of(rows),
                "is_small": len(rows) < SMALL,
            } | _figures(bootstrap, systems[OWN], rows)
            if control is not None:
                told["control"] = _figures(bootstrap, systems[control], rows)
                told["differences"] = paired_differences(bootstrap, systems[OWN], systems[control], rows)
            result[f"by_{way}"][group] = told
    return result


def _by_finding(
    bootstrap: Bootstrap, counts: Sequence[Any], of_control: Sequence[Any] | None
) -> dict[str, dict[str, Any]]:
    """Finding -> its F1 alone, with its interval and its counts, and beside it the control's."""
    result = {}
    for finding in sorted({name for one in counts for name in one.by_finding}):
        own = finding_statistics(counts, finding)["finding_f1"]
        told = [one.by_finding[finding] for one in counts if finding in one.by_finding]
        result[finding] = _figures(bootstrap, {"finding_f1": own}) | _sums(told)
        result[finding] |= {"num_cases": len(told), "is_small": len(told) < SMALL}
        if of_control is not None:
            control = {"finding_f1": finding_statistics(of_control, finding)["finding_f1"]}
            result[finding]["control"] = _figures(bootstrap, control)
            result[finding]["differences"] = paired_differences(bootstrap, {"finding_f1": own}, control)
    return result


def _rows(
    cases: Sequence[ReportCase],
    texts: Mapping[str, Sequence[str]],
    own: Mapping[str, CaseStatistics],
    counts: Sequence[Any] | None,
    evidence: Sequence[Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    # Every case is of one language, and has the score of that one.
    by_case = {name: own[name].of_each() for name in own if name in _OF_EACH or name.startswith("chrf_")}
    rows = []
    for i, case in enumerate(cases):
        scores = {name: float(values[i]) for name, values in by_case.items() if np.isfinite(values[i])}
        row = {
            **{name: getattr(case, name) for name in ("id", "language", "source", "label", "task", "question")},
            "reference": case.reference,
            "generated": texts[OWN][i],
            **{f"generated_{name}": written[i] for name, written in texts.items() if name != OWN},
            "scores": {name.removesuffix(f"_{case.language}"): value for name, value in scores.items()},
        }
        if counts is not None:
            row["finding_counts"] = _sums(counts[i : i + 1])
            row["by_finding"] = {name: _sums([one]) for name, one in counts[i].by_finding.items()}
        if evidence is not None:
            row["evidence"] = dict(evidence[i])
        rows.append(row)
    return rows


def _check(
    cases: Sequence[ReportCase],
    texts: Mapping[str, Sequence[str]],
    others: Mapping[str, Sequence[str]],
    similarities: Mapping[str, Sequence[float]],
    likelihoods: Mapping[str, Likelihoods],
    evidence: Sequence[Mapping[str, Any]] | None,
) -> None:
    if not cases:
        raise InputError("reports: there are no cases to score")
    twice = [identity for identity, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise InputError(f"reports: the case {twice[0]} stands among the cases twice")
    if OWN not in texts:
        raise InputError(f"reports: there are no texts of the system ({OWN}), only of {', '.join(texts) or 'nothing'}")
    for name in others:
        if name in texts:
            raise InputError(f"reports: {name} is the name of a condition and of another system")
    for name in (*similarities, *likelihoods):
        if name not in texts and name not in others:
            raise InputError(f"reports: there are similarities or likelihoods of {name}, but no texts")
    for what, given in (("texts", dict(texts) | dict(others)), ("similarities", similarities)):
        for name, values in given.items():
            if len(values) != len(cases):
                raise InputError(f"reports: {len(values)} {what} of {name} for {len(cases)} cases")
    for name, pair in likelihoods.items():
        if [len(values) for values in pair] != [len(cases)] * 2:
            raise InputError(f"reports: likelihoods of {name}: there must be a sum and a count for each case")
    for name, written in (dict(texts) | dict(others)).items():
        for case, text in zip(cases, written, strict=True):
            if not isinstance(text, str):
                raise InputError(f"reports: the text of {name} for the case {case.id} is {text!r}, and no text")
    if evidence is not None and len(evidence) != len(cases):
        raise InputError(f"reports: {len(evidence)} times evidence for {len(cases)} cases")
