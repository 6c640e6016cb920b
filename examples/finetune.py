"""Fine-tune a model on your own folder of images.

    python examples/finetune.py photos/ runs/photos --model resmlp_s12 --pretrained

``photos/`` holds ``train/`` and ``val/``, each with one folder of images for each class. ``--pretrained`` starts from
the authors' weights, fetched once; the classifier is new. The run folder then holds the best weights, curves, a
confusion matrix and ``report.html``. On the command line: ``visionmlp train MODEL --data photos --output runs/photos``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import visionmlp
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.run import evaluate, train


def fine_tune(config: ClassifyConfig) -> tuple[float, float]:
    """Train, and evaluate what was trained; top-1 of the training form and of the deploy form, percent."""
    train(config)
    model, info = visionmlp.load_model(config.output)
    trained = evaluate(model, info, data=config.data)
    deployed = visionmlp.reparameterize(model.eval())
    visionmlp.save_checkpoint(
        config.output / "deploy.safetensors",
        deployed,
        class_names=info.class_names,
        preprocessing=info.preprocessing,
    )
    model, info = visionmlp.load_model(config.output / "deploy.safetensors")
    return trained["top1"], evaluate(model, info, data=config.data)["top1"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=str, help="folder with train/ and val/ of class folders")
    parser.add_argument("output", type=Path, help="new run folder")
    parser.add_argument("--model", default="resmlp_s12", help="name, run folder or checkpoint to start from")
    parser.add_argument("--pretrained", action="store_true", help="start from the authors' weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4, help="a tenth or less of what training from nothing takes")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that load images")
    options = parser.parse_args(arguments)
    config = ClassifyConfig(
        model=options.model,
        pretrained=options.pretrained,
        data=options.data,
        output=options.output,
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer="adamw",
        lr=options.lr,
        schedule="cosine",
        # gentle: pretrained weights need few epochs, and most of each image
        crop_scale=(0.5, 1.0),
        label_smoothing=0.1,
        num_workers=options.num_workers,
    )
    trained, deployed = fine_tune(config)
    print(f"top-1 {trained:.2f} %, deploy form {deployed:.2f} %; everything is in {options.output}")


if __name__ == "__main__":
    main()
