"""Run transformers' own model tests against both recipes: `make conformance`.

The tests of the installed transformers version are fetched into build/conformance/, none of them is part of this
project: `tests/test_*.py` from its source distribution on PyPI, the generation and export tests from its repository.
Where the repository cannot be reached, the tests from PyPI run, and the end of the output says which did not;
`--upstream FOLDER` (`make conformance UPSTREAM=FOLDER`) takes them from a checkout of the repository or a fork instead.
`suite.py` beside this file is the model's side: what transformers asks every model's test file to say.
"""

import argparse
import os
import re
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
REPOSITORY = f"https://raw.githubusercontent.com/huggingface/transformers/v{VERSION}/"
# Not in the source distribution; what stands in, so that the rest runs, where the repository cannot be reached.
FROM_REPOSITORY = {
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "tests/utils/tiny_model_summary.json": "{}\n",  # which tiny checkpoints the pipeline tests find on the Hub
}
FROM_CHECKOUT = ("tests/generation", "tests/exporters", "tests/utils", "utils")


def fetch_distribution(folder: Path) -> None:
    """The sdist's tests, unpacked into a folder."""
    download = folder / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "transformers", f"transformers=={VERSION}", "--dest", str(download)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "setuptools", "wheel"], check=True)
    subprocess.run(command, check=True)
    (archive,) = download.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = Path(*Path(member.name).parts[1:])
            if member.isfile() and name.parts[0] == "tests":
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    shutil.rmtree(download)


def copy_rest(folder: Path, checkout: Path) -> str:
    """What the sdist lacks, from a checkout; the checkout's version.

    Raises:
        SystemExit: there are no such tests.
    """
    for name in FROM_CHECKOUT:
        if not (checkout / name).is_dir():
            raise SystemExit(f"{checkout} is no checkout of transformers: no folder {name}")
        shutil.copytree(checkout / name, folder / name, dirs_exist_ok=True)
    for path in (checkout / "tests").glob("*.py"):
        if not (folder / "tests" / path.name).exists():
            shutil.copyfile(path, folder / "tests" / path.name)
    summary = folder / "tests/utils/tiny_model_summary.json"
    if not summary.exists():
        summary.write_text("{}\n")
    source = checkout / "src/transformers/__init__.py"
    found = re.search(r'__version__ = "(.+)"', source.read_text()) if source.exists() else None
    return found[1] if found else "of an unknown version"


def fetch_rest(folder: Path) -> list[str]:
    """The files the sdist lacks, or what stands in for them; the names of those that could not be had."""
    missing = []
    for name, stand_in in FROM_REPOSITORY.items():
        path = folder / name
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
    """Run the suite, and say which tests it took from where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="a checkout of transformers' repository or of a fork")
    arguments, passed_on = parser.parse_known_args()
    folder = ROOT / "build" / "conformance" / (f"{VERSION}-checkout" if arguments.upstream else VERSION)
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        fetch_distribution(folder)
    missing, upstream = [], None
    if arguments.upstream:
        upstream = copy_rest(folder, arguments.upstream.resolve())
    else:
        missing = fetch_rest(folder)
    (folder / "src").mkdir(exist_ok=True)
    library = folder / "src" / "transformers"  # the pipeline tests read it by this path
    if not library.exists():
        library.symlink_to(Path(transformers.__file__).parent)
    suite = folder / "tests" / "models" / "tiny_story" / "test_modeling_tiny_story.py"
    suite.parent.mkdir(parents=True, exist_ok=True)
    for package in (folder / "tests", suite.parent.parent, suite.parent):
        (package / "__init__.py").touch()
    shutil.copyfile(HERE / "suite.py", suite)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(folder), "-p", "no:warnings", "-rs"]
    paths = {"PYTHONPATH": f"{folder}:{folder / 'src'}:{folder / 'utils'}:{ROOT}", "TINY_STORY_ROOT": str(ROOT)}
    code = subprocess.run([*command, "-q", str(suite), *passed_on], cwd=folder, env=os.environ | paths).returncode
    print(f"common tests of transformers {VERSION}" + (f"; generation and export tests {upstream}" if upstream else ""))
    for name in missing:
        print(f"not run, could not be fetched: {name}")
    return code


if __name__ == "__main__":
    sys.exit(main())
