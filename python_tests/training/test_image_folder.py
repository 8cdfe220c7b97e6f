import numpy as np
import pytest
import torch
from PIL import Image

from fisherkernels import cli
from fisherkernels.training import ImageFolderDataModule


def write(path, size=(20, 30), color=None, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    color = color or tuple(np.random.default_rng(len(str(path))).integers(0, 256, bands).tolist())
    Image.new(mode, size, color if bands > 1 else color[0]).save(path)
    return path


def sizes(data):
    return [len(part) for part in (data.train_set, data.val_set, data.test_set)]


def test_a_flat_folder_is_split(tmp_path):
    for index in range(20):
        write(tmp_path / f"{index:02}.png", color=(index, 2 * index, 255 - index))
    (tmp_path / "notes.txt").write_text("no image")
    data = ImageFolderDataModule(str(tmp_path), batch_size=2, image_size=8, val_fraction=0.2)
    data.setup()
    assert sizes(data) == [14, 4, 2]
    images = torch.cat([part[:][0] for part in (data.train_set, data.val_set, data.test_set)])
    assert images.shape == (20, 3, 8, 8) and images.dtype == torch.float32
    expected = torch.tensor([[index, 2 * index, 255 - index] for index in range(20)]) / 255
    found = images[:, :, 0, 0][images[:, 0, 0, 0].argsort()]
    torch.testing.assert_close(found, expected)  # every image once
    assert data.train_set[:][1].unique().tolist() == [0]
    again = ImageFolderDataModule(str(tmp_path), image_size=8, val_fraction=0.2, seed=7)
    again.setup()
    assert torch.equal(again.test_set[:][0], data.test_set[:][0])  # whatever the seed


def test_the_middle_square_is_resized(tmp_path):
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 8:16] = 200  # the middle square; the rest must not show
    picture[:, 8:12, 0] = 100
    for name in ("a", "b", "c"):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    data = ImageFolderDataModule(str(tmp_path), batch_size=1, image_size=4)
    data.setup()
    image = (data.train_set[0][0] * 255).round()
    assert image[1:].unique().tolist() == [200]
    assert image[0, :, 0].tolist() == [100] * 4 and image[0, :, 3].tolist() == [200] * 4


def test_parts_and_classes_of_every_kind_of_file(tmp_path):
    files = {
        "train/cat/deep/1.JPG": "RGB", "train/dog/2.png": "RGBA", "train/emu/3.bmp": "L", "val/dog/4.tiff": "RGB",
        "test/cat/5.png": "P", "test/6.webp": "RGB",
    }  # fmt: skip
    for name, mode in files.items():
        write(tmp_path / name, mode=mode)
    data = ImageFolderDataModule(str(tmp_path), image_size=6, channels=1)
    data.setup()
    assert sizes(data) == [3, 1, 2]
    assert data.train_set[:][0].shape == (3, 1, 6, 6)
    assert data.class_names == {0: "cat", 1: "dog", 2: "emu"}
    assert [part[:][1].tolist() for part in (data.train_set, data.val_set)] == [[0, 1, 2], [1]]
    assert data.test_set[:][1].tolist() == [0, 0]  # 6.webp has no class


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root: expected a folder of images, received '.*nowhere'"):
        ImageFolderDataModule(str(tmp_path / "nowhere")).setup()
    with pytest.raises(FileNotFoundError, match=r"root: expected images \(.bmp, .jpeg.* found none"):
        ImageFolderDataModule(str(tmp_path)).setup()
    write(tmp_path / "train" / "1.png")
    with pytest.raises(FileNotFoundError, match="or none; missing val, test"):
        ImageFolderDataModule(str(tmp_path)).setup()
    for part in ("val", "test"):
        write(tmp_path / part / "1.png")
    (tmp_path / "val" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(OSError, match=r"val.broken.png is no readable image"):
        ImageFolderDataModule(str(tmp_path)).setup()
    for options, message in (
        ({"image_size": 0}, "image_size: expected an int >= 1, received 0"),
        ({"channels": 4}, "channels: expected .*1.*3.*, received 4"),
        ({"val_fraction": 0}, "val_fraction: expected a number between 0 and 1, received 0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"expected val_fraction \+ test_fraction < 1, received 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFolderDataModule(str(tmp_path), **options)


def test_a_folder_trains_from_the_command_line(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(12):
        write(tmp_path / "faces" / f"{index}.jpg", size=(40, 50))
    config = str(pytestconfig.rootpath / "configs" / "fisher_net_colour.yaml")
    data = ["--data", "ImageFolderDataModule", "--data.root", "faces", "--data.batch_size", "2"]
    options = [*data, "--model.latent_dim", "4", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    assert cli.main(["fit", "--config", config, *options, "--trainer.enable_progress_bar", "false"]) == 0
    assert (tmp_path / "runs" / "fisher_net_colour" / "checkpoints" / "last.ckpt").is_file()
