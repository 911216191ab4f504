"""CLIP through open_clip: the image tower is edited, the text tower only makes frozen zero-shot heads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.pretrained import get_pretrained_cfg
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torchvision import transforms

from talos_ray.config import HUB_NAME, filled
from talos_ray.data.pixels import as_rgb
from talos_ray.errors import SpecError, nearest
from talos_ray.models.weights import check_file, check_folder

SCHEMAS = ("local-dir:", "hf-hub:")
DEMO = Path(__file__).parents[1] / "demo"


class Clip:
    """An open_clip model with its own tokenizer and preprocessing (see `models.Family`)."""

    edited = ("visual.",)
    words_are_linear = True
    head_words = (
        "class features [classes, d], scaled: `features / features.norm(dim=-1, keepdim=True) @ head.T` are a task's "
        "logits"
    )

    def __init__(self, module: Any, transform: Any, tokenizer: Any, config: dict[str, Any]) -> None:
        # open_clip has no types. Its models are torch modules, with methods for images and texts beside.
        self.module: Any = module.eval()
        self.tokenizer = tokenizer
        self.config = config
        # The last two steps are the model's: bytes are kept and moved until it wants numbers (see `features`).
        *steps, as_tensor, normalize = transform.transforms
        if not (isinstance(as_tensor, transforms.ToTensor) and isinstance(normalize, transforms.Normalize)):
            raise TypeError(f"open_clip's preprocessing ends with {normalize}; wanted ToTensor, then Normalize")
        self.pixels = transforms.Compose([*steps, transforms.PILToTensor()])
        mean = torch.tensor(normalize.mean).view(-1, 1, 1)  # [3, 1, 1]
        std = torch.tensor(normalize.std).view(-1, 1, 1)
        self.scale = {torch.device("cpu"): [mean, std]}

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        """Pixels, uint8 [n, 3, side, side]: a quarter of the bytes to keep and to move; `features` does the rest, bit
        for bit."""
        return torch.stack([self.pixels(as_rgb(image)) for image in examples])

    @torch.no_grad()
    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """Mean of the normalised text features over the templates, normalised again (Radford et al., 2021), times the
        logit scale."""
        rows = []
        for phrase in phrases:
            tokens = self.tokenizer([filled(prompt, phrase) for prompt in prompts])
            features = self.module.encode_text(tokens, normalize=True)
            rows.append(torch.nn.functional.normalize(features.mean(0), dim=-1))
        scale: torch.Tensor = self.module.logit_scale.exp()
        return (torch.stack(rows) * scale).float()

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.device not in self.scale:
            self.scale[inputs.device] = [value.to(inputs.device) for value in self.scale[torch.device("cpu")]]
        mean, std = self.scale[inputs.device]
        pixels = inputs.float().div(255).sub(mean).div(std)
        features: torch.Tensor = self.module.encode_image(pixels, normalize=True)
        return features

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self.features(inputs) @ head.T

    def save(self, folder: Path) -> None:
        """For `open_clip.create_model_from_pretrained("local-dir:FOLDER")`."""
        # safetensors refuses a tensor that lies in memory in another order than its rows.
        tensors = {name: tensor.contiguous() for name, tensor in self.module.state_dict().items()}
        save_file(tensors, folder / HF_SAFE_WEIGHTS_NAME)
        preprocessing = open_clip.model.get_model_preprocess_cfg(self.module)
        config = {"model_cfg": self.config, "preprocess_cfg": preprocessing}
        (folder / HF_CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")


def _parse(name: str) -> tuple[str, str]:
    """What open_clip calls the model, and its weights where the model does not bring them itself."""
    if name.startswith(SCHEMAS):
        return name, ""
    arch, _, pretrained = name.partition("/")
    return arch, pretrained


def check(name: str) -> None:
    """Raises SpecError unless `ARCHITECTURE/PRETRAINED` names an architecture and a tag of open_clip, or a local file,
    or `name` is a folder or a name of the Hub in open_clip's own words (`local-dir:FOLDER`, `hf-hub:OWNER/NAME`)."""
    arch, pretrained = _parse(name)
    if arch.startswith(SCHEMAS):
        _check_place(name, *arch.split(":", 1))
        return
    known = open_clip.list_models()
    if arch not in known:
        raise SpecError(
            f"model 'open_clip:{name}': architecture {arch!r} is not known to open_clip{nearest(arch, known)}; see "
            "open_clip.list_models()"
        )
    if Path(pretrained).is_file():
        check_file(Path(pretrained), f"model 'open_clip:{name}'")
        return
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if pretrained not in tags:
        given = "no pretrained weights are named"
        if pretrained:
            given = f"pretrained {pretrained!r} is neither a tag of {arch} nor a file"
        raise SpecError(
            f"model 'open_clip:{name}': {given}{nearest(pretrained, tags)}; tags: {', '.join(tags[:12]) or 'none'}"
        )


def _check_place(name: str, schema: str, place: str) -> None:
    """Raises SpecError unless a model in open_clip's own words is a folder of one, or could be one of the Hub."""
    if schema == "hf-hub":
        if not HUB_NAME.match(place):
            raise SpecError(f"model 'open_clip:{name}': {place!r} is no name of the Hub; wanted OWNER/NAME; check it")
        return
    if not (Path(place) / HF_CONFIG_NAME).is_file():
        raise SpecError(
            f"model 'open_clip:{name}': folder {place!r} has no {HF_CONFIG_NAME}; wanted one that `talos export` "
            "or open_clip wrote; check the path"
        )
    check_folder(Path(place), f"model 'open_clip:{name}'")


def hub_name(name: str) -> str | None:
    """What the Hugging Face Hub calls a model, where open_clip knows that its weights lie there."""
    arch, pretrained = _parse(name)
    if arch.startswith("hf-hub:"):
        return arch.removeprefix("hf-hub:")
    at = get_pretrained_cfg(arch, pretrained).get("hf_hub") or ""  # OWNER/NAME/FILE, or OWNER/NAME/
    return "/".join(at.split("/")[:2]) or None


def load(name: str, pretrained: bool = True) -> Clip:
    """Build `demo`, or what `check` lets through; with `pretrained=False` the weights are left random."""
    if name == "demo":
        return _demo(pretrained)
    arch, weights = _parse(name.removeprefix("open_clip:"))
    try:
        here = torch.get_default_device()  # "meta", where only shapes are asked for
        known = get_pretrained_cfg(arch, weights)  # without its weights, open_clip forgets how a tag wants its images
        model, _, transform = open_clip.create_model_and_transforms(
            arch, pretrained=weights if pretrained else None, device=here,
            load_weights=pretrained, require_pretrained=pretrained, pretrained_text=pretrained,
            image_mean=known.get("mean"), image_std=known.get("std"),
            image_interpolation=known.get("interpolation"), image_resize_mode=known.get("resize_mode"),
        )  # fmt: skip
        tokenizer = open_clip.get_tokenizer(arch)
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError, UnpicklingError, EOFError) as error:
        raise SpecError(f"model {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    config = open_clip.get_model_config(arch)
    words = config["text_cfg"].get("vocab_size", math.inf)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size > words:
        raise SpecError(
            f"model {name!r} knows {words} words, but open_clip's tokenizer has {tokenizer.vocab_size}; wanted a "
            "model with that tokenizer (the demo's is its own: use model: demo)"
        )
    return Clip(model, transform, tokenizer, config)


def _demo(pretrained: bool) -> Clip:
    config = json.loads((DEMO / "clip.json").read_text())
    model = open_clip.model.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    if pretrained:
        model.load_state_dict(load_file(DEMO / "clip.safetensors"))  # float16 on disk, float32 in memory
    size = config["vision_cfg"]["image_size"]
    mean = open_clip.OPENAI_DATASET_MEAN
    std = open_clip.OPENAI_DATASET_STD
    open_clip.model.set_model_preprocess_cfg(model, {"size": size, "mean": mean, "std": std})
    transform = open_clip.image_transform(size, is_train=False, mean=mean, std=std)
    tokenizer = open_clip.SimpleTokenizer(
        str(DEMO / "merges.txt.gz"), context_length=config["text_cfg"]["context_length"]
    )
    return Clip(model, transform, tokenizer, config)
