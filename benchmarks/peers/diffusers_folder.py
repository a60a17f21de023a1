"""Weights in CompVis's layout as a folder of diffusers, so that it loads them the way it loads best.

    python benchmarks/peers/diffusers_folder.py CONFIG WEIGHTS TOKENIZER FOLDER

CONFIG is a YAML of CompVis's schema with a U-Net, an AutoencoderKL and a CLIP text encoder; TOKENIZER holds CLIP's
vocab.json and merges.txt. diffusers itself reads the weights and gives them its names. Needs nothing of sdbatch.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

os.environ["HF_HUB_OFFLINE"] = "1"

import yaml
from diffusers import StableDiffusionPipeline, __version__
from transformers import CLIPTextConfig, CLIPTokenizer

CLIP_TOKENS = 77
CLIP_WIDTH, CLIP_LAYERS, CLIP_HEADS = 768, 12, 12  # ViT-L/14


def main() -> None:
    config, weights, tokenizer, folder = (Path(word) for word in sys.argv[1:5])
    node = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]
    with tempfile.TemporaryDirectory() as name:
        layout = Path(name)
        describe(node, layout)
        CLIPTokenizer.from_pretrained(str(tokenizer), model_max_length=CLIP_TOKENS).save_pretrained(
            layout / "tokenizer"
        )
        pipeline = StableDiffusionPipeline.from_single_file(str(weights), config=str(layout), local_files_only=True)
    pipeline.save_pretrained(folder)


def describe(node: Dict[str, Any], folder: Path) -> None:
    """A folder of diffusers without weights, for the model of a CompVis config."""
    parts = {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "scheduler": ("diffusers", "PNDMScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "safety_checker": (None, None),
        "feature_extractor": (None, None),
    }
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": __version__}
    write(folder / "model_index.json", {**index, "requires_safety_checker": False, **parts})
    write(folder / "unet" / "config.json", unet(node))
    write(folder / "vae" / "config.json", vae(node))
    write(folder / "scheduler" / "scheduler_config.json", scheduler(node))
    sizes = node["cond_stage_config"].get("params", {}).get("dimensions", {})
    width = sizes.get("width", CLIP_WIDTH)
    text = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=sizes.get("layers", CLIP_LAYERS),
        num_attention_heads=sizes.get("heads", CLIP_HEADS),
        architectures=["CLIPTextModel"],
    )
    text.save_pretrained(folder / "text_encoder")


def unet(node: Dict[str, Any]) -> Dict[str, Any]:
    """The U-Net in diffusers' words."""
    sizes = node["unet_config"]["params"]
    attends: List[bool] = [2**i in sizes["attention_resolutions"] for i in range(len(sizes["channel_mult"]))]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": node["image_size"],
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["out_channels"],
        "block_out_channels": [sizes["model_channels"] * factor for factor in sizes["channel_mult"]],
        "layers_per_block": sizes["num_res_blocks"],
        "attention_head_dim": sizes["num_heads"],
        "cross_attention_dim": sizes["context_dim"],
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
    }


def vae(node: Dict[str, Any]) -> Dict[str, Any]:
    """The autoencoder in diffusers' words."""
    sizes = node["first_stage_config"]["params"]["ddconfig"]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": sizes["resolution"],
        "block_out_channels": [sizes["ch"] * factor for factor in sizes["ch_mult"]],
        "layers_per_block": sizes["num_res_blocks"],
        "latent_channels": sizes["z_channels"],
        "down_block_types": ["DownEncoderBlock2D"] * len(sizes["ch_mult"]),
        "up_block_types": ["UpDecoderBlock2D"] * len(sizes["ch_mult"]),
        "scaling_factor": node["scale_factor"],
    }


def scheduler(node: Dict[str, Any]) -> Dict[str, Any]:
    """PLMS as diffusers has it, on the config's noise schedule."""
    return {
        "_class_name": "PNDMScheduler",
        "beta_start": node["linear_start"],
        "beta_end": node["linear_end"],
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": node["timesteps"],
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
    }


def write(path: Path, content: Dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
