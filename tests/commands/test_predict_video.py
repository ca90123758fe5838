"""`predict` on a video: frames in order, a batch ahead and no more, lines and a drawn video."""

import argparse
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from flaxcnn.commands.predict_video import is_video, predict_frames, read_frames, run_video
from flaxcnn.errors import UserError
from flaxcnn.weights.preprocessing import Preprocessing

SIZE = 48, 64


class Task:
    """Says how bright an image is, and paints it white."""

    listed, places = 5, True

    def describe(self, answer, most):
        return [{"grey": round(float(answer["grey"])), "side": int(answer["side"])}]

    def annotate(self, image, answer):
        return np.full_like(image, 255)


def make_predictor(events):
    def submit(images):
        assert images.shape[1:] == (16, 16, 3) and len(images) <= 4
        events.append(f"submit {len(images)}")
        return {"grey": images.mean((1, 2, 3)), "side": np.zeros(len(images))}

    def fit_answer(answer, size, resize):
        return answer | {"side": size[1]}

    plain = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, 1.0, "area", resize="stretch")
    return SimpleNamespace(
        task=Task(), preprocessing=plain, batch_size=4, submit=submit, fit_answer=fit_answer
    )


@pytest.fixture
def video(tmp_path):
    """Ten frames, each a shade lighter than the one before."""
    file = tmp_path / "shades.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, SIZE[::-1])
    for i in range(10):
        writer.write(np.full((*SIZE, 3), 20 * i, np.uint8))
    writer.release()
    return file


def test_a_batch_is_in_flight_and_memory_flat(video):
    events = []

    def watch(frames):
        for i, frame in enumerate(frames):
            events.append(f"read {i}")
            yield frame

    predictor = make_predictor(events)
    for number, rate, frame, answer in predict_frames(
        predictor, "x", watch(read_frames(str(video)))
    ):
        events.append(f"answer {number}")
        assert rate == 10 and frame.shape == (*SIZE, 3)
        assert abs(answer["grey"] - 20 * number) < 3 and answer["side"] == SIZE[1]
    reads, answers = ([f"{word} {i}" for i in range(10)] for word in ("read", "answer"))
    assert events == [
        *(*reads[:4], "submit 4", *reads[4:8], "submit 4", *answers[:4]),
        *(*reads[8:], "submit 2", *answers[4:8], *answers[8:]),
    ]


def run(video, **kwargs):
    args = {"images": [str(video)], "frames": None, "top": None, "resize": None, "out": ""}
    return run_video(argparse.Namespace(**args | kwargs), make_predictor([]))


def test_lines_and_a_drawn_video(video, tmp_path, capsys):
    assert run(video, frames=5) == 0
    out, err = capsys.readouterr()
    told = [json.loads(text) for text in out.splitlines()]
    assert [entry["frame"] for entry in told] == list(range(5))
    assert told[3]["seconds"] == 0.3 and abs(told[3]["top"][0]["grey"] - 60) < 3
    assert "shades.avi: 5 frames, " in err and err.endswith(" frames/s\n")

    assert run(video, out=str(tmp_path / "out")) == 0
    lines = (tmp_path / "out" / "shades.jsonl").read_text().splitlines()
    drawn = list(read_frames(str(tmp_path / "out" / "shades.mp4")))
    assert len(lines) == len(drawn) == 10
    assert all(
        rate == 10 and frame.shape == (*SIZE, 3) and frame.min() > 245 for rate, frame in drawn
    )


def test_mistakes(video, tmp_path):
    assert is_video("a/b.MP4") and is_video("camera:0") and not is_video("a.jpg")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    for kwargs, told in (
        ({"images": [str(video), "a.jpg"]}, "predicted alone"),
        ({"images": ["none.mp4"]}, "there is no none.mp4"),
        ({"images": [str(broken)]}, "cannot be opened as a video"),
        ({"images": ["camera:front"]}, "a camera has a number, as camera:0"),
        ({"frames": 0}, "--frames must be at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=told):
            run(video, **kwargs)
