"""Asking a language model that the user names, by the OpenAI-compatible protocol: nothing else here uses a network.

Off unless an address is given. The key comes from an environment variable and is put into one header, never into a
file, a message or a record. Every request and answer is kept by the hash of what was asked, so that nothing is asked
twice; an answer that makes no sense stays what it is.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from neurosae.errors import ModelError
from neurosae.spec.examine import LOCAL, endpoint_problem
from neurosae.spec.files import content_hash, write_atomic

LONGEST = 1 << 20  # bytes of an answer that are read
WAIT = 120  # seconds


@dataclass(frozen=True)
class Endpoint:
    """An address that answers chat requests.

    Attributes
    ----------
    base_url : such as http://localhost:8000/v1; `/chat/completions` is added
    model : name of the model there
    key : name of the environment variable that holds the key; empty where none is needed
    cache : folder of requests and answers; empty for none
    """

    base_url: str
    model: str
    key: str = ""
    cache: str = ""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: what is sent goes where the user said, nowhere else."""

    def redirect_request(self, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


def ask(endpoint: Endpoint, prompt: str, *, date: Callable[[], str] | None = None) -> dict[str, Any]:
    """Ask once at temperature 0, or read the answer of the same question.

    Returns
    -------
    dict
        `answer` (None where the reply is malformed), `status` (ok or what was wrong), `model`, `date`, `cached`.

    Raises
    ------
    ModelError
        The address, the key or the connection does not work: nothing is kept, and the same command goes on later.
    """
    if wrong := endpoint_problem(endpoint.base_url, endpoint.key):
        raise ModelError(f"endpoint {wrong}")
    question = {"url": endpoint.base_url.rstrip("/"), "model": endpoint.model, "temperature": 0, "prompt": prompt}
    path = Path(endpoint.cache) / f"{content_hash(question)[:32]}.json" if endpoint.cache else None
    if path is not None and (known := _kept(path, question)) is not None:
        return {**known, "cached": True}
    answer, status = _read(_post(endpoint, question))
    if answer is not None and endpoint.key and (secret := _secret(endpoint)) in answer:
        answer = answer.replace(secret, f"<{endpoint.key}>")  # a server that repeats it: no file holds it all the same
    today = time.strftime("%Y-%m-%d") if date is None else date()
    record = {"answer": answer, "status": status, "model": endpoint.model, "date": today}
    if path is not None:
        write_atomic(path, json.dumps({"question": question, **record}, indent=1, ensure_ascii=False) + "\n")
    return {**record, "cached": False}


def is_kept(endpoint: Endpoint, prompt: str) -> bool:
    """Whether a question was answered before, so that asking it sends nothing."""
    question = {"url": endpoint.base_url.rstrip("/"), "model": endpoint.model, "temperature": 0, "prompt": prompt}
    return (
        bool(endpoint.cache)
        and _kept(Path(endpoint.cache) / f"{content_hash(question)[:32]}.json", question) is not None
    )


def _kept(path: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = record if record.get("question") == question else None
    except (OSError, ValueError, AttributeError):
        return None
    return kept and {name: kept.get(name) for name in ("answer", "status", "model", "date")}


def _post(endpoint: Endpoint, question: dict[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {_secret(endpoint)}"
    body = {"model": endpoint.model, "temperature": 0, "messages": [{"role": "user", "content": question["prompt"]}]}
    url = f"{question['url']}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    handlers: list[Any] = [_Stay()]
    if urlsplit(url).hostname in LOCAL:
        handlers.append(urllib.request.ProxyHandler({}))  # what is on this machine is not looked for through a proxy
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=WAIT) as reply:
            return reply.read(LONGEST)
    except urllib.error.HTTPError as error:
        error.close()
        said = "answers by sending the request elsewhere" if 300 <= error.code < 400 else f"answers with {error.code}"
        raise ModelError(f"endpoint {url} {said}; check the address, the model name and the key.") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)).rstrip(".")[:120]
        raise ModelError(f"endpoint {url} cannot be reached ({reason}); check the address.") from None


def _secret(endpoint: Endpoint) -> str:
    """The key; one that no header can hold is refused here, since the error of the connection would repeat it."""
    secret = os.environ.get(endpoint.key, "").strip()
    if not secret:
        raise ModelError(f"endpoint: the environment variable {endpoint.key} is not set; it must hold the key.")
    if not (secret.isascii() and secret.isprintable()):
        raise ModelError(f"endpoint: the environment variable {endpoint.key} holds characters that no key has.")
    return secret


def _read(raw: bytes) -> tuple[str | None, str]:
    try:
        text = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None, "malformed: the reply has no choices[0].message.content"
    return (text, "ok") if isinstance(text, str) and text.strip() else (None, "malformed: the answer is empty")
