import cv2
import numpy as np
import pytest
from PIL import Image, features

from flaxcnn.data.images import find_scale, fit_image, fit_matrix, probe_image, read_image
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


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.TIFF"])
def test_lossless_formats_are_exact(tmp_path, photo, name):
    path = save(tmp_path / name, photo)
    np.testing.assert_array_equal(read_image(path, *WHOLE), photo)
    assert probe_image(path) == (24, 32, 3)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPEG", "a.jfif", "a.webp"] + ["a.avif"] * features.check("avif")
)
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


@pytest.mark.parametrize("orientation", [0, 9, 3000])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_orientations_that_do_not_exist_turn_nothing(tmp_path, photo, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = read_image(save(tmp_path / f"plain.{suffix}", photo), *WHOLE)
    noted = save(tmp_path / f"noted.{suffix}", photo, exif=exif)
    np.testing.assert_array_equal(read_image(noted, *WHOLE), plain)
    assert probe_image(noted) == (24, 32, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_note_turns_nothing(tmp_path, photo):
    for suffix in ("jpg", "png"):
        plain = read_image(save(tmp_path / f"plain.{suffix}", photo), *WHOLE)
        noted = save(tmp_path / f"noted.{suffix}", photo, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01")
        np.testing.assert_array_equal(read_image(noted, *WHOLE), plain)
        assert probe_image(noted) == (24, 32, 3)


@pytest.mark.parametrize("orientation", TURNS)
def test_tiff_is_turned_once(tmp_path, photo, orientation):
    path = save(tmp_path / "a.tif", photo, tiffinfo={0x0112: orientation})
    np.testing.assert_array_equal(read_image(path, *WHOLE), TURNS[orientation](photo))
    assert probe_image(path) == (*TURNS[orientation](photo).shape[:2], 3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_taken(tmp_path, suffix):
    red, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    kwargs = {"lossless": True} if suffix == "webp" else {}
    red.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[blue], **kwargs)
    image = read_image(tmp_path / f"a.{suffix}", *WHOLE)
    assert image.shape == (6, 8, 3) and (image == (255, 0, 0)).all()


def test_cmyk_and_deep_kinds(tmp_path, photo):
    ink = Image.fromarray(photo).convert("CMYK")
    ink.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", *WHOLE), photo)
    ink.save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg", *WHOLE)
    expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(image.astype(int) - expected).max() <= 4
    assert np.abs(image.astype(int) - photo).mean() < 4
    deep = photo.astype(np.uint16) * 256 + 77
    for suffix in ("png", "tif"):
        four = np.dstack([deep[:, :, ::-1], np.full((24, 32), 65535, np.uint16)])
        cv2.imwrite(str(tmp_path / f"four.{suffix}"), four)
        np.testing.assert_array_equal(read_image(tmp_path / f"four.{suffix}", *WHOLE), photo)
        cv2.imwrite(str(tmp_path / f"grey.{suffix}"), deep[:, :, 0])
        grey = read_image(tmp_path / f"grey.{suffix}", *WHOLE)
        np.testing.assert_array_equal(grey[:, :, 0], photo[:, :, 0])
        assert probe_image(tmp_path / f"grey.{suffix}") == (24, 32, 1)


@pytest.mark.parametrize(
    ("suffix", "kwargs"),
    [
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        *((suffix, {}) for suffix in ("png", "webp", "bmp", "gif", "tif")),
    ],
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


def test_other_files_say_what_they_are(tmp_path, photo, monkeypatch):
    def line(name):
        with pytest.raises(UserError) as caught:
            read_image(tmp_path / name, *WHOLE)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        if "more than 16" not in str(caught.value) and "large" not in str(caught.value):
            with pytest.raises(UserError, match=name):
                probe_image(tmp_path / name)
        return str(caught.value)

    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(photo).save(tmp_path / "really_a_ppm.jpg", format="PPM")
    for name in ("text.jpg", "really_a_ppm.jpg"):
        assert "is no JPEG, PNG, WebP, BMP, TIFF, GIF" in line(name) and "damaged" not in line(name)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "is a HEIC image, which cannot be read" in line("a.jpg")
    assert line("none.jpg").endswith("none.jpg: No such file or directory")
    (tmp_path / "folder.png").mkdir()
    assert line("folder.png").endswith("folder.png: Is a directory")
    cv2.imwrite(str(tmp_path / "float.tif"), photo.astype(np.float32)[..., 0] / 255)
    cv2.imwrite(str(tmp_path / "deep.tif"), photo[..., 0].astype(np.int32) << 20)
    for name, reason in (("float.tif", "floating-point"), ("deep.tif", "more than 16 bits")):
        with pytest.raises(UserError, match=f"{name} cannot be read: .*{reason}"):
            read_image(tmp_path / name, *WHOLE)
    save(tmp_path / "wide.png", np.zeros((1, 40_000, 3), np.uint8))
    with pytest.raises(UserError, match="wide.png is too large or too narrow"):
        read_image(tmp_path / "wide.png", (3000, 8), "crop", 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "wide.png is too large: Image size (40000 pixels) exceeds limit" in line("wide.png")
    monkeypatch.setattr(Image, "open", lambda *_, **__: open("x", opener=_denied))
    with pytest.raises(UserError, match=r"text.jpg: Permission denied$"):
        read_image(tmp_path / "text.jpg", *WHOLE)


def _denied(path, flags):
    raise PermissionError(13, "Permission denied", path)


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "really_a_png.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "really_a_png.jpg", *WHOLE), photo)


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


def draw_rectangle(shape):
    """A white rectangle near the middle of a black image, and its corners (x, y)."""
    height, width = shape
    left, top, right, bottom = width * 3 // 8, height * 3 // 8, width * 5 // 8, height * 11 // 16
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    return image, np.array([[left, top], [right, bottom]])


def find_rectangle(image):
    """The corners of the bright part to a fraction of a pixel, from its centre and its sides."""
    light = image[..., 0] / 255
    corners = []
    for profile in (light.max(axis=0), light.max(axis=1)):
        centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
        corners.append((centre - profile.sum() / 2, centre + profile.sum() / 2))
    return np.transpose(corners)


def move_points(points, matrix):
    return (np.float64(matrix) @ np.c_[points, np.ones(len(points))].T)[:2].T


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(64, 64), (61, 83), (200, 120), (33, 40), (40, 33)])
@pytest.mark.parametrize("size", [(64, 64), (47, 60), (60, 47), (61, 82)])
def test_the_matrix_says_where_fitting_takes_a_point(resize, shape, size):
    image, corners = draw_rectangle(shape)
    matrix = fit_matrix(shape, size, resize)
    assert matrix.dtype == np.float32
    found = find_rectangle(fit_image(image, size, resize, 3))
    np.testing.assert_allclose(move_points(corners, matrix), found, atol=0.2)


def test_an_image_that_keeps_its_size_keeps_its_points():
    for size in ((), (24, 32)):
        np.testing.assert_array_equal(fit_matrix((24, 32), size, "crop"), np.eye(3))


@pytest.mark.parametrize("orientation", [3, 5, 6])
def test_the_matrix_begins_at_the_upright_image(tmp_path, orientation):
    stored, _ = draw_rectangle((48, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", stored, exif=exif)
    upright = find_rectangle(TURNS[orientation](stored))
    matrix = fit_matrix(probe_image(path)[:2], (40, 40), "pad")
    found = find_rectangle(read_image(path, (40, 40), "pad", 3))
    np.testing.assert_allclose(move_points(upright, matrix), found, atol=0.2)


@pytest.fixture
def large(tmp_path):
    """A JPEG file of 203x301 pixels, smooth, and its pixels."""
    corners = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels = cv2.resize(corners, (301, 203), interpolation=cv2.INTER_CUBIC)
    return save(tmp_path / "large.jpg", pixels, quality=95), pixels


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(150, 150), (96, 96), (48, 64), (20, 24), (203, 400)])
def test_fast_reading_decodes_a_part_of_the_size_and_shows_the_same(large, resize, size):
    fast, slow = (read_image(large[0], size, resize, 3, fast=fast) for fast in (True, False))
    assert fast.shape == slow.shape == (*size, 3)
    difference = np.abs(fast.astype(int) - slow)
    assert difference.mean() < 1.5 and np.percentile(difference, 99) < 12


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(96, 96), (48, 64), (20, 24), (7, 9)])
def test_fast_reading_moves_nothing(tmp_path, resize, size):
    ramp = np.add.outer(np.linspace(0, 100, 203), np.linspace(0, 140, 301)).astype(np.uint8)
    path = save(tmp_path / "ramp.jpg", ramp, quality=95)
    fast, slow = (read_image(path, size, resize, 1, fast=fast) for fast in (True, False))
    difference = fast[1:-1, 1:-1].astype(float) - slow[1:-1, 1:-1]
    # A tenth of the distance between pixels would be 1.0 to 3.6 at the smallest size.
    assert abs(difference.mean()) < 0.5 and np.abs(difference).max() <= 2


def test_fast_reading_decodes_no_more_than_it_needs(large, monkeypatch):
    shapes = []
    for name in ("resize", "warpAffine"):
        made = getattr(cv2, name)
        monkeypatch.setattr(
            cv2, name, lambda x, *a, made=made, **k: shapes.append(x.shape) or made(x, *a, **k)
        )
    for size in (150, 96, 48, 20):
        read_image(large[0], (size, size), "crop", 3, fast=True)
    # Never smaller than what is to be made of it: 203 / 2 = 101.5 is enough for 96.
    assert shapes == [(203, 301, 3), (102, 151, 3), (51, 76, 3), (26, 38, 3)]
    shapes.clear()
    read_image(large[0], (96, 96), "crop", 3)
    assert shapes == [(203, 301, 3)]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("shape", [(203, 301), (200, 304)])
def test_fast_reading_turns_the_image(tmp_path, large, shape, orientation):
    large = large[0], cv2.resize(large[1], shape[::-1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "turned.jpg", large[1], exif=exif, quality=95)
    turned = TURNS[orientation](large[1])
    expected = cv2.resize(turned, (40, 60), interpolation=cv2.INTER_AREA)
    found = read_image(path, (60, 40), "stretch", 3, fast=True)
    assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_fast_reading_is_as_strict(large, keep):
    data = large[0].read_bytes()
    large[0].write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=r"large\.jpg is damaged"):
        read_image(large[0], (20, 20), "crop", 3, fast=True)


def test_the_scale_of_decoding_is_enough_for_the_size():
    assert find_scale((375, 500), (224, 224), "crop") == 1
    assert find_scale((375, 500), (187, 187), "crop") == 2
    assert find_scale((375, 500), (188, 188), "crop") == 1
    assert find_scale((375, 500), (32, 32), "stretch") == 8
    assert find_scale((375, 500), (600, 600), "pad") == 1
    assert find_scale((375, 500), (), "crop") == 1
