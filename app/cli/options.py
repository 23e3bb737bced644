"""The options that commands share. Those of settings and of hyperparameters are derived from their declarations."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from pydantic import ValidationError

from app.cli.places.remote_server import RemoteServer
from app.errors import InvalidInput, complain
from app.model.layout import Template
from app.registry.formats.bounds import MAX_DESCRIPTION_CHARS, MAX_LABEL_CHARS, MAX_LABELS, MAX_TEMPLATE_CHARS
from app.registry.reference import JOINT, MAX_ENSEMBLE
from app.sampling import SamplingParams
from app.settings import ClientSettings, Panel, Settings
from app.tuning.budget import parse_duration
from app.tuning.config import HYPERPARAMETERS, Hyperparameter, Init, TuneConfig

Command = Callable[..., None]
DATA, TRIED, SHARED = "Data", "Tried side by side: one value, or several separated by commas", "Tuning"
SETTINGS = Settings.model_fields | ClientSettings.model_fields
DEFAULT_URL = "http://127.0.0.1:8000"
MORE_FLAGS = {"api_keys": "--api-key"}


def existing_file(help_text: str, panel: str | None = None) -> Any:
    """An option that names a file that exists."""
    return typer.Option(help=help_text, exists=True, dir_okay=False, rich_help_panel=panel)


def _describe(text: str) -> str:
    """The text. Raises InvalidInput."""
    if len(text) > MAX_DESCRIPTION_CHARS:
        raise InvalidInput(f"--description may have at most {MAX_DESCRIPTION_CHARS:,} characters", param="description")
    return text


AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, one object per line.")]
TaskOrEnsemble = Annotated[
    str, typer.Argument(help="A task, a version of it, or an ensemble: sentiment, sentiment@3, sentiment@1+2+3.")
]
TaskOrVersion = Annotated[str, typer.Argument(help="A task, or a version of it: sentiment, sentiment@3.")]
NewTask = Annotated[str, typer.Option("--task", help="Name to publish under.")]
Description = Annotated[str, typer.Option(help="One sentence about the task, for people.", callback=_describe)]
Alias = Annotated[str, typer.Option(help="Alias to point at the new version; '' moves none.")]
Promote = Annotated[
    bool, typer.Option("--promote", help="Move the alias also to a version that scores lower than the one it means.")
]
KeepExamples = Annotated[
    bool,
    typer.Option(
        "--keep-examples",
        help="Keep the examples with the task, so that `softswap retune` can tune it for another model.",
        rich_help_panel=DATA,
    ),
]
Combined = Annotated[
    Literal["average", "vote"] | None,
    typer.Option("--combine", help="How an ensemble answers. (default: average; texts: vote)"),
]
Publish = Annotated[
    int,
    typer.Option(
        help="Publish the best N prompts, an ensemble of N versions.", min=1, max=MAX_ENSEMBLE, rich_help_panel=SHARED
    ),
]
ExampleFile = Annotated[
    Path, typer.Argument(help="Examples: JSON lines or CSV with input and target.", exists=True, dir_okay=False)
]
Validation = Annotated[
    Path | None,
    existing_file("More examples, to make choices on. (default: a tenth of the data)", DATA),
]
InputField = Annotated[str | None, typer.Option(help="Field that holds the input.", rich_help_panel=DATA)]
TargetField = Annotated[str | None, typer.Option(help="Field that holds the answer.", rich_help_panel=DATA)]
TemplateText = Annotated[
    str | None,
    typer.Option(
        "--template", help=r"How an input becomes text: 'Review: {input}\nSentiment: {target}'.", rich_help_panel=DATA
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="Possible answers, separated by commas; '' for a task that writes text. (default: found in the examples)",
        rich_help_panel=DATA,
    ),
]


def write_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def write(shown: Any, print_it: Callable[[Any], None], *, as_json: bool) -> None:
    """For a person, or as JSON: a list as a line for each of its items."""
    if not as_json:
        print_it(shown)
        return
    for each in shown if isinstance(shown, list) else [shown]:
        write_json(each)


def parse_template(text: str | None) -> Template | None:
    r"""With `\n` for a new line. Raises InvalidInput."""
    if text is not None and len(text) > MAX_TEMPLATE_CHARS:
        raise InvalidInput(f"--template may have at most {MAX_TEMPLATE_CHARS:,} characters", param="template")
    return None if text is None else Template(unescape(text))


def parse_labels(text: str | None) -> list[str] | None:
    """None if the option was not given, empty for a task that writes text. Raises InvalidInput."""
    labels = None if text is None else [label.strip() for label in text.split(",")] if text.strip() else []
    if labels and not all(labels):
        raise InvalidInput("--labels has an empty one between its commas", param="labels")
    if labels and len(set(labels)) < len(labels):
        raise InvalidInput("--labels must differ from one another", param="labels")
    if labels and (len(labels) > MAX_LABELS or max(map(len, labels)) > MAX_LABEL_CHARS):
        bounds = f"{MAX_LABELS:,}, and each may have {MAX_LABEL_CHARS} characters"
        raise InvalidInput(f"--labels may be at most {bounds}", param="labels")
    return labels


def require_ensemble(task: str, combine: str | None) -> None:
    """Raises InvalidInput: `combine` is asked of a single version."""
    if combine is not None and JOINT not in task:
        raise InvalidInput("--combine belongs to an ensemble, such as sentiment@1+2+3", param="combine")


def require_sampling(given: dict[str, Any]) -> None:
    """Args: given: options by the names of SamplingParams. Raises InvalidInput that names the option."""
    try:
        SamplingParams(**given)
    except InvalidInput as error:
        option = f"--{str(error.param).replace('_', '-')}"
        raise InvalidInput(error.message.replace(str(error.param), option), param=error.param) from None


def unescape(text: str) -> str:
    r"""With each `\n`, as a shell passes it, made a new line."""
    return text.replace("\\n", "\n")


def takes_settings(*names: str) -> Callable[[Command], Command]:
    """A command whose parameter `settings` is given as an option for each of these settings."""
    return _expand("settings", map(_setting, names), lambda given: read_settings(**given))


def takes_place(*names: str) -> Callable[[Command], Command]:
    """A command whose parameter `place` is a running server if the command line or the environment names one.

    Otherwise it is Settings, to work here. Args: names: the settings that are options then.
    """

    def find(given: dict[str, Any]) -> RemoteServer | Settings:
        client = {name: given.pop(name) for name in ClientSettings.model_fields if name in given}
        server = find_server(**client)
        if server is None and client:
            raise InvalidInput("--api-key is for a server; name it with --url", param="api_key")
        for name in given if server else ():
            where = "--url" if "url" in client else "SOFTSWAP_URL"
            raise InvalidInput(f"--{name} is for work on this machine, and {where} names a server", param=name)
        return server or read_settings(**given, watch_interval=0)

    return _expand("place", map(_setting, (*ClientSettings.model_fields, *names)), find)


def takes_server(command: Command) -> Command:
    """A command whose parameter `server` is a running server, because nothing else has what it is about."""
    help_text = f"The server. Also SOFTSWAP_URL. (default: {DEFAULT_URL})"
    url = _parameter("url", Annotated[str | None, typer.Option(help=help_text)])

    def find(given: dict[str, Any]) -> RemoteServer | None:
        return find_server(**given) or find_server(**{**given, "url": DEFAULT_URL})

    return _expand("server", [url, _setting("api_key")], find)(command)


def read_settings(**given: Any) -> Settings:
    """Settings from the command line, then the environment. Raises InvalidInput that names option and variable."""
    try:
        return Settings(**given)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = str(problem["loc"][0])
        flag = f"--{name.replace('_', '-')} (SOFTSWAP_{name.upper()})"
        raise InvalidInput(f"{flag} {complain(problem)}", param=name) from None


def find_server(**given: Any) -> RemoteServer | None:
    """The server to ask, if the command line or the environment names one."""
    client = ClientSettings(**given)
    return None if client.url is None else RemoteServer(client.url, client.api_key)


def takes_hyperparameters(*, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """A command whose parameter `asked` is given as options: it gets a dictionary of those that were set, parsed.

    Args: without: hyperparameters that the command does not have.
    """
    offered = {each.name: each for each in HYPERPARAMETERS if each.option and each.name not in without}

    def parse(given: dict[str, Any]) -> dict[str, Any]:
        return {name: _parse(offered[name], value) for name, value in given.items()}

    return _expand("asked", map(_hyperparameter, offered.values()), parse)


def split_asked(asked: dict[str, Any], **defaults: Any) -> tuple[TuneConfig, dict[str, tuple[Any, ...]]]:
    """What all members share, and the values that are tried side by side, the first of which stands for all."""
    if "init_text" in asked:
        asked = {"init": (Init.TEXT,), **asked}
    tried = {name: value for name, value in asked.items() if isinstance(value, tuple)}
    shared = defaults | {name: value[0] if name in tried else value for name, value in asked.items()}
    shared["init"] = Init.TEXT if Init.TEXT in tried.get("init", ()) else Init.VOCAB
    return TuneConfig(**shared), tried


def _expand(
    name: str, options: Iterable[inspect.Parameter], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A command whose one parameter `name` is given as options: it gets what `make` makes of those that were set."""
    expanded = list(options)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += expanded if parameter.name == name else [parameter]

        @wraps(command)
        def run(**arguments: Any) -> None:
            said = {option.name: arguments.pop(option.name) for option in expanded}
            given = {option: value for option, value in said.items() if value is not None}
            command(**arguments, **{name: make(given)})

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _setting(name: str) -> inspect.Parameter:
    """The option of a setting; its help is the setting's description."""
    field, flag = SETTINGS[name], f"--{name.replace('_', '-')}"
    types = (field.annotation, *get_args(field.annotation))
    kind: Any = next((each for each in (bool, int, float, Path) if each in types), str)
    flags = [MORE_FLAGS[name]] if name in MORE_FLAGS else []
    flags.append(f"{flag}/--no-{name.replace('_', '-')}" if field.default is True else flag)
    panel = next((each for each in field.metadata if isinstance(each, Panel)), None)
    option = typer.Option(*flags, help=field.description, rich_help_panel=panel, show_default=False)
    return _parameter(name, Annotated[kind | None, option])


def _hyperparameter(each: Hyperparameter) -> inspect.Parameter:
    help_text = f"{each.description} (default: {each.unset})" if each.unset else each.description
    panel = SHARED if each.axis is None and each.name != "init_text" else TRIED
    kind: Any = each.type if each.axis is None and each.type in (bool, int, float) and not each.is_duration else str
    return _parameter(
        each.name, Annotated[kind | None, typer.Option(each.option, help=help_text, rich_help_panel=panel)]
    )


def _parse(each: Hyperparameter, value: Any) -> Any:
    """A tuple if several values can be tried. Raises InvalidInput that names the option."""
    if each.axis is None:
        return _convert(each, value, "")
    values = tuple(_convert(each, part.strip(), "; several are separated by commas") for part in value.split(","))
    if len(set(values)) < len(values):
        raise InvalidInput(f"{each.option} must name each value once", param=each.name)
    return values


def _convert(each: Hyperparameter, value: Any, hint: str) -> Any:
    choices = [choice for choice in each.choices if choice != Init.PROMPT]
    if each.is_duration:
        return _parse_duration(each, value)
    try:
        if not each.choices or value in (*choices, "auto"):
            return _require_range(each, each.type(value))
    except ValueError:
        pass
    words = " or ".join([", ".join(choices[:-1]), *choices[-1:]])
    noun = {int: "a whole number such as 20", float: "a number such as 0.03"}.get(each.type, words)
    raise InvalidInput(f"{each.option} must be {noun}{hint}", param=each.name)


def _require_range(each: Hyperparameter, value: Any) -> Any:
    """The value. Raises InvalidInput."""
    if each.low is None or each.high is None:
        return value
    if not (each.lowest <= value <= each.high) or (each.is_lowest_refused and value == each.lowest):
        least, most = (_write_bound(each, bound) for bound in (each.lowest, each.high))
        word = "more than" if each.is_lowest_refused else "at least"
        raise InvalidInput(f"{each.option} must be {word} {least} and at most {most}", param=each.name)
    return value


def _write_bound(each: Hyperparameter, bound: float) -> str:
    if each.is_duration and bound:
        return f"{bound / 3600:g}h"
    return f"{int(bound):,}" if float(bound).is_integer() else f"{bound:g}"


def _parse_duration(each: Hyperparameter, value: str) -> float:
    """Seconds. Raises InvalidInput that names the option."""
    try:
        return float(_require_range(each, parse_duration(value)))
    except ValueError as error:
        raise InvalidInput(f"{each.option} {error}", param=each.name) from None
