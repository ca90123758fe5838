import cv2
import numpy as np
import pytest
from PIL import Image

from flaxcnn.data.images import fit_image, probe_image, read_image
from flaxcnn.errors import UserError

WHOLE = ((), "crop", 0)  # as the file is


@pytest.fixture
def photo():
    """uint8 [24, 32, 3], smooth enough for lossy formats."""
    corners = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(corners, (32, 24), interpolation=cv2.INTER_LINEAR)


def save(path, pixels, **kwargs):
    Image.fromarray(pixels).save(path, **kwargs)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp"])
def test_lossless_formats_are_exact(tmp_path, photo, name):
    path = save(tmp_path / name, photo)
    np.testing.assert_array_equal(read_image(path, *WHOLE), photo)
    assert probe_image(path) == (24, 32, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_lossy_formats_are_close(tmp_path, photo, name):
    path = save(tmp_path / name, photo, quality=95)
    image = read_image(path, *WHOLE)
    assert image.dtype == np.uint8 and image.shape == photo.shape
    assert np.abs(image.astype(int) - photo).mean() < 4


def test_agrees_with_opencv_on_jpeg(tmp_path, photo):
    path = save(tmp_path / "a.jpg", photo)
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(read_image(path, *WHOLE).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_grey_stays_grey(tmp_path, photo, name):
    grey = np.ascontiguousarray(photo[:, :, 0])
    path = save(tmp_path / name, grey)
    image = read_image(path, *WHOLE)
    assert image.shape == (24, 32, 1)
    assert np.abs(image[:, :, 0].astype(int) - grey).max() <= (12 if name == "a.jpg" else 0)
    assert probe_image(path) == (24, 32, 1)


def test_channels_are_converted(tmp_path, photo):
    colour = save(tmp_path / "colour.png", photo)
    luma = photo @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = read_image(colour, (), "crop", 1)
    assert grey.shape == (24, 32, 1) and np.abs(grey[:, :, 0] - luma).max() <= 1
    rgb = read_image(save(tmp_path / "grey.png", grey[:, :, 0]), (), "crop", 3)
    np.testing.assert_array_equal(rgb, np.repeat(grey, 3, axis=2))


def test_sixteen_bits_keep_the_high_byte(tmp_path, photo):
    deep = photo.astype(np.uint16) * 256 + 77
    cv2.imwrite(str(tmp_path / "grey.png"), deep[:, :, 0])
    cv2.imwrite(str(tmp_path / "colour.png"), deep[:, :, ::-1])
    grey = read_image(tmp_path / "grey.png", *WHOLE)
    np.testing.assert_array_equal(grey[:, :, 0], photo[:, :, 0])
    assert probe_image(tmp_path / "grey.png") == (24, 32, 1)
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png", *WHOLE), photo)


def test_transparent_pixels_are_white(tmp_path, photo):
    alpha = np.zeros((24, 32, 1), np.uint8)
    alpha[:, 16:] = 255
    alpha[:, 15] = 128
    image = read_image(save(tmp_path / "a.png", np.dstack([photo, alpha])), *WHOLE)
    assert image.shape == (24, 32, 3)
    assert (image[:, :15] == 255).all()
    np.testing.assert_array_equal(image[:, 16:], photo[:, 16:])
    half = photo[:, 15] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(image[:, 15] - half).max() <= 1
    grey_alpha = np.dstack([photo[:, :, 0], alpha[:, :, 0]])
    grey = read_image(save(tmp_path / "la.png", grey_alpha), *WHOLE)
    assert grey.shape == (24, 32, 1) and (grey[:, :15] == 255).all()


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=b"\x00")
    pixels = read_image(tmp_path / "a.png", *WHOLE)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 1].tolist() == [10, 20, 30]


# How the stored array must be turned to be upright, by the EXIF standard's table.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_camera_orientation_is_applied(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = read_image(save(tmp_path / "plain.jpg", photo), *WHOLE)
    turned = save(tmp_path / "turned.jpg", photo, exif=exif)
    np.testing.assert_array_equal(read_image(turned, *WHOLE), TURNS[orientation](plain))
    assert probe_image(turned) == (*TURNS[orientation](plain).shape[:2], 3)


@pytest.mark.parametrize(
    ("suffix", "kwargs"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("webp", {}), ("bmp", {})],
)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_truncated_file_is_named_in_one_line(tmp_path, photo, suffix, kwargs, keep):
    path = save(tmp_path / f"cut.{suffix}", photo, **kwargs)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=r"cut\.\w+ is damaged") as caught:
        read_image(path, *WHOLE)
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_jpeg_without_its_last_bytes_is_damaged_and_with_more_is_not(tmp_path, photo):
    path = save(tmp_path / "a.jpg", photo)
    data = path.read_bytes()
    path.write_bytes(data + b"appended by a camera")
    assert read_image(path, *WHOLE).shape == photo.shape
    path.write_bytes(data[:-2])
    with pytest.raises(UserError, match="damaged"):
        read_image(path, *WHOLE)


def test_other_files_are_named(tmp_path, photo):
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(photo).save(tmp_path / "really_a_gif.jpg", format="GIF")
    for name in ("text.jpg", "really_a_gif.jpg"):
        with pytest.raises(UserError, match=f"{name} is damaged, or not a JPEG"):
            read_image(tmp_path / name, *WHOLE)
        with pytest.raises(UserError, match=name):
            probe_image(tmp_path / name)
    with pytest.raises(UserError, match="none.jpg: No such file"):
        read_image(tmp_path / "none.jpg", *WHOLE)


def test_crop_takes_the_centre_of_the_shorter_side():
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 200  # the middle square
    np.testing.assert_array_equal(
        fit_image(image, (20, 20), "crop", 3), np.full((20, 20, 3), 200, np.uint8)
    )
    upright = image.swapaxes(0, 1)
    assert (fit_image(upright, (20, 20), "crop", 3) == 200).all()


def test_pad_keeps_everything_and_adds_black():
    image = np.full((20, 60, 3), 200, np.uint8)
    padded = fit_image(image, (30, 30), "pad", 3)
    assert (padded[10:20] == 200).all() and padded[10:20].shape == (10, 30, 3)
    assert (padded[:10] == 0).all() and (padded[20:] == 0).all()
    grey = fit_image(image[:, :, 0], (30, 30), "pad", 1)
    np.testing.assert_array_equal(grey[:, :, 0], padded[:, :, 0])


def test_stretch_ignores_proportions():
    image = np.zeros((10, 40), np.uint8)
    image[:, 20:] = 100
    stretched = fit_image(image, (8, 8), "stretch", 0)
    assert (stretched[:, :4] == 0).all() and (stretched[:, 4:] == 100).all()


def test_shrinking_averages_areas():
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    means = image.reshape(3, 4, 4, 4, 3).mean(axis=(1, 3))
    for resize in ("crop", "stretch", "pad"):
        assert np.abs(fit_image(image, (3, 4), resize, 3) - means).max() <= 0.51


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (33, 32), (31, 57)])
@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_any_size_comes_to_size(resize, shape, size):
    image = np.full((*shape, 3), 90, np.uint8)
    fitted = fit_image(image, size, resize, 3)
    assert fitted.shape == (*size, 3) and fitted.dtype == np.uint8
    if resize != "pad":
        assert (fitted == 90).all()
