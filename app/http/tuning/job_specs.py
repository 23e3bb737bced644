"""From a job's request to its specification: OpenAI's words to ours, and defaults for what the request leaves open."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.errors import InvalidInput, naming
from app.http.tuning.fine_tuning_schema import OFFERED, JobRequest, MethodObject, PromptTuningMethod, SupervisedMethod
from app.jobs.files import UploadStore
from app.registry.registry import Registry
from app.registry.version import Version
from app.task_prompt import PromptKind
from app.tuning.config import AXES, HYPERPARAMETERS, Init
from app.tuning.job.kind import JobSpec
from app.tuning.search import SEARCH_HYPERPARAMETERS

PLACE = "method.prompt_tuning.hyperparameters"
MAX_DEFAULT_TASK_CHARS = 48


@contextmanager
def naming_place(request: JobRequest) -> Iterator[None]:
    """Errors of tuning name the place in the request."""
    try:
        yield
    except InvalidInput as error:
        if error.param and request.method:
            error.param = _place_of(error.param, request.method)
        raise


def _place_of(name: str, method: MethodObject) -> str:
    """The place in the request of a field of TuneConfig, Search, TuningPlan or DistillationPlan; others stay."""
    asked, place = method.prompt_tuning or method.distillation, f"method.{method.type}"
    job_name = next((each.job_name for each in OFFERED if each.name == name), None)
    if asked and job_name is not None:
        return f"{place}.hyperparameters.{job_name}"
    return f"{place}.{name}" if asked and name in type(asked).model_fields else name


def make_spec(request: JobRequest, backbone_name: str, registry: Registry, files: UploadStore) -> JobSpec:
    """Reads the registry and the file's name. Raises NotFound, NoSuchFile, InvalidInput that names the field."""
    method = _require_method(request)
    tuning, given = _tuning(method), _given(method)
    origin = _find_origin(registry, request.model, backbone_name)
    teacher = _find_teacher(registry, request, backbone_name)
    task = request.suffix or (
        origin.task if origin else _name_after_file(registry, files, request.training_file, backbone_name)
    )
    if request.promote and tuning.alias is None:
        raise InvalidInput("promote moves an alias, and alias is null", param="promote")
    if task == backbone_name:
        raise InvalidInput("this is the backbone's own name; choose another", param="suffix")
    like = origin if origin and origin.task == task else teacher
    return JobSpec(
        task=task,
        alias=tuning.alias,
        model=request.model,
        training_file=request.training_file,
        validation_file=request.validation_file,
        init_version=origin.id if origin else None,
        template=like.template.text if tuning.template is None and like and like.template else tuning.template,
        labels=_choose_labels(tuning, like, place=f"method.{method.type}.labels"),
        description=tuning.description,
        hyperparameters=_hyperparameters(given, request.seed),
        search=_search(method, given, request.seed, origin),
        learning_rate_multiplier=given.get("learning_rate_multiplier", 1.0),
        method=method.model_dump(mode="json", exclude_none=True),
        seed=request.seed or 0,
        teacher_text=method.distillation.prompt if method.distillation else None,
        teacher_version=teacher.id if teacher else None,
        keep_examples=bool(tuning.keep_examples),
        metadata=request.metadata,
        promote=bool(request.promote),
        keep_checkpoints=tuning.keep_checkpoints,
        input_field=request.input_field,
        target_field=request.target_field,
    )


def _require_method(request: JobRequest) -> MethodObject:
    """The request's method; OpenAI's older clients give `hyperparameters` instead."""
    if request.method is None:
        return MethodObject(type="supervised", supervised=SupervisedMethod(hyperparameters=request.hyperparameters))
    if request.hyperparameters is not None:
        raise InvalidInput("give hyperparameters inside method, if there is one", param="hyperparameters")
    if request.method.type == "distillation" and request.method.distillation is None:
        raise InvalidInput("a distillation needs a prompt or a teacher", param="method.distillation")
    for name in ("supervised", "prompt_tuning", "distillation"):
        if name != request.method.type and getattr(request.method, name) is not None:
            raise InvalidInput(f"method.type is {request.method.type}, so leave {name} out", param=f"method.{name}")
    return request.method


def _tuning(method: MethodObject) -> PromptTuningMethod:
    return method.prompt_tuning or method.distillation or PromptTuningMethod()


def _given(method: MethodObject) -> dict[str, Any]:
    """What the request says, under its own names."""
    supervised = method.supervised or SupervisedMethod()
    asked = (_tuning(method).hyperparameters, supervised.hyperparameters)
    return {name: value for each in asked if each for name, value in each.model_dump(exclude_none=True).items()}


def _find_teacher(registry: Registry, request: JobRequest, backbone_name: str) -> Version | None:
    """The version to distill; None if the teacher is a text, or there is none."""
    asked = request.method and request.method.distillation
    if not asked:
        return None
    if request.model != backbone_name:
        raise InvalidInput("a distillation begins with the backbone itself", param="model")
    if request.validation_file is not None:
        raise InvalidInput("a distillation holds out a tenth of its inputs; leave this out", param="validation_file")
    if request.target_field is not None:
        raise InvalidInput("a distillation reads no targets; leave this out", param="target_field")
    if asked.teacher is None:
        return None
    with naming("method.distillation.teacher"):
        return registry.resolve(asked.teacher)


def _find_origin(registry: Registry, model: str, backbone_name: str) -> Version | None:
    """The version to continue from; None for the backbone itself."""
    if model == backbone_name:
        return None
    with naming("model"):
        version = registry.resolve(model)
    if version.kind is PromptKind.TEXT:
        raise InvalidInput("a written prompt has no rows to continue from", param="model")
    return version


def _name_after_file(registry: Registry, files: UploadStore, file_id: str, backbone_name: str) -> str:
    """A new task: a job that names none must not replace another task."""
    filename = files.get(file_id, param="training_file").filename
    stem = re.sub(r"[^a-z0-9._-]+", "-", filename.rpartition(".")[0].lower())[:MAX_DEFAULT_TASK_CHARS].strip("-._")
    name = stem or "task"
    is_taken = name == backbone_name or any(each.task == name for each in registry.tasks())
    return f"{name}-{uuid.uuid4().hex[:8]}" if is_taken else name


def _choose_labels(tuning: PromptTuningMethod, like: Version | None, *, place: str) -> tuple[str, ...] | None:
    if tuning.labels is None:
        return like.labels if like else None
    if len(set(tuning.labels)) < len(tuning.labels):
        raise InvalidInput("labels must differ from one another", param=place)
    return tuple(tuning.labels)


def _hyperparameters(given: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """Fields of TuneConfig that the request says something about."""
    fields = {
        each.name: given[each.job_name] for each in HYPERPARAMETERS if each.job_name in given and each.axis is None
    }
    if "init_text" in fields:
        fields["init"] = Init.TEXT.value
    return fields | ({} if seed is None else {"seed": seed})


def _search(method: MethodObject, given: dict[str, Any], seed: int | None, origin: Version | None) -> dict[str, Any]:
    """Fields of Search that the request says something about. A prompt to continue from determines the shape."""
    fields = {axis.plural: given[axis.job_name] for axis in AXES if axis.job_name in given}
    fields |= {each.name: given[each.job_name] for each in SEARCH_HYPERPARAMETERS if each.job_name in given}
    if _tuning(method).publish > 1:
        fields["num_kept"] = _tuning(method).publish
    if seed is not None:
        fields.setdefault("seeds", [seed])
    if origin is not None or "init_text" in given:
        fields.setdefault("inits", ["text" if "init_text" in given else "prompt"])
    inits, place = fields.get("inits", ()), f"method.{method.type}.hyperparameters"
    if "prompt" in inits and origin is None:
        raise InvalidInput("init prompt continues from a version: let model name one", param=f"{place}.init")
    if ("text" in inits) != ("init_text" in given):
        raise InvalidInput("init_text is needed by init text, and by nothing else", param=f"{place}.init_text")
    if "prompt" in inits and origin is not None:
        _take_shape(fields, origin)
    return fields


def _take_shape(fields: dict[str, Any], origin: Version) -> None:
    shape = {"kind": origin.kind.value, "num_virtual_tokens": origin.num_virtual_tokens}
    for axis in AXES:
        if axis.name in shape and fields.setdefault(axis.plural, [shape[axis.name]]) != [shape[axis.name]]:
            raise InvalidInput(
                f"{origin.id}, from which tuning continues, has {axis.name} {shape[axis.name]}",
                param=f"{PLACE}.{axis.job_name}",
            )
