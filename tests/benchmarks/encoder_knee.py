"""Grades of real knee X-rays by zero-shot prompts, of a tiny SigLIP that was trained on them from random weights.

    python tests/benchmarks/encoder_knee.py <JSON of one training>      (one training, JSON)

The model is the demo's (0.3 M parameters, images of 96 px): what a pretrained SigLIP reaches is another matter. The
images are Gornale & Patravali's, those that both experts grade alike, found as by the tests (MEDFINETUNE_DATA_DIR).
With the tiny vocabulary some captions are cut at 64 tokens; what tells the grades apart stands before.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from medfinetune.data.kellgren_lawrence import DESCRIPTIONS, GRADE_NAMES, WORDINGS  # noqa: E402
from medfinetune.data.load import load_pairs  # noqa: E402
from medfinetune.data.prepare import PrepareConfig, prepare  # noqa: E402
from medfinetune.encoder.metrics import embed_images, embed_texts  # noqa: E402
from medfinetune.evaluation.zero_shot import class_scores, embed_classes  # noqa: E402
from tests.benchmarks.encoder_demo import make_models, run_trainings, summarise, train  # noqa: E402
from tests.real_data import REAL_DATA  # noqa: E402

IMAGE_SIZE_PX = 96
STEPS = 300
FIGURES = ("accuracy", "balanced_accuracy", "quadratic_weighted_kappa")


def prompts_of_grades() -> dict[str, list[str]]:
    """Grade -> its caption in every wording."""
    return {
        str(grade): [
            wording.format(grade=grade, name=GRADE_NAMES["en"][grade], description=DESCRIPTIONS["en"][grade])
            for wording in WORDINGS["en"]
        ]
        for grade in range(5)
    }


def scores(truth: list[int], answers: list[int]) -> dict[str, float]:
    kappa = cohen_kappa_score(truth, answers, weights="quadratic", labels=range(5))
    return dict(
        zip(FIGURES, (accuracy_score(truth, answers), balanced_accuracy_score(truth, answers), kappa), strict=True)
    )


def run_one(values: dict) -> dict[str, float]:
    folder = Path(values.pop("folder"))
    model, processor = train(folder, **values)
    pairs = load_pairs(folder / "knee", "test")
    images = embed_images(model, processor, [row["images"][0] for row in pairs])
    classes = embed_classes(list(prompts_of_grades().values()), lambda texts: embed_texts(model, processor, texts))
    table = class_scores(images, classes, model.logit_scale.exp().item(), model.logit_bias.item())
    return scores([int(label) for label in pairs["label"]], table.argmax(dim=1).tolist())


def measure_knee(folder: Path, num_seeds: int) -> tuple[dict, dict]:
    """Lines for the table; the issue's table has no key for them."""
    if not REAL_DATA.is_dir():
        return {}, {"knee": f"not measured: no real data at {REAL_DATA} (MEDFINETUNE_DATA_DIR)"}
    # The last step's model is scored, so that no validation split is needed.
    options = {"validation_fraction": 0, "test_fraction": 0.25, "languages": ["en"], "knee_grader": "agree"}
    prepare(PrepareConfig(output_dir=str(folder / "knee"), knee_dir=str(REAL_DATA / "knee"), **options))
    seeds = range(num_seeds)
    make_models(folder, seeds, IMAGE_SIZE_PX, ("knee",))
    ways = ("positive", "negative")
    common = {"folder": str(folder), "data": "knee", "max_steps": STEPS}
    trainings = [common | {"seed": seed, "duplicates": way} for way in ways for seed in seeds]
    done = run_trainings("encoder_knee.py", trainings)
    splits = load_pairs(folder / "knee")
    truth = [int(label) for label in splits["test"]["label"]]
    (majority, _), *_ = Counter(splits["train"]["label"]).most_common()
    lines = {"knee, real images, tiny random-weight model: train, test": f"{len(splits['train'])}, {len(truth)}"}
    constant = scores(truth, [int(majority)] * len(truth))
    for figure in FIGURES:
        lines[f"knee {figure}: majority class"] = f"{constant[figure]:.3f}"
        for i, way in enumerate(ways):
            of_way = summarise([one[figure] for one in done[i * num_seeds : (i + 1) * num_seeds]])
            lines[f"knee {figure}: duplicates: {way}"] = f"{of_way['mean']:.3f} ± {of_way['spread']:.3f}"
    return {}, lines


if __name__ == "__main__":
    print(json.dumps(run_one(json.loads(sys.argv[1]))))
