"""Hubs that are offline or closed."""

import pytest
import torch
from checkpoint_models import tiny

from anoseg_d2.checkpoint import read_checkpoint


def test_an_offline_hub_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf download owner/name --local-dir name"):
        read_checkpoint("hf://owner/name")
    with pytest.raises(FileNotFoundError, match="timm/vit_small_patch14_reg4_dinov2.lvd142m"):
        read_checkpoint("timm://vit_small_patch14_reg4_dinov2.lvd142m")
    with pytest.raises(ValueError, match="timm has no model 'vit_unheard_of'"):
        read_checkpoint("timm://vit_unheard_of")


def test_a_gated_hub_model_says_how_to_get_access(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    from anoseg_d2.checkpoint import hub

    def refuse(name, **options):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="hf://facebook/vit.*licence"):
        read_checkpoint("hf://facebook/vit")


def test_a_model_in_the_cache_is_read_without_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "models--owner--name", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    torch.save(tiny().state_dict(), place / "snapshots" / commit / "pytorch_model.bin")
    checkpoint = read_checkpoint("hf://owner/name")
    assert checkpoint.spec.depth == 3 and checkpoint.file.name == "pytorch_model.bin"
