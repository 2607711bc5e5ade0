"""The command line: ``refnet train``, ``eval``, ``predict``, ``convert``, ``trace``, ``compare``, ``check``,
``bench`` and ``data``.

Each command is a record whose fields are its flags. Those of the network, the data and the training are the records
of :mod:`refnet.rcnn.config` and :mod:`refnet.train.config` themselves, so no flag is written down twice. Arguments
are parsed twice: once for what the defaults come from (a configuration file, a preset, a run, a file of weights), and then,
with these defaults in the help text too, for everything.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import numpy as np
import tyro

import refnet
from refnet.arrays import Array
from refnet.data import CocoDataset, Dataset, Sample, ShapesConfig, keypoint_scheme, read_image, write_shapes
from refnet.errors import ConfigError, DataError, DeviceError, RefnetError
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import PRESETS
from refnet.rcnn.structures import Detections
from refnet.train import (
    CocoData,
    RunConfig,
    ShapesData,
    Source,
    TrainConfig,
    build_model,
    delete_run,
    holds_run,
    keep_freed_memory,
    open_source,
    preset_model,
    read_toml,
    read_weights,
    to_document,
    train,
    with_document,
    write_checkpoint,
)
from refnet.train.config_file import DEFAULT_PRESETS, differences
from refnet.train.progress import progress_bar
from refnet.train.run_dir import CONFIG_TOML, RESULTS
from refnet.weights import LoadReport, save
from refnet.weights.load import unwrapped
from refnet.weights.names import CONVENTIONS, detect_convention

if TYPE_CHECKING:
    from refnet.draw import Example

DEPARTS = 1
FAILED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report Ctrl-C

EXAMPLES = 200  # images that the report's pictures are chosen from; more would only cost memory

ONLY_IN_TRAINING = ("anchor_targets", "roi_targets", "losses")  # stages that detecting passes over
SEEN_OR_ONLY_IN_TRAINING = (  # fields of the others that the shapes of weights show, or that detecting passes over
    "family", "depth", "width", "channels", "convolutions", "conv_channels", "layers", "enabled", "num_keypoints",
    "initialization", "norm_momentum", "zero_init_residual", "checkpoint",
)  # fmt: skip

T = TypeVar("T")
Flat: TypeAlias = Annotated[T, tyro.conf.arg(name="")]  # the record's fields are flags without a prefix
Device: TypeAlias = Literal["cpu", "cuda"]
Precision: TypeAlias = Literal["float32", "exact-order", "tf32", "bf16"]
Opened: TypeAlias = tyro.conf.Suppress[tyro.conf.Fixed[Source | None]]  # no flag: what was read for the defaults
Preset: TypeAlias = Literal[
    "torchvision",
    "torchvision_v2",
    "torchvision_keypoints",
    "matterport",
    "matterport_faithful",
    "detectron2",
    "paper",
    "shapes",
]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the defaults of a training's flags come from, and what becomes of a run that is already there."""

    out: Path = Path("runs/shapes")
    """The folder of the run: configuration, metrics, checkpoints, results, report."""
    config: Path | None = None
    """A TOML file with defaults for the other flags: steps = 100, and nms_threshold = 0.6 in the table [rpn].
    RUN/config.toml repeats a run."""
    preset: Preset | None = None
    """The network whose fields are the defaults; shapes for toy shapes, else torchvision."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, with the flags that it was started with."""
    overwrite: bool = False
    """Delete the run in --out, if there is one, and start a new one."""


@dataclass(frozen=True, kw_only=True)
class TrainShapes:
    """Train on toy shapes, evaluate on others and write a report."""

    origin: Flat[Origin]
    train: Flat[TrainConfig]
    data: Flat[ShapesData]
    model: Flat[ModelConfig]

    def run(self) -> int:
        """Train, evaluate, report."""
        return _train(RunConfig(model=self.model, data=self.data, train=self.train), self.origin, "shapes")


@dataclass(frozen=True, kw_only=True)
class TrainCoco:
    """Train on images with annotations in COCO's format, evaluate on others and write a report."""

    origin: Flat[Origin]
    train: Flat[TrainConfig]
    data: Flat[CocoData]
    model: Flat[ModelConfig]

    def run(self) -> int:
        """Train, evaluate, report."""
        return _train(RunConfig(model=self.model, data=self.data, train=self.train), self.origin, "coco")


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate a run's newest checkpoint as COCO does; write RUN/results.json and, with it, RUN/report.html.

    With --weights FILE instead of a run, weights of any known program are evaluated; write ./results.json.
    """

    run_dir: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(name="run")] = None
    """The folder of the run, or a checkpoint."""
    weights: Path | None = None
    """Instead of a run: a file of weights. The network is taken from it."""
    preset: Preset | None = None
    """With --weights: what the file doesn't say, if not its own program's conventions."""
    model: Flat[ModelConfig]
    images: Path | None = None
    """A folder of images to evaluate on, instead of those that the run names."""
    annotations: Path | None = None
    """Their objects, JSON in COCO's format."""
    out: Path | None = None
    """The file to write the results to, instead of RUN/results.json."""
    device: Device = "cpu"
    """Where the network lives: cuda is a GPU of NVIDIA's, and needs CuPy."""
    precision: Precision = "float32"
    """How convolutions compute: exact-order keeps plain sums on a CPU; on a GPU tf32 and bf16 round, and are faster."""
    opened: Opened = None

    def run(self) -> int:
        """Evaluate."""
        return _eval(self)

    def source(self) -> Path:
        """The run, or the file of weights."""
        if (self.run_dir is None) == (self.weights is None):
            raise ConfigError(f"eval: expected a run or --weights, got {self.run_dir} and {self.weights}")
        return self.run_dir or self.weights or Path()


@dataclass(frozen=True, kw_only=True)
class _OnImages:
    """A command that runs a network on images."""

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[RUN] IMAGE [IMAGE ...]")]
    """The folder of a run, or a checkpoint, and image files; with --weights, image files only."""
    weights: Path | None = None
    """Instead of a run: a file of weights. The network is taken from it."""
    preset: Preset | None = None
    """With --weights: what the file doesn't say, if not its own program's conventions."""
    model: Flat[ModelConfig]
    opened: Opened = None

    def source(self) -> Path:
        """The run, or the file of weights."""
        if not self.paths:
            raise ConfigError("expected a run and image files, or --weights and image files, got none")
        return self.weights or self.paths[0]

    def images(self) -> list[tuple[Path, Array]]:
        """The image files, and what is in them."""
        files = self.paths if self.weights else self.paths[1:]
        if not files:
            raise ConfigError("expected one or more image files, got none")
        return [(path, _read_image(path, self.model.input.channels)) for path in files]


@dataclass(frozen=True, kw_only=True)
class Predict(_OnImages):
    """Find objects in images; draw them and write them down in COCO's results format.

    refnet predict RUN image.jpg, or refnet predict --weights FILE image.jpg for weights of any known program.
    """

    out: Path = Path("predictions")
    """The folder for the drawings, one PNG file an image, and for detections.json."""
    min_score: float = 0.5
    """Only objects of at least this score are drawn; detections.json has all of them."""
    device: Device = "cpu"
    """Where the network lives: cuda is a GPU of NVIDIA's, and needs CuPy."""
    precision: Precision = "float32"
    """How convolutions compute: exact-order keeps plain sums on a CPU; on a GPU tf32 and bf16 round, and are faster."""

    def run(self) -> int:
        """Predict."""
        return _predict(self)


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write weights for another program: those of a run, a checkpoint, or a file of any known program.

    The end of OUT says the format: .npz a checkpoint of refnet's, or a state dict; .pth and .safetensors a state dict;
    .h5 Keras. Weights don't say how images are prepared, or any other convention: the program that reads them has its
    own.
    """

    in_file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="in")]
    """A run, a checkpoint, or a file of weights."""
    out: tyro.conf.Positional[Path]
    """The file to write."""
    to: Literal["refnet", "torchvision", "matterport"] | None = None
    """Whose names to write; by default what OUT's end suggests: .npz refnet, .h5 matterport, else torchvision."""
    preset: Preset | None = None
    """What the file doesn't say, if not its own program's conventions."""
    model: Flat[ModelConfig]
    opened: Opened = None

    def run(self) -> int:
        """Convert."""
        return _convert(self)

    def source(self) -> Path:
        """What is read."""
        return self.in_file


@dataclass(frozen=True, kw_only=True)
class TraceImages(_OnImages):
    """Record every intermediate of a pass through the network, by name, for refnet compare.

    refnet trace RUN image.png, or refnet trace --weights FILE image.png; several images make one batch. With
    --annotations it is a training step, up to its losses.
    """

    annotations: Path | None = None
    """The images' objects, JSON in COCO's format, for a training step; file names are relative to an image's folder."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("trace.npz")
    """The file to write."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and activations."""
    sample: int | None = None
    """Store tensors of more values than this as every k-th value, about as many; by default all are whole."""
    seed: int = 0
    """Of the sampling of anchors and regions in a training step."""

    def run(self) -> int:
        """Record."""
        return _trace(self)


@dataclass(frozen=True, kw_only=True)
class CompareTraces:
    """Find the first tensor in which another implementation departs, and the convention that would explain it.

    Exit code 0: all that both have agrees. 1: something departs.
    """

    trace: tyro.conf.Positional[Path]
    """A file of refnet trace."""
    other: tyro.conf.Positional[Path]
    """Another program's tensors of the same pass, an .npz file: any of the names that the first file has."""
    weights: Path | None = None
    """The run or file of weights that the first trace was made with; by default where it was then."""
    tolerance: float | None = None
    """Largest difference, relative to a tensor's largest value; by default 1e-9 if both are float64, else 1e-4."""

    def run(self) -> int:
        """Compare."""
        return _compare(self)


@dataclass(frozen=True, kw_only=True)
class DataShapes:
    """Write toy shapes as PNG files with annotations in COCO's format."""

    shapes: ShapesConfig
    """What the images look like."""
    out: Path = Path("data/shapes")
    """The folder that receives train/, train.json, val/ and val.json."""
    train: int = 500
    """Images of the split for training."""
    val: int = 200
    """Images of the split for evaluation."""
    seed: int = 0
    """Equal seeds give equal images."""

    def run(self) -> int:
        """Write the files."""
        for split, file in write_shapes(self.shapes, self.out, train=self.train, val=self.val, seed=self.seed).items():
            print(f"{split}: {file}")
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckKernel:
    """Check a kernel against the specification of its operation.

    refnet check nms --kernel mine.py:nms, or refnet check nms for the kernel that refnet has itself. Exit code 0: it
    keeps the operation's contract. 1: it departs, and the smallest counterexample is printed, with a program that shows it.
    """

    operation: tyro.conf.Positional[str] = ""
    """The operation; --list names all."""
    list: bool = False
    """List the operations."""
    kernel: str | None = None
    """The kernel, package.module:name or file.py:name; by default refnet's own."""
    device: Literal["cpu", "cuda", "emulated"] | None = None
    """Where it runs: cuda hands it CuPy's arrays; emulated runs a launcher of CUDA kernels on the CPU and watches every
    access. By default cpu, with --cuda emulated."""
    max_examples: int = 100
    """Random calls, behind the named edge cases."""
    seed: int = 0
    """Of the random calls."""
    adapter: str = ""
    """The kernel's conventions where they aren't the specification's: "arrays=torch x=NCHW w=OIHW result=NCHW"."""
    only: str = ""
    """A condition on the calls that the kernel is made for: "groups == 1 and stride[0] == stride[1]"."""
    exact: bool = False
    """Only calls whose arithmetic and decisions are exact in any order."""
    precision: Literal["full", "tf32", "bf16"] = "full"
    """What the kernel rounds the operands of products to."""
    dtypes: tuple[Literal["float32", "float64"], ...] | None = None
    """Floating-point types; by default both, with --cuda float32."""
    refusals: bool = True
    """Whether bad calls must be refused, by refnet's errors."""
    cuda: Path | None = None
    """Instead of a Python function: a .cu file, run in the emulator."""
    entry: str = ""
    """With --cuda: the kernel, conv<float>."""
    signature: str = ""
    """With --cuda: its parameters, "x, w, out, i32:N, f32:epsilon"; see refnet.testing.cuda_source."""
    grid: str = ""
    """With --cuda: blocks, "cdiv(out.size, 256), N"."""
    block: str = ""
    """With --cuda: threads of a block, "16, 16"."""
    shared: str = "0"
    """With --cuda: bytes of dynamic shared memory."""

    def run(self) -> int:
        """Check."""
        return _check(self)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare refnet's kernels with its specification, and with PyTorch and torchvision where they are installed.

    Contestants take turns, and results are compared before they are timed. Exit code 0: all is measured. 1: a result is
    wrong, or something failed; the others are measured all the same.
    """

    only: tuple[str, ...] = ()
    """Subjects with any of these words in their names: inference, "nms 2000", roi_align; --list names all."""
    list: bool = False
    """List the subjects."""
    threads: tuple[int, ...] = (1,)
    """How many threads every contestant has; with several numbers, all is measured for each."""
    rounds: int = 7
    """How often each contestant is timed."""
    quick: bool = False
    """Everything as small as it can be: shows that it works, and no more."""
    out: Path = Path("runs/bench")
    """The folder that receives results.json, table.md, ratios.png and growth.png."""
    keep: bool = False
    """Keep what an earlier run left in --out of all that isn't measured again."""
    explain: bool = False
    """Instead of measuring, say which algorithm each convolution of the network takes, and why."""
    size: int = 512
    """With --explain: the image's height and width."""

    def run(self) -> int:
        """Measure."""
        return _bench(self)


Command: TypeAlias = (
    TrainShapes | TrainCoco | Eval | Predict | Convert | TraceImages | CompareTraces | DataShapes | CheckKernel | Bench
)


def _parse_train(kind: Callable[..., Command], name: str, data: ShapesData | CocoData, args: Sequence[str]) -> Command:
    """The command of a training; its defaults are those of a preset, changed by those of a file."""
    program = f"refnet train {name}"
    out = Path("runs") / name
    origin, _ = tyro.cli(
        Origin, default=Origin(out=out), args=args, prog=program, return_unknown_args=True, add_help=False
    )
    file = origin.config
    if origin.resume:
        if origin.config or origin.overwrite:
            raise ConfigError("--resume takes the run's own configuration, so it excludes --config and --overwrite")
        file = origin.out / CONFIG_TOML
        if not file.is_file():
            raise ConfigError(f"--resume: expected a run in {origin.out}, found none")
    document = read_toml(file) if file else {}
    source = str(file)
    if document.get("dataset", name) != name:
        raise ConfigError(f"{source}: dataset: expected {name!r} for {program}, got {document['dataset']!r}")
    preset: Any = origin.preset or document.get("preset", DEFAULT_PRESETS[name])
    model = preset_model(preset, source=source)
    if origin.preset is None and file is None:
        model = _model_of_weights(args, program, model)
    base = RunConfig(model=model, data=data)
    config = with_document(base, document, source=source)
    default = kind(origin=Origin(out=out, preset=preset), train=config.train, data=config.data, model=config.model)
    return _parse(kind, default, program, args)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """The flag that a training's defaults may come from."""

    weights: Path | None = None


def _model_of_weights(args: Sequence[str], program: str, preset: ModelConfig) -> ModelConfig:
    """The network that the file after --weights is of, but for its classes; `preset` if there is no such file."""
    flag, _ = tyro.cli(_Weights, args=args, prog=program, return_unknown_args=True, add_help=False)
    if flag.weights is None or detect_convention(unwrapped(read_weights(flag.weights))).backbone_only:
        return preset
    return replace(open_source(flag.weights).config, num_classes=preset.num_classes)


def _parse_with_source(kind: Callable[..., Command], default: Any, name: str, args: Sequence[str]) -> Command:
    """A command whose defaults for the network are those of the run or the weights that it names."""
    program = f"refnet {name}"
    first: Any = _parse(kind, default, program, args)
    base = None if first.preset is None else preset_model(first.preset, source="--preset")
    source = open_source(first.source(), base=base)
    return _parse(kind, replace(default, model=source.config, opened=source), program, args)


def _parse(kind: Callable[..., Command], default: Any, program: str, args: Sequence[str]) -> Command:
    return tyro.cli(kind, default=default, args=args, prog=program)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], Command], str]] = {
    "train shapes": (
        lambda args: _parse_train(TrainShapes, "shapes", ShapesData(), args),
        "train on toy shapes, evaluate on others and write a report",
    ),
    "train coco": (
        lambda args: _parse_train(TrainCoco, "coco", CocoData(images=tyro.MISSING, annotations=tyro.MISSING), args),
        "the same for images with annotations in COCO's format",
    ),
    "eval": (
        lambda args: _parse_with_source(Eval, Eval(model=ModelConfig()), "eval", args),
        "evaluate a run, or weights, as COCO does",
    ),
    "predict": (
        lambda args: _parse_with_source(Predict, Predict(paths=tyro.MISSING, model=ModelConfig()), "predict", args),
        "find objects in images, draw them and write them down",
    ),
    "convert": (
        lambda args: _parse_with_source(
            Convert, Convert(in_file=tyro.MISSING, out=tyro.MISSING, model=ModelConfig()), "convert", args
        ),
        "write weights for another program",
    ),
    "trace": (
        lambda args: _parse_with_source(
            TraceImages, TraceImages(paths=tyro.MISSING, model=ModelConfig()), "trace", args
        ),
        "record every intermediate of a pass through the network",
    ),
    "compare": (
        lambda args: _parse(
            CompareTraces, CompareTraces(trace=tyro.MISSING, other=tyro.MISSING), "refnet compare", args
        ),
        "find where another implementation departs, and why",
    ),
    "check": (
        lambda args: _parse(CheckKernel, CheckKernel(), "refnet check", args),
        "check a kernel against the specification of its operation",
    ),
    "bench": (
        lambda args: _parse(Bench, Bench(), "refnet bench", args),
        "compare refnet's kernels with others, side by side",
    ),
    "data shapes": (
        lambda args: _parse(DataShapes, DataShapes(shapes=ShapesConfig()), "refnet data shapes", args),
        "write toy shapes as PNG files with annotations in COCO's format",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, that of the process by default, and return its exit code.

    0: done. 1: refnet compare or refnet check found a departure. 2: an error, told in one line (with its traceback if ``--traceback`` is given or the environment has
    REFNET_DEBUG=1). 130: interrupted.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--traceback" in args or bool(os.environ.get("REFNET_DEBUG"))
    try:
        return _dispatch([arg for arg in args if arg != "--traceback"])
    except (RefnetError, OSError) as error:  # a full disk, a folder that can't be written
        if debug:
            raise
        print(f"refnet: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("refnet: interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(args: list[str]) -> int:
    for name, (parse, _) in COMMANDS.items():
        words = name.split()
        if args[: len(words)] == words:
            return parse(args[len(words) :]).run()
    if args == ["--version"]:
        print(f"refnet {refnet.__version__}")
    elif not args or "--help" in args or "-h" in args:
        print(_usage())
    else:
        raise ConfigError(f"expected one of the commands {', '.join(COMMANDS)}, got {' '.join(args[:2])!r}")
    return 0


def _usage() -> str:
    commands = "\n".join(f"  refnet {name:14}{text}" for name, (_, text) in COMMANDS.items())
    return f"""usage: refnet COMMAND ...

{commands}

refnet COMMAND --help lists the flags: every field of the configuration is one.
refnet --version tells the version.

Kernels run on all cores; REFNET_NUM_THREADS=1 in the environment limits them to one. Equal seeds give equal bits for
one number of threads.
"""


def _train(config: RunConfig, origin: Origin, name: str) -> int:
    channels = config.model.input.channels
    dataset, unseen = config.data.training(channels), config.data.validation(channels)
    config = _for_classes(config, origin, dataset)
    out = origin.out
    if holds_run(out) and not origin.resume:
        if not origin.overwrite:
            raise ConfigError(
                f"{out} already holds a run: --resume continues it, --overwrite deletes it, --out names another folder"
            )
        delete_run(out)
    _set_up_process(config.train)
    model = build_model(config, tell=_tell) if config.train.weights and not origin.resume else None
    result = train(config, dataset, out, resume=origin.resume, model=model)
    if result.interrupted:
        print(
            f"refnet: stopped behind step {result.steps} of {config.train.steps}; to continue: "
            f"refnet train {name} --out {out} --resume",
            file=sys.stderr,
        )
        return INTERRUPTED
    source = open_source(out)
    examples: list[Example] = []
    if unseen is not None:
        trained, _ = source.model()
        trained.to(config.train.device)
        examples = _evaluate(trained, unseen, source, out / RESULTS)
    _report(out, source, examples)
    return 0


def _tell(report: LoadReport) -> None:
    print(report, file=sys.stderr)


def _report(run_dir: Path, source: Source, examples: "Sequence[Example]") -> None:
    from refnet.draw import write_report

    report = write_report(run_dir, class_names=source.class_names, examples=examples, skeleton=source.skeleton)
    print(f"report: {report}")


def _for_classes(config: RunConfig, origin: Origin, dataset: Dataset) -> RunConfig:
    """`config` with as many classes as the dataset has, unless somebody asked for another number."""
    found, asked = len(dataset.class_names), config.model.num_classes
    preset = preset_model(origin.preset, source="--preset").num_classes
    if asked not in (found, preset):
        raise ConfigError(f"num_classes: the dataset has {found}, so expected that or nothing, got {asked}")
    return replace(config, model=_for_keypoints(replace(config.model, num_classes=found), origin, dataset))


def _for_keypoints(model: ModelConfig, origin: Origin, dataset: Dataset) -> ModelConfig:
    """`model` with as many keypoints as the dataset's objects have, unless somebody asked for another number."""
    head, scheme = model.keypoint_head, keypoint_scheme(dataset)
    if not head.enabled:
        return model
    if scheme is None:
        raise ConfigError("keypoint_head.enabled: the objects of the dataset have no keypoints to learn from")
    preset = preset_model(origin.preset, source="--preset").keypoint_head.num_keypoints
    if head.num_keypoints not in (len(scheme), preset):
        raise ConfigError(
            f"keypoint_head.num_keypoints: the dataset has {len(scheme)}, so expected that or nothing, "
            f"got {head.num_keypoints}"
        )
    return replace(model, keypoint_head=replace(head, num_keypoints=len(scheme)))


def _set_up_process(config: TrainConfig) -> None:
    """Settings of the whole process, so they are up to the program and not to the library."""
    from refnet import kernels
    from refnet.kernels.cpu.precision import set_precision as set_on_cpu
    from refnet.kernels.cuda.conv2d import set_precision as set_on_gpu
    from refnet.kernels.cuda.cupy_module import import_cupy

    keep_freed_memory()
    if config.device == "cuda":
        try:
            import_cupy()
        except DeviceError as error:
            raise ConfigError(f"--device cuda: {error}; pip install 'refnet[cuda]' installs CuPy") from error
        set_on_gpu("float32" if config.precision == "exact-order" else config.precision)
    set_on_cpu("exact-order" if config.precision == "exact-order" else "float32")
    if config.kernels == "tuned":
        kernels.install()
    else:
        kernels.uninstall()


def _opened(command: Eval | Predict | Convert | TraceImages) -> Source:
    assert command.opened is not None  # parsing the command has read it
    return command.opened


def _eval(command: Eval) -> int:
    source = _opened(command)
    data = _evaluation_data(command, source)
    dataset = None if data is None else data.validation(command.model.input.channels)
    if dataset is None:
        raise ConfigError(f"eval: {source.path} names no images to evaluate on; --images and --annotations do")
    _set_up_process(replace(source.train, device=command.device, precision=command.precision))
    model = _loaded(source, command.model)
    model.to(command.device)
    folder = source.path if source.path.is_dir() else None
    out = command.out or (Path() if source.run is None else folder or source.path.parent) / RESULTS
    examples = _evaluate(model, dataset, source, out)
    if folder is not None and out == folder / RESULTS:
        _report(folder, source, examples)
    return 0


def _loaded(source: Source, config: ModelConfig) -> MaskRCNN:
    """The network with its weights; for a file of another program, with a report of what was chosen and went where."""
    model, report = source.model(config)
    if source.run is None:
        _tell(report)
        print("\n".join(f"  chosen      {note}" for note in source.notes), file=sys.stderr)
    return model


def _evaluation_data(command: Eval, source: Source) -> ShapesData | CocoData | None:
    images, annotations = command.images, command.annotations
    if images is not None and annotations is not None:
        return CocoData(
            images=images,
            annotations=annotations,
            val_images=images,
            val_annotations=annotations,
            keypoint_offset=source.keypoint_offset,
        )
    if images is not None or annotations is not None:
        raise ConfigError(f"eval: --images and --annotations belong together, got {images} and {annotations}")
    return None if source.run is None else source.run.data


def _evaluate(model: MaskRCNN, dataset: Dataset, source: Source, out: Path) -> "list[Example]":
    """Evaluate `model` on `dataset`, print a summary and write the results to the file `out`.

    Returns:
        Images to choose those of a report from.
    """
    from refnet.draw import Example, machine_facts
    from refnet.evaluate import CocoEvaluator, panoptic_quality

    numbers, settings = _class_numbers(source, dataset), source.train
    evaluator = CocoEvaluator(
        dataset.class_names,
        dataset.category_ids,
        oks_sigmas=settings.oks_sigmas or None,
        keypoint_offset=source.keypoint_offset,
    )
    examples: list[Example] = []
    start = time.perf_counter()
    samples = (dataset[index] for index in range(len(dataset)))
    for sample, found in _detect(model, samples, len(dataset), settings.eval_batch_size, lambda sample: sample.image):
        if numbers is not None:
            found = _renumbered(found, numbers)
        evaluator.add(sample.image_id, sample.truth, found)
        if len(examples) < EXAMPLES:
            score = panoptic_quality(sample.truth, found)
            examples.append(
                Example(image=sample.image, truth=sample.truth, detections=found, score=score, name=sample.file_name)
            )
    seconds = time.perf_counter() - start
    evaluation = evaluator.evaluate()
    timing = {"evaluation, seconds": seconds, "evaluation, images per second": len(dataset) / seconds}
    results = evaluation.to_json() | {"timing": timing, "machine": machine_facts()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(evaluation)
    print(f"results: {out}")
    return examples


def _class_numbers(source: Source, dataset: Dataset) -> Array | None:
    """For each class of the network, 0 the background, that of the dataset, 0 for one that the dataset hasn't.

    None if all are the same.

    A file that doesn't name its classes has those of the dataset, if there are as many.

    Raises:
        DataError: the dataset has other classes.
    """
    count = len(source.class_names)
    same = tuple(dataset.class_names) == source.class_names
    if same or (not source.named and len(dataset.class_names) == count):
        return None
    theirs = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    ours = dict(zip(source.category_ids, source.class_names, strict=True))
    if source.run is not None or not theirs.items() <= ours.items():
        raise DataError(f"eval: expected images of the classes {source.class_names}, got {tuple(dataset.class_names)}")
    order = list(theirs)
    return np.array([0, *(order.index(k) + 1 if k in theirs else 0 for k in source.category_ids)])


def _renumbered(found: Detections, numbers: Array) -> Detections:
    """`found` with classes numbered as the dataset does, without those that it hasn't."""
    classes = numbers[found.classes]
    kept = replace(found, classes=classes)
    return kept.select(classes > 0)


def _detect(
    model: MaskRCNN, entries: Iterable[T], count: int, batch_size: int, image_of: Callable[[T], Array]
) -> Iterator[tuple[T, Detections]]:
    """Each entry with the objects in its image, `batch_size` images at a time, and a progress bar for `count`."""
    waiting = iter(entries)
    with progress_bar(total=count, unit="image", description="detect") as bar:
        while batch := list(itertools.islice(waiting, batch_size)):
            yield from zip(batch, model.detect([image_of(entry) for entry in batch]), strict=True)
            bar.update(len(batch))


def _predict(command: Predict) -> int:
    from PIL import Image

    from refnet.draw import draw_detections
    from refnet.evaluate import image_results

    images = command.images()
    source = _opened(command)
    _set_up_process(replace(source.train, device=command.device, precision=command.precision))
    model = _loaded(source, command.model)
    model.to(command.device)
    command.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for number, ((path, image), found) in enumerate(_detect(model, images, len(images), 1, lambda entry: entry[1])):
        rows = image_results(number, found, source.category_ids, keypoint_offset=source.keypoint_offset)
        results += [{**row, "file_name": str(path)} for row in rows]
        namesakes = sum(path.stem == other.stem for other, _ in images)
        drawing = command.out / (f"{path.stem}.png" if namesakes == 1 else f"{path.stem}-{number}.png")
        likely = found.select(found.scores >= command.min_score)
        picture = draw_detections(image, likely, source.class_names, min_score=0.0, skeleton=source.skeleton)
        Image.fromarray(picture).save(drawing)
        print(f"{path}: {len(found)} objects, {len(likely)} with a score of {command.min_score} or more: {drawing}")
    file = command.out / "detections.json"
    file.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(f"detections: {file}")
    return 0


def _trace(command: TraceImages) -> int:
    from refnet.conformance import record, write_trace

    given = command.images()
    source = _opened(command)
    images, truth = [image for _, image in given], None
    if command.annotations is not None:
        channels = command.model.input.channels
        folders = {path.parent for path, _ in given}
        datasets = {folder: CocoDataset(folder, command.annotations, channels=channels) for folder in folders}
        samples = [_annotated(path, datasets[path.parent], source) for path, _ in given]
        images, truth = [sample.image for sample in samples], [sample.truth for sample in samples]
    _set_up_process(replace(source.train, device="cpu", precision="float32"))
    model = _loaded(source, command.model)
    model.astype(np.dtype(command.dtype))
    trace = record(model, images, truth, seed=command.seed)
    about = {"weights": str(source.path), "dtype": command.dtype, "files": [str(path) for path, _ in given]}
    write_trace(command.out, replace(trace, metadata={**trace.metadata, **about}), sample=command.sample)
    print(f"trace: {len(trace.tensors)} tensors in {command.out}")
    return 0


def _annotated(path: Path, dataset: CocoDataset, source: Source) -> Sample:
    """The image at `path` with its objects, their classes numbered as the network numbers them."""
    sample = dataset[dataset.position(path.name)]
    if not source.named and len(dataset.class_names) == len(source.class_names):
        return sample
    numbers = {category: number for number, category in enumerate(source.category_ids, start=1)}
    categories = [dataset.category_ids[k - 1] for k in sample.truth.classes.tolist()]
    strangers = set(categories) - set(numbers)
    if strangers:
        raise DataError(f"trace: {path}: the network has no classes for the categories {sorted(strangers)}")
    classes = np.array([numbers[category] for category in categories], np.int64)
    return replace(sample, truth=replace(sample.truth, classes=classes))


def _compare(command: CompareTraces) -> int:
    from refnet.conformance import compare, read_trace
    from refnet.train.config_file import with_values

    ours, other = read_trace(command.trace), read_trace(command.other)
    if "config" not in ours.metadata:
        raise ConfigError(f"compare: {command.trace}: expected a file of refnet trace, got one without its metadata")
    config = with_values(ModelConfig(), ours.metadata["config"], str(command.trace))
    weights = command.weights or Path(ours.metadata.get("weights", ""))
    model = None
    if weights.exists():
        model, _ = open_source(weights).model(config)
        model.astype(np.dtype(ours.metadata.get("dtype", "float32")))
    elif command.weights is not None:
        raise ConfigError(f"compare: --weights: expected a run or a file of weights, found no {weights}")
    _set_up_process(TrainConfig())
    found = compare(ours, other, config, model=model, tolerance=command.tolerance)
    print(found)
    return 0 if found.departure is None else DEPARTS


def _check(command: CheckKernel) -> int:
    from refnet.testing import KernelMismatch, check_kernel
    from refnet.testing.command import find_operation, kernel_to_check, listing, parse_adapter, suitable

    if command.list:
        print(listing())
        return 0
    operation = find_operation(command.operation)
    kernel, code = kernel_to_check(
        operation,
        place=command.kernel,
        device=command.device,
        cuda=command.cuda,
        launch={name: getattr(command, name) for name in ("entry", "signature", "grid", "block", "shared")},
    )
    try:
        report = check_kernel(
            operation,
            kernel,
            device=command.device or ("emulated" if command.cuda else "cpu"),
            max_examples=command.max_examples,
            seed=command.seed,
            adapter=parse_adapter(command.adapter) if command.adapter else None,
            precision=command.precision,
            only=suitable(operation, command.only) if command.only else None,
            exact=command.exact,
            dtypes=command.dtypes or (("float32",) if command.cuda else ("float32", "float64")),
            refusals=command.refusals and not command.cuda,
            code=code,
        )
    except KernelMismatch as mismatch:
        print(mismatch)
        return DEPARTS
    print(report)
    return 0


def _bench(command: Bench) -> int:
    from refnet.bench import report, run, subjects
    from refnet.bench.contestants import Field
    from refnet.bench.explain import explanations

    everything = subjects.everything(quick=command.quick)
    listed = subjects.chosen(everything, command.only)
    if not listed or min(command.threads, default=0) < 1 or command.rounds < 1:
        raise ConfigError(
            f"bench: expected words of subjects that --list names, threads and rounds of at least 1, got "
            f"{command.only}, {command.threads}, {command.rounds}"
        )
    if command.list:
        print("\n".join(one.name for one in listed))
        return 0
    if command.explain:
        print("\n".join(explanations(command.size)))
        return 0
    _set_up_process(TrainConfig())
    field = Field.find()
    for name, reason in field.missing.items():
        print(f"LEFT OUT: {name}: {reason}")
    earlier = report.read(command.out, field) if command.keep else run.Report()
    found = run.Report()
    for threads in command.threads:
        bench = run.Bench(field, rounds=command.rounds, threads=threads)
        run.run(listed, bench, found, tell=lambda done: print(report.line(done), flush=True))
        whole = report.merged(earlier, found, [one.name for one in everything])
        report.write(whole, field, command.out, rounds=command.rounds)
    print(f"written: {command.out / report.TABLE} and what lies beside it")
    return DEPARTS if found.failures else 0


def _convert(command: Convert) -> int:
    source = _opened(command)
    model, report = source.model(command.model)
    print(report)
    for note in source.notes:
        print(f"  chosen      {note}")
    to = command.to or {".npz": "refnet", ".h5": "matterport"}.get(command.out.suffix, "torchvision")
    if to == "refnet":
        write_checkpoint(command.out, source.checkpoint(model))
    else:
        save(model, command.out, to)
        for line in _unsaid(command.model, to):
            print(f"  not in it   {line}")
    print(f"written: {command.out}, by the names of {CONVENTIONS[to].about}")
    return 0


def _unsaid(config: ModelConfig, program: str) -> list[str]:
    """What changes the objects that a network finds, isn't seen in the shapes of its weights, and isn't `program`'s own."""
    fields = [
        differences(_model_document(preset(config.num_classes)), _model_document(config))
        for name, preset in PRESETS.items()
        if name.startswith(program)
    ]
    nearest = min(fields, key=len)
    lines = []
    for key, (theirs, ours) in nearest.items():
        stage, _, name = key.rpartition(".")
        if stage not in ONLY_IN_TRAINING and name not in SEEN_OR_ONLY_IN_TRAINING and not name.endswith("_train"):
            lines.append(f"{key} is {ours}, {program}'s own is {theirs}")
    return lines


def _model_document(config: ModelConfig) -> dict[str, Any]:
    return to_document(RunConfig(model=config))


def _read_image(path: Path, channels: int) -> Array:
    """The pixels of an image file with as many channels as the network takes; gray and RGB are converted."""
    pixels = read_image(path, channels=channels if channels in (1, 3) else None)
    if pixels.shape[2] != channels:
        raise DataError(f"{path}: expected {channels} channels, got {pixels.shape[2]}")
    return pixels
