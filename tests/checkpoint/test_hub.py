"""Hubs that are offline or closed."""

import pytest

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
