"""What the port to transformers lost: without temporal attention features follow any order of frames, with it none."""

import pytest
import torch
from tiny import tiny_vllava
from typer.testing import CliRunner

from minivllava.cli import app
from minivllava.cli.port import _print
from minivllava.data.build import build_world
from minivllava.errors import ConfigError
from minivllava.evaluation.port import (
    PORT,
    WITH,
    WITHOUT,
    frame_features,
    port_study,
    rows,
    views,
    without_temporal_attention,
)
from minivllava.run_config import WorldConfig


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_vllava().eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    none = {"images": 0, "clips": 0, "align_images": 0, "align_clips": 0, "text_documents": 0, "compositional": 0}
    return build_world(WorldConfig(**none, validation=0, test=6), tmp_path_factory.mktemp("world"), progress=False)


@pytest.mark.parametrize("order", ([3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]))
def test_frames_in_any_other_order(model, order):
    clip = torch.randn(4, 3, model.config.video.image_size, model.config.video.image_size)
    with torch.inference_mode():
        found = {
            name: frame_features(view, clip[order]) - frame_features(view, clip)[order]
            for name, view in views(model).items()
        }
    assert found[WITHOUT].abs().max() < 1e-5 and found[PORT].abs().max() < 1e-5
    assert found[WITH].norm() > 1e-3


def test_the_views_share_their_parameters(model):
    bare = without_temporal_attention(model)
    names = dict(bare.named_parameters())
    assert all(parameter is names[name] for name, parameter in model.named_parameters() if name in names)
    assert {name for name, _ in model.named_parameters()} - set(names) == {
        name for name, _ in model.named_parameters() if "temporal" in name
    }
    with pytest.raises(ConfigError, match="no temporal attention"):
        views(bare)


def test_the_study_asks_the_same_questions_of_all(model, world):
    study = port_study(model, world, limit=8, clips=2, progress=False)
    assert {len(told) for told in study["questions"].values()} == {8}
    kinds = {row["asked"]: row for row in study["rows"]}
    assert kinds["needs order"]["n"] + kinds["others"]["n"] == 8
    for clip in study["permutation"]:
        assert clip[WITHOUT] < 1e-5 < clip[WITH]


@pytest.mark.parametrize("lost, interval", [([0, 0, 0], False), ([1, 1], False), ([1], False), ([1, 0], True)])
def test_differences_that_are_all_alike_have_no_interval(lost, interval):
    asked = {"needs_order": True, "type": "order"}
    told = {WITH: [asked | {"correct": bool(hit)} for hit in lost], WITHOUT: [asked | {"correct": False} for _ in lost]}
    (row, _) = rows(told)
    assert (row["interval"] is not None) == interval
    assert not interval or row["interval"][0] < row["lost"] < row["interval"][1]


def test_the_table_shows_no_interval_where_there_is_none(capfd):
    row = {"asked": "others", "n": 1, WITH: 1.0, WITHOUT: 0.0, "lost": 1.0, "interval": None}
    _print({"rows": [row], "permutation": [{"file": "a.mp4", WITH: 0.5, WITHOUT: 0.0}]})
    assert "100.0 (-)" in capfd.readouterr().out


def test_the_command_writes_a_table_a_file_and_a_figure(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    command = ["port", str(tmp_path / "model"), "--preset", "sample", "--limit", "4", "--clips", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.exception
    assert "Exact match on clips" in result.output and "Frames in reverse" in result.output
    assert (tmp_path / "out/port.json").exists() and (tmp_path / "out/port.png").stat().st_size > 10_000
