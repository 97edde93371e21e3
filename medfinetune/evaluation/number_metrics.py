"""The scores of embeddings, likelihoods, probabilities and times as metrics of `evaluate`; those of texts: `metrics`.

They work without a network; as for why recipes cannot import them, see there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import expit

from medfinetune.errors import InputError
from medfinetune.evaluation.calibration import expected_calibration_error
from medfinetune.evaluation.latency import latency_figures

_FLOAT, _TEXT = datasets.Value("float64"), datasets.Value("string")
_EMBEDS = datasets.List(_FLOAT)
_SIGLIP = """@inproceedings{zhai2023siglip,
  title={Sigmoid Loss for Language Image Pre-Training},
  author={Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle={Proceedings of ICCV}, year={2023}, pages={11975--11986}}
@inproceedings{hessel2021clipscore,
  title={{CLIPScore}: A Reference-free Evaluation Metric for Image Captioning},
  author={Hessel, Jack and Holtzman, Ari and Forbes, Maxwell and Le Bras, Ronan and Choi, Yejin},
  booktitle={Proceedings of EMNLP}, year={2021}, pages={7514--7528}}"""
_PERPLEXITY = """@article{jelinek1977perplexity,
  title={Perplexity---a measure of the difficulty of speech recognition tasks},
  author={Jelinek, Fred and Mercer, Robert L. and Bahl, Lalit R. and Baker, James K.},
  journal={The Journal of the Acoustical Society of America}, volume={62}, number={S1}, pages={S63}, year={1977}}"""
_CALIBRATION = """@inproceedings{nixon2019measuring,
  title={Measuring Calibration in Deep Learning},
  author={Nixon, Jeremy and Dusenberry, Michael W. and Zhang, Linchuan and Jerfel, Ghassen and Tran, Dustin},
  booktitle={CVPR Workshops}, year={2019}}
@article{brier1950verification,
  title={Verification of forecasts expressed in terms of probability}, author={Brier, Glenn W.},
  journal={Monthly Weather Review}, volume={78}, number={1}, pages={1--3}, year={1950}}"""
_LATENCY = """@article{hyndman1996quantiles,
  title={Sample Quantiles in Statistical Packages}, author={Hyndman, Rob J. and Fan, Yanan},
  journal={The American Statistician}, volume={50}, number={4}, pages={361--365}, year={1996}}"""


class EncoderSimilarity(evaluate.Metric):
    """How well texts fit their images, by an encoder's cosine.

    Args:
        scale: The encoder's, already exponentiated; with it the probability of a match is told too.
        bias: The encoder's.
        embed: Texts to `(N, D)`: predictions are then texts, and are embedded when the figures are computed.
    """

    def __init__(
        self,
        scale: float | None = None,
        bias: float = 0.0,
        embed: Callable[[list[str]], Any] | None = None,
        **kwargs: Any,
    ):
        self.scale, self.bias, self._embed = scale, bias, embed
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        texts = _TEXT if self._embed is not None else _EMBEDS
        return evaluate.MetricInfo(
            description="Mean cosine of texts and their images in an encoder's space and, with its scale and bias, the "
            "mean probability sigmoid(scale * cosine + bias) that they belong together. It is reference-free; what the "
            "encoder was trained on, or chose a text by, it also rates highly.",
            citation=_SIGLIP,
            inputs_description="predictions: embeddings (N, D) of the texts, or the texts where `embed` is given; "
            "references: embeddings (N, D) of their images; any norm above 0. encoder_similarity in [-1, 1] and "
            "match_probability in [0, 1], higher is better.",
            features=datasets.Features({"predictions": texts, "references": _EMBEDS}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        texts = self._embed(list(predictions)) if self._embed is not None else predictions
        text_embeds, image_embeds = (np.asarray(embeds, dtype=np.float64) for embeds in (texts, references))
        if text_embeds.ndim != 2 or text_embeds.shape != image_embeds.shape:
            raise InputError(
                f"encoder similarity: embeddings of texts are {text_embeds.shape}, of images {image_embeds.shape}; "
                "both must be (N, D)"
            )
        norms = np.linalg.norm(text_embeds, axis=1) * np.linalg.norm(image_embeds, axis=1)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise InputError("encoder similarity: an embedding is 0 or not finite")
        cosines = (text_embeds * image_embeds).sum(axis=1) / norms
        result = {"encoder_similarity": float(cosines.mean())}
        if self.scale is not None:
            result["match_probability"] = float(expit(self.scale * cosines + self.bias).mean())
        return result


class Perplexity(evaluate.Metric):
    """Perplexity of references under a model, from what it said of each."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="exp of the mean negative log likelihood of a reference's token, over the tokens of all "
            "references together. It depends on the tokenizer: models with different ones cannot be compared by it.",
            citation=_PERPLEXITY,
            inputs_description="predictions: of each text the summed negative log likelihood, in nats; references: its "
            "number of tokens, above 0. perplexity, at least 1 and lower is better, and num_tokens.",
            features=datasets.Features({"predictions": _FLOAT, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, Any]:
        likelihoods, tokens = np.asarray(predictions, np.float64), np.asarray(references, np.int64)
        if not len(tokens):
            return {"perplexity": None, "num_tokens": 0}
        if tokens.min() < 1 or not likelihoods.min() >= 0:
            raise InputError("perplexity: each text needs at least one token, and a likelihood of at least 0 nats")
        return {
            "perplexity": float(np.exp(likelihoods.sum() / tokens.sum())),
            "num_tokens": int(tokens.sum()),
        }


class Calibration(evaluate.Metric):
    """Whether stated probabilities come true as often as they say."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Expected calibration error over 15 bins of equally many cases, and the Brier score, of "
            "probabilities that something is so.",
            citation=_CALIBRATION,
            inputs_description="predictions: probabilities in [0, 1]; references: whether it is so (0 or 1). "
            "expected_calibration_error and brier in [0, 1], lower is better.",
            features=datasets.Features({"predictions": _FLOAT, "references": _FLOAT}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
        probabilities, outcomes = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
        if not len(probabilities):
            return {"expected_calibration_error": None, "brier": None}
        if not np.isin(outcomes, (0, 1)).all():
            # The number of a class, taken for "it is so", would give a figure like any other.
            raise InputError("calibration: a reference is neither 0 nor 1")
        happened = outcomes == 1
        if not (probabilities.min() >= 0 and probabilities.max() <= 1):
            raise InputError("calibration: a probability is not in [0, 1]")
        return {
            "expected_calibration_error": expected_calibration_error(probabilities, happened),
            "brier": float(((probabilities - happened) ** 2).mean()),
        }


class Latency(evaluate.Metric):
    """Seconds by stage, from times that were taken elsewhere, e.g. by a `StageClock`."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True} | kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Median, 95th percentile (between values by straight lines) and mean of a stage's seconds.",
            citation=_LATENCY,
            inputs_description="predictions: seconds of each run, at least 0; references: the name of its stage. For "
            "each stage median_s, p95_s, mean_s and total_s in seconds, lower is better, num_runs and num_items.",
            features=datasets.Features({"predictions": _FLOAT, "references": _TEXT}),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[str]) -> dict[str, Any]:
        stages: dict[str, list[float]] = {}
        for seconds, stage in zip(predictions, references, strict=True):
            stages.setdefault(stage, []).append(seconds)
        return latency_figures(stages)
