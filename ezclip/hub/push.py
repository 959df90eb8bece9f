"""From a folder with a model to a repository on the Hub: what is pushed, what never is, and what went wrong."""

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
from transformers.utils import logging
from yaml import YAMLError

from configuration_ezclip import CLASS_BANK_NAME
from ezclip.errors import ModelError, first_line
from ezclip.hub.model_card import CardFacts, is_untouched
from ezclip.hub.staging import CARD_NAME, WHOLE_OR_NAME, stage


logger = logging.get_logger("ezclip")

# What a push leaves of an earlier one would be loaded in place of, or beside, what is pushed.
STALE = ["model*.safetensors", "model.safetensors.index.json", CLASS_BANK_NAME]


@dataclass
class PushOptions:
    """
    Where and what to push.

    Args:
        facts ([`CardFacts`]):
            The repository, and what its card says besides.
        trained_only (`bool`, *optional*):
            See [`stage`].
        private (`bool`, *optional*, defaults to `False`):
            Whether the repository has to be private.
        revision (`str`, *optional*):
            A branch, which is made if there is none. By default the main one.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request.
        commit_message (`str`, *optional*):
            What the commit is called. By default what is pushed: `EZClipModel`, or its trained weights.
        overwrite_card (`bool`, *optional*, defaults to `False`):
            Whether a card on the Hub that a person wrote or changed is replaced too.
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
    Push the model of a folder, with processor, code, class embeddings if there are any, and a card.

    All of it is one commit: what others load is the earlier model or this one. A push that was cut off is repeated by
    the same call; files that had arrived are not sent again. A repository is made when all that goes there is known to
    be sound.

    Args:
        folder (`str` or `Path`):
            What `save_pretrained`, the conversion or a training has written.
        options ([`PushOptions`]):
            Where and what.

    Raises:
        [`ModelError`]: if the model cannot be loaded by others; if what the card is to say cannot be true; or if the
            Hub cannot be reached or written.
        [`DataError`]: if a file of results cannot be read, or there is none of the data set that `options` name.
    """
    options.facts.check()
    facts = replace(options.facts, repo_id=_full_name(options.facts.repo_id))
    with tempfile.TemporaryDirectory(prefix="ezclip-push-") as staged:
        stage(folder, staged, facts, options.trained_only)
        _check_base_on_hub(Path(staged))
        _check_card(Path(staged) / CARD_NAME)
        create_repository(facts.repo_id, options.private)
        return upload(Path(staged), replace(options, facts=facts))


def create_repository(repo_id: str, private: bool = False) -> str:
    """
    Make a repository, if there is none of the name.

    Args:
        repo_id (`str`):
            Its name; without a namespace that of the user.
        private (`bool`, *optional*, defaults to `False`):
            Whether it has to be private.

    Returns:
        `str`: its full name.

    Raises:
        [`ModelError`]: if there is no token, or it does not permit that; if the Hub cannot be reached; or if the
        repository is to be private and is there and public.
    """
    _check_token(repo_id)
    api = HfApi()
    with hub_errors(f"{repo_id} cannot be made"):
        repo_id = api.create_repo(repo_id, private=True if private else None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ModelError(
                f"{repo_id} is to be private, and is there and public. Make it private in its settings on the Hub, "
                "give another name, or leave --private out."
            )
    return repo_id


def upload(staged: Path, options: PushOptions) -> CommitInfo:
    """
    Upload what [`stage`] wrote to a repository that is there.

    Raises:
        [`ModelError`]: if that fails.
    """
    api, repo_id, revision = HfApi(), options.facts.repo_id, options.revision
    base = _base_of(staged)
    what = "Upload EZClipModel" if base is None else f"Upload the weights of an EZClipModel trained from {base}"
    with hub_errors(f"{repo_id} cannot be written"):
        if revision is not None and not options.create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        ignored = []
        if not options.overwrite_card and _is_written_by_hand(api, repo_id, revision, staged / CARD_NAME):
            logger.warning(f"{CARD_NAME} of {repo_id} was written or changed by hand and stays. --overwrite_card.")
            ignored.append(CARD_NAME)
        # One commit, which `upload_large_folder` does not make; what had been uploaded is known by its hash.
        try:
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=staged,
                commit_message=options.commit_message or what,
                revision=revision,
                create_pr=options.create_pr,
                ignore_patterns=ignored,
                delete_patterns=list(STALE),
            )
        except ValueError as error:
            if isinstance(error, HTTPError):
                raise
            said = " ".join(str(error).split())
            raise ModelError(f"{repo_id} cannot be written: the Hub refuses what is pushed ({said}).") from error


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """
    What goes wrong between here and the Hub, in sentences.

    Args:
        what (`str`):
            What fails.

    Raises:
        [`ModelError`]: in place of the errors of `huggingface_hub`.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{what}: HF_HUB_OFFLINE is set. Unset it to reach the Hub.") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise ModelError(f"{what}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    """What an error of the Hub means, and what to do; it may be the cause of one that says less."""
    cause = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        root = error
        while root.__cause__ is not None:
            root = root.__cause__
        return (
            f"the connection to the Hub failed ({first_line(root)}). Push again when it is back; what has arrived "
            "is not sent again."
        )
    status, said = cause.response.status_code, first_line(cause.server_message or cause)
    if status == 401 and not isinstance(cause, RepositoryNotFoundError):
        return f"the Hub does not know the token ({said}). Run `hf auth login`, or set HF_TOKEN to one that can write."
    if status in (401, 403):
        return f"the token does not permit that ({said}). Use one that may write there, or another name."
    if status == 404:
        return f"it is not there, or the token does not reach it ({said})."
    if status in (409, 412):
        return f"something else is changing it ({said}). Push again."
    if status >= 500 or status == 429:
        return f"the Hub has trouble ({status}: {said}). Push again later; what has arrived is not sent again."
    return f"the Hub refuses it ({status}: {said})."


def _check_token(repo_id: str):
    if get_token() is None:
        raise ModelError(
            f"There is no token to write {repo_id} with. Make one at https://huggingface.co/settings/tokens and run "
            "`hf auth login`, or put it into the environment as HF_TOKEN."
        )


def _full_name(repo_id: str) -> str:
    """A repository's name with its namespace, which without one is the user's."""
    _check_token(repo_id)
    if "/" in repo_id:
        return repo_id
    with hub_errors(f"{repo_id} cannot be made"):
        return f"{HfApi().whoami()['name']}/{repo_id}"


def _base_of(staged: Path) -> str | None:
    return json.loads((staged / "config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")


def _check_card(card: Path):
    """That the Hub will take the metadata of a card."""
    with hub_errors(f"The metadata of {CARD_NAME} cannot be checked"):
        try:
            ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).validate()
        except (ValueError, YAMLError) as error:
            if isinstance(error, HTTPError):
                raise
            said = " ".join(str(error).split())
            raise ModelError(
                f"The Hub refuses the metadata of {CARD_NAME} ({said}). Give another licence or other data sets, or "
                "mend the file if it is yours."
            ) from error


def _check_base_on_hub(staged: Path):
    """Of trained weights alone, that their base is on the Hub."""
    if (base := _base_of(staged)) is None:
        return
    try:
        info = HfApi().model_info(base)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"The base {base} is not on the Hub, or your token does not reach it. {WHOLE_OR_NAME}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelError(f"The base {base} cannot be looked up: {_explain(error)}") from error
    if info.private:
        logger.warning(f"The base {base} is private: only those who can read it can load what is pushed.")


def _is_written_by_hand(api: HfApi, repo_id: str, revision: str | None, card: Path) -> bool:
    """Whether the repository has a card that a person wrote or changed, and another than is pushed."""
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
    except UnicodeDecodeError:  # neither ezclip nor transformers writes that
        return True
