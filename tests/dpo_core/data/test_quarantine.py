import pytest

from dpo_core.data.quarantine import (
    Quarantine,
    Quarantined,
    Reason,
    check_share,
    counts_by_reason,
    read_quarantine,
    write_quarantine,
)


def records(count: int, reason: Reason = Reason.IMAGE_NULL) -> list[Quarantined]:
    return [Quarantined(str(row), "a.parquet", row, reason, "why") for row in range(count)]


def test_records_come_back_from_their_file_as_they_were(tmp_path):
    path = tmp_path / "run" / "quarantine.parquet"
    write_quarantine(path, records(3))
    assert read_quarantine(path) == records(3)
    assert [file.name for file in path.parent.iterdir()] == ["quarantine.parquet"]


def test_an_empty_quarantine_is_written_too(tmp_path):
    write_quarantine(tmp_path / "quarantine.parquet", [])
    assert read_quarantine(tmp_path / "quarantine.parquet") == []


def test_reasons_are_counted_with_the_most_frequent_first():
    counted = counts_by_reason([*records(1, Reason.LABEL_NAN), *records(2), *records(1, Reason.CAPTION_NULL)])
    assert list(counted.items()) == [("image_null", 2), ("caption_null", 1), ("label_nan", 1)]


def test_a_share_at_the_limit_passes_and_one_above_stops_with_the_counts():
    check_share(records(5), rows=100, limit=0.05)
    with pytest.raises(ValueError, match=r"6 of 100 rows \(6\.0%\).*max_quarantined_share=0\.05.*image_null 6.*row 0"):
        check_share(records(6), rows=100, limit=0.05)


def test_a_job_stops_when_more_of_the_rows_it_read_failed_than_chance_explains():
    quarantine = Quarantine(records(2), limit=0.1)
    quarantine.add(records(15), rows_read=100)
    with pytest.raises(ValueError, match=r"40 of 125 rows .*image_null 40"):
        quarantine.add(records(40)[15:], rows_read=25)


def test_a_small_set_that_cannot_be_read_at_all_stops_the_job_at_once():
    with pytest.raises(ValueError, match="8 of 8 rows"):
        Quarantine([], limit=0.05).add(records(8), rows_read=8)


def test_a_limit_of_zero_stops_at_the_first_failure():
    quarantine = Quarantine([], limit=0.0)
    quarantine.add([], rows_read=1000)
    with pytest.raises(ValueError, match="1 of 1001 rows"):
        quarantine.add(records(1), rows_read=1)


def test_a_pair_that_fails_in_every_epoch_is_recorded_once_beside_the_planned_ones():
    quarantine = Quarantine(records(1), limit=1.0)
    failed = [Quarantined("b", "b.parquet", 0, Reason.IMAGE_CORRUPT)]
    quarantine.add(failed, rows_read=4)
    quarantine.add(failed, rows_read=4)
    assert quarantine.records == [*records(1), *failed]
