"""Publish the model, and with --space its page, on the Hugging Face Hub.

    python -m training.publish --repo user/name [--private] [--dry-run] [--space] [--tag v1.2.0]

Nothing is sent before everything has been assembled and checked: the model is loaded by path in a fresh process and
tells a story, and the card's metadata is read back. Each repository then gets one commit, which is there whole or not
at all: a connection that breaks leaves the old revision as it was.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from training.cli import Parser, one_line_errors

ROOT = Path(__file__).resolve().parent.parent
MODEL_FILES = (
    "*.py",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
)
SPACE_FILES = ("*.py", "web/*", "Dockerfile", "requirements.txt", "README.md", ".streamlit/config.toml")
REQUIRED_METADATA = ("license", "language", "library_name", "pipeline_tag", "datasets")
STORY = """
import sys
from transformers import pipeline
tell = pipeline("story-generation", model=sys.argv[1], trust_remote_code=True)
result = tell("She", end="happy", max_words=60, seed=0)
assert result["finish_reason"] == "ending", result
print(result["story"])
"""


class PublishError(ValueError):
    """Something stands in the way; nothing was sent that is not said in the message."""


def assemble_model(
    folder: Path, repo: str, source: Path = ROOT / "modeling", card: Path = ROOT / "model_card.md"
) -> None:
    """Copy into `folder` exactly what goes up: code, config, tokenizer and weights, the classic's folder if there is
    one, the licence, and the card as README.md with the repository's name in it.

    Raises:
        PublishError: a file that must be there is missing.
    """
    for part in (source, source / "classic"):
        for pattern in MODEL_FILES:
            for path in sorted(part.glob(pattern)):
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise PublishError(f"{source / name} is missing")
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    text = card.read_text(encoding="utf-8").replace("<this repository>", repo)
    (folder / "README.md").write_text(text, encoding="utf-8")


def check_model(folder: Path) -> str:
    """Validate the card's metadata, load the model by path in a fresh process, and return the story it told.

    Raises:
        PublishError: the card lacks a field, or the model does not load or tell.
    """
    metadata = ModelCard.load(folder / "README.md").data.to_dict()
    if missing := [name for name in REQUIRED_METADATA if not metadata.get(name)]:
        raise PublishError(f"the model card's metadata lacks {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as elsewhere:  # another folder, so that nothing of this clone is imported
        done = subprocess.run(
            [sys.executable, "-P", "-c", STORY, str(folder)], cwd=elsewhere, capture_output=True, text=True, timeout=600
        )
    if done.returncode:
        raise PublishError(f"the assembled model does not tell a story:\n{done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def assemble_space(folder: Path, repo: str, revision: str) -> None:
    """Copy the Space's files into `folder`; its Dockerfile names the model it opens and the model's revision, its
    README.md the model, for the Hub to show and to load while it builds."""
    source = ROOT / "space"
    for path in sorted(path for pattern in SPACE_FILES for path in source.glob(pattern)):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name, old, new in (
        ("Dockerfile", "ENV MODEL_ID=\n", f"ENV MODEL_ID={repo}\n"),
        ("Dockerfile", "ENV MODEL_REVISION=\n", f"ENV MODEL_REVISION={revision}\n"),
        ("README.md", "\ndatasets:\n", f"\nmodels:\n- {repo}\npreload_from_hub:\n- {repo}\ndatasets:\n"),
    ):
        text = (folder / name).read_text(encoding="utf-8")
        if old not in text:
            raise PublishError(f"the Space's {name} lacks the line {old.strip()!r}")
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")


def list_files(folder: Path, title: str) -> None:
    """Print a folder's files and their sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print(f"{title}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    for path in files:
        print(f"  {path.stat().st_size:>12,}  {path.relative_to(folder)}")


def check_rights(api: HfApi, repo: str, tag: str, kinds: list[str]) -> None:
    """Refuse early what the Hub would refuse half way.

    Raises:
        PublishError: no valid token, no right to the namespace, or the tag is taken.
    """
    try:
        user = api.whoami()
    except LocalTokenNotFoundError as error:
        raise PublishError("no Hugging Face token found: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise PublishError(
            f"the Hub does not accept this token: {error.response.status_code}; run `hf auth login`"
        ) from error
    namespaces = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if repo.split("/")[0] not in namespaces:
        raise PublishError(f"this token's user may write to {', '.join(namespaces)}, not to {repo.split('/')[0]}")
    for kind in kinds:
        if api.repo_exists(repo, repo_type=kind) and tag in {
            ref.name for ref in api.list_repo_refs(repo, repo_type=kind).tags
        }:
            raise PublishError(
                f"{kind} {repo} has a tag {tag} already: raise the version in pyproject.toml, or give --tag"
            )


def push(api: HfApi, folder: Path, repo: str, kind: str, message: str, tag: str, private: bool) -> str:
    """One commit with the folder's files (others in the repository go), and its tag; returns the commit's id."""
    api.create_repo(
        repo, repo_type=kind, private=private, exist_ok=True, space_sdk="docker" if kind == "space" else None
    )
    commit = api.upload_folder(
        repo_id=repo, repo_type=kind, folder_path=folder, commit_message=message, delete_patterns=["*"]
    )
    api.create_tag(repo, repo_type=kind, tag=tag, tag_message=message, revision=commit.oid)
    return commit.oid


def project_version() -> str:
    """The version in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def publish(arguments: argparse.Namespace) -> None:
    """Check, assemble and push what is asked for."""
    try:
        validate_repo_id(arguments.repo)
        _, _ = arguments.repo.split("/")
    except ValueError as error:
        raise PublishError(f'--repo must be "user/name", got {arguments.repo!r}') from error
    tag = arguments.tag or f"v{project_version()}"
    message = arguments.message or f"Tiny Story Generator {tag}"
    kinds = ["model", "space"] if arguments.space else ["model"]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {kind: Path(scratch) / kind for kind in kinds}
        assemble_model(folders["model"], arguments.repo)
        list_files(folders["model"], f"model {arguments.repo}")
        if arguments.space:
            assemble_space(folders["space"], arguments.repo, tag)
            list_files(folders["space"], f"space {arguments.repo}")
        api = HfApi()
        if not arguments.dry_run:
            check_rights(api, arguments.repo, tag, kinds)
        print(f"\nloads by path and tells: {check_model(folders['model'])}\n")
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return
        for kind in kinds:
            try:
                commit = push(api, folders[kind], arguments.repo, kind, message, tag, arguments.private)
            except Exception as error:  # the Hub's refusals, and whatever the network raises
                raise PublishError(
                    f"{kind} {arguments.repo}: the push failed, what was there before is as it was: {error}"
                ) from error
            print(f"{kind} {arguments.repo}: commit {commit[:12]}, tag {tag}")


@one_line_errors
def main() -> None:
    """Publish by command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, help="user/name of the model's repository, made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--space", action="store_true", help="push the page as well, as a Space of the same name")
    parser.add_argument("--tag", help="version to tag; v and pyproject.toml's version if not given")
    parser.add_argument("--message", help="commit message; names the version if not given")
    parser.add_argument("--dry-run", action="store_true", help="assemble, check and list, send nothing")
    publish(parser.parse_args())


if __name__ == "__main__":
    main()
