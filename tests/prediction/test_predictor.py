"""The predictor takes an image of any size and kind and gives its scores."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import set_info

from anoseg_d2 import AnomalyPredictor
from anoseg_d2.data.image_io import read_image
from anoseg_d2.prediction.predictor import read_bgr


@pytest.fixture
def predictor(tiny_eomt):
    built = AnomalyPredictor.__new__(AnomalyPredictor)
    built.model = tiny_eomt(scores=("rba",)).eval()
    return built


def photo(height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "size", [(64, 64), (37, 64), (640, 64), (64, 640), (33, 32), (720, 1280)], ids=str
)
def test_every_size_comes_back_native(predictor, size):
    result = predictor(photo(*size))
    assert result["scores"]["rba"].shape == result["sem_seg"].shape == size
    assert (
        result["scores"]["rba"].dtype == np.float32 and np.isfinite(result["scores"]["rba"]).all()
    )
    assert result["confidence"].shape == size


def test_views_in_any_order_of_memory_are_taken(predictor):
    color = photo()
    expected = predictor(color)["scores"]["rba"]
    reversed_view = np.ascontiguousarray(color[..., ::-1])[..., ::-1]
    assert np.array_equal(predictor(reversed_view)["scores"]["rba"], expected)


def test_blue_comes_first(predictor):
    """The model is given RGB: swapping channels by hand must equal handing it RGB directly."""
    color = photo()
    rgb = torch.from_numpy(np.ascontiguousarray(color[..., ::-1].transpose(2, 0, 1)))
    with torch.no_grad():
        expected = predictor.model([{"image": rgb}])[0]["scores"]["rba"].numpy()
    assert np.array_equal(predictor(color)["scores"]["rba"], expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 40, 50), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
    ids=["float", "gray", "channels first", "empty", "batch"],
)
def test_odd_arrays_are_refused_with_what_to_do(image):
    with pytest.raises(ValueError, match=r"uint8, as cv2.imread gives it, not \("):
        read_bgr(image)


def test_photographs_turned_by_exif_come_out_upright(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255  # the left half is white
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise by 90 degrees for display
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.shape == (30, 20, 3)
    assert (image[:15] == 255).all() and (image[15:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"])
def test_files_of_every_mode_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I", "YCbCr") else "a.png")
    white = {"I;16": 65535, "I": 65535, "L": 255, "1": 1, "LA": (255, 9), "P": 200}
    value = white.get(mode, (255, 255, 255, 9)[: len(mode.strip(";16"))])
    if mode == "CMYK":
        value = (0, 0, 0, 0)
    if mode == "YCbCr":
        value = (255, 128, 128)
    Image.new(mode, (5, 4), value).save(path)
    image = read_image(path)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8
    if mode != "P":
        assert (image >= 254).all()


def test_images_of_floats_are_refused_rather_than_guessed(tmp_path):
    Image.new("F", (5, 4), 0.5).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="f.tif holds 32-bit floats"):
        read_image(tmp_path / "f.tif")


def test_pillow_images_of_16_bits_are_read_as_files_are(predictor):
    stored = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    expected = predictor(np.repeat((stored >> 8).astype(np.uint8)[..., None], 3, 2))["scores"]
    assert np.array_equal(predictor(Image.fromarray(stored))["scores"]["rba"], expected["rba"])
    with pytest.raises(ValueError, match="12 bits"):
        predictor(Image.fromarray(stored >> 4))


def test_the_device_argument_wins_over_the_config(tmp_path, tiny_cfg):
    """No test machine has cuda:7, so the config's device would be refused."""
    from anoseg_d2.checkpoint import model_meta
    from anoseg_d2.modeling import EoMT

    model, path = EoMT(tiny_cfg()), str(tmp_path / "tiny.pth")
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, path)
    cfg = tiny_cfg("MODEL.WEIGHTS", path, "MODEL.DEVICE", "cuda:7")
    elsewhere = ["MODEL.DEVICE", "cuda:7"]
    for predictor in (
        AnomalyPredictor(cfg, device="cpu"),
        AnomalyPredictor(cfg, device=torch.device("cpu")),
        AnomalyPredictor.from_pretrained(path, elsewhere, device="cpu"),
    ):
        assert predictor.model.device == torch.device("cpu")
        assert predictor.cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.DEVICE == "cuda:7"  # the caller's config is unchanged
    for refused in (
        lambda: AnomalyPredictor(cfg),
        lambda: AnomalyPredictor.from_pretrained(path, device="cuda:7"),
    ):
        with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:7'"):
            refused()


def test_a_misspelled_override_is_named(tmp_path, tiny_eomt):
    from anoseg_d2.checkpoint import model_meta

    model = tiny_eomt()
    path = tmp_path / "tiny.pth"
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, path)
    predictor = AnomalyPredictor.from_pretrained(str(path), ["TEST.ANOMALY.SCORES", ["rba"]])
    assert predictor.score_names == ["rba"]
    with pytest.raises(ValueError, match="did you mean TEST.WINDOW_OVERLAP"):
        AnomalyPredictor.from_pretrained(str(path), ["TEST.WINDOWS_OVERLAP", 0.5])


def test_paths_pil_images_and_lists_give_what_arrays_give(predictor, tmp_path):
    arrays = [photo(seed=seed) for seed in range(6)]
    expected = [predictor(array)["scores"]["rba"] for array in arrays]
    for index, array in enumerate(arrays):
        Image.fromarray(array[..., ::-1]).save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.glob("*.png"))
    given = {
        "list": predictor(arrays),
        "paths": predictor(paths),
        "strings": predictor([str(path) for path in paths]),
        "pil": predictor([Image.open(path) for path in paths]),
    }
    for way, results in given.items():
        assert len(results) == 6, way
        for result, score in zip(results, expected, strict=True):
            np.testing.assert_allclose(result["scores"]["rba"], score, atol=1e-6, err_msg=way)
    np.testing.assert_allclose(predictor(paths[0])["scores"]["rba"], expected[0], atol=1e-6)


@pytest.mark.parametrize("wrong", [3, (photo() for _ in range(2))], ids=["number", "generator"])
def test_what_is_not_an_image_is_refused(predictor, wrong):
    with pytest.raises(ValueError, match="an image is"):
        predictor(wrong)


def test_the_classes_of_a_checkpoint_have_their_names_and_colours(tmp_path, tiny_eomt):
    from anoseg_d2.checkpoint import model_meta

    model = tiny_eomt()
    set_info(model, class_names=["lawn", "path", "shed"])
    torch.save({"model": model.state_dict(), "meta": model_meta(model)}, tmp_path / "tiny.pth")
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path / "tiny.pth"))
    assert predictor.class_names == ["lawn", "path", "shed"]
    assert model_meta(predictor.model)["class_names"] == ["lawn", "path", "shed"]
    assert predictor.palette.shape == (256, 3)
