"""Other libraries' models as classifiers: outputs, normalisation and refusals."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torchvision
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from dipdefense.attacks import bi, fgsm, llci
from dipdefense.classifiers import Logits
from dipdefense.randomization import RandomizationDefence

IMAGES, LABELS = torch.rand(2, 3, 8, 8), torch.tensor([0, 4])


@dataclass
class ImageClassifierOutput:
    """Hugging Face's is an OrderedDict with attributes; this has attributes alone."""

    logits: Tensor | None
    hidden_states: Tensor | None = None


class ModelOutput(OrderedDict):
    """Hugging Face's, as far as a caller sees it."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Inception = namedtuple("InceptionOutputs", ["logits", "aux_logits"])


class Returning(nn.Module):
    """A linear classifier of any size of images whose output is wrapped."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)
        self.wrap = wrap

    def forward(self, pixel_values: Tensor) -> object:
        return self.wrap(self.head(pixel_values.mean(dim=(2, 3))))


OUTPUTS = {
    "tensor": lambda x: x,
    "object": ImageClassifierOutput,
    "Hugging Face": lambda x: ModelOutput(logits=x, hidden_states=2 * x),
    "Hugging Face with a loss": lambda x: ModelOutput(loss=x.sum(), logits=x),
    "dict": lambda x: {"features": 2 * x, "logits": x},
    "tuple": lambda x: (x, 2 * x),
    "list": lambda x: [x],
    "Inception in training mode": lambda x: Inception(x, 2 * x),
    "tuple of an object": lambda x: (ImageClassifierOutput(x),),
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=OUTPUTS)
def test_logits_are_taken_out_of_the_output(wrap) -> None:
    model = Returning(wrap)
    torch.testing.assert_close(Logits(model)(IMAGES), model.head(IMAGES.mean(dim=(2, 3))), rtol=0, atol=0)


WRAPPED = pytest.mark.parametrize("wrap", [pytest.param(w, id=i) for i, w in OUTPUTS.items() if i != "tensor"])


@WRAPPED
@pytest.mark.parametrize("attack", [fgsm, bi, llci], ids=lambda attack: attack.__name__)
def test_attacks_name_the_adapter_and_take_it(attack, wrap) -> None:
    model = Returning(wrap).eval()
    with pytest.raises(TypeError, match=r"\(N, classes\) tensor of logits, got \w+.*dipdefense\.classifiers\.Logits"):
        attack(model, IMAGES, LABELS, epsilon=2)
    plain = copy.deepcopy(model)
    plain.wrap = OUTPUTS["tensor"]
    adversarial = attack(Logits(model), IMAGES, LABELS, epsilon=2)
    assert torch.equal(adversarial, attack(plain, IMAGES, LABELS, epsilon=2))


@WRAPPED
def test_the_randomisation_names_the_adapter_and_takes_it(wrap) -> None:
    model = Returning(wrap).eval()
    with pytest.raises(TypeError, match=r"\(N, classes\) tensor of logits, got \w+.*dipdefense\.classifiers\.Logits"):
        RandomizationDefence(model, passes=2)(IMAGES)
    assert RandomizationDefence(Logits(model), passes=2)(IMAGES).shape == (2, 5)


def test_art_takes_the_adapter() -> None:
    model = Logits(Returning(ImageClassifierOutput))
    art = PyTorchClassifier(model, loss=nn.CrossEntropyLoss(), input_shape=(3, 8, 8), nb_classes=5, clip_values=(0, 1))
    assert art.predict(IMAGES.numpy()).shape == (2, 5)
    assert art.loss_gradient(IMAGES.numpy(), torch.eye(5)[LABELS].numpy()).any()


NO_LOGITS = {
    "features": (lambda x: x[:, :, None, None].expand(-1, -1, 2, 2), ValueError, r"got \(2, 5, 2, 2\) for N = 2"),
    "one image's": (lambda x: x[0], ValueError, r"got \(5,\)"),
    "another batch's": (lambda x: x[:1], ValueError, r"got \(1, 5\) for N = 2"),
    "one class": (lambda x: x[:, :1], ValueError, "two classes or more"),
    "predictions": (lambda x: x.argmax(dim=1), TypeError, r"torch\.int64.*not predicted classes"),
}


@pytest.mark.parametrize(("wrap", "error", "message"), NO_LOGITS.values(), ids=NO_LOGITS)
def test_one_check_refuses_what_is_no_classifier(wrap, error, message: str) -> None:
    for classifier in (Logits(Returning(wrap)), RandomizationDefence(Returning(wrap), passes=1)):
        with pytest.raises(error, match=message):
            classifier(IMAGES)
    # On one image, the attacks' first: they ask before they attack.
    with pytest.raises(error, match=r"^classifier must return"):
        fgsm(Returning(lambda x: wrap(x.expand(2, -1))), IMAGES, LABELS, epsilon=2)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (ImageClassifierOutput(None), "ImageClassifierOutput"),
        (ModelOutput(last_hidden_state=IMAGES), "ModelOutput"),
        ({"pred": IMAGES}, "dict"),
        ((), "tuple"),
        (None, "NoneType"),
    ],
    ids=str,
)
def test_an_output_without_logits(output: object, got: str) -> None:
    with pytest.raises(TypeError, match=f"Returning must return logits.*got {got}; .*classification head"):
        Logits(Returning(lambda x: output))(IMAGES)


def test_the_normalisation_is_torchvisions() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    seen = []
    model = Returning(ImageClassifierOutput)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    Logits(model, mean=mean, std=std)(IMAGES)
    Logits(model)(IMAGES)
    Logits(model, mean=(0.5,), std=torch.tensor(std))(IMAGES)
    normalise = torchvision.transforms.functional.normalize
    for got, expected in zip(seen, (normalise(IMAGES, mean, std), IMAGES, normalise(IMAGES, [0.5], std)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_model_stays_as_it_is_and_gradients_flow() -> None:
    model = Returning(ImageClassifierOutput).train()
    images = IMAGES.clone().requires_grad_()
    Logits(model, std=(0.5,))(images).logsumexp(dim=1).sum().backward()
    assert model.training
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": torch.relu}, TypeError, r"torch\.nn\.Module, got builtin"),
        ({"mean": (123.675, 116.28, 103.53)}, ValueError, r"mean must lie in \[0, 1\].*divide by 255"),
        ({"std": (58.4, 57.1, 57.4)}, ValueError, r"std must lie in \[0, 1\].*divide by 255"),
        ({"mean": (float("nan"),)}, ValueError, "mean must lie"),
        ({"mean": ()}, ValueError, "mean must lie"),
        ({"std": (0.5, 0.0, 0.5)}, ValueError, "std must be positive"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 2}, ValueError, "got 3 and 2 numbers"),
        ({"mean": 0.5}, TypeError, "mean must be one number for each channel"),
        ({"std": ["a"]}, TypeError, "std must be one number for each channel"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Logits(**{"network": Returning(ImageClassifierOutput)} | arguments)
