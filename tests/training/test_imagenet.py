"""The ImageNet configs in a short form, on generated photographs in folders."""

import json
import os
import re

import cv2
import numpy as np
import pytest

IMAGES, CLASSES = 2000, 10


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """2,000 JPEG files of 10 classes, each a disc of its colour in noise; they are links to 100."""
    folder, random = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for index in range(100):
        label = index % CLASSES
        image = random.integers(0, 120, (375, 500, 3), dtype=np.uint8)
        centre = tuple(int(c) for c in random.integers(130, 250, 2))
        color = [label % 2 * 200, label // 2 % 2 * 200, label // 4 * 100]
        cv2.circle(image, centre, 90, color, -1)
        cv2.imwrite(str(folder / f"{index}.jpg"), image)
    for index in range(IMAGES):
        split = "train" if index < 0.9 * IMAGES else "val"
        path = folder / "set" / split / f"n{index % CLASSES:08}" / f"{index}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / f"{index % 100}.jpg", path)
    return folder / "set"


@pytest.mark.zoo
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", ["imagenet_resnet50", "imagenet_resnet50_a3"])
def test_a_short_form_runs(name, photographs, run_command, tmp_path):
    small = {
        "imagenet_resnet50": '(("random_resized_crop",(0.5,1.0)),("flip",),'
        '("progressive_resize",((0,24,24),(1,32,32))))',
        "imagenet_resnet50_a3": '(("random_resized_crop",(0.5,1.0)),("flip",),("resize",24,24),'
        '("randaugment",2,6),("mixup_or_cutmix",0.1,1.0))',
    }
    finished = run_command(
        *("-m", "flaxcnn", "train", name, "--workdir", tmp_path / "run"),
        f"--config.data.source=folder:{photographs}",
        f"--config.data.augment={small[name]}",
        "--config.data.image_size=(32,32)",
        "--config.data.batch_size=60",
        "--config.data.feeder=streaming",
        "--config.optimizer.learning_rate=0.01",
        "--config.optimizer.schedule.warmup_epochs=0.5",
        "--config.run.workers=2",
        "--config.epochs=2",
        timeout=1500,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == 200 and result["steps"] == 60
    assert re.search(r"^epoch 2/2: .* images/s", finished.stdout, re.MULTILINE)
