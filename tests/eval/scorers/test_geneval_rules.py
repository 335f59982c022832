import pytest

from eval.scorers.geneval_rules import Thing, class_names, judge, requirements, sides


def no_colours(things, name):
    raise AssertionError("no colour was asked for")


def thing(name, confidence=0.95, box=(0.0, 0.0, 10.0, 10.0)):
    return Thing(name, confidence, box)


def asked(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


ONE_BENCH = asked("single_object", {"class": "bench", "count": 1})
TWO_CLOCKS = asked("counting", {"class": "clock", "count": 2}, exclude=[{"class": "clock", "count": 3}])


def test_an_object_must_be_there_and_sure():
    assert judge([thing("bench", 0.31)], ONE_BENCH, no_colours)
    assert not judge([thing("bench", 0.3)], ONE_BENCH, no_colours)
    assert not judge([thing("chair")], ONE_BENCH, no_colours)


def test_a_count_is_exact_and_asks_for_more_confidence():
    assert judge([thing("clock")] * 2, TWO_CLOCKS, no_colours)
    assert judge([thing("clock"), thing("clock"), thing("clock", 0.9)], TWO_CLOCKS, no_colours)
    assert not judge([thing("clock")] * 3, TWO_CLOCKS, no_colours)
    assert not judge([thing("clock"), thing("clock", 0.89)], TWO_CLOCKS, no_colours)


def test_the_surest_object_must_have_the_colour():
    wish = asked("colors", {"class": "cow", "count": 1, "color": "red"})
    cows = [thing("cow", 0.5, (0, 0, 1, 1)), thing("cow", 0.8, (5, 5, 9, 9))]

    def by_place(things, name):
        assert name == "cow"
        return ["red" if each.box[0] == 5 else "blue" for each in things]

    assert judge(cows, wish, by_place)
    assert not judge(cows, wish, lambda things, name: ["blue"] * len(things))
    assert not judge(cows[:1], wish, by_place)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-40, 0, -30, 10), {"left of"}),
        ((40, 0, 50, 10), {"right of"}),
        ((0, -40, 10, -30), {"above"}),
        ((0, 40, 10, 50), {"below"}),
        ((40, 40, 50, 50), {"right of", "below"}),
        ((0.5, 1, 10.5, 11), set()),
        ((1.5, 0, 11.5, 10), set()),
        ((5, 0, 15, 10), {"right of"}),
    ],
)
def test_sides_need_distance(box, expected):
    # Boxes of 10 x 10 must be more than 2 apart, and the part beyond that more than half of the whole distance.
    assert sides(thing("a", box=box), thing("b")) == expected


def test_a_position_is_asked_of_what_was_found_before():
    wish = asked("position", {"class": "dog", "count": 1}, {"class": "truck", "count": 1, "position": ["left of", 0]})
    dog, left, right = thing("dog", box=(50, 0, 60, 10)), (0, 0, 10, 10), (90, 0, 99, 10)
    assert judge([dog, thing("truck", box=left)], wish, no_colours)
    assert not judge([dog, thing("truck", box=right)], wish, no_colours)
    assert not judge([thing("truck", box=left)], wish, no_colours)
    assert not judge([dog, thing("truck", 0.9, right), thing("truck", 0.4, left)], wish, no_colours)


def test_every_prompt_of_the_set_can_be_answered_right_and_wrong():
    rows = requirements()
    assert len(rows) == 553
    for row in rows.values():
        if row["tag"] == "position":
            continue
        right = [thing(wish["class"]) for wish in row["include"] for _ in range(wish["count"])]
        colours = {wish["class"]: wish.get("color") for wish in row["include"]}
        assert judge(right, row, lambda things, name, of=colours: [of[name]] * len(things)), row
        assert not judge(right[1:], row, lambda things, name, of=colours: [of[name]] * len(things)), row


def test_a_detector_must_know_every_class():
    classes: set[str] = {wish["class"] for row in requirements().values() for wish in row["include"]}
    renamed = {"computer mouse": "mouse", "tv": "tvmonitor"}
    labels = dict(enumerate(renamed.get(name, name) for name in sorted(classes)))
    assert set(class_names(labels).values()) == classes
    with pytest.raises(ValueError, match=r"does not know airplane, .* \(78 of 80 classes\)"):
        class_names({0: "dog", 1: "cat"})
