"""Where weights come from: a run, a checkpoint, or a file of another program."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from refnet.arrays import Array
from refnet.data import KEYPOINT_OFFSET, KeypointScheme
from refnet.data.coco_classes import COCO_CLASSES, COCO_KEYPOINTS
from refnet.nn.init import Blank
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.train.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, load_newest
from refnet.train.config import CocoData, RunConfig, TrainConfig
from refnet.train.config_file import from_document, to_document
from refnet.train.run_dir import CHECKPOINTS
from refnet.weights import LoadReport, load, model_for, read_tensors
from refnet.weights.infer import file_digest
from refnet.weights.names import Convention


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Weights, and what is known of the network that they are of.

    Attributes:
        path: the run, checkpoint or file.
        tensors: the arrays by their names there.
        config: the network.
        run: the configuration of the run that made them; None for a file of another program.
        class_names, category_ids: what class k, at position k - 1, is called, and its COCO category.
        named: whether the file, or what is known of its convention, says so; otherwise classes are only numbered.
        keypoints: what the keypoints of the objects are called; None if that isn't known, or there are none.
        keypoint_offset: what keypoints in files lack to those of the network; see :class:`refnet.data.CocoDataset`.
        notes: what was chosen that the file doesn't say.
    """

    path: Path
    tensors: Mapping[str, Array]
    config: ModelConfig
    run: RunConfig | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    named: bool
    notes: tuple[str, ...]
    keypoints: KeypointScheme | None
    keypoint_offset: float

    @property
    def skeleton(self) -> tuple[tuple[int, int], ...]:
        """Pairs of keypoints that a line joins in drawings."""
        return () if self.keypoints is None else self.keypoints.skeleton

    @property
    def train(self) -> TrainConfig:
        """How the run that made the weights was trained; the defaults for a file of another program."""
        return TrainConfig() if self.run is None else self.run.train

    def model(self, config: ModelConfig | None = None) -> tuple[MaskRCNN, LoadReport]:
        """The network with these weights, and what went where.

        Args:
            config: another configuration to use the weights with, such as one with other detection thresholds.

        Raises:
            WeightsError: the weights have other names or shapes than `config` needs.
        """
        model = MaskRCNN(self.config if config is None else config, rng=Blank())
        return model, load(model, self.tensors, name=str(self.path))

    def checkpoint(self, model: MaskRCNN) -> Checkpoint:
        """A checkpoint of `model`, before its first step, with these classes.

        It is of a run without images, or of that which made the weights.
        """
        run = self.run or RunConfig(data=CocoData(images=Path(), annotations=Path()))
        return Checkpoint(
            step=0,
            model=model.state(),
            optimizer={},
            config=to_document(replace(run, model=model.config)),
            class_names=self.class_names,
            category_ids=self.category_ids,
            random={},
            keypoints=self.keypoints,
        )


def read_weights(path: Path) -> Mapping[str, Array]:
    """The arrays at `path`, a run, a checkpoint or a file of weights, by their names there.

    Raises:
        CheckpointError: there is no checkpoint in the folder, or it is damaged.
        WeightsError: the file isn't one of weights.
    """
    checkpoint = _checkpoint(path)
    return read_tensors(path) if checkpoint is None else checkpoint.model


def _checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or the newest of the run there; None for a file of another program."""
    if path.is_dir():
        return load_newest(path / CHECKPOINTS)[1]
    return load_checkpoint(path) if is_checkpoint(path) else None


def open_source(path: Path, *, base: ModelConfig | None = None) -> Source:
    """The weights at `path`: the folder of a run, for its newest checkpoint, a checkpoint, or a file of weights.

    Args:
        base: for a file of another program, the configuration to start from instead of its convention's preset.

    Raises:
        CheckpointError: there is no checkpoint in the folder, or it is damaged.
        WeightsError: the file isn't one of weights, or not those of a detector.
    """
    checkpoint = _checkpoint(path)
    if checkpoint is not None:
        return _of_checkpoint(path, checkpoint)
    tensors = read_tensors(path)
    found = model_for(tensors, base=base, sha256=file_digest(path))
    count = found.config.num_classes
    categories = _coco_categories(found.convention, found.config)
    named = categories is not None
    if categories is None:
        categories = {k: f"class {k}" for k in range(1, count + 1)}
    return Source(
        path=path,
        tensors=tensors,
        config=found.config,
        run=None,
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        named=named,
        notes=found.notes,
        keypoints=COCO_KEYPOINTS if _has_coco_keypoints(found.config) else None,
        keypoint_offset=0.0 if found.convention.name == "torchvision" else KEYPOINT_OFFSET,
    )


def _of_checkpoint(path: Path, checkpoint: Checkpoint) -> Source:
    run = from_document(checkpoint.config, source="checkpoint")
    return Source(
        path=path,
        tensors=checkpoint.model,
        config=run.model,
        run=run,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        named=True,
        notes=(),
        keypoints=checkpoint.keypoints,
        keypoint_offset=run.keypoint_offset,
    )


def _has_coco_keypoints(config: ModelConfig) -> bool:
    head = config.keypoint_head
    return head.enabled and config.num_classes == 1 and head.num_keypoints == len(COCO_KEYPOINTS)


def _coco_categories(convention: Convention, config: ModelConfig) -> dict[int, str] | None:
    """The categories, by id, of a network that by its number of classes was trained on COCO; None for another number.

    torchvision's class k is COCO's category k, so that ten of its classes are never found; elsewhere classes count on.
    """
    if config.keypoint_head.enabled and config.num_classes == 1:
        return {1: COCO_CLASSES[1]}
    if convention.name == "torchvision" and config.num_classes == max(COCO_CLASSES):
        return {k: COCO_CLASSES.get(k, f"unused {k}") for k in range(1, max(COCO_CLASSES) + 1)}
    if convention.name != "torchvision" and config.num_classes == len(COCO_CLASSES):
        return dict(COCO_CLASSES)
    return None
