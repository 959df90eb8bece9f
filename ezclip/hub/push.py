"""Push the model of a folder to a repository on the Hub, and explain the errors of the Hub."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from yaml import YAMLError

from configuration_ezclip import CLASS_BANK_NAME
from ezclip.errors import ModelError, first_line
from ezclip.hub.messages import masked_logs, without_token
from ezclip.hub.model_card import CardFacts, is_untouched
from ezclip.hub.staging import BASE_HINT, CARD_NAME, check_model_folder, stage
from ezclip.utils.messages import get_logger


logger = get_logger()

# Files of an earlier push that would be loaded instead of, or beside, the new ones
STALE_PATTERNS = ["model*.safetensors", "model.safetensors.index.json", CLASS_BANK_NAME, "*_ezclip.py"]


@dataclass
class PushOptions:
    """
    The options of a push.

    Args:
        facts ([`CardFacts`]):
            The repository, and facts for its card.
        trained_only (`bool`, *optional*):
            See [`stage`].
        private (`bool`, *optional*, defaults to `False`):
            Whether the repository must be private.
        revision (`str`, *optional*):
            Branch to push to. It is created if it does not exist. Defaults to the main branch.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request.
        commit_message (`str`, *optional*):
            Title of the commit. By default it names `EZClipModel` or its trained weights.
        overwrite_card (`bool`, *optional*, defaults to `False`):
            Whether to replace a card on the Hub that a person wrote or changed.
    """

    facts: CardFacts
    trained_only: bool | None = None
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    overwrite_card: bool = False


def push(folder: str | Path, options: PushOptions) -> CommitInfo:
    """
    Push the model of a folder with its processor, code, class embeddings if there are any, and a card.

    The push is one commit, so that others load either the earlier model or the new one. Repeat the same call after an
    interruption: files that have arrived are not sent again. The repository is created only after all checks.

    Args:
        folder (`str` or `Path`):
            A folder that `save_pretrained`, the conversion or a training wrote.
        options ([`PushOptions`]):
            The repository and the options.

    Raises:
        [`ModelError`]: if others cannot load the model, if the facts of the card are impossible, or if the Hub cannot
            be reached or written.
        [`DataError`]: if a file of results cannot be read, or the results of `eval_dataset` are missing.
    """
    options.facts.check()
    check_model_folder(Path(folder))  # before the Hub is asked
    facts = replace(options.facts, repo_id=_full_name(options.facts.repo_id))
    facts.check()  # the Hub gave the user's name
    with tempfile.TemporaryDirectory(prefix="ezclip-push-") as staged:
        stage(folder, staged, facts, options.trained_only)
        _check_base_on_hub(Path(staged))
        _check_card(Path(staged) / CARD_NAME)
        create_repository(facts.repo_id, options.private)
        return upload(Path(staged), replace(options, facts=facts))


def create_repository(repo_id: str, private: bool = False) -> str:
    """
    Create a repository if it does not exist. Return its full name.

    Raises:
        [`ModelError`]: if there is no token, the token does not permit it, the Hub cannot be reached, or the
            repository exists and is public although `private` is set.
    """
    _check_token(repo_id)
    api = HfApi()
    with hub_errors(f"{repo_id} cannot be created"):
        repo_id = api.create_repo(repo_id, private=True if private else None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ModelError(
                f"{repo_id} must be private, got a public repository. Make it private in its settings on the Hub, "
                "give another name, or leave --private out."
            )
    return repo_id


def upload(staged: Path, options: PushOptions) -> CommitInfo:
    """Upload a folder that [`stage`] wrote to an existing repository. Raise [`ModelError`] if it fails."""
    api, repo_id, revision = HfApi(), options.facts.repo_id, options.revision
    base = _base_of(staged)
    message = "Upload EZClipModel" if base is None else f"Upload the weights of an EZClipModel trained from {base}"
    with hub_errors(f"{repo_id} cannot be written"):
        if revision is not None and not options.create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        ignored = []
        if not options.overwrite_card and _is_written_by_hand(api, repo_id, revision, staged / CARD_NAME):
            logger.warning(
                f"{CARD_NAME} of {repo_id} was written or changed by hand and stays. Replace it with --overwrite_card."
            )
            ignored.append(CARD_NAME)
        # `upload_large_folder` would make several commits. The Hub knows by their hashes which files have arrived.
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=staged,
            commit_message=options.commit_message or message,
            revision=revision,
            create_pr=options.create_pr,
            ignore_patterns=ignored,
            delete_patterns=list(STALE_PATTERNS),
        )


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` into a [`ModelError`] that begins with `what` and says what to do."""
    try:
        with masked_logs():
            yield
    except ModelError:
        raise
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{what}: HF_HUB_OFFLINE is set. Unset it to reach the Hub.") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise ModelError(without_token(f"{what}: {_explain(error)}")) from error
    except ValueError as error:
        raise ModelError(without_token(f"{what}: the Hub refuses it ({' '.join(str(error).split())}).")) from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelError(without_token(f"{what}: the Hub's answer cannot be understood ({error!r}).")) from error


def _explain(error: BaseException) -> str:
    """Return what an error of the Hub means and what to do."""
    causes = [error]  # the error of the Hub may be the cause of one that says less
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    cause = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if cause is None:
        return (
            f"the connection to the Hub failed ({first_line(causes[-1])}). Push again later; files that have arrived "
            "are not sent again."
        )
    status, said = cause.response.status_code, first_line(cause.server_message or cause)
    if status == 401 and not isinstance(cause, RepositoryNotFoundError):
        return f"the Hub rejects the token ({said}). Run `hf auth login`, or set HF_TOKEN to one that can write."
    if status in (401, 403):
        return f"the token does not permit that ({said}). Use a token that may write there, or another name."
    if status == 404:
        return f"it does not exist, or the token cannot read it ({said})."
    if status in (409, 412):
        return f"something else is changing it ({said}). Push again."
    if status >= 500 or status == 429:
        return f"the Hub fails ({status}: {said}). Push again later; files that have arrived are not sent again."
    return f"the Hub refuses it ({status}: {said})."


def _check_token(repo_id: str):
    if get_token() is None:
        raise ModelError(
            f"There is no token to write {repo_id} with. Make one at https://huggingface.co/settings/tokens and run "
            "`hf auth login`, or set the environment variable HF_TOKEN."
        )


def _full_name(repo_id: str) -> str:
    """Return the name of a repository with its namespace, by default the user's."""
    _check_token(repo_id)
    if "/" in repo_id:
        return repo_id
    with hub_errors(f"{repo_id} cannot be created"):
        return without_token(f"{HfApi().whoami()['name']}/{repo_id}")


def _base_of(staged: Path) -> str | None:
    return json.loads((staged / "config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")


def _check_card(card: Path):
    with hub_errors(f"The metadata of {CARD_NAME} cannot be checked"):
        try:
            ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).validate()
        except HTTPError:
            raise
        except (ValueError, YAMLError, RecursionError) as error:
            said = without_token(" ".join(str(error).split()))
            raise ModelError(
                f"The Hub refuses the metadata of {CARD_NAME} ({said}). Give another licence or other data sets, or "
                "correct the file if it is yours."
            ) from error


def _check_base_on_hub(staged: Path):
    if (base := _base_of(staged)) is None:  # a whole model
        return
    with hub_errors(f"The base {base} cannot be looked up"):
        try:
            info = HfApi().model_info(base)
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise ModelError(
                f"The base {base} is not on the Hub, or your token cannot read it. {BASE_HINT}"
            ) from error
    if info.private:
        logger.warning(f"The base {base} is private: only those who can read it can load the pushed weights.")


def _is_written_by_hand(api: HfApi, repo_id: str, revision: str | None, card: Path) -> bool:
    """Return whether the repository has a card that a person wrote or changed and that differs from the new one."""
    with tempfile.TemporaryDirectory(prefix="ezclip-card-") as cache:
        try:
            path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision, cache_dir=cache)
        except (RemoteEntryNotFoundError, RevisionNotFoundError):
            return False
        content = Path(path).read_bytes()
    if content == card.read_bytes():
        return False
    try:
        return not is_untouched(content.decode("utf-8"))
    except UnicodeDecodeError:  # neither ezclip nor transformers writes other encodings
        return True
