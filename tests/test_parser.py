from dataclasses import dataclass, field
from pathlib import Path

import pytest

from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.errors import InputError
from medfinetune.evaluation.config import EvaluateConfig
from medfinetune.inference.config import ReportConfig
from medfinetune.parser import parse, run, save_config


@dataclass
class Config:
    output_dir: str = field(metadata={"help": "where to"})
    lora_r: int = field(default=16, metadata={"help": "rank; 100% explained"})
    learning_rate: float = 1e-3
    fp16: bool = False
    model_revision: str | None = None
    languages: list[str] = field(default_factory=lambda: ["en"])

    def __post_init__(self):
        if self.lora_r < 1:
            raise InputError("lora_r: must be positive")


def written(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path)]


def test_yaml_and_command_line(tmp_path):
    argv = written(tmp_path, "output_dir: out\nlearning_rate: 1e-4\nlanguages: [en, zh]\n")
    config = parse(Config, "", argv=[*argv, "--lora_r", "8", "--fp16", "--model_revision", "0123"])
    # PyYAML reads 1e-4 as text, and 0123 as a number.
    assert config == Config("out", 8, 1e-4, True, "0123", ["en", "zh"])


def test_null_unsets_a_key(tmp_path):
    argv = written(tmp_path, "output_dir: out\nmodel_revision: main\n")
    assert parse(Config, "", argv=argv).model_revision == "main"
    assert parse(Config, "", argv=[*argv, "--model_revision", "null"]).model_revision is None


def test_no_is_a_word(tmp_path):
    """YAML 1.1 reads `eval_strategy: no` as false, and 1e-4 as text."""
    for argv in (written(tmp_path, "output_dir: no\nlearning_rate: 1e-4\nfp16: true\n"), ["--output_dir", "no"]):
        assert parse(Config, "", argv=argv).output_dir == "no"
    path = written(tmp_path, "output_dir: o\nuse_cpu: true\neval_strategy: no\ndata_dir: d\n")
    assert parse(SigLIPConfig, "", argv=path).eval_strategy == "no"
    assert parse(SigLIPConfig, "", argv=["--output_dir", "o", "--use_cpu", "--eval_strategy", "no"]).do_eval is False


def test_list_on_the_command_line(tmp_path):
    for words in (["en", "zh"], ["[en, zh]"]):
        assert parse(Config, "", argv=["--output_dir", "o", "--languages", *words]).languages == ["en", "zh"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output_dir: o\nlora_r: 3.7\n", r"run.yaml: lora_r: 3.7: .*integer"),
        ("output_dir: o\nlora_r: [8]\n", r"run.yaml: lora_r: \[8\]"),
        ("output_dir: o\nlora_rank: 8\n", r"run.yaml: lora_rank: unknown key; did you mean lora_r\?"),
        ("output_dir: 5\n", r"run.yaml: output_dir: 5: .*string"),
        ("lora_r: 8\n", r"run.yaml: output_dir is missing \(where to\)"),
        ("output_dir: o\nlora_r: 8\nlora_r: 9\n", r"run.yaml: lora_r stands more than once"),
        ("output_dir: o\nlora_r: 0\n", r"run.yaml: lora_r: must be positive"),
        ("- a\n- b\n", r"run.yaml: must hold `key: value` lines"),
        ("a: [1\n", r"run.yaml: is no YAML"),
    ],
)
def test_errors_name_file_and_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(Config, "", argv=written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_unknown_option_and_missing_file():
    with pytest.raises(InputError, match="unrecognized arguments: --lora_rank"):
        parse(Config, "", argv=["--output_dir", "o", "--lora_rank", "8"])
    with pytest.raises(InputError, match=r"nowhere.yaml: no such file"):
        parse(Config, "", argv=["--config", "nowhere.yaml"])


def test_default_config_only_without_arguments(tmp_path):
    argv = written(tmp_path, "output_dir: default\n")
    said = []
    assert parse(Config, "", Path(argv[1]), lambda: said.append(1), argv=[]).output_dir == "default"
    assert parse(Config, "", Path(argv[1]), lambda: said.append(2), argv=["--output_dir", "o"]).output_dir == "o"
    assert said == [1]


def test_help_explains_every_key(capsys):
    for config_class, key in ((Config, "--lora_r"), (SigLIPConfig, "--image_size_px"), (MllamaSFTConfig, "--train_on")):
        with pytest.raises(SystemExit) as ended:
            parse(config_class, "what it does", argv=["--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert key in text
        assert "what it does" in text


def test_run_prints_one_line_and_fails(capsys):
    def main():
        raise InputError("x.yaml: lora_r: wrong")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: x.yaml: lora_r: wrong\n"


def test_saved_config_is_read_back(tmp_path):
    config = SigLIPConfig(output_dir=str(tmp_path / "o"), data_dir="d", use_cpu=True, eval_strategy="no")
    save_config(config, tmp_path / "c" / "config.yaml")
    text = (tmp_path / "c" / "config.yaml").read_text()
    assert "data_dir: d\n" in text
    assert "temperature_bias_init: null\n" in text


def test_a_misspelt_option_is_told_the_nearest():
    with pytest.raises(InputError, match=r"unrecognized arguments: --langs en \(did you mean --languages\? --help"):
        parse(Config, "", argv=["--output_dir", "o", "--langs", "en"])


def test_a_wrong_value_is_blamed_on_where_it_stands(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data_dir: d\noutput_dir: o\nencoder_dir: e\npool_size: 1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.yaml: pool_size: must be at least 2"):
        parse(EvaluateConfig, "", argv=["--config", str(path)])
    with pytest.raises(InputError, match=r"^command line: split: 'dev' is none of"):
        parse(EvaluateConfig, "", argv=["--config", str(path), "--pool_size", "2", "--split", "dev"])


def test_help_names_the_values_that_a_key_takes(capsys):
    with pytest.raises(SystemExit):
        parse(ReportConfig, "", argv=["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "of reports whose row names none [en, zh] (default: en)" in shown
