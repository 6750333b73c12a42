"""The network: against transformers, parameter counts, inputs, outputs, switches."""

import copy

import pytest
import torch
from tiny_models import saved_bytes, set_inference, tiny_criterion
from torch import nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from anoseg_d2.modeling import EoMT
from anoseg_d2.modeling.eomt import _Doubling
from anoseg_d2.modeling.vit import build_vit
from anoseg_d2.utils.constants import VIT_SIZES

LABELS, QUERIES, REGISTERS = 6, 9, 4


def reference_model(size, depth, num_blocks, grid, patch=16):
    """transformers' EoMT with every tensor random; rectangular grids are set by hand."""
    vit = VIT_SIZES[size]
    config = EomtConfig(
        hidden_size=vit.width,
        num_hidden_layers=depth,
        num_attention_heads=vit.heads,
        image_size=patch * 2,
        patch_size=patch,
        num_blocks=num_blocks,
        num_queries=QUERIES,
        num_register_tokens=REGISTERS,
        num_labels=LABELS,
        num_upscale_blocks=2 if patch == 16 else 1,
        attn_implementation="eager",
    )
    model = without_init(lambda: EomtForUniversalSegmentation(config))
    model.grid_size = grid
    patches = grid[0] * grid[1]
    model.embeddings.position_embeddings = nn.Embedding(patches, vit.width)
    model.embeddings.position_ids = torch.arange(patches)[None]
    model.attn_mask_probs.fill_(1.0)
    randomize(model)
    return model.eval()


def without_init(build):
    """Build a large model without drawing its initial weights, which takes longer than its test."""
    with torch.device("meta"):
        model = build()
    return model.to_empty(device="cpu")


@torch.no_grad()
def randomize(model):
    """Fill every parameter at random, so that none can be exchanged or left out unseen."""
    for name, parameter in model.named_parameters():
        is_gain = "lambda" in name or ("norm" in name and name.endswith("weight"))
        fan_in = parameter[0].numel() if parameter.ndim > 1 and "token" not in name else 100
        parameter.normal_(mean=float(is_gain), std=0.1 if is_gain else fan_in**-0.5)


RENAMED = [
    ("embeddings.cls_token", "backbone.cls_token"),
    ("embeddings.register_tokens", "backbone.reg_token"),
    ("embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    ("layernorm.", "backbone.norm."),
    ("class_predictor.", "class_head."),
    ("mask_head.fc1.", "mask_head.0."),
    ("mask_head.fc2.", "mask_head.2."),
    ("mask_head.fc3.", "mask_head.4."),
    ("upscale_block.block.", "upscale."),
    ("layernorm2d.", "norm."),
    ("layers.", "backbone.blocks."),
    ("attention.out_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
]


def renamed_weights(reference, depth):
    """The reference's weights under our names."""
    source = dict(reference.state_dict())
    for name in ("attn_mask_probs", "criterion.empty_weight"):
        source.pop(name)
    weights = {
        "backbone.pos_embed": source.pop("embeddings.position_embeddings.weight")[None],
    }
    for index in range(depth):
        for kind in ("weight", "bias"):
            parts = [source.pop(f"layers.{index}.attention.{p}_proj.{kind}") for p in "qkv"]
            weights[f"backbone.blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
    for name, value in source.items():
        for theirs, ours in RENAMED:
            if theirs in name and not (theirs == "layernorm." and not name.startswith(theirs)):
                name = name.replace(theirs, ours)
        weights[name] = value
    return weights


def same_model(reference, size, depth, num_blocks, grid, patch=16):
    """Our EoMT with the weights of the reference; every tensor has its place."""
    crop = (patch * grid[0], patch * grid[1])
    options = {"num_known": LABELS, "num_queries": QUERIES, "num_blocks": num_blocks}

    def build():
        vit = build_vit(size, image_size=crop, patch_size=patch, depth=depth)
        return EoMT(backbone=vit, head="linear", **options)

    model = without_init(build)
    model.load_state_dict(renamed_weights(reference, depth), strict=True)
    model.pixel_mean.fill_(120.0)
    model.pixel_std.fill_(60.0)
    return model


def normalized(model, images):
    return (images - model.pixel_mean) / model.pixel_std


@pytest.mark.slow
@pytest.mark.parametrize(
    "size,depth,num_blocks,grid,patch",
    [
        ("S", 12, 3, (4, 4), 16),
        ("S", 6, 4, (3, 5), 16),
        ("B", 4, 3, (4, 2), 16),
        ("B", 4, 4, (3, 3), 16),
        ("S", 4, 3, (2, 3), 14),
    ],
)
def test_forward_equals_transformers(size, depth, num_blocks, grid, patch):
    reference = reference_model(size, depth, num_blocks, grid, patch)
    model = same_model(reference, size, depth, num_blocks, grid, patch).eval()
    images = torch.rand(2, 3, patch * grid[0], patch * grid[1]) * 255
    with torch.no_grad():
        reference.attn_mask_probs.zero_()
        theirs = reference(normalized(model, images))
        mask_logits, class_logits = model.predict_masks(images)[-1]
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    assert theirs.masks_queries_logits.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("num_blocks,grid", [(3, (4, 4)), (4, (3, 5))])
def test_masked_training_forward_equals_transformers(num_blocks, grid):
    reference = reference_model("S", 5, num_blocks, grid)
    model = same_model(reference, "S", 5, num_blocks, grid).train()
    images = torch.rand(2, 3, 16 * grid[0], 16 * grid[1]) * 255
    with torch.no_grad():
        unmasked = model.eval().predict_masks(images)[-1][0]
        theirs = reference(normalized(model, images))  # its validation masks: probabilities are 1
        model.train().set_progress(0.0)
        mask_logits, class_logits = model.predict_masks(images)[-1]
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    assert (mask_logits - unmasked).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "size,side,num_blocks,count",
    [
        ("B", 640, 3, 93_499_413),
        ("B", 1024, 3, 95_416_341),
        ("L", 1024, 4, 319_033_365),
        ("G", 640, 5, 1_163_294_741),
    ],
)
def test_parameter_totals_are_those_of_the_official_models(tiny_cfg, size, side, num_blocks, count):
    cfg = tiny_cfg("MODEL.EOMT.SIZE", size, "INPUT.CROP_SIZE", (side, side))
    for key in ("DEPTH", "WIDTH", "HEADS", "NUM_BLOCKS"):
        cfg.merge_from_list([f"MODEL.EOMT.{key}", 0])
    cfg.merge_from_list(["MODEL.EOMT.NUM_CLASSES", 19, "MODEL.EOMT.ANOMALY_CLASS", True])
    cfg.merge_from_list(["MODEL.EOMT.NUM_QUERIES", 100, "MODEL.EOMT.NUM_REGISTERS", 4])
    with torch.device("meta"):
        model = EoMT(cfg)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.num_blocks == num_blocks


@pytest.mark.parametrize("size", ["S", "B", "L"])
def test_sizes_have_the_width_depth_and_heads_of_dinov2(size):
    expected = {"S": (12, 6, 384), "B": (12, 12, 768), "L": (24, 16, 1024)}[size]
    with torch.device("meta"):
        vit = build_vit(size, image_size=(64, 64))
    assert (len(vit.blocks), vit.blocks[0].attn.num_heads, vit.embed_dim) == expected
    assert vit.num_prefix_tokens == 5
    assert vit.pos_embed.shape == (1, 16, expected[2])
    assert hasattr(vit.blocks[0].ls1, "gamma")


@pytest.mark.parametrize("patch,stride", [(16, 4), (14, 7), (8, 4)])
def test_masks_have_stride_four_at_patch_16(tiny_eomt, patch, stride):
    model = tiny_eomt(vit={"image_size": (2 * patch, 3 * patch), "patch_size": patch})
    mask_logits, _ = model.predict_masks(torch.rand(1, 3, 2 * patch, 3 * patch))[-1]
    assert mask_logits.shape[-2:] == (2 * patch // stride, 3 * patch // stride)


@pytest.mark.parametrize("registers", [0, 1, 4])
@pytest.mark.parametrize("crop", [(32, 32), (32, 64), (64, 32)])
def test_any_divisible_crop_with_or_without_registers(tiny_eomt, registers, crop):
    model = tiny_eomt(vit={"image_size": crop, "num_registers": registers})
    outputs = model.predict_masks(torch.rand(2, 3, *crop))
    assert len(outputs) == model.num_blocks + 1
    assert outputs[-1][0].shape == (2, 5, crop[0] // 4, crop[1] // 4)
    assert outputs[-1][1].shape == (2, 5, 4)


@pytest.mark.parametrize("final_only", [False, True])
def test_final_prediction_alone_is_the_last_of_all(tiny_eomt, final_only):
    model = tiny_eomt().eval()
    images = torch.rand(1, 3, 32, 32) * 255
    outputs = model.predict_masks(images, final_only=final_only)
    assert len(outputs) == (1 if final_only else 3)
    torch.testing.assert_close(outputs[-1], model.predict_masks(images)[-1])


def test_input_statistics_are_applied_once_in_both_modes(tiny_eomt, tiny_batch):
    model = tiny_eomt()
    seen = []
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = tiny_batch(1)
    model.train()(batch)
    model.eval()([{"image": batch[0]["image"]}])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = ((batch[0]["image"] / 255 - mean) / std)[None]
    for images in seen:
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 2


def test_uint8_and_float_images_give_the_same(tiny_eomt, tiny_batch):
    model, image = tiny_eomt().eval(), tiny_batch(1)[0]["image"][None]
    torch.testing.assert_close(model.predict_masks(image), model.predict_masks(image.float()))


def test_evaluation_has_no_randomness_and_restores_nothing(tiny_eomt, tiny_batch):
    model = tiny_eomt(has_anomaly=True).eval()
    image = {"image": tiny_batch(1, size=(32, 80))[0]["image"]}
    first, second = model([image])[0], model([image])[0]
    assert torch.equal(first["sem_seg"], second["sem_seg"])
    for name, score in first["scores"].items():
        assert torch.equal(score, second["scores"][name]), name


@pytest.mark.parametrize("size,output", [((32, 32), None), ((40, 100), None), ((32, 50), (71, 33))])
def test_evaluation_output_has_the_contract_of_names_shapes_and_types(tiny_eomt, size, output):
    model = tiny_eomt(has_anomaly=True).eval()
    sample = {"image": torch.randint(256, (3, *size), dtype=torch.uint8)}
    if output:
        sample |= {"height": output[0], "width": output[1]}
    result = model([sample])[0]
    shape = output or size
    assert set(result) == {"sem_seg", "scores", "confidence"}
    assert result["sem_seg"].shape == shape and result["sem_seg"].dtype == torch.int64
    assert result["sem_seg"].min() >= 0 and result["sem_seg"].max() < model.num_known
    assert list(result["scores"]) == model.score_names
    for score in result["scores"].values():
        assert score.shape == shape and score.dtype == torch.float32
    assert result["confidence"].shape == shape
    assert result["confidence"].min() >= 1 / 3 - 1e-5 and result["confidence"].max() <= 1 + 1e-5


def test_evaluation_equals_scores_of_the_predictions_at_crop_size(tiny_eomt, tiny_batch):
    from anoseg_d2.modeling.scores import anomaly_scores

    model = tiny_eomt(has_anomaly=True).eval()
    image = tiny_batch(1)[0]["image"]
    mask_logits, class_logits = model.predict_masks(image[None])[-1]
    resized = nn.functional.interpolate(mask_logits, size=(32, 32), mode="bilinear")
    expected = anomaly_scores(class_logits, resized, model.num_known)
    found = model([{"image": image}])[0]
    for name, score in expected.items():
        torch.testing.assert_close(found["scores"][name], score[0], rtol=1e-5, atol=1e-5)
    probs = class_logits.softmax(-1)[0, :, : model.num_known]
    maps = torch.einsum("qk,qhw->khw", probs, resized[0].sigmoid())
    assert torch.equal(found["sem_seg"], maps.argmax(0))


@pytest.mark.parametrize("window_batch", [1, 2])
def test_batches_of_windows_change_nothing(tiny_eomt, window_batch):
    model = tiny_eomt().eval()
    sample = {"image": torch.randint(256, (3, 32, 110), dtype=torch.uint8)}
    expected = model([sample])[0]["scores"]["rba"]
    set_inference(model, window_batch=window_batch)
    torch.testing.assert_close(model([sample])[0]["scores"]["rba"], expected)


def test_strips_of_the_output_change_nothing(tiny_eomt, monkeypatch):
    model = tiny_eomt().eval()
    sample = {"image": torch.randint(256, (3, 40, 70), dtype=torch.uint8)}
    whole = model([sample])[0]
    monkeypatch.setattr("anoseg_d2.modeling.strips.STRIP_ELEMENTS", 3000)
    strips = model([sample])[0]
    assert torch.equal(whole["sem_seg"], strips["sem_seg"])
    torch.testing.assert_close(whole["scores"], strips["scores"])


def gradients(model, batch, **context):
    torch.manual_seed(3)
    sum(model.train()(batch).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


OUTLIER = {"outlier_weight": 0.5}


@pytest.mark.parametrize("mode", ["heads", "all"])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.3}])
@pytest.mark.parametrize("criterion", [{}, OUTLIER])
def test_what_is_not_kept_gives_bit_equal_gradients(tiny_eomt, tiny_batch, mode, lora, criterion):
    criterion = tiny_criterion(3, **criterion)
    plain = tiny_eomt(lora=lora, vit={"drop_path": 0.2}, criterion=criterion, recompute="none")
    recomputed = copy.deepcopy(plain)
    recomputed.recompute = mode
    for model in (plain, recomputed):
        model.set_progress(0.25)  # masks are drawn too
    expected, found = gradients(plain, tiny_batch()), gradients(recomputed, tiny_batch())
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_losses_are_the_same_and_named_alike_however_much_is_kept(tiny_eomt, tiny_batch):
    model = tiny_eomt(criterion=tiny_criterion(3, **OUTLIER)).train()
    losses = {}
    for mode in ("none", "heads", "all"):
        model.recompute = mode
        losses[mode] = model(tiny_batch())
    assert "loss_outlier" in losses["none"] and "loss_dice_1" in losses["none"]
    for mode in ("heads", "all"):
        assert list(losses[mode]) == list(losses["none"])
        assert all(torch.equal(losses[mode][name], loss) for name, loss in losses["none"].items())


def test_losses_taken_at_once_may_be_scaled_together_or_one_by_one(tiny_eomt, tiny_batch, caplog):
    model = tiny_eomt(recompute="heads")
    expected = gradients(copy.deepcopy(model), tiny_batch())
    for factor in (1.0, 0.25):  # powers of two, so that nothing is rounded
        model.zero_grad()
        torch.manual_seed(3)
        losses = model(tiny_batch(), loss_scale=torch.tensor(64.0))
        (sum(losses.values()) * 64.0 * factor).backward()
        for name, value in expected.items():
            assert torch.equal(model.get_parameter(name).grad, value * 64.0 * factor), name


def test_no_gradient_is_taken_where_none_is_wanted(tiny_eomt, tiny_batch):
    model = tiny_eomt().train()
    with torch.no_grad():
        losses = model(tiny_batch())
    expected = model(tiny_batch())
    assert not any(loss.requires_grad for loss in losses.values())
    assert list(losses) == list(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss.detach(), msg=name)


def test_an_unknown_recompute_mode_is_refused(tiny_eomt):
    with pytest.raises(ValueError, match="RECOMPUTE.*'blocks'.*allowed"):
        tiny_eomt(recompute="blocks")


def test_each_recompute_mode_keeps_less_than_the_one_before(tiny_eomt, tiny_batch):
    kept = [
        saved_bytes(tiny_eomt(recompute=mode).train(), tiny_batch())
        for mode in ("none", "heads", "all")
    ]
    assert kept[1] < 0.9 * kept[0] and kept[2] < 0.9 * kept[1]


def test_adapters_keep_less_than_the_full_model(tiny_eomt, tiny_batch):
    vit = {"depth": 6}
    full = saved_bytes(tiny_eomt(vit=vit).train(), tiny_batch())
    for dropout in (0.0, 0.1):
        lora = tiny_eomt(vit=vit, lora={"rank": 2, "dropout": dropout}).train()
        assert saved_bytes(lora, tiny_batch()) < full


def test_autocast_keeps_losses_in_float32_and_gradients_near(tiny_eomt, tiny_batch):
    model = tiny_eomt(head="arcface", masked_attention=False)
    expected = gradients(copy.deepcopy(model), tiny_batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(tiny_batch())
    assert all(value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    name = "class_head.weight"
    cosine = torch.cosine_similarity(
        model.class_head.weight.grad.flatten(), expected[name].flatten(), dim=0
    )
    assert cosine > 0.98


@pytest.mark.slow
def test_compile_key_compiles_every_block_and_changes_nothing(tiny_cfg, tiny_batch, monkeypatch):
    compiled = []
    original = nn.Module.compile

    def compile_quickly(module, *args, **kwargs):
        compiled.append(module)
        original(module, backend="aot_eager")  # traces as inductor does, without a C++ compiler

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    torch.manual_seed(1)
    plain = EoMT(tiny_cfg())
    torch.manual_seed(1)
    model = EoMT(tiny_cfg("MODEL.EOMT.COMPILE", True))
    assert not [m for m in compiled if m in list(plain.backbone.blocks)]
    assert compiled == list(model.backbone.blocks)
    assert list(model.state_dict()) == list(plain.state_dict())
    found, expected = gradients(model, tiny_batch()), gradients(plain, tiny_batch())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_images_of_another_size_are_refused(tiny_eomt):
    with pytest.raises(ValueError, match=r"\(48, 32\).*\(32, 32\).*CROP_SIZE"):
        tiny_eomt().predict_masks(torch.rand(1, 3, 48, 32))


def test_a_crop_that_the_patch_does_not_divide_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"\(100, 33\).*16.*\(96, 32\)"):
        build_vit("S", image_size=(100, 33))


def test_unknown_sizes_and_impossible_query_blocks_are_refused(tiny_eomt):
    with pytest.raises(ValueError, match="size is 'XL'.*S, B, L"):
        build_vit("XL", image_size=(32, 32))
    with pytest.raises(ValueError, match="NUM_BLOCKS is 4; the ViT has 3 blocks"):
        tiny_eomt(num_blocks=4)


def test_config_and_keywords_build_the_same_model(tiny_cfg, tiny_eomt):
    by_config, by_hand = EoMT(tiny_cfg()), tiny_eomt()
    shapes = {name: value.shape for name, value in by_config.state_dict().items()}
    assert shapes == {name: value.shape for name, value in by_hand.state_dict().items()}


def test_a_user_s_labels_beyond_the_classes_are_refused_before_the_forward(tiny_eomt, tiny_batch):
    batch = tiny_batch()
    batch[0]["sem_seg"][0, 0] = 3
    with pytest.raises(ValueError, match="ANOMALY_CLASS"):
        tiny_eomt().train()(batch)


def test_doubling_by_matrix_products_equals_the_transposed_convolution():
    torch.manual_seed(0)
    layer = _Doubling(6).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    found, expected = layer(x), nn.ConvTranspose2d.forward(layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(layer(x), nn.ConvTranspose2d.forward(layer, x))
    weights, trained = torch.randn_like(found), [x, layer.weight, layer.bias]
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), trained),
        torch.autograd.grad((expected * weights).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
