"""What detectors of two stages share: proposals, what is sampled of them, what is found in them."""

import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcnn.boxes import (
    Detections,
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    detect,
    make_anchors,
    match_by_overlap,
    sample_balanced,
)
from flaxcnn.boxes.coding import BOX_WEIGHTS
from flaxcnn.errors import UserError
from flaxcnn.layers import roi_align
from flaxcnn.models._backbone import BackboneNetwork
from flaxcnn.models._images import check_images
from flaxcnn.models._rpn import Proposals, RPNHead, propose

Array = jax.Array

Size = tuple[int, int]  # height, width

LEAST_SIDE = 1e-2  # pixels; what is smaller is not found


class TwoStageOutputs(NamedTuple):
    """What a detector of two stages returns; all are float32 but where it is said.

    P are all anchors, R the proposals, or in training those that were sampled, positives first.
    Masks are those of the detections, [N, K, 28, 28], in training of the first proposals, which
    all positives are among, for every class: [N, positive_share * R, 28, 28, 1 + num_classes].
    """

    objectness: Array  # [N, P], a logit
    anchor_offsets: Array  # [N, P, 4], by `encode_boxes`
    anchors: Array  # [N, P, 4]
    proposals: Array  # [N, R, 4]
    valid: Array  # bool [N, R]
    matched: Array | None  # int32 [N, R], in training: the box of a proposal, or -1: background
    logits: Array  # [N, R, 1 + num_classes]; class 0 is the background
    box_offsets: Array  # [N, R, 1 + num_classes, 4], by `encode_boxes` with BOX_WEIGHTS
    masks: Array | None  # logits, see below
    detections: Detections | None  # not in training: K of each image, labels from 0


class TwoStageDetector(BackboneNetwork, kw_only=True):
    """Attributes of all forms; "(a, b)" are two numbers, in training and otherwise.

    Attributes:
      anchor_sizes: roots of the anchors' areas in pixels: one on each of the maps, or all on one.
      anchor_ratios: of each, heights over widths.
      before_nms: (a, b) anchors, the likeliest of each map, that are looked at.
      num_proposals: (a, b) of an image.
      rpn_iou: the overlap of proposals above which the less likely one goes.
      num_samples: proposals of an image that the second stage is trained on.
      positive_share: of them, at most.
      score_threshold: what is not above it is not found.
      iou_threshold: the overlap of objects of a class above which the less sure one goes.
      max_detections: K, of an image.
    """

    anchor_sizes: tuple[float, ...]
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    before_nms: tuple[int, int] = (2000, 1000)
    num_proposals: tuple[int, int] = (2000, 1000)
    rpn_iou: float = 0.7
    num_samples: int = 512
    positive_share: float = 0.25
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100

    softmax_rpn: ClassVar[bool] = False  # two scores for each anchor (`RPNHead`)

    def find_maps(self, images: Array, train: bool) -> tuple[Array, ...]:
        """The maps that anchors are on."""
        raise NotImplementedError

    def describe_regions(
        self, maps: tuple[Array, ...], boxes: Array, valid: Array, image_size: Size, train: bool
    ) -> Array:
        """What the second stage sees in boxes [N, R, 4]: vectors [N, R, F]."""
        raise NotImplementedError

    def draw_masks(
        self, maps: tuple[Array, ...], boxes: Array, valid: Array, image_size: Size
    ) -> Array | None:
        """Logits of masks in boxes [N, R, 4]: [N, R, 28, 28, 1 + num_classes], or None."""
        return None

    @nn.compact
    def __call__(
        self,
        images: Array,
        boxes: Array | None = None,
        boxes_valid: Array | None = None,
        *,
        train: bool,
    ) -> TwoStageOutputs:
        """Finds objects in images [N, H, W, C].

        Training needs the true boxes, [N, M, 4] and bool [N, M]: they become proposals, too, and
        tell positives (an overlap of 0.5 or more) from the rest. What is sampled depends on the
        "dropout" key. Raises UserError where they are missing.
        """
        check_images(images, 1, self)
        size = _size(images)
        maps = self.find_maps(images, train)
        first = RPNHead(self._count_anchors(maps), self.softmax_rpn, dtype=self.dtype, name="rpn")
        objectness, anchor_offsets = first(maps)
        anchors = self._make_anchors(size, maps)
        proposals = propose(
            objectness,
            anchor_offsets,
            anchors,
            size,
            before=self.before_nms[not train],
            count=self.num_proposals[not train],
            iou_threshold=self.rpn_iou,
        )
        matched = detections = None
        if train:
            if boxes is None or boxes_valid is None:
                raise UserError(f"{type(self).__name__} needs the true boxes to be trained")
            proposals, matched = self._sample(proposals, boxes, boxes_valid)
        x = self.describe_regions(maps, *proposals, size, train)
        logits, offsets = self._classify(x)
        if matched is not None:
            most = int(self.num_samples * self.positive_share)
            regions = (proposals.boxes[:, :most], (matched >= 0)[:, :most])
        else:
            detections = self._detect(proposals, logits, offsets, size)
            regions = (detections.boxes, detections.valid)
        masks = self.draw_masks(maps, *regions, size)
        if masks is not None and detections is not None:
            chosen = jax.nn.one_hot(1 + detections.labels, masks.shape[-1])
            masks = jnp.einsum("nrhwc,nrc->nrhw", masks, chosen, precision="highest")
        every = np.concatenate(anchors)
        return TwoStageOutputs(
            jnp.concatenate(objectness, 1),
            jnp.concatenate(anchor_offsets, 1),
            jnp.broadcast_to(every[None], (images.shape[0], *every.shape)),
            *proposals,
            matched,
            logits,
            offsets,
            masks,
            detections,
        )

    def _classify(self, x: Array) -> tuple[Array, Array]:
        """The last layers: vectors [N, R, F] to logits [N, R, K] and offsets [N, R, K, 4]."""
        classes = 1 + self.num_classes
        logits = nn.Dense(classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(x)
        boxes = nn.Dense(4 * classes, kernel_init=nn.initializers.normal(0.001), name="boxes")(x)
        boxes = boxes.reshape(*x.shape[:2], classes, 4)
        return logits.astype(jnp.float32), boxes.astype(jnp.float32)

    def _count_anchors(self, maps: tuple[Array, ...]) -> int:
        """Anchors at a place."""
        return len(self.anchor_ratios) * (len(self.anchor_sizes) if len(maps) == 1 else 1)

    def _make_anchors(self, size: Size, maps: tuple[Array, ...]) -> list[np.ndarray]:
        if len(maps) == 1:  # which may reach beyond the image
            rows, columns = _size(maps[0])
            stride = 2 ** round(math.log2(size[0] / rows))
            whole = (stride * rows, stride * columns)
            return make_anchors(whole, [(rows, columns)], [self.anchor_sizes], self.anchor_ratios)
        if len(self.anchor_sizes) != len(maps):
            raise UserError(
                f"{type(self).__name__}: {len(maps)} maps need as many anchor_sizes, got "
                f"{len(self.anchor_sizes)}"
            )
        sizes = [(x,) for x in self.anchor_sizes]
        return make_anchors(size, [_size(x) for x in maps], sizes, self.anchor_ratios)

    def _sample(
        self, proposals: Proposals, boxes: Array, boxes_valid: Array
    ) -> tuple[Proposals, Array]:
        """Draws `num_samples` of the proposals and true boxes: they, and the box of each or -1."""
        boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
        # An image draws by its place in the whole batch, however that is divided.
        places = jnp.arange(len(boxes))
        if self.axis_name is not None and not self.is_initializing():
            places += len(boxes) * jax.lax.axis_index(self.axis_name)
        keys = jax.vmap(functools.partial(jax.random.fold_in, self.make_rng("dropout")))(places)

        def draw(key: Array, found: Proposals, boxes: Array, valid: Array) -> Any:
            every = jnp.concatenate([found.boxes, boxes])
            counts = jnp.concatenate([found.valid, valid])
            matches = match_by_overlap(box_iou(boxes, every), valid, 0.5, 0.5)
            positive = counts & (matches >= 0)
            sample = sample_balanced(
                key, positive, counts & ~positive, self.num_samples, self.positive_share
            )
            matched = jnp.where(sample.positive, matches[sample.indices], -1)
            chosen = every[sample.indices] * sample.valid[:, None]
            return Proposals(chosen, sample.valid), matched

        return jax.vmap(draw)(keys, proposals, boxes, boxes_valid)

    def _detect(
        self, proposals: Proposals, logits: Array, offsets: Array, size: Size
    ) -> Detections:
        """What is found in the proposals, by class."""

        def find(found: Proposals, logits: Array, offsets: Array) -> Detections:
            scores = jax.nn.softmax(logits)[:, 1:]
            boxes = decode_boxes(offsets[:, 1:], found.boxes[:, None], BOX_WEIGHTS)
            boxes = clip_boxes(boxes, size)
            large = ((boxes[..., 2:] - boxes[..., :2]) >= LEAST_SIDE).all(-1)
            scores = jnp.where(large & found.valid[:, None], scores, 0)
            return detect(
                boxes,
                scores,
                iou_threshold=self.iou_threshold,
                score_threshold=self.score_threshold,
                max_outputs=self.max_detections,
            )

        stopped = jax.lax.stop_gradient((proposals, logits, offsets))
        return jax.vmap(find)(*stopped)


def align_on_pyramid(
    maps: tuple[Array, ...],
    boxes: Array,
    valid: Array,
    side: int,
    image_size: Size,
) -> Array:
    """RoIAlign of each box [N, R, 4] on the one of the maps that suits its size: [N, R, s, s, C].

    A box of 224 x 224 pixels is seen on the map of stride 16, one of half the sides on the one
    before (Lin et al. 2017, equation 1); two samples of each bin, not aligned, as torchvision's.
    """
    strides = [2 ** round(math.log2(image_size[0] / x.shape[1])) for x in maps]
    first, last = (int(math.log2(s)) for s in (strides[0], strides[-1]))
    root = jnp.sqrt(jnp.maximum(box_area(boxes), 0))
    wanted = jnp.floor(4 + jnp.log2(root / 224) + 1e-6)
    level = jnp.clip(wanted, first, last)
    pooled = [
        roi_align(x, boxes, (side, side), 1 / stride, valid=valid & (level == first + i))
        for i, (x, stride) in enumerate(zip(maps, strides, strict=True))
    ]
    return functools.reduce(jnp.add, pooled)


def _size(maps: Array) -> Size:
    _, height, width, _ = maps.shape
    return height, width
