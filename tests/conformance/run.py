"""Run transformers' own model tests against both recipes: `make conformance`.

The tests of the installed transformers version are fetched into build/conformance/, none of them is part of this
project: `tests/test_*.py` from its source distribution on PyPI, the generation and export tests from its repository.
Where the repository cannot be reached, the tests from PyPI run, and the end of the output says which did not.
`suite.py` beside this file is the model's side: what transformers asks every model's test file to say.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import transformers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VERSION = transformers.__version__
FOLDER = ROOT / "build" / "conformance" / VERSION
REPOSITORY = f"https://raw.githubusercontent.com/huggingface/transformers/v{VERSION}/"
# Not in the source distribution; what stands in, so that the rest runs, where the repository cannot be reached.
FROM_REPOSITORY = {
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "tests/utils/tiny_model_summary.json": "{}\n",  # which tiny checkpoints the pipeline tests find on the Hub
}


def fetch_distribution() -> None:
    """The sdist's tests, unpacked into FOLDER."""
    download = FOLDER / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "transformers", f"transformers=={VERSION}", "--dest", str(download)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "setuptools", "wheel"], check=True)
    subprocess.run(command, check=True)
    (archive,) = download.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = Path(*Path(member.name).parts[1:])
            if member.isfile() and name.parts[0] == "tests":
                target = FOLDER / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    shutil.rmtree(download)


def fetch_rest() -> list[str]:
    """The files the sdist lacks, or what stands in for them; the names of those that could not be had."""
    missing = []
    for name, stand_in in FROM_REPOSITORY.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        try:
            with urllib.request.urlopen(REPOSITORY + name, timeout=20) as reply:
                path.write_bytes(reply.read())
        except OSError as error:
            path.write_text(stand_in)
            missing.append(f"{name} ({error})")
    return missing


def main() -> int:
    if not (FOLDER / "tests" / "test_modeling_common.py").is_file():
        fetch_distribution()
    missing = fetch_rest()
    (FOLDER / "src").mkdir(exist_ok=True)
    library = FOLDER / "src" / "transformers"  # the pipeline tests read it by this path
    if not library.exists():
        library.symlink_to(Path(transformers.__file__).parent)
    suite = FOLDER / "tests" / "models" / "tiny_story" / "test_modeling_tiny_story.py"
    suite.parent.mkdir(parents=True, exist_ok=True)
    for folder in (FOLDER / "tests", suite.parent.parent, suite.parent):
        (folder / "__init__.py").touch()
    shutil.copyfile(HERE / "suite.py", suite)
    arguments = [
        "-m",
        "pytest",
        "-c",
        "/dev/null",
        "--rootdir",
        str(FOLDER),
        "-p",
        "no:warnings",
        "-rs",
        "-q",
        str(suite),
        *sys.argv[1:],
    ]
    environment = {"PYTHONPATH": f"{FOLDER}:{FOLDER / 'src'}", "TINY_STORY_ROOT": str(ROOT)}

    code = subprocess.run([sys.executable, *arguments], cwd=FOLDER, env=os.environ | environment).returncode
    for name in missing:
        print(f"not run, could not be fetched: {name}")
    return code


if __name__ == "__main__":
    sys.exit(main())
