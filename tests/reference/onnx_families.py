"""Every family of networks as ONNX in onnxruntime, beside jax, on 50 real images.

    python tests/reference/onnx_families.py [NAME ...]

prints the table of docs/export.md; it needs ../shared and `pip install 'flaxcnn[onnx]'`.
"""

import io
import os
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import flaxcnn
from flaxcnn.export import export_onnx
from flaxcnn.models import fold_batch_norm, variant

DATA = Path(__file__).parents[3] / "shared" / "data"
COUNT, BATCH = int(os.environ.get("COUNT", 50)), 10
# One of each file of flaxcnn/models, two where a file has two kinds.
FAMILIES = (
    *("lenet5_1998", "lenet_caffe", "digits_cnn", "mnist_mlp_512", "cifar_resnet20", "airbench94"),
    *("nin_cifar10", "alexnet_2012_2group", "alexnet", "zfnet", "pyramid_cnn", "vgg11", "vgg11_bn"),
    *("googlenet_lrn", "googlenet", "bn_inception", "inception_v3", "inception_v4"),
    *("inception_resnet_v2", "resnet18", "resnet50", "resnext50_32x4d", "seresnet50"),
    *("resnetv2_50", "resnet50v2", "senet154", "densenet121", "squeezenet1_0_caffe", "darknet53"),
    *("darknet19", "xception", "mobilenet_v1_0.25_128", "mobilenet_v2", "nasnet_a_mobile"),
    *("fcn8s", "fcn8s_vgg16", "unet", "integral_pose", "deeppose_cascade", "ssd300_vgg16"),
    *("yolo_v2_tiny", "yolo_v3_tiny", "faster_rcnn_resnet50_fpn"),
)
# Smaller images than the networks' own, which take long.
SHAPES = {
    "fcn8s_vgg16": (128, 128, 3),
    "unet": (188, 188, 1),
    "yolo_v2_tiny": (224, 224, 3),
    "yolo_v3_tiny": (224, 224, 3),
    "faster_rcnn_resnet50_fpn": (128, 128, 3),
}


def read_images(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [50, *shape]: photographs, or handwritten digits for small grey images."""
    height, width, channels = shape
    if channels == 1 and height <= 32:
        scale = cv2.INTER_LINEAR
        digits = load_digits().images[:COUNT] * (255 / 16)
        return np.stack([cv2.resize(x, (width, height), None, 0, 0, scale) for x in digits])[
            ..., None
        ].astype(np.uint8)
    images = []
    for name in ("imagenet-samples", "cats-dogs"):
        with tarfile.open(DATA / f"{name}.tar.gz") as archive:
            for member in archive:
                if len(images) == COUNT:
                    break
                if member.name.lower().endswith((".jpg", ".jpeg")):
                    content = io.BytesIO(archive.extractfile(member).read()).getbuffer()
                    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
                    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
                    images.append(image)
    images = np.stack(images)
    return images if channels == 3 else images.mean(-1, keepdims=True).astype(np.uint8)


def find_shape(name: str) -> tuple[int, ...]:
    return SHAPES.get(name, variant(name).input_shape)


def draw_variables(name: str, seed: int = 0):
    """Variables whose signals stay about as large from layer to layer, and differ by channel."""
    model, shape = flaxcnn.create_model(name), find_shape(name)
    rng = np.random.default_rng(seed)

    def draw(path, x):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return rng.uniform(0.7, 1.3, x.shape).astype(np.float32)
        fan_in = np.prod(x.shape[:-1]) if x.ndim > 1 else 50
        return (rng.standard_normal(x.shape, np.float32) * np.sqrt(1.5 / fan_in)).astype(np.float32)

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return model, jax.tree_util.tree_map_with_path(draw, made)


def compare(name: str, folder: Path) -> dict[str, object]:
    """Converts the network and computes 50 images both ways."""
    import onnx
    import onnxruntime

    shape, (model, variables) = find_shape(name), draw_variables(name)

    def function(images):
        x = (images.astype(jnp.float32) / 255 - 0.5) / 0.25
        return folded.apply(folded_variables, x, train=False)

    folded, folded_variables = fold_batch_norm(model, variables, shape)
    file = folder / "network.onnx"
    export_onnx(file, function, shape)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images, expected_by = read_images(shape), jax.jit(function)
    differences, agree = [], 0
    for start in range(0, COUNT, BATCH):
        batch = images[start : start + BATCH]
        answers = jax.tree.leaves(expected_by(batch))
        same = np.ones(len(batch), bool)
        for actual, expected in zip(session.run(None, {"images": batch}), answers, strict=True):
            assert actual.shape == expected.shape and actual.dtype == expected.dtype
            expected = np.asarray(expected)
            differences.append(np.abs(actual - expected).max() / np.abs(expected).max())
            best = (x.argmax(-1).reshape(len(batch), -1) for x in (actual, expected))
            same &= np.equal(*best).all(-1)
        agree += int(same.sum())
    operations = Counter(node.op_type for node in onnx.load(file).graph.node)
    return {
        "name": name,
        "megabytes": file.stat().st_size / 1e6,
        "operations": sum(operations.values()),
        "kinds": operations,
        "difference": float(max(differences)),
        "agree": agree,
    }


def main(names: list[str]) -> None:
    print("| network | file, MB | operations | difference | same answers |")
    print("| --- | --- | --- | --- | --- |")
    for name in names or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = compare(name, Path(folder))
            except Exception as error:  # noqa: BLE001 (it is the answer)
                print(f"| `{name}` | {type(error).__name__}: {error} |", flush=True)
                continue
        print(
            f"| `{name}` | {row['megabytes']:.1f} | {row['operations']} | {row['difference']:.1e} "
            f"| {row['agree']} of {COUNT} |",
            flush=True,
        )
        if "-v" in sys.argv:
            print(row["kinds"])


if __name__ == "__main__":
    main([x for x in sys.argv[1:] if x != "-v"])
