"""Makes the golden outputs of detectors with torchvision, before and after suppression.

    python tests/reference/make_detectors.py

Needs torch==2.13.0 (CPU build) and torchvision, as make.py. Files: golden/MODEL.torchvision.npz
with what each stage puts out for one image, float32, and `tensors`, "NAME SHAPE" of each. Where
torchvision's compiled operators do not load, suppression is done here, box by box.
"""

import importlib

import numpy as np
import torch
from detectors import CLASSES, EVERY, FEW, GOLDEN, draw_image, draw_tensor
from torch_models import build, define_missing_operators


def suppress(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """What `torchvision.ops.nms` does, in NumPy."""
    corners = boxes.numpy().astype(np.float32)
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    kept: list[int] = []
    for i in np.argsort(-scores.numpy(), kind="stable"):
        others = corners[kept]
        sides = np.minimum(corners[i, 2:], others[:, 2:]) - np.maximum(
            corners[i, :2], others[:, :2]
        )
        shared = np.maximum(sides, 0).prod(1)
        if not (shared / (areas[i] + areas[kept] - shared) > iou_threshold).any():
            kept.append(int(i))
    return torch.tensor(kept, dtype=torch.int64)


def prepare(source: str, name: str, **arguments):
    """A network with drawn weights, the image, and the list of its tensors."""
    model = build(source, CLASSES + 1, {"weights": None, "weights_backbone": None, **arguments})
    state = {n: t for n, t in model.state_dict().items() if "num_batches" not in n}
    with torch.no_grad():
        for tensor, value in state.items():
            value.copy_(torch.from_numpy(draw_tensor(tensor, tuple(value.shape))))
    tensors = np.array(sorted(f"{n} {tuple(t.shape)}" for n, t in state.items()))
    image = torch.from_numpy(draw_image(name).transpose(0, 3, 1, 2).copy())
    return model.eval(), image, tensors


def run_ssd() -> dict[str, np.ndarray]:
    """Box offsets and class logits of SSD300."""
    name = "ssd300_vgg16"
    model, image, tensors = prepare("torchvision.models.detection.ssd300_vgg16", name)
    outputs = model.head(list(model.backbone(image).values()))
    every = EVERY[name]
    return {
        "offsets": outputs["bbox_regression"][:, ::every].numpy(),
        "logits": outputs["cls_logits"][:, ::every].numpy(),
        "tensors": tensors,
    }


def run_mask_rcnn() -> dict[str, np.ndarray]:
    """What each stage of Mask R-CNN says, of which the first two are Faster R-CNN's."""
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    name = "mask_rcnn_resnet50_fpn"
    model, image, tensors = prepare(
        "torchvision.models.detection.maskrcnn_resnet50_fpn", name, **FEW
    )
    size = (int(image.shape[2]), int(image.shape[3]))
    features = model.backbone(image)
    images = ImageList(image, [size])
    scores, offsets = concat_box_prediction_layers(*model.rpn.head(list(features.values())))
    anchors = model.rpn.anchor_generator(images, list(features.values()))[0]
    proposals, _ = model.rpn(images, features)
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, proposals, [size])
    logits, box_offsets = heads.box_predictor(heads.box_head(pooled))
    (found,), _ = heads(features, proposals, [size])
    regions = heads.mask_roi_pool(features, [found["boxes"]], [size])
    masks = heads.mask_predictor(heads.mask_head(regions))
    masks = masks[torch.arange(len(masks)), found["labels"]]
    every = EVERY[name]
    results = {
        "objectness": scores[::every, 0],
        "anchor_offsets": offsets[::every],
        "anchors": anchors[::every],
        "proposals": proposals[0],
        "logits": logits,
        "box_offsets": box_offsets.reshape(len(logits), -1, 4),
        "boxes": found["boxes"],
        "scores": found["scores"],
        "labels": found["labels"],
        "masks": masks,
    }
    return {n: x.numpy() for n, x in results.items()} | {"tensors": tensors}


def main() -> None:
    """Writes the files."""
    define_missing_operators()
    extension = importlib.import_module("torchvision.extension")
    if not extension._has_ops():
        library = torch.library.Library("torchvision", "IMPL")
        library.impl("nms", suppress, "CPU")
        importlib.import_module("torchvision.ops.boxes")._assert_has_ops = lambda: None
    with torch.no_grad():
        for name, run in (("ssd300_vgg16", run_ssd), ("mask_rcnn_resnet50_fpn", run_mask_rcnn)):
            path = GOLDEN / f"{name}.torchvision.npz"
            np.savez_compressed(path, **run())
            print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
