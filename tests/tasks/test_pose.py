"""Pose: PCK, PCKh and PCP on bodies counted by hand, the loss, DeepPose and its cascade."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from overfit import overfit

from flaxcnn.data.geometry import sample_image
from flaxcnn.data.splits import ArraySplit
from flaxcnn.data.targets import Keypoints
from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.models.deeppose import crop_around
from flaxcnn.tasks.pose import Pose
from flaxcnn.tasks.pose_measures import measure_pck, measure_pcp, measure_torsos
from flaxcnn.tasks.task import Examples, Setting

NAMES = ("r_hip", "l_shoulder", "neck", "head_top")
LIMBS = ((0, 1), (2, 3))
TASK = Pose(NAMES, (40, 80), LIMBS, ((0.5, 0.5),) * 4)
# Two bodies: torsos of 10 and 20 pixels (a 6-8-10 triangle), heads of 4 and 8.
TRUE = np.array(
    [[[10, 20], [16, 12], [14, 10], [14, 6]], [[40, 30], [52, 14], [46, 12], [46, 4]]], np.float32
)
OFF = np.array(  # how far each joint is predicted from its place
    [[[2, 0], [0, 2.1], [1, 0], [2.1, 0]], [[0, -4], [3, 4], [0, 0], [0, 3.9]]], np.float32
)
SEEN = np.ones((2, 4), bool)


def test_pck_counts_joints_within_a_fifth_of_the_torso():
    torso = measure_torsos(TRUE, SEEN, NAMES)
    np.testing.assert_allclose(torso, [10, 20])
    # Within 2 and 4: r_hip both, l_shoulder none (2.1; 5), neck both, head_top the second.
    pck = measure_pck(TRUE + OFF, TRUE, SEEN, torso, 0.2)
    np.testing.assert_allclose(pck, [1, 0, 1, 0.5, 5 / 8])
    unseen = SEEN.copy()
    unseen[0, 1] = False  # the first body has no torso now
    torso = measure_torsos(TRUE, unseen, NAMES)
    assert np.isnan(torso[0])
    np.testing.assert_allclose(
        measure_pck(TRUE + OFF, TRUE, unseen, torso, 0.2), [1, 0, 1, 1, 3 / 4]
    )
    # Without names of a torso: the longer side of the box around the joints, 14 and 26.
    np.testing.assert_allclose(measure_torsos(TRUE, SEEN, ("a", "b", "c", "d")), [14, 26])
    nobody = np.zeros_like(SEEN)
    scale = measure_torsos(TRUE, nobody, ("a", "b", "c", "d"))
    assert np.isnan(scale).all() and np.isnan(measure_pck(TRUE, TRUE, nobody, scale, 0.2)).all()


def test_pcp_asks_both_ends_of_a_limb():
    # Torsos within 5 and 10: both. Heads within 2 and 4: the first has an end 2.1 away.
    np.testing.assert_allclose(measure_pcp(TRUE + OFF, TRUE, SEEN, LIMBS), [1, 0.5, 0.75])
    far = OFF.copy()
    far[1, 1] = [10.1, 0]
    np.testing.assert_allclose(measure_pcp(TRUE + far, TRUE, SEEN, LIMBS), [0.5, 0.5, 0.5])


def outputs_for(points):
    """What a network says for points of 40x80 images: from the centre, as shares."""
    return (points / [80, 40] - 0.5).reshape(len(points), -1).astype(np.float32)


def test_the_loss_is_over_visible_joints():
    targets = Keypoints(TRUE, np.array([[True] * 4, [True, True, False, False]]))
    outputs = outputs_for(TRUE + OFF)
    squares = ((OFF / [80, 40]) ** 2).sum(-1)
    expected = [squares[0].mean(), squares[1, :2].mean()]
    np.testing.assert_allclose(jax.jit(TASK.losses)(outputs, targets), expected, rtol=1e-3)
    both = np.concatenate([outputs_for(TRUE + 2 * OFF), outputs], axis=-1)
    np.testing.assert_allclose(
        jax.jit(TASK.losses)(both, targets), 5 * np.array(expected), rtol=1e-3
    )
    gone = Keypoints(0 * TRUE, np.zeros((2, 4), bool))
    np.testing.assert_array_equal(jax.jit(TASK.losses)(outputs, gone), 0)
    # Smooth L1 of shares below 0.1 is a square over 0.2.
    smooth = Pose(NAMES, (40, 80), loss="smooth_l1").losses(
        outputs[:1], Keypoints(TRUE[:1], SEEN[:1])
    )
    error = np.abs(OFF[0] / [80, 40])
    assert error.max() < 0.1
    np.testing.assert_allclose(smooth, [(error**2 / 0.2).sum() / 4], rtol=1e-3)


def test_the_report_stands_beside_the_mean_pose():
    targets = Keypoints(TRUE, SEEN, (), LIMBS)
    counts = Pose.count(ArraySplit(np.zeros((2, 40, 80, 1), np.uint8), targets), 4)
    task = Pose.make(Setting(NAMES, (40, 80, 1), counts=counts))
    mean = TRUE.mean(0)
    np.testing.assert_allclose(task.mean_pose, mean / [80, 40], atol=1e-6)
    assert task.limbs == LIMBS
    outputs = np.concatenate([outputs_for(TRUE + OFF), outputs_for(TRUE)], axis=-1)
    arrays = jax.jit(lambda x, y: {**task.predict(x), **task.expected(y)})(outputs, targets)
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    report = task.report({}, arrays)
    first, last = report["stages"]
    assert first == {"pck": 5 / 8, "pckh": 5 / 8, "pcp": 3 / 4}
    assert last == {"pck": 1, "pckh": 1, "pcp": 1} and report["pck"] == 1
    assert report["mean_pose"]["pck"] == 0
    assert [row["name"] for row in report["limbs"]] == ["r_hip-l_shoulder", "neck-head_top"]
    text = task.format(report)
    assert text.splitlines()[-2].split() == ["stage", "2", "1.0000", "1.0000", "1.0000"]
    images = np.zeros((2, 40, 80, 3), np.uint8)
    examples = Examples(arrays, ["a", "b"], "test", lambda indices: images[indices])
    figure = task.draw("joints.png", examples)
    assert len(figure.axes[0].lines) == 2 * (len(LIMBS) + 1)


def test_answers_go_back_to_the_image_and_are_drawn():
    answer = {"points": np.asarray(jax.jit(TASK.answer)(outputs_for(TRUE))["points"])[0]}
    np.testing.assert_allclose(answer["points"], TRUE[0], atol=1e-4)
    matrix = np.array([[2, 0, -4], [0, 2, 6], [0, 0, 1]], np.float32)
    fitted = TASK.fit_answer(answer, matrix, (100, 160))
    np.testing.assert_allclose(fitted["points"], 2 * TRUE[0] + [-4, 6], atol=1e-3)
    (entry,) = TASK.describe(fitted, 5)
    assert TASK.format_entry(entry).startswith("r_hip (16, 46), l_shoulder (28, 30)")
    drawn = TASK.annotate(np.zeros((100, 160, 1), np.uint8), fitted)
    assert drawn.shape == (100, 160, 3) and drawn[46, 16].any() and drawn[38, 22].any()
    assert not drawn[80, 100].any()


def test_mistakes_are_told_in_one_line():
    for shape in ((1, 10), (1, 40, 80, 8)):
        with pytest.raises(UserError, match=r"needs outputs \[N, 8\], x and y of 4 joints"):
            TASK.check(jax.ShapeDtypeStruct(shape, jnp.float32))
    with pytest.raises(UserError, match="needs data with keypoints"):
        Pose.make(Setting((), (40, 80, 3)))
    with pytest.raises(UserError, match="loss must be one of l2, smooth_l1, l1, got 'l3'"):
        Pose.make(Setting(NAMES, (40, 80, 3)), loss="l3")
    with pytest.raises(UserError, match="needs data with keypoints"):
        Pose.count(ArraySplit(np.zeros((2, 4, 8, 1), np.uint8), np.int32([0, 1])), 2)


@pytest.mark.parametrize(("name", "params"), [("deeppose", 58_396_060), ("deeppose_cascade", None)])
def test_the_paper_s_network_has_the_paper_s_size(name, params):
    """The reference table's `deeppose` and `alexnet_pose28`; the cascade is two of them."""
    from counting import count_multiply_adds, count_values

    of, model = variant(name), create_model(name)
    images = jax.ShapeDtypeStruct((1, *of.input_shape), jnp.float32)
    jaxpr, (outputs, variables) = jax.make_jaxpr(
        lambda key, x: model.init_with_output(key, x, train=False), return_shape=True
    )(jax.random.key(0), images)
    assert count_values(variables["params"]) == of.params == (params or 2 * 58_396_060)
    assert outputs.shape == (1, 28 if params else 56)
    products = 14 * 3 * 220 * 220 * (220 + 220)  # that cut the crops out
    expected = 1_131_274_784 if params else 15 * 1_131_274_784
    assert of.macs == expected
    assert count_multiply_adds(jaxpr.jaxpr) == expected + (0 if params else products)
    assert variant("alexnet_pose28") is variant("deeppose")


def test_crops_are_what_sampling_at_each_pixel_gives():
    image = jax.random.uniform(jax.random.key(0), (20, 30, 2))
    centres = np.float32([[0, 0], [0.3, -0.25], [-0.45, 0.4]])
    crops = jax.jit(lambda x, c: crop_around(x, c, share=0.4, side=7))(image, centres)
    assert crops.shape == (3, 7, 7, 2)
    steps = ((np.arange(7) + 0.5) / 7 - 0.5) * 0.4 + 0.5
    at = (centres[:, :, None] + steps) * [[[30], [20]]]
    sample = jax.jit(lambda x, at: sample_image(image, at[0][None, :], at[1][:, None], fill=0))
    for crop, place in zip(crops, at.astype(np.float32), strict=True):
        np.testing.assert_allclose(crop, sample(image, place), atol=1e-5)


def make_bodies():
    """Four images of four dots each, in greys of their own."""
    rng = np.random.default_rng(0)
    points = rng.integers(4, 28, (4, 4, 2))
    images = np.zeros((4, 32, 32, 1), np.float32)
    for image, of_image in zip(images, points, strict=True):
        for k, (x, y) in enumerate(of_image):
            image[y - 2 : y + 2, x - 2 : x + 2] = 0.4 + 0.2 * k
    return images, Keypoints(points.astype(np.float32), np.ones((4, 4), bool), (), LIMBS)


def test_four_images_are_learnt_by_heart():
    images, targets = make_bodies()
    loss, _ = overfit(Pose(NAMES, (32, 32), LIMBS), images, targets)
    assert loss < 1e-4


def test_the_second_stage_learns_what_the_first_leaves():
    """A first stage without kernels can only say where joints are on average."""
    images, targets = make_bodies()
    model = create_model(
        "deeppose_cascade",
        num_classes=8,
        first="mnist_cnn_chollet",
        second="mnist_mlp_512",
        first_kwargs={"maps": ("pool",) * 5, "hidden": ()},
        second_kwargs={"hidden": (64,)},
        share=0.9,
        crop=16,
        jitter=0.02,
    )
    task = Pose(NAMES, (32, 32), LIMBS)
    _, outputs = overfit(task, images, targets, model=model)
    points = (np.asarray(outputs).reshape(4, 2, 4, 2) + 0.5) * 32
    distance = np.linalg.norm(points - targets.points[:, None], axis=-1)  # [N, stages, K]
    first, second = distance.mean((0, 2))
    assert second < 1 < first / 2
