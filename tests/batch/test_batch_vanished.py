"""Pictures and tables that change or break while a run reads them."""

from batch_fakes import FakeAnswerer, run_batch

from idefics.batch.sources.inputs import open_source
from idefics.batch.sources.settings import SourceSettings


def test_pictures_that_vanish_during_a_run_are_rows_with_errors(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.png").write_bytes(b"picture %d" % number)

    def remove_the_rest(number):
        if number == 5:
            for path in sorted(folder.iterdir())[50:]:
                path.unlink()

    source = open_source([str(folder)], SourceSettings())
    run = run_batch(source, tmp_path / "ledger", answerer=FakeAnswerer(on_answer=remove_the_rest))
    assert (run.counts.num_written, run.counts.num_failed) == (50, 50)
    assert run.counts.first_error.endswith("no such file")


def test_a_quote_that_is_not_closed_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "t.csv").write_text('image,item\na.png,one\na.png,"two\na.png,three\na.png,four\n')
    rows = list(open_source([str(tmp_path / "t.csv")], SourceSettings()))
    assert [bool(row.error) for row in rows] == [False, True]
    assert rows[1].error.endswith("a quote is not closed")
