"""A weight that is spoilt on purpose is found, and unspoilt checkpoints pass: both demos, and every catalogue row."""

from functools import cache

import pytest

from evaluation.spoilt_checkpoints import DEMO_FOLDERS, FOUND_WITHOUT_RECORD, SPOILS, write_spoilt
from idefics.evaluate.check.activation_checks import ACTIVATION_CHECKS
from idefics.evaluate.check.check_run import FILE_CHECKS, CheckSettings, make_subject, run_checks
from idefics.evaluate.check.checks import CheckSubject
from idefics.evaluate.check.logits_record import RECORDS_FOLDER, make_record
from idefics.evaluate.check.record_checks import RECORD_CHECKS
from idefics.generation.load_settings import LoadSettings
from models import checkpoint_folders
from models.released import RELEASED_BY_NAME

CPU = LoadSettings(device="cpu", dtype="float32")
SHORT_ROWS = ("9b-instruct", "idefics2-8b", "smolvlm2-2.2b")
# What finds a spoil of random weights, where that is not the record's weights. The base of the rotary embedding hardly
# changes the logits of short prompts.
FOUND_IN_ROWS = {
    "zero_layer": "finite numbers",
    "duplicate_layer": "copies",
    "break_number": "finite numbers",
    "change_theta": "recorded settings",
}
WITHOUT_RECORD = (*(check for check in FILE_CHECKS if check not in RECORD_CHECKS), *ACTIVATION_CHECKS)


def names_off(subject, checks):
    """The names of the checks that find something."""
    off = []
    for check in checks:
        try:
            status = check.run(subject).status
        except Exception:  # the model cannot be loaded, which `run_checks` reports
            status = "off"
        off += [check.name] * (status == "off")
    subject.close()
    return off


def subject_of(folder, record=None):
    return make_subject(str(folder), CPU, CheckSettings(against=record))


@pytest.mark.parametrize("name", DEMO_FOLDERS)
def test_the_demo_passes(name):
    results = list(run_checks(subject := make_subject(name, CPU, CheckSettings()), quick=False))
    subject.close()
    statuses = {result.check.name: result.outcome.status for result in results}
    assert "off" not in statuses.values(), [result.outcome for result in results]
    assert [check for check, status in statuses.items() if status == "skipped"] == [
        *(["gates"] if name == "demo" else []),
        *("released settings", "plain text", "drawn pictures"),
    ]
    assert sum(result.seconds for result in results) < 60


@pytest.mark.parametrize("spoil", FOUND_WITHOUT_RECORD)
@pytest.mark.parametrize("name", DEMO_FOLDERS)
def test_spoils_of_trained_weights_that_need_no_record(tmp_path, name, spoil):
    folder = write_spoilt(DEMO_FOLDERS[name], tmp_path / "spoilt", spoil)
    off = names_off(subject_of(folder), WITHOUT_RECORD)
    assert FOUND_WITHOUT_RECORD[spoil] in off
    if spoil in ("swap_gate", "transpose_projection"):
        assert off == [FOUND_WITHOUT_RECORD[spoil]]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", DEMO_FOLDERS)
def test_the_packaged_record_finds_every_spoil(tmp_path, name, spoil):
    folder = write_spoilt(DEMO_FOLDERS[name], tmp_path / "spoilt", spoil)
    if folder is None:
        assert (name, spoil) == ("demo-idefics1", "change_theta")
        return
    off = names_off(subject_of(folder, RECORDS_FOLDER / f"{name}.json"), RECORD_CHECKS)
    expected = "recorded settings" if spoil == "change_theta" else "recorded weights"
    assert off == [expected, "recorded logits"]


@pytest.fixture(scope="module")
def get_row(tmp_path_factory):
    """The folder of a tiny copy of a catalogue row, and its record; made once."""

    @cache
    def make(name):
        folder = checkpoint_folders.write_hub_layout(
            tmp_path_factory.mktemp("row") / name, RELEASED_BY_NAME[name]
        )
        subject = CheckSubject(str(folder), CPU)
        make_record(subject).write(record := folder.parent / "record.json")
        subject.close()
        return folder, record

    return make


def check_row_and_spoils(row, tmp_path):
    folder, record = row
    subject = subject_of(folder, record)
    wrong = [result for result in run_checks(subject, quick=False) if result.outcome.status == "off"]
    subject.close()
    assert [(result.check.name, result.outcome.details) for result in wrong] == []
    for spoil in SPOILS:
        spoilt = write_spoilt(folder, tmp_path / spoil, spoil)
        if spoilt is None:
            assert spoil in ("change_theta", "transpose_projection")
            continue
        off = names_off(subject_of(spoilt, record), (*FILE_CHECKS, *RECORD_CHECKS[2:]))
        is_tied = spoil == "tie_head" and "tensors" in off  # granite-docling's head has no tensor of its own
        assert is_tied or FOUND_IN_ROWS.get(spoil, "recorded weights") in off, spoil


@pytest.mark.parametrize("name", SHORT_ROWS)
def test_rows_and_their_spoils(get_row, tmp_path, name):
    check_row_and_spoils(get_row(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RELEASED_BY_NAME.keys() - set(SHORT_ROWS)))
def test_all_other_rows_and_their_spoils(get_row, tmp_path, name):
    check_row_and_spoils(get_row(name), tmp_path)
