"""A class head and a patch head of the user's own, with options, survive every road of a model."""

from dataclasses import dataclass

import pytest
import torch
from runs import small_run
from torch import nn
from torch.nn import functional as F

from anoseg_d2 import AnomalyPredictor, Trainer
from anoseg_d2.data.builtin import register_cards
from anoseg_d2.export.graph import ExportModel
from anoseg_d2.export.spec import ExportSpec
from anoseg_d2.modeling import CLASS_HEADS, PATCH_HEADS, SCORES, PatchHead, register_score
from anoseg_d2.modeling.heads import LinearHead
from anoseg_d2.utils.options import check_options, option
from anoseg_d2.utils.ranges import number


@dataclass(frozen=True)
class GainOptions:
    gain: float = option(1.0, number(0, above=True), "factor on the logits")

    def __post_init__(self):
        check_options(self)


@dataclass(frozen=True)
class BrightnessOptions:
    bias: float = option(0.0, number(), "added to the map")

    def __post_init__(self):
        check_options(self)


@pytest.fixture
def own_heads():
    """Register both for one test; `config_options` is what their configs ask for."""

    class GainHead(LinearHead):
        options_class = GainOptions

        def forward(self, features):
            return self.options.gain * super().forward(features)

        @classmethod
        def from_config(cls, cfg):
            return {"gain": config_options["gain"]}

    class Brightness(PatchHead):
        """Learns the mean of each patch's pixels that are of class 0."""

        options_class = BrightnessOptions

        def __init__(self, width, blocks, options=None):
            super().__init__(width, blocks, options)
            self.linear = nn.Linear(width, 1)

        def forward(self, tokens, grid):
            found = self.linear(tokens[self.blocks[0]].float())
            return found.mT.unflatten(-1, grid) + self.options.bias

        def loss(self, tokens, sem_seg, num_known):
            grid = (2, 2)
            wanted = F.adaptive_avg_pool2d((sem_seg == 0).float()[:, None], grid)
            return (
                (self({b: t.detach() for b, t in tokens.items()}, grid) - wanted)
                .square()
                .mean(dim=(1, 2, 3))
            )

        @classmethod
        def from_config(cls, cfg):
            return BrightnessOptions(bias=config_options["bias"])

    config_options = {"gain": 3.0, "bias": 0.25}
    CLASS_HEADS.register("gain")(GainHead)
    PATCH_HEADS.register("brightness")(Brightness)
    register_score("brightness", maps=("brightness",))(
        lambda maps, num_known: maps["brightness"][:, 0]
    )
    yield config_options
    for registry, name in (
        (CLASS_HEADS, "gain"),
        (PATCH_HEADS, "brightness"),
        (SCORES, "brightness"),
    ):
        registry.remove(name)


def trained(cfg, resume=False):
    register_cards(cfg)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_own_heads_with_options_survive_everything(tmp_path, own_heads):
    names = ("MODEL.HEAD.NAME", "gain", "SOLVER.CHECKPOINT_PERIOD", 3)
    cfg = small_run(tmp_path, "run", *names, "SOLVER.MAX_ITER", 3)
    whole = trained(cfg)
    assert {"loss_brightness", "grad_norm_brightness"} <= set(whole.storage.latest())
    longer = small_run(tmp_path, "run", *names, "SOLVER.MAX_ITER", 5)
    resumed = Trainer(longer)
    before = {name: tensor.clone() for name, tensor in resumed.model.state_dict().items()}
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    weight = "patch_maps.brightness.linear.weight"
    assert not torch.equal(resumed.model.state_dict()[weight], before[weight])
    own_heads.update(gain=1.0, bias=0.0)  # of a config that does not know the run
    predictor = AnomalyPredictor.from_pretrained(str(tmp_path / "run" / "model_final.pth"))
    model = predictor.model
    assert model.class_head.options == GainOptions(3.0)
    assert model.patch_maps["brightness"].options == BrightnessOptions(0.25)
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    expected = whole.model.eval()([{"image": image}])[0]["scores"]
    found = model([{"image": image}])[0]["scores"]
    assert "brightness" in found
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name], msg=name)
    exported = ExportModel(model, ExportSpec(("rba", "brightness"), image_size=(32, 32)))
    torch.testing.assert_close(exported(image[None])[2][0], found["brightness"], rtol=0, atol=1e-5)


def test_a_patch_head_that_nothing_registers_is_named(tmp_path, own_heads):
    cfg = small_run(tmp_path, "run", "SOLVER.MAX_ITER", 1)
    trained(cfg)
    PATCH_HEADS.remove("brightness")
    with pytest.raises(ValueError, match="'brightness'.*MODEL.IMPORTS"):
        AnomalyPredictor.from_pretrained(str(tmp_path / "run" / "model_final.pth"))
    PATCH_HEADS.register("brightness")(type("Again", (PatchHead,), {}))


def test_a_patch_head_needs_no_queries(tiny_eomt, own_heads):
    backbone = tiny_eomt().backbone.eval()
    kind = PATCH_HEADS["brightness"]
    head = kind(backbone.embed_dim, kind.choose_blocks(len(backbone.blocks), 0))
    with torch.no_grad():
        tokens = backbone.forward_features(torch.randn(2, 3, 32, 32))[
            :, backbone.num_prefix_tokens :
        ]
        assert head({2: tokens}, (2, 2)).shape == (2, 1, 2, 2)
