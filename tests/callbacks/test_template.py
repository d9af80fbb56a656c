"""Names of checkpoints: which names a template matches, and which templates are refused."""

import os

import keras
import pytest
from small import fit, names, small_model

from callbacks import Counts, GlobalStepCheckpoint, InputError, latest_checkpoint, restore
from callbacks.disk.template import Template

NUMBERS = [0, 1, 9, 10, 99, 100, 999, 1000, 12_345, 99_999, 100_000, 1_234_567, 10**9 + 1]
SPECS = [
    *["", "d", "05d", "10", ",", "_", "09,", "x", "X", "#x", "#06x", "b", "_b", "o", "n", "+05d", " d"],
    *[">8", "<8", "*^9", "=+8", "0^7d", "9>5", "-^9d", ".0f", "e", "g", "%"],
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_template_matches_its_own_names_in_any_format(spec):
    template = Template(f"/run/m_{{batch:{spec}}}.weights.h5")
    for number in NUMBERS:
        path = template.format(Counts(batch=number), {})
        assert template.matches(path), path
        assert template.makes(path, Counts(batch=number)), path
        assert not template.makes(path, Counts(batch=2 * number + 1)), path


@pytest.mark.parametrize("spec", ["", ".3f", "8.3f", "010.3f", "->8.3f", "*^12.2e", "=8.1f", "+.2f", ",.1f", "g", "%", "n"])
def test_a_template_matches_names_with_any_value_of_a_metric(spec):
    template = Template(f"/run/{{batch}}-{{loss:{spec}}}.keras")
    for value in (0.0, -0.0, 0.5, -0.1234567, 1e-30, -1e300, 12345.678, float("nan"), float("inf"), float("-inf"), 3):
        path = template.format(Counts(batch=50), {"loss": value})
        assert template.matches(path) and template.makes(path, Counts(batch=50)), path


@pytest.mark.parametrize(
    "text, other",
    [
        ("m_{batch:05d}.keras", "m_best_00050.keras"),
        ("m_{batch:05d}.keras", "m_50.keras"),
        ("m_{batch:05d}.keras", "m_000050.keras"),
        ("m_{batch:05d}.keras", "m_-0050.keras"),
        ("m_{batch}.keras", "m_00050.keras"),
        ("m_{batch}.keras", "m_.keras"),
        ("m_{batch}.keras", "m_\u0665.keras"),  # an Arabic digit
        ("m_{batch:x}.keras", "m_best.keras"),
        ("m_{batch:>8}.keras", "m_      050x.keras"),
        ("m_{loss:.3f}.keras", "m_fine.keras"),
        ("m_{loss}.keras", "m_fine/x.keras"),
        ("m_{batch}.keras", "m_50-0.281.keras"),
        ("m_{batch}-{loss:.3f}.keras", "m_50-best-0.281.keras"),
        ("{epoch}/x.keras", "first/x.keras"),
    ],
)
def test_a_template_does_not_match_names_that_it_cannot_make(text, other):
    assert not Template(text).matches(other)


@pytest.mark.parametrize("text", ["{epoch:02d}{batch:05d}.keras", "{batch:05d}{epoch:02d}.keras", "{epoch}{batch:05d}.keras"])
def test_counters_may_be_adjacent(text):
    for batch in NUMBERS:
        assert Template(text).matches(text.format(epoch=3, batch=batch))


@pytest.mark.parametrize(
    "text, words",
    [
        ("gs://bucket/m_{batch}.keras", r"POSIX file system.*atomic rename.*gs://bucket"),
        ("run/\udcff_{batch}.keras", r"must be UTF-8"),
        ("s3://bucket/m_{batch}.keras", "POSIX file system"),
        ("hdfs://host/m_{batch}.weights.h5", "POSIX file system"),
        ("m_{batch!s:05d}.keras", r"must not have a conversion.*\{batch!s\}"),
        ("m_{batch:/>5d}.keras", r"slash.*\{batch:/>5d\}"),
        ("m_{loss:/>9.1f}.keras", "slash"),
        ("m_{batch:c}.keras", "not a number format"),
        ("m_{loss:y}.keras", "not a number format"),
        ("m_{}.keras", "a name in braces"),
        ("m_{0}.keras", "a name in braces"),
        ("m_{batch.real}.keras", "a name in braces"),
        ("m" * 220 + "_{batch}.keras", "at most 255 bytes"),
        ("\u00e9" * 110 + "_{batch}.keras", "at most 255 bytes"),  # 118 characters
        ("m" * 256 + "/{batch}.keras", "at most 255 bytes"),
        ("{batch:0300d}/x.keras", "at most 255 bytes"),
        ("m_{batch:0240d}.keras", "at most 255 bytes"),
    ],
)
def test_a_template_that_cannot_name_files_is_refused_in_one_line_by_the_constructor(text, words):
    with pytest.raises(InputError, match=words) as raised:
        GlobalStepCheckpoint(text)
    assert "\n" not in str(raised.value)


def test_a_bucket_url_is_refused_as_a_directory_of_checkpoints():
    with pytest.raises(InputError, match="POSIX file system"):
        latest_checkpoint("gs://bucket/run")


def test_a_relative_template_refers_to_the_working_directory_of_the_constructor(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "a{b}", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    checkpoint = GlobalStepCheckpoint("run/b{batch}.weights.h5", keep_last=1, save_freq=5)
    monkeypatch.chdir(elsewhere)
    fit(small_model(), checkpoint)
    assert names(elsewhere) == [] and names(here) == ["run"] and names(here / "run") == ["b10.weights.h5"]
    assert checkpoint.newest == str(here / "run" / "b10.weights.h5")
    assert sorted(os.listdir(tmp_path)) == ["a{b}", "elsewhere"]  # no lock is left anywhere


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home{x}"))
    checkpoint = GlobalStepCheckpoint("~/run/b{batch}.weights.h5")
    fit(small_model(), checkpoint)
    newest = str(tmp_path / "home{x}" / "run" / "b10.weights.h5")
    assert checkpoint.newest == newest
    assert latest_checkpoint("~/run/b{batch}.weights.h5").path == latest_checkpoint("~/run").path == newest


COUNTS = Counts(batch=10, step=10, epoch=2, samples=40)


@pytest.mark.parametrize(
    "text, name, is_true",
    [
        ("b{batch:05d}.keras", "b00010.keras", True),
        ("b{batch:05d}.keras", "b00011.keras", False),
        ("b{batch:05d}.keras", "b11.keras", True),  # of no such template
        ("b{batch:05d}.keras", "b_best_00011.keras", True),
        ("{epoch}-{val_loss:.2f}-{batch}.keras", "2--0.50-10.keras", True),
        ("{epoch}-{val_loss:.2f}-{batch}.keras", "2--0.50-11.keras", False),
        ("{epoch}-{val_loss}.keras", "3-0.5.keras", False),
        ("{{x}}{batch}.keras", "{x}11.keras", False),
        ("{{x}}{batch}.keras", "copy.keras", True),
        ("last.keras", "last.keras", True),
    ],
)
def test_a_name_is_right_or_wrong_or_has_no_counters(text, name, is_true):
    assert Template(text).is_true_of(f"run/{name}", COUNTS) is is_true


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text, name",
    [
        ("{batch}" * 30 + "x.keras", "1" * 200 + ".keras"),
        ("{a:0>3f}{b:0>3f}x.keras", "0" * 200 + ".keras"),
        ("{a:0>3f}1{b:0>3f}1{c:0>3f}x.keras", "01" * 100 + "x.keras"),
        ("{a: >3f}-{b: >3f}-{c: >3f}x.keras", (" " * 80 + "-") * 3 + "x.keras"),
    ],
)
def test_a_template_made_to_be_slow_is_not(text, name):
    """A file from someone else may store such a template, and have a matching name."""
    assert Template(text).is_true_of(name, COUNTS)


def test_a_format_that_makes_a_name_of_a_gigabyte_is_refused():
    with pytest.raises(InputError, match="longer than a file name"):
        Template("b{batch:0999999999d}.keras")


def test_a_directory_that_is_a_symlink_is_followed(tmp_path):
    real = tmp_path / "disk"
    real.mkdir()
    (tmp_path / "run").symlink_to(real)
    template = str(tmp_path / "run" / "b{batch}.weights.h5")
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=5, keep_last=1))
    assert names(real) == ["b10.weights.h5"] and not list(real.glob(".*"))
    fit(small_model(), resumed := GlobalStepCheckpoint(template, resume=True), epochs=2)
    assert resumed.resumed_from.batch == 10 and names(real) == ["b10.weights.h5", "b20.weights.h5"]


def test_a_link_instead_of_a_checkpoint_is_read_and_a_save_replaces_the_link_and_not_its_target(tmp_path):
    template, kept = str(tmp_path / "last.weights.h5"), tmp_path / "kept.weights.h5"
    fit(small_model(), GlobalStepCheckpoint(str(kept)))
    os.symlink(kept, template)
    before = kept.read_bytes()
    fit(small_model(), resumed := GlobalStepCheckpoint(template, resume=str(kept)), epochs=2)
    assert resumed.resumed_from.batch == 10 and kept.read_bytes() == before
    assert not os.path.islink(template) and latest_checkpoint(template).batch == 20


def test_a_link_to_an_older_checkpoint_is_not_followed_into_it(tmp_path):
    template = str(tmp_path / "b{batch}.weights.h5")
    fit(small_model(), GlobalStepCheckpoint(template, save_freq=5))
    (tmp_path / "best.weights.h5").symlink_to("b5.weights.h5")
    assert latest_checkpoint(tmp_path).batch == 10
    assert latest_checkpoint(tmp_path / "best.weights.h5").batch == 5
    model = small_model()
    assert restore(model, tmp_path / "best.weights.h5").batch == 5


def test_a_template_may_be_longer_than_a_name(tmp_path):
    metric = keras.metrics.MeanSquaredError(name="error_of_" + "the_model_" * 25)
    fit(small_model(metrics=[metric]), GlobalStepCheckpoint(tmp_path / f"{{batch}}_{{{metric.name}:.3f}}.weights.h5"))
    assert latest_checkpoint(tmp_path).batch == 10


def test_two_callbacks_of_one_fit_need_different_templates(tmp_path):
    a, b = str(tmp_path / "a{batch}.weights.h5"), str(tmp_path / "b{batch}.keras")
    with pytest.raises(InputError, match="Two callbacks of this fit write to"):
        fit(small_model(), GlobalStepCheckpoint(a), GlobalStepCheckpoint(a, save_freq=3))
    fit(small_model(), GlobalStepCheckpoint(a, save_freq=4), GlobalStepCheckpoint(b, save_freq=5))
    assert names(tmp_path) == ["a10.weights.h5", "a4.weights.h5", "a8.weights.h5", "b10.keras", "b5.keras"]
