"""Ensembles of scores: z-scores with stored statistics."""

import pytest
import torch

from anoseg_d2.modeling.scores import anomaly_scores, available_scores, single_scores


def predictions():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 5, 6, generator=generator),
        3 * torch.randn(2, 5, 4, 4, generator=generator),
    )


def test_an_ensemble_is_the_mean_of_z_scores():
    class_logits, mask_logits = predictions()
    statistics = {"rba": (-0.5, 0.2), "anomaly": (0.1, 0.05)}
    found = anomaly_scores(
        class_logits, mask_logits, 4, ["rba", "anomaly", "rba+anomaly"], statistics=statistics
    )
    expected = ((found["rba"] + 0.5) / 0.2 + (found["anomaly"] - 0.1) / 0.05) / 2
    torch.testing.assert_close(found["rba+anomaly"], expected)


def test_an_ensemble_of_a_score_with_itself_orders_as_the_score():
    class_logits, mask_logits = predictions()
    found = anomaly_scores(
        class_logits, mask_logits, 4, ["msp", "msp+msp"], statistics={"msp": (0.3, 0.1)}
    )
    assert torch.equal(found["msp"].flatten().argsort(), found["msp+msp"].flatten().argsort())


def test_an_ensemble_without_statistics_is_refused_by_name():
    class_logits, mask_logits = predictions()
    with pytest.raises(ValueError, match="rba.*known pixels"):
        anomaly_scores(class_logits, mask_logits, 4, ["msp+rba"], statistics={"msp": (0, 1)})


def test_the_parts_of_an_ensemble_are_checked():
    assert single_scores(["rba+msp", "msp"]) == ["rba", "msp"]
    with pytest.raises(ValueError, match="unknown score 'rbaa'"):
        available_scores(True, ["msp+rbaa"])
    with pytest.raises(ValueError, match="anomaly class"):
        available_scores(False, ["msp+anomaly"])
