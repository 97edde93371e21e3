import pytest
import torch
from transformers import AutoModel, AutoProcessor, SiglipModel

from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError


@pytest.mark.parametrize("size", [48, 96, 32])
def test_size_is_baked_in(tiny_siglip, tmp_path, size):
    plain = SiglipModel.from_pretrained(tiny_siglip)
    model, processor = load_encoder(str(tiny_siglip), image_size_px=size)
    pixel_values = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        flagged = plain.get_image_features(pixel_values=pixel_values, interpolate_pos_encoding=True).pooler_output
        baked = model.get_image_features(pixel_values=pixel_values).pooler_output
    torch.testing.assert_close(baked, flagged, atol=1e-6, rtol=1e-5)
    # Stock classes read the folder back without any flag.
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.get_image_features(pixel_values=pixel_values).pooler_output, baked)
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.size == {"height": size, "width": size}
    assert again.config.vision_config.image_size == size


def test_errors(tiny_siglip, tiny_mllama, tmp_path):
    with pytest.raises(InputError, match="image_size_px: 50 is no multiple of the patch of 8 px"):
        load_encoder(str(tiny_siglip), image_size_px=50)
    with pytest.raises(InputError, match="holds no checkpoint that can be read"):
        load_encoder(str(tmp_path))
    with pytest.raises(InputError, match="holds a model of type mllama, not siglip"):
        load_encoder(str(tiny_mllama))
    with pytest.raises(InputError, match="nobody/nothing: no such folder, and it could not be fetched"):
        load_encoder("nobody/nothing")
