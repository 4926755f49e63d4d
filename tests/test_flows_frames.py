"""Frames: only exact replays are shown, the same pixels every time, only where they were asked for."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from scripted import ScriptedProvider

from annotate.prompting.requests import AnnotateConfig, Request
from annotate.providers.answers import text_message
from annotate.runs.run import annotate_run
from flows.datasets.collection import CollectConfig, collect
from flows.labelling.annotation import LabelConfig, plan
from flows.simulation.frames import FrameRenderer, encode_png, make_rendering, shrink, tile
from storage.datasets.reader import read_manifest
from storage.errors import BadInput
from storage.schema import Manifest
from storage.store import Store

TWO_STAGE = {"model": "seeing", "two_stage": True, "windows": 2, "rows": 60}


@pytest.fixture
def poles(store: Store) -> Store:
    pytest.importorskip("pygame")
    collect(store, CollectConfig(env_id="CartPole-v1", policy="random", episodes=2, dataset="poles"))
    return store


def decode(png: bytes) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(png)).convert("RGB"))


def answer(request: Request) -> str:
    if request.kind == "identify":
        return text_message(json.dumps({"assessment": "", "steps": [{"step": s, "rationale": "r"} for s in (2, 5)]}))
    return text_message(json.dumps({"assessment": "", "labels": []}))


def test_frames_of_a_step_are_what_the_environment_showed(poles: Store) -> None:
    renderer = FrameRenderer(poles, "poles")
    image = decode(renderer(0, [0, 6]))
    assert image.shape == (133 + 2, 2 * (200 + 2), 3)  # 400 x 600 shrunk by 3, two tiles with a line
    assert not np.array_equal(image[:133, :200], image[:133, 202:402])
    environment = make_rendering(poles, read_manifest(poles, "poles"))
    environment.reset(seed=0)
    first = shrink(np.asarray(environment.render()))
    assert np.array_equal(image[:133, :200], first)
    assert FrameRenderer(poles, "poles")(0, [0, 6]) == renderer(0, [0, 6])


def test_a_png_holds_the_pixels_that_went_in() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(decode(encode_png(pixels)), pixels)


def test_tiles_stand_in_rows_of_four() -> None:
    tiles = [np.full((3, 5, 3), shade, np.uint8) for shade in range(6)]
    image = tile(tiles)
    assert image.shape == (2 * 5, 4 * 7, 3)
    assert [image[0, 7 * i, 0] for i in range(4)] == [0, 1, 2, 3]
    assert [image[5, 7 * i, 0] for i in range(4)] == [4, 5, 255, 255]


@pytest.mark.slow
def test_the_second_stage_shows_the_steps_that_the_first_one_found(poles: Store) -> None:
    seen: list[Any] = []

    def script(request: Request) -> str:
        if request.kind == "suggest":
            seen.append(request.params["messages"][0]["content"])
        return answer(request)

    config = LabelConfig(annotate=AnnotateConfig(**TWO_STAGE, frames=True))
    summary = annotate_run(poles, plan(poles, "poles", config).plan, ScriptedProvider(script))
    assert summary.done
    image, words = seen[0]
    assert image["source"]["media_type"] == "image/png"
    assert base64.b64decode(image["source"]["data"]) == FrameRenderer(poles, "poles")(0, [2, 5])
    assert words["text"].startswith("The image shows what the environment looked like at the steps 2, 5:")
    assert "# Steps found to matter" in words["text"]


@pytest.mark.slow
def test_frames_make_other_runs_and_other_second_requests_only(poles: Store) -> None:
    plans = [
        plan(poles, "poles", LabelConfig(annotate=AnnotateConfig(**TWO_STAGE, frames=frames))).plan
        for frames in (False, True)
    ]
    assert plans[0].run.run_id != plans[1].run.run_id
    assert [q.request.request_id for q in plans[0].questions] == [q.request.request_id for q in plans[1].questions]
    provider = ScriptedProvider(answer)
    for made in plans:
        annotate_run(poles, made, provider)
    assert len(provider.asked) == 2 + 2 + 2  # the first stage is shared


def test_without_the_option_a_run_keeps_its_name(poles: Store) -> None:
    config = AnnotateConfig(**TWO_STAGE)
    assert "frames" not in config.identity_fields
    assert AnnotateConfig(**TWO_STAGE, frames=True).identity_fields["frames"] is True


def test_frames_need_the_second_stage() -> None:
    with pytest.raises(ValueError, match="add --two-stage"):
        AnnotateConfig(model="m", frames=True)


def test_an_environment_that_does_not_render_is_refused(poles: Store) -> None:
    manifest: Manifest = read_manifest(poles, "poles").model_copy(update={"env_id": None})
    with pytest.raises(BadInput, match="has no environment, so there are no frames"):
        make_rendering(poles, manifest)
