"""A language model as judge, behind any OpenAI-compatible endpoint: /chat/completions is all that is used.

Verdicts are appended to a JSON-lines file as they come. Its first line records the judge's model name, endpoint and
whole protocol (prompts, temperature); each further line an id, the verdict, the reply as it was, and a hash of the
messages that asked for it. The same call again asks only for what is missing, whose prediction has changed, or
whose reply could not be read. Such replies are asked for again, and never counted as a 0.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minivllava.errors import JudgeError
from minivllava.evaluation.predictions import Problems, open_log, read_log
from minivllava.files import json_hash

OPENAI = "https://api.openai.com/v1"
AGAIN = "Run it again: the verdicts that could be read are kept, and only the others are asked for."
PATIENCE = (1, 3, 9, 27)  # seconds before each new try where the endpoint is busy or silent
ROUNDS = 4  # of questions, one for each worker: so many refusals and no verdict, and all would be refused
ONE_QUESTION = (400, 413, 422)  # HTTP codes that may be about what one question says, as of a content filter


class _Refused(JudgeError):
    """The endpoint refuses a request, which may be the fault of what that one asks."""


@dataclass(frozen=True)
class Judge:
    """Which model judges, where, and where its verdicts are kept.

    The key is read from $OPENAI_API_KEY and never written anywhere; local endpoints need none.
    """

    model: str
    file: Path
    url: str = ""
    workers: int = 8
    tries: int = 3  # per question, for replies that cannot be read
    timeout: float = 60.0  # seconds
    progress: bool = True

    @property
    def endpoint(self) -> str:
        """`url`, else $OPENAI_BASE_URL, else OpenAI's own."""
        return (self.url or os.environ.get("OPENAI_BASE_URL") or OPENAI).rstrip("/")


@dataclass(frozen=True)
class Protocol:
    """How a benchmark asks its judge, and how a reply is read.

    `user` holds {names} that the fields of each case fill. `parse(reply)` returns the verdict as JSON types and raises
    ValueError for a reply that is none. temperature None: the endpoint's own, as where a protocol names none.
    """

    name: str
    system: str | None
    user: str
    parse: Callable[[str], object]
    temperature: float | None = None
    max_tokens: int | None = None

    def messages(self, fields: dict[str, str]) -> list[dict]:
        """The chat that asks about one case. Fields are put in as they are, braces included."""
        text = re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], self.user)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]


class Case(NamedTuple):
    """One answer to be judged: its id, and what fills the protocol's {fields}."""

    id: str
    fields: dict[str, str]


def judged(cases: Iterable[Case], protocol: Protocol, judge: Judge, problems: Problems) -> dict[str, object]:
    """Verdicts by id: what the judge said of every case.

    A case whose reply could not be read `judge.tries` times has no verdict but a problem that quotes the reply; so has
    one that the endpoint refuses, unless it refuses the first ROUNDS for each worker, or all. Raises JudgeError then,
    for a key that cannot be one, when the file holds another judge's or protocol's verdicts, or the endpoint fails;
    verdicts so far are kept, and the same call goes on from there.
    """
    from tqdm.auto import tqdm

    if not judge.endpoint.startswith(("http://", "https://")):
        raise JudgeError(f"{judge.endpoint} is no address: --judge-url begins with http:// or https://.")
    _key()
    cases = list(cases)
    header = {
        "judge": judge.model, "endpoint": judge.endpoint, "protocol": protocol.name, "system": protocol.system,
        "user": protocol.user, "temperature": protocol.temperature, "max_tokens": protocol.max_tokens,
    }  # fmt: skip
    wanted = {case.id: json_hash(protocol.messages(case.fields)) for case in cases}
    known = _known(judge.file, header)
    done = {i: row for i, row in known.items() if wanted.get(i) == row["messages"] and "verdict" in row}
    todo = [case for case in cases if case.id not in done]
    with open_log(judge.file) as log, ThreadPoolExecutor(judge.workers) as pool:
        if not judge.file.stat().st_size:
            log.write(json.dumps(header, ensure_ascii=False) + "\n")
        waiting = [pool.submit(_ask, case, protocol, judge) for case in todo]
        written, refusals = set(), 0

        def write(future: Future) -> dict:
            row = future.result()
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
            written.add(future)
            return row

        try:
            answered = as_completed(waiting)
            for future in tqdm(answered, "judge", len(todo), disable=not judge.progress, leave=False):
                row = write(future)
                if "verdict" in row:
                    done[row["id"]] = row
                    continue
                problems.add(f"{row['id']}: {judge.model} replied {row['reply'][:80]!r}: {row['malformed']}")
                refusals += "refused" in row
                if refusals == len(written) and not done and refusals in (ROUNDS * judge.workers, len(todo)):
                    raise JudgeError(row["malformed"])  # not one question is refused, but all of them
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for future in waiting:  # what came in the meantime has been paid for
                if future not in written and not future.cancelled() and future.exception() is None:
                    write(future)
            raise
    problems.check(AGAIN)
    return {case.id: done[case.id]["verdict"] for case in cases if case.id in done}


def _known(file: Path, header: dict) -> dict[str, dict]:
    """The last line of each id in a file of verdicts, whose header must be this one."""
    rows = read_log(file)
    if not rows:
        return {}
    if not isinstance(rows[0], dict):
        raise JudgeError(f"{file} holds no verdicts: name another file with --verdicts.")
    # the same model may well have moved to another endpoint
    differing = [name for name in header if name != "endpoint" and rows[0].get(name) != header[name]]
    if differing:
        name = differing[0]
        old, new = (str(card.get(name))[:60] for card in (rows[0], header))
        raise JudgeError(
            f"{file} holds verdicts by another {name} ({old!r}, not {new!r}): name another file with --verdicts."
        )
    if broken := [row for row in rows[1:] if not isinstance(row, dict) or not {"id", "messages"} <= row.keys()]:
        raise JudgeError(
            f"{file} holds a line that is no verdict ({json.dumps(broken[0])[:60]}): take it out, or name another file."
        )
    return {row["id"]: row for row in rows[1:]}


def _ask(case: Case, protocol: Protocol, judge: Judge) -> dict:
    """The line for one case: its verdict, or why there is none: it is refused, or no reply could be read."""
    messages = protocol.messages(case.fields)
    row = {"id": case.id, "messages": json_hash(messages)}
    for attempt in range(judge.tries):
        # as MM-Vet's script does: at temperature 0 the same reply would come again
        temperature = None if protocol.temperature is None else min(protocol.temperature + attempt / 2, 2.0)
        try:
            reply, model = _complete(messages, temperature, protocol.max_tokens, judge)
        except _Refused as error:
            return row | {"reply": "", "malformed": str(error), "refused": True}
        row |= {"reply": reply, "model": model}
        try:
            return row | {"verdict": protocol.parse(reply)}
        except (ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError) as error:
            row["malformed"] = f"no verdict after {attempt + 1} tries ({error})"
    return row


def _text(content) -> str:
    """What a reply says: a string, or a list of parts of which some hold "text"."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _key() -> str:
    """$OPENAI_API_KEY without spaces around it, or "". Raises JudgeError, which does not show it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise JudgeError("$OPENAI_API_KEY holds what no key does (a typographic quote, a line break): set it again.")
    return key


def _complete(messages, temperature, max_tokens, judge: Judge) -> tuple[str, str]:
    """(reply, the model's full name as the endpoint gives it)."""
    import http.client  # here, since these take as long to import as scoring a file does
    import urllib.error
    import urllib.request

    body = {"model": judge.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
    data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
    headers = {"Content-Type": "application/json"}
    if key := _key():
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{judge.endpoint}/chat/completions", data, headers)
    for pause in (*PATIENCE, None):
        try:
            with urllib.request.urlopen(request, timeout=judge.timeout) as response:
                answer = json.load(response)
            return _text(answer["choices"][0]["message"]["content"]), answer.get("model", judge.model)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code not in (408, 409, 429) and error.code < 500:
                detail = error.read(300).decode(errors="replace")
                kind = _Refused if error.code in ONE_QUESTION else JudgeError
                raise kind(
                    f"{judge.endpoint} refuses ({reason}: {detail}): check --judge, --judge-url and $OPENAI_API_KEY."
                ) from error
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise JudgeError(
                f"{judge.endpoint} does not reply as /chat/completions should ({type(error).__name__}): "
                "check --judge-url."
            ) from error
        except (OSError, http.client.HTTPException) as error:  # the latter: a reply that was cut off
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError | socket.gaierror):
                raise JudgeError(f"{judge.endpoint} cannot be reached ({reason}): check --judge-url.") from error
        if pause is not None:
            time.sleep(pause)
    raise JudgeError(
        f"{judge.endpoint} does not answer ({reason}): verdicts so far are kept; run the same command again."
    )
