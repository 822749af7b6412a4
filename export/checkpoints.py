"""Names, and where their weights come from: the bundled folder, a local folder, or the hub at a pinned revision."""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import languages
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.sizes import GigaAMSizes, ParakeetSizes, Qwen3AsrSizes, Sizes, WhisperSizes, rounded

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = "pytorch_model.bin"
SENTENCEPIECE = "tokenizer.model"
# What torch.load raises on files that are cut, altered, or hold other objects than tensors.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OSError,
)
# What to do about a file that is not as it should be.
AGAIN = "download the checkpoint again"
# What an export reads; a repo's README, images and duplicate weight formats stay on the hub.
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A name the command line knows. ``revision`` is the commit of ``repo`` that was seen to work, None if none was.

    ``author`` is whom its licence asks to name, ``languages`` are codes, ``note`` is what else tells it from others;
    they and ``sizes`` are not known of a repo that the command line names itself. ``untaught`` are tasks that it was
    not trained for, though its files name them. ``downloaded`` are patterns of the files that are fetched, and
    ``tokenizers`` sets of files, one of which a complete download has.
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
    untaught: tuple[str, ...] = ()
    bundled: Path | None = None
    downloaded: tuple[str, ...] = DOWNLOADED
    tokenizers: tuple[tuple[str, ...], ...] = (("tokenizer.json",), TOKENIZER_FILES)

    @property
    def summary(self) -> str:
        """In a few words: how large it is, how many languages it knows, what else there is to it."""
        known = f"{len(self.languages)} languages" if len(self.languages) > 3 else ", ".join(self.languages)
        size = f"{rounded(self.sizes.parameters)} parameters" if self.sizes else ""
        return ", ".join(part for part in (size, known, self.note) if part)


_QWEN, _NVIDIA, _GIGAAM = "the Qwen team of Alibaba Cloud", "NVIDIA", "the GigaAM team (ai-sage)"

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
            "whisper-large-v3-turbo",
            "whisper",
            "openai/whisper-large-v3-turbo",
            "41f01f3fe87f28c78e2fbf8b568835947dd65ed9",
            "MIT",
            author="OpenAI",
            sizes=WhisperSizes(1280, 32, 4, mels=128, vocabulary=51_866),
            languages=languages.WHISPER,
            note="not trained to translate",
            untaught=("translate",),
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


# As the hub has them: parts begin and end with a letter, digit or underscore.
_REPO = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/(\w(?:[\w.-]{0,94}\w)?)")


def untaught(repo: str) -> tuple[str, ...]:
    """Tasks that the model of a repo was not trained for; of repos that have no name here, none are known."""
    return next((checkpoint.untaught for checkpoint in CHECKPOINTS.values() if checkpoint.repo == repo), ())


def named(name: str) -> Checkpoint:
    """What the command line means: a name of :data:`CHECKPOINTS`, or a repo id on the hub.

    A repo has no pinned commit, and its family (empty here) is known when its configuration is.

    Raises:
        CheckpointNotFoundError: neither.
    """
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    repo = _REPO.fullmatch(name)
    if repo is None:
        raise CheckpointNotFoundError(
            f"unknown model {name!r}; known are {', '.join(CHECKPOINTS)}, and repo ids such as openai/whisper-small"
        )
    return Checkpoint(repo[1].lower(), "", name, None, f"that of {name}")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A checkpoint on disk, and the repo and revision it came from (``revision`` null for a folder)."""

    path: Path
    repo: str
    revision: str | None

    def config(self) -> dict[str, Any]:
        """``config.json`` as a dictionary."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; raises :class:`CheckpointInvalidError` when it is not one."""
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
        """The safetensors files, from the index when the checkpoint is sharded; without any, ``pytorch_model.bin``."""
        if (self.path / INDEX).is_file():
            weight_map = self.read_json(INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointInvalidError(f"{self.path / INDEX}: holds no `weight_map`")
            files = [self.path / name for name in sorted(set(weight_map.values()))]
        elif (self.path / PICKLED).is_file() and not (self.path / SINGLE).is_file():
            files = [self.path / PICKLED]
        else:
            files = [self.path / SINGLE]
        for file in files:
            if not file.is_file():
                raise CheckpointNotFoundError(f"{file}: this weight file of the checkpoint is missing")
        return files

    def parameters(self) -> int:
        """How many numbers its weight files hold, those that were not trained included, such as statistics of norms."""
        from safetensors import SafetensorError, safe_open

        count = 0
        for file in self.weight_files():
            if file.name == PICKLED:
                count += sum(each.numel() for each in _unpickled(file).values() if each.is_floating_point())
                continue
            try:
                with safe_open(file, framework="pt", device="cpu") as handle:
                    slices = map(handle.get_slice, handle.keys())
                    count += sum(math.prod(each.get_shape()) for each in slices if "F" in each.get_dtype())
            except SafetensorError as error:
                raise CheckpointInvalidError(f"{file}: not a readable safetensors file ({error})") from None
        return count

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor by its name in the file, one at a time."""
        from safetensors import SafetensorError, safe_open

        for file in self.weight_files():
            if file.name == PICKLED:
                yield from _unpickled(file).items()
                continue
            try:
                with safe_open(file, framework="pt", device="cpu") as handle:
                    for name in handle.keys():  # noqa: SIM118  (safe_open is no mapping)
                        yield name, handle.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointInvalidError(f"{file}: not a readable safetensors file ({error})") from None


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that ``torch.save`` wrote. Nothing but tensors is ever made of it: no code of its runs."""
    import torch

    try:
        # Mapped, so that half of a model in memory is enough. Files from before torch 1.6 cannot be, and are refused.
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        # Of a file that was cut short torch goes on to say what may have happened to it.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise CheckpointInvalidError(f"{file}: not a readable file of tensors alone ({reason})") from None
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    ):
        raise CheckpointInvalidError(f"{file}: holds something else than tensors by name")
    return value


def locate(checkpoint: Checkpoint, folder: Path | None = None, revision: str | None = None) -> CheckpointFolder:
    """The checkpoint's folder: ``folder`` if given, else the bundled one, else the hub's.

    The hub is asked only for what its cache does not hold; an interrupted download continues where it stopped
    (huggingface-hub does both). ``revision`` overrides the pinned commit.

    Raises:
        CheckpointNotFoundError: no such folder, no commit to ask for, or not cached and the hub cannot be reached.
    """
    if folder is not None:
        if revision is not None:
            raise CheckpointInvalidError(
                f"--revision {revision} names a commit on the hub and cannot be used with --checkpoint {folder}"
            )
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"{folder}: no such checkpoint folder")
        return CheckpointFolder(folder, folder.resolve().name, None)  # whose weights these are, only the giver knows
    if checkpoint.bundled is not None:
        if revision is not None:
            raise CheckpointInvalidError(f"{checkpoint.name} is bundled and has no revisions; leave out --revision")
        if not checkpoint.bundled.is_dir():
            raise CheckpointNotFoundError(
                f"{checkpoint.bundled}: the bundled checkpoint is missing; work in a clone, or give --checkpoint DIR"
            )
        return CheckpointFolder(checkpoint.bundled, checkpoint.repo, None)
    wanted = revision or checkpoint.revision
    if wanted is None:
        raise CheckpointNotFoundError(
            f"{checkpoint.name}: no commit of {checkpoint.repo} is known to work; name one with --revision, or "
            "give a downloaded folder with --checkpoint DIR"
        )
    path = _download(checkpoint, wanted)
    # The snapshot's folder is named by the commit: what a branch pointed to at first use is recorded, not the branch.
    return CheckpointFolder(path, checkpoint.repo, path.name)


def _is_complete(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a cached snapshot holds what an export reads: an interrupted download leaves a folder without some."""
    try:
        CheckpointFolder(folder, "", None).weight_files()
    except (CheckpointNotFoundError, CheckpointInvalidError):
        return False
    names = {path.name for path in folder.iterdir()}
    return "config.json" in names and any(names >= {*needed} for needed in checkpoint.tokenizers)


def _download(checkpoint: Checkpoint, revision: str | None) -> Path:
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    repo, patterns = checkpoint.repo, list(checkpoint.downloaded)
    try:
        cached = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        if _is_complete(cached, checkpoint):
            return cached
    except LocalEntryNotFoundError:
        pass
    log.info("downloading %s at %s", repo, revision)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise CheckpointNotFoundError(f"{repo}: the hub has no revision {revision!r}") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:  # LocalEntryNotFoundError, when offline, is an OSError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointNotFoundError(
            f"{repo} at {revision}: not in the local cache, and the hub cannot be reached ({reason}); "
            "connect, or give a downloaded folder with --checkpoint DIR"
        ) from None
