import pytest

from medfinetune.data.config import PrepareConfig
from medfinetune.errors import InputError


def test_the_key_is_read_and_never_shown(tmp_path):
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    config = PrepareConfig(output_dir="out", reports_dir="x", patient_key_file=str(path))
    options = config.image_options()
    assert options.patient_key == b"0123456789abcdef"
    assert not options.ignore_patients
    config.dicom_patients = "ignore"
    assert config.image_options().ignore_patients
    assert "0123456789abcdef" not in str(options) + str(config)


def test_a_short_or_missing_key_is_refused(tmp_path):
    config = PrepareConfig(output_dir="out", reports_dir="x", patient_key_file=str(tmp_path / "key"))
    with pytest.raises(InputError, match=r"key: cannot be read \(patient_key_file\)"):
        config.image_options()
    (tmp_path / "key").write_text("short")
    with pytest.raises(InputError, match=r"holds 5 bytes.*openssl rand"):
        config.image_options()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window_hu": {"center": 40}}, "window_hu"),
        ({"window_hu": {"center": 40, "width": 0}}, "window_hu"),
        ({"dicom_frame": -1}, "dicom_frame"),
        ({"reports_separator": ";;"}, "reports_separator"),
        ({"encoder_max_length": 0}, "encoder_max_length"),
    ],
)
def test_wrong_keys_are_named(values, message):
    with pytest.raises(InputError, match=message):
        PrepareConfig(output_dir="out", reports_dir="x", **values)
    assert (
        PrepareConfig(output_dir="o", chen_dir="x", window_hu={"center": -600, "width": 1500}).image_options().window_hu
    )


def test_no_source_is_refused():
    with pytest.raises(InputError, match="give at least one of knee_dir, chen_dir"):
        PrepareConfig(output_dir="out")


@pytest.mark.parametrize(
    ("output_dir", "values", "refused"),
    [
        ("raw/knee", {"knee_dir": "raw/knee"}, True),
        ("raw/knee/out", {"knee_dir": "raw/knee"}, True),
        ("raw/out/../knee", {"knee_dir": "raw/knee"}, True),
        ("out", {"reports_dir": "out/scans"}, True),
        ("out", {"reports_file": "out/a.csv"}, True),
        ("raw/out", {"reports_file": "raw/a.csv"}, False),
        ("raw/knee2", {"knee_dir": "raw/knee"}, False),
    ],
)
def test_output_among_the_sources_is_refused(output_dir, values, refused):
    if refused:
        with pytest.raises(InputError, match=f"output_dir: {output_dir}: must neither lie in {next(iter(values))}"):
            PrepareConfig(output_dir=output_dir, **values)
    else:
        PrepareConfig(output_dir=output_dir, **values)


def test_an_output_folder_that_no_report_can_name_is_refused():
    with pytest.raises(InputError, match="not in UTF-8"):
        PrepareConfig(output_dir="\udcb2\udca1", reports_dir="x")
    PrepareConfig(output_dir="输出", reports_dir="x")
