"""Libraries that train, serve, explain or restore, with the defence inside."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dipdefense import DIPPurifier


def test_captum(defended: nn.Module, images: Tensor, labels: Tensor) -> None:
    attr = importlib.import_module("captum.attr")
    maps = attr.Saliency(defended).attribute(images, target=labels)
    assert maps.shape == images.shape
    assert maps.abs().max() > 0


def test_grad_cam(defended: nn.Module, images: Tensor) -> None:
    cam = importlib.import_module("pytorch_grad_cam")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    with cam.GradCAM(model=defended, target_layers=[defended[1][2]]) as explain:
        maps = explain(input_tensor=images, targets=[targets.ClassifierOutputTarget(3)] * 2)
    assert maps.shape == (2, 32, 32)
    assert np.isfinite(maps).all()


def test_lightning_predicts(defended: nn.Module, images: Tensor, tmp_path: Path) -> None:
    lightning = importlib.import_module("lightning")

    class Classification(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = defended

        def predict_step(self, batch: list[Tensor]) -> Tensor:
            return self.model(batch[0])

    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    logits = torch.cat(trainer.predict(Classification(), DataLoader(TensorDataset(images), batch_size=1)))
    assert torch.equal(logits, torch.cat([defended(image[None]) for image in images]))


def test_accelerate(defended: nn.Module, images: Tensor) -> None:
    accelerate = importlib.import_module("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, loader = accelerator.prepare(defended, DataLoader(TensorDataset(images), batch_size=2))
    with torch.no_grad():
        (logits,) = [model(batch) for (batch,) in loader]
        assert torch.equal(logits, defended(images))


def test_torch_compile(defended: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = defended(images)
        compiled = nn.Sequential(defended[0], torch.compile(defended[1]))
        torch.testing.assert_close(compiled(images), expected)
        assert torch.equal(torch.compile(defended)(images), expected)


def test_torch_func(defended: nn.Module, images: Tensor) -> None:
    gradient = torch.func.grad(lambda batch: defended(batch).logsumexp(dim=1).sum())(images)
    assert gradient.abs().max() > 0


def test_data_loader_workers(purifier: DIPPurifier, images: Tensor) -> None:
    loader = DataLoader(TensorDataset(images), batch_size=1, num_workers=2, collate_fn=_Purified(purifier))
    assert torch.equal(torch.cat(list(loader)), torch.cat([purifier(image[None]) for image in images]))


class _Purified:
    """Purifies in the worker."""

    def __init__(self, purifier: DIPPurifier) -> None:
        self.purifier = purifier

    def __call__(self, batch: list[tuple[Tensor]]) -> Tensor:
        return self.purifier(torch.stack([image for (image,) in batch]))


def test_data_parallel(defended: nn.Module, images: Tensor) -> None:
    assert torch.equal(nn.DataParallel(defended)(images), defended(images))


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Two gloo processes: the classifier shares its gradients, the defence has none."""
    script = tmp_path / "ddp.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "from torch import nn\n"
        "from dipdefense import DIPConfig, DIPPurifier\n"
        "dist.init_process_group('gloo')\n"
        "torch.manual_seed(0)\n"
        "purifier = DIPPurifier(2, config=DIPConfig(scales=2, channels=4), seed=0)\n"
        "model = nn.Sequential(purifier, nn.Flatten(), nn.Linear(3 * 32 * 32, 4))\n"
        "model = nn.parallel.DistributedDataParallel(model)\n"
        "torch.manual_seed(dist.get_rank())\n"
        "model(torch.rand(1, 3, 32, 32)).sum().backward()\n"
        "gradient = model.module[2].weight.grad\n"
        "gathered = [torch.empty_like(gradient) for _ in range(2)]\n"
        "dist.all_gather(gathered, gradient)\n"
        "assert torch.equal(*gathered) and gradient.abs().max() > 0\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_skorch(defended: nn.Module, images: Tensor) -> None:
    skorch = importlib.import_module("skorch")
    net = skorch.NeuralNetClassifier(defended, criterion=nn.CrossEntropyLoss, classes=list(range(10)), train_split=None)
    net.initialize()
    assert np.array_equal(net.predict(images.numpy()), defended(images).argmax(dim=1).numpy())


def test_scikit_learn_pipeline(purifier: DIPPurifier, images: Tensor) -> None:
    pipeline = importlib.import_module("sklearn.pipeline")
    preprocessing = importlib.import_module("sklearn.preprocessing")
    linear = importlib.import_module("sklearn.linear_model")

    def purify(batch: np.ndarray) -> np.ndarray:
        return purifier(torch.from_numpy(batch)).flatten(1).numpy()

    model = pipeline.make_pipeline(preprocessing.FunctionTransformer(purify), linear.LogisticRegression())
    model.fit(images.numpy(), [0, 1])
    assert model.predict(images.numpy()).shape == (2,)


def test_deepinv_denoiser(purifier: DIPPurifier, images: Tensor) -> None:
    """A plug-and-play restoration with DIP as denoiser; the noise level is unused."""
    deepinv = importlib.import_module("deepinv")

    class Denoiser(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: object, **_: object) -> Tensor:
            return purifier(x.clamp(0, 1))

    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.05))
    model = deepinv.optim.optim_builder(
        iteration="PGD", prior=deepinv.optim.PnP(denoiser=Denoiser()), data_fidelity=deepinv.optim.L2(), max_iter=2,
        params_algo={"stepsize": 1.0, "g_param": 0.05},
    )  # fmt: skip
    restored = model(physics(images), physics)
    assert restored.shape == images.shape
    assert restored.isfinite().all()


def test_jupyter(tmp_path: Path) -> None:
    """The notebook's kernel, its progress bar and an inline picture."""
    nbformat, client = importlib.import_module("nbformat"), importlib.import_module("nbclient")
    cells = [
        "import torch\nfrom dipdefense import DIPConfig, DIPPurifier\n"
        "purifier = DIPPurifier(2, config=DIPConfig.architecture_2(), seed=0, progress=True)",
        "purifier(torch.rand(1, 3, 32, 32)).shape",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "[1, 3, 32, 32]" in notebook.cells[1].outputs[-1]["data"]["text/plain"]
