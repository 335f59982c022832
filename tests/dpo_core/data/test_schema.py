import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data import schema
from dpo_core.data.quarantine import Reason, RowRejected

NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "side"), [((1.0, 0.0), 0), ((0.0, 1.0), 1), ((0.5, 0.5), None), ((0.3, 0.7), 1), ((0.6, 0.4), 0)]
)
def test_the_larger_label_is_chosen_and_equal_labels_are_a_tie(labels, side):
    assert schema.chosen_side(*labels) == side


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((None, 1.0), Reason.LABEL_MISSING),
        ((None, NAN), Reason.LABEL_MISSING),
        ((NAN, 0.0), Reason.LABEL_NAN),
        ((2.0, -1.0), Reason.LABEL_OUT_OF_RANGE),
        ((float("inf"), 0.0), Reason.LABEL_OUT_OF_RANGE),
        ((1.0, 1.0), Reason.LABEL_INCONSISTENT),
        ((0.0, 0.0), Reason.LABEL_INCONSISTENT),
    ],
)
def test_labels_that_say_nothing_are_rejected_with_their_reason(labels, reason):
    with pytest.raises(RowRejected) as rejected:
        schema.chosen_side(*labels)
    assert rejected.value.reason is reason


def test_a_row_marked_as_unlabelled_is_rejected_whatever_its_labels_say():
    with pytest.raises(RowRejected, match="label_missing"):
        schema.chosen_side(1.0, 0.0, has_label=False)


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("  a dog \n", "a dog"),
        ("a\x00 \x07dog\x1b[31m red\x1b[0m", "a dog red"),
        ("a\ttwo\nline\u2028caption", "a two line caption"),
        ("zero\u200bwidth\u202e \ufeffmarks", "zerowidth marks"),
        ("\U0001f469\u200d\U0001f680 and \u2764\ufe0f", "\U0001f469\u200d\U0001f680 and \u2764\ufe0f"),
        ("\u0635\u0648\u0631\u0629 \u05db\u05dc\u05d1", "\u0635\u0648\u0631\u0629 \u05db\u05dc\u05d1"),
        ("caf\ufffd", "caf\ufffd"),
    ],
)
def test_control_characters_are_stripped_and_emoji_and_other_scripts_are_kept(dirty, clean):
    assert schema.clean_text(dirty) == clean


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    assert schema.clean_text(schema.clean_text(text)) == schema.clean_text(text)


def test_a_null_caption_and_an_empty_caption_have_different_reasons():
    with pytest.raises(RowRejected, match="caption_null"):
        schema.clean_captions(None)
    for texts in ((), ("",), (" \x00\u200b",), ("", "  ")):
        with pytest.raises(RowRejected, match="caption_empty"):
            schema.clean_captions(texts)


def test_empty_captions_of_a_list_are_left_out():
    assert schema.clean_captions(("a", " ", "b")) == ("a", "b")


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
)
def test_captions_are_read_from_every_text_type(kind):
    column = pa.chunked_array([pa.array(["a", None, "b"]).cast(kind), pa.array(["a"]).cast(kind)])
    assert schema.read_texts(column) == [("a",), None, ("b",), ("a",)]


def test_lists_of_captions_are_read_with_their_nulls_left_out():
    column = pa.chunked_array([pa.array([["a", "b"], None, [], ["c", None]])])
    assert schema.read_texts(column) == [("a", "b"), None, (), ("c",)]


def test_bytes_that_are_not_utf8_become_replacement_characters():
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\3\0\0\0\5\0\0\0"), pa.py_buffer(b"ok\xffok"))
    assert schema.read_texts(pa.chunked_array([broken])) == [("ok\ufffd",), ("ok",)]


def test_images_are_read_from_binary_columns_and_from_structs_with_bytes():
    structs = pa.array([{"bytes": b"x", "path": "a.jpg"}, None])
    assert schema.read_images(pa.chunked_array([structs])) == [b"x", None]
    assert schema.read_images(pa.chunked_array([pa.array([b"x", None])])) == [b"x", None]


def test_the_chosen_image_and_its_own_caption_come_first():
    pair = schema.make_pair("7", 1, [b"left", b"right"], [("of left",), ("of right",)])
    assert (pair.chosen, pair.rejected) == (b"right", b"left")
    assert (pair.chosen_captions, pair.rejected_captions) == (("of right",), ("of left",))


def test_two_images_of_the_same_bytes_are_rejected_but_two_missing_ones_are_left_to_the_decoder():
    with pytest.raises(RowRejected, match="images_identical"):
        schema.make_pair("7", 0, [b"same", b"same"], [("a",)])
    assert schema.make_pair("7", 0, [b"", b""], [("a",)]).chosen == b""


@pytest.mark.parametrize(("drop", "named"), [("caption", "caption"), ("jpg_1", "jpg_1"), ("label_0", "label_0")])
def test_a_missing_column_is_named_with_the_file(drop, named):
    columns = schema.SCHEMA.remove(schema.SCHEMA.get_field_index(drop))
    with pytest.raises(ValueError, match=rf"x\.parquet: the column\(s\) {named} are missing"):
        schema.check_columns(columns, "x.parquet", per_image=False)


def test_captions_per_image_are_only_required_when_asked_for():
    schema.check_columns(schema.SCHEMA, "x.parquet", per_image=False)
    with pytest.raises(ValueError, match=r"caption_0, caption_1 are missing .*per_image"):
        schema.check_columns(schema.SCHEMA, "x.parquet", per_image=True)


def test_a_column_of_the_wrong_type_is_named_with_what_it_must_be():
    columns = schema.SCHEMA.set(schema.SCHEMA.get_field_index("caption"), pa.field("caption", pa.int64()))
    with pytest.raises(ValueError, match="caption has type int64; it must be text"):
        schema.check_columns(columns, "x.parquet", per_image=False)
