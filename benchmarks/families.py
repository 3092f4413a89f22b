"""Converts a small network of each family of the hubs, with random weights, and says how far it agrees with PyTorch.

`python -m benchmarks.families --out DIRECTORY` needs no internet. Networks that the file of results already has are
not converted again.
"""

import argparse
import json
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import harness
from jaxtransfer.converters import hubs, torch_module
from jaxtransfer.errors import JaxTransferError, first_line
from jaxtransfer.networks.outputs import describe_outputs

TIMM = (
    "resnet18 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 swin_tiny_patch4_window7_224 convnext_atto "
    "convnextv2_atto efficientnet_lite0 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small regnety_002 "
    "regnetx_002 xcit_nano_12_p16_224 pvt_v2_b0 levit_128s edgenext_xx_small mobilevit_xxs mobilevitv2_050 "
    "efficientvit_b0 efficientvit_m0 repvgg_a0 ghostnet_050 lcnet_035 tinynet_e mnasnet_small densenet121 dla46_c "
    "poolformer_s12 mixer_s32_224 resmlp_12_224 gmlp_ti16_224 crossvit_tiny_240 coat_lite_tiny twins_svt_small "
    "pit_ti_224 cait_xxs24_224 volo_d1_224 halonet_h1 botnet26t_256 lambda_resnet26t nf_regnet_b0 rexnet_100 "
    "resnest14d skresnet18 mobileone_s0 fastvit_t8 tiny_vit_5m_224 repvit_m0_9 starnet_s1 inception_next_atto "
    "caformer_s18 mambaout_femto hiera_tiny_224 davit_tiny focalnet_tiny_srf gcvit_xxtiny nest_tiny swiftformer_xs "
    "efficientformer_l1 coatnet_pico_rw_224 maxvit_rmlp_pico_rw_256 hrnet_w18_small hgnetv2_b0 rdnet_tiny test_vit "
    "visformer_tiny swinv2_cr_tiny_ns_224 eva02_tiny_patch14_224 vit_small_patch14_dinov2 sequencer2d_s"
)
TORCHVISION = (
    "alexnet squeezenet1_1 mobilenet_v2 mobilenet_v3_small resnet18 shufflenet_v2_x0_5 mnasnet0_5 regnet_y_400mf "
    "efficientnet_b0 densenet121 googlenet convnext_tiny swin_t swin_v2_t vit_b_32 maxvit_t inception_v3 "
    "lraspp_mobilenet_v3_large"
)
# Configurations of transformers and what is made smaller in them.
_TWO_LAYERS = {"num_hidden_layers": 2, "image_size": 224}
_STAGES = {"depths": [1, 1, 1, 1]}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViTConfig": _TWO_LAYERS,
    "DeiTConfig": _TWO_LAYERS,
    "BeitConfig": _TWO_LAYERS,
    "Dinov2Config": _TWO_LAYERS,
    "Dinov2WithRegistersConfig": _TWO_LAYERS,
    "DINOv3ViTConfig": _TWO_LAYERS,
    "DINOv3ConvNextConfig": _STAGES,
    "CLIPVisionConfig": _TWO_LAYERS,
    "SiglipVisionConfig": _TWO_LAYERS,
    "Data2VecVisionConfig": _TWO_LAYERS,
    "IJepaConfig": _TWO_LAYERS,
    "SwinConfig": {"depths": [1, 1, 1, 1]},
    "Swinv2Config": {"depths": [1, 1, 1, 1], "window_size": 7},
    "ConvNextConfig": _STAGES,
    "ConvNextV2Config": _STAGES,
    "ResNetConfig": _STAGES,
    "RegNetConfig": _STAGES,
    "MobileNetV2Config": {},
    "MobileViTConfig": {"image_size": 224},
    "SegformerConfig": {"depths": [1, 1, 1, 1]},
    "PvtConfig": {"depths": [1, 1, 1, 1]},
    "LevitConfig": {"depths": [1, 1, 1]},
    "FocalNetConfig": _STAGES,
    "BitConfig": _STAGES,
    "PoolFormerConfig": _STAGES,
    "HieraConfig": {"depths": [1, 1, 1, 1]},
}
_PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the file of results")
    parser.add_argument("--limit", type=int, default=120, metavar="SECONDS", help="time for each network")
    parser.add_argument("--hub", action="append", choices=["timm", "torchvision", "transformers"])
    arguments = parser.parse_args()
    file = arguments.out / f"families_{harness.device()}.json"
    networks: list[dict[str, Any]] = json.loads(file.read_text())["networks"] if file.exists() else []
    done = {(network["hub"], network["name"]) for network in networks}
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        for hub in arguments.hub or ("transformers", "torchvision", "timm"):
            hubs._import(hub)
            names = {"timm": TIMM.split(), "torchvision": TORCHVISION.split(), "transformers": [*TRANSFORMERS]}[hub]
            for name in names:
                if (hub, name) not in done:
                    location = _snapshot(Path(folder), name) if hub == "transformers" else lambda name=name: name
                    networks.append({"hub": hub, "name": name} | _converted(hub, location, arguments.limit))
                    print(networks[-1], flush=True)
                    harness.store({"networks": networks}, file, precision="float32", shapes={"images": [1]})
                    jax.clear_caches()


def _converted(hub: Any, location: Callable[[], str], limit: int) -> dict[str, Any]:
    """Converts a network; returns what it gives, how far it agrees, and the seconds, or the reason why it failed."""
    differences: list[float] = []
    measure = torch_module.relative_difference

    def recorded(exported: Any, network: Any) -> float:
        differences.append(measure(exported, network))
        return differences[-1]

    torch_module.relative_difference = recorded
    start = time.perf_counter()
    signal.alarm(limit)
    try:
        network = hubs.load(hub, location(), "network", random_weights=True)
    except (JaxTransferError, TimeoutError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = re.sub(r"; supported are: .*", ".", first_line(error))
        return {"failed": re.sub(r"^network: |/\S+/", "", reason)[:300]}
    finally:
        signal.alarm(0)
        torch_module.relative_difference = measure
    seconds = time.perf_counter() - start
    size: Any = network.preprocess
    (output,) = describe_outputs(network).values()
    return {"input": size.size[0], "output": output, "difference": differences[0], "seconds": round(seconds, 1)}


def _snapshot(folder: Path, name: str) -> Callable[[], str]:
    """Returns a function that writes a configuration in the hub's layout and returns its directory."""

    def write() -> str:
        import transformers

        config = getattr(transformers, name)(**TRANSFORMERS[name])
        config.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
        return str(folder / name)

    return write


def _too_long(*_: object) -> None:
    raise TimeoutError("It took longer than the limit.")


if __name__ == "__main__":
    main()
