"""Inputs of a batch: every kind of input, names of jobs, invalid inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.batch import Job, find_jobs
from runtime.errors import AsrError, AudioNotFoundError, DatasetInvalidError, OptionError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def manifest(folder: Path, *lines: str) -> Path:
    path = folder / "list.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ids(*inputs: str | Path) -> list[str]:
    return [job.id for job in find_jobs(map(str, inputs))]


def test_a_folder_is_searched_with_its_subfolders(tmp_path: Path) -> None:
    put(tmp_path, "b.wav", "a/z.FLAC", "a/deep/er/c.m4a", ".hidden.wav", ".git/d.wav", "a/notes.txt", "a/list.jsonl")
    jobs = find_jobs([str(tmp_path)])
    assert [job.id for job in jobs] == ["a/deep/er/c.m4a", "a/z.FLAC", "b.wav"]
    assert all(job.audio == tmp_path / job.id for job in jobs)


def test_jobs_of_a_pattern_are_named_below_its_fixed_part(tmp_path: Path) -> None:
    put(tmp_path, "x/one/a.wav", "x/two/a.wav", "x/two/b.sph", "x/two/n.txt", "x/.h/a.wav", "y/a.wav")
    assert ids(tmp_path / "x/*/*") == ["one/a.wav", "two/a.wav"]
    assert ids(tmp_path / "x/**/*.sph") == ["two/b.sph"]  # the pattern has the suffix
    assert ids(tmp_path / "?/a.wav") == ["y/a.wav"]
    assert ids(tmp_path / "**/a.wav") == ["x/one/a.wav", "x/two/a.wav", "y/a.wav"]


def test_a_name_with_brackets_is_a_file_when_it_exists(tmp_path: Path) -> None:
    put(tmp_path, "talk[1].wav", "talk1.wav")
    assert ids(tmp_path / "talk[1].wav") == ["talk[1].wav"]


def test_a_manifest_sets_id_language_context_and_channel(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        '\ufeff{"audio": "a.wav"}',
        "",
        '{"audio": "sub/./a.wav", "language": "en", "context": "Names: Kris"}',
        '{"audio": "/data/call.wav", "id": "calls/7-left", "channel": 0}',
        '{"audio": "/data/call.wav", "id": "calls/7-right", "channel": 1}',
        '{"audio": "../up.wav"}',
    )
    assert find_jobs([str(path)]) == [
        Job("a.wav", tmp_path / "a.wav", where=f"{path}: line 1"),
        Job("sub/a.wav", tmp_path / "sub/a.wav", "en", "Names: Kris", where=f"{path}: line 3"),
        Job("calls/7-left", Path("/data/call.wav"), channel=0, where=f"{path}: line 4"),
        Job("calls/7-right", Path("/data/call.wav"), channel=1, where=f"{path}: line 5"),
        Job("up.wav", tmp_path / "../up.wav", where=f"{path}: line 6"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "is malformed"),
        ('{"audio": "a.wav"', "is malformed"),
        ('["a.wav"]', "is malformed"),
        ('{"file": "a.wav"}', "is malformed"),
        ('{"audio": "a.wav", "text": "hello"}', "unknown field `text`"),
        ('{"audio": ""}', "is malformed"),
        ('{"audio": 3}', "is malformed"),
        ('{"audio": "a\\u0000.wav"}', "is not a path"),
        ('{"audio": "a.wav", "channel": -1}', "is malformed"),
        ('{"audio": "a.wav", "id": ""}', "cannot name a file"),
        ('{"audio": "a.wav", "id": "../../etc/passwd"}', "cannot name a file"),
        ('{"audio": "a.wav", "id": "/etc/passwd"}', "cannot name a file"),
        ('{"audio": "a.wav", "id": ".batch"}', "cannot name a file"),
        ('{"audio": "a.wav", "id": "a\\nb"}', "cannot name a file"),
        ('{"audio": "."}', "cannot name a file"),
    ],
)
def test_a_bad_line_is_reported_with_its_number(line: str, message: str, tmp_path: Path) -> None:
    path = manifest(tmp_path, '{"audio": "a.wav"}', "", line)
    with pytest.raises(DatasetInvalidError) as caught:
        find_jobs([str(path)])
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(b'{"audio": "\xff.wav"}\n')
    with pytest.raises(DatasetInvalidError, match="byte 11 is not UTF-8"):
        find_jobs([str(path)])


def test_a_missing_file_fails_later_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.wav")
    monkeypatch.chdir(tmp_path)
    assert [(job.id, str(job.audio)) for job in find_jobs(["x/absent.wav", "a.wav"])] == [
        ("absent.wav", "x/absent.wav"),
        ("a.wav", "a.wav"),
    ]
    with pytest.raises(AudioNotFoundError, match=r"^x/absent\.wav: no such file or folder$"):
        find_jobs(["x/absent.wav", "absent.flac"])


@pytest.mark.parametrize("text", ["absent", "empty", "*.nothing", "none.jsonl", "*.txt/../*.wav"])
def test_nothing_found_is_an_error(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "empty/notes.txt", "none.jsonl", "a.wav")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AsrError) as caught:
        find_jobs(["a.wav", text])
    assert isinstance(caught.value, OptionError if ".." in text else AudioNotFoundError)
    assert str(caught.value).startswith(text)


def test_an_audio_of_several_inputs_is_one_job_under_its_first_name(tmp_path: Path) -> None:
    put(tmp_path, "x/a.wav", "x/b.wav")
    (tmp_path / "x/link.wav").symlink_to(tmp_path / "x/a.wav")
    path = manifest(tmp_path, '{"audio": "x/b.wav", "id": "other"}')
    assert ids(tmp_path / "x/a.wav", tmp_path / "x", f"{tmp_path}/x/../x/*.wav", path) == ["a.wav", "b.wav"]


def test_names_do_not_depend_on_the_other_inputs(tmp_path: Path) -> None:
    put(tmp_path, "x/a.wav", "y/sub/b.wav")
    both = ids(tmp_path / "x", tmp_path / "y")
    assert both == ids(tmp_path / "x") + ids(tmp_path / "y") == ["a.wav", "sub/b.wav"]


def test_different_audio_of_one_name_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "x/a.wav", "y/a.wav")
    with pytest.raises(OptionError, match=r"x/a\.wav and .*y/a\.wav .*'a\.wav'.*folder.*pattern.*manifest"):
        find_jobs([str(tmp_path / "x"), str(tmp_path / "y/a.wav")])
    path = manifest(tmp_path, '{"audio": "x/a.wav", "channel": 0}', '{"audio": "x/a.wav", "channel": 1}')
    with pytest.raises(OptionError, match=r"list\.jsonl: line 2: the id 'x/a\.wav' .*list\.jsonl: line 1.*`id`"):
        find_jobs([str(path)])


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Their bytes are written as escapes, so that two of them are two jobs."""
    for name in ("caf\udce9.wav", "caf\udce8.wav"):
        (tmp_path / name).write_bytes(b"")
    jobs = find_jobs([str(tmp_path)])
    assert [job.id for job in jobs] == [r"caf\xe8.wav", r"caf\xe9.wav"]
    assert all(job.audio.exists() for job in jobs)
