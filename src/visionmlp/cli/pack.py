"""``visionmlp pack``."""

import sys
from pathlib import Path

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import PackOptions
from visionmlp.cli.output import bars
from visionmlp.cli.usage import UsageError


def pack(options: PackOptions) -> int:
    """Pack a folder, or verify a pack."""
    if options.verify is not None:
        return _verify(options, options.verify)
    if not options.folder or options.output is None:
        raise UsageError("give the FOLDER to pack and --output, or --verify with a packed folder")

    from visionmlp.data.packing import IMAGES_PER_SHARD, pack

    try:
        with bars() as progress:
            packed = pack(
                Path(options.folder),
                options.output,
                images_per_shard=IMAGES_PER_SHARD if options.images_per_shard is None else options.images_per_shard,
                seed=options.seed or 0,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on behind the last whole shard") from None
    for name, split in packed.meta.splits.items():
        classes = sum(count > 0 for count in split.images_per_class)
        sys.stdout.write(f"{name}: {split.images} images of {classes} classes in {len(split.shards)} shards\n")
    if packed.resumed:
        sys.stdout.write(f"went on behind {packed.resumed} shards that were there\n")
    word = "wrote" if packed.new else "nothing to do for"
    sys.stdout.write(f"{word} {options.output}: {packed.bytes / 2**20:.1f} MiB, every image read back and compared\n")
    return 0


def _verify(options: PackOptions, folder: Path) -> int:
    given = {"output": options.output, "images-per-shard": options.images_per_shard, "seed": options.seed}
    if idle := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"--verify reads a packed folder only; leave out --{idle[0]}")

    from visionmlp.data.packed import PackedMeta, is_packed
    from visionmlp.data.packed_check import require_faultless
    from visionmlp.data.packing import open_folders
    from visionmlp.errors import DataError

    if not is_packed(folder):
        raise DataError(f"{folder} is no packed folder; visionmlp pack makes one")
    meta = PackedMeta.read(folder)
    sources = open_folders(Path(options.folder)) if options.folder else None
    with bars() as progress:
        require_faultless(folder, meta, sources, progress)
    images = sum(split.images for split in meta.splits.values())
    shards = sum(len(split.shards) for split in meta.splits.values())
    like = f"that of {options.folder}" if sources else "as it was packed"
    sys.stdout.write(f"{folder}: {images} images in {shards} shards, every one {like}\n")
    return 0


PACK = plain_command(
    "pack",
    PackOptions,
    pack,
    summary="an image folder into tar shards, to train from and to copy",
    description=(
        "Pack an image folder into WebDataset shards, bytes unchanged, mixed over classes, and read all of them back.\n"
        "The result is --data of train and eval, with the same classes, order and results as the folder.\n"
        "A pack that was interrupted goes on when the same command is given again."
    ),
    examples=[
        "pack photos --output shards",
        "pack imagenet --output imagenet-shards --images-per-shard 5000 --seed 1",
        "pack --verify shards",
        "pack photos --verify shards",
    ],
)
