import json

from eval.plots import sweep_plot, training_curves


def test_curves_come_from_the_whole_lines_of_a_file_that_is_still_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": i, "train/loss": 1 / (i + 1)}) + "\n" for i in range(9)) + '{"step"')
    svg = training_curves({"dpo": file})
    assert svg is not None
    assert svg.startswith("<svg")
    assert "loss" in svg
    assert "margin" not in svg


def test_a_run_without_curves_gives_no_plot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/x": 1}\n')
    assert training_curves({"dpo": tmp_path / "metrics.jsonl"}) is None
    assert training_curves({}) is None


def test_a_sweep_is_plotted_over_the_settings_left_of_delta():
    rows = [
        {"trial": f"t{i}", "lr": lr, "beta": 500, "delta": 0.1 * i, "win_rate": 0.5 + i}
        for i, lr in enumerate((1e-5, 1e-4, 1e-3))
    ]
    svg = sweep_plot(rows)
    assert svg is not None
    assert ">lr<" in svg
    assert "beta" not in svg
    assert "win_rate" not in svg
    both = sweep_plot([row | {"beta": 500 * (i + 1)} for i, row in enumerate(rows)])
    assert both is not None
    assert "beta" in both


def test_a_sweep_in_which_nothing_varies_gives_no_plot():
    assert sweep_plot([]) is None
    assert sweep_plot([{"lr": 1.0, "delta": 0.1}] * 3) is None


def test_plots_take_their_ink_from_the_page_and_are_the_same_every_time():
    rows = [{"lr": 1.0, "delta": 0.1}, {"lr": 2.0, "delta": 0.2}]
    svg = sweep_plot(rows)
    assert svg is not None
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert svg == sweep_plot(rows)
