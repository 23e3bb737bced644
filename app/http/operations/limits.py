"""Every bound a caller can meet, as `GET /v1/server` shows them. Each is defined where it is enforced."""

from __future__ import annotations

from typing import Final

from app.answers.measuring.evaluation import MAX_EXAMPLES
from app.answers.measuring.token_report import MAX_ABLATIONS
from app.answers.targets import MAX_ENSEMBLE
from app.http.dependencies import MAX_TIMEOUT_S
from app.http.fields import MAX_LABELS, MAX_N, MAX_TEXT_CHARS
from app.http.openai.chat_schema import MAX_MESSAGES
from app.http.openai.completions_schema import MAX_PROMPTS, MAX_TOKEN_IDS
from app.http.openai.decisions_schema import MAX_CHOICES, MAX_LEVELS, MAX_QUESTIONS
from app.http.protection.guard import MAX_BODY_BYTES
from app.http.protection.protocol import MAX_HEADER_BYTES
from app.http.protection.upload_limits import MAX_UPLOADS
from app.http.tasks.examples import MAX_EXAMPLES_BODY_BYTES
from app.http.tasks.runs_schema import MAX_INPUTS
from app.jobs.files import MAX_ALL_FILES_BYTES, MAX_FILE_BYTES, MAX_FILES
from app.jobs.job_store import MAX_JOBS, MAX_UNFINISHED_JOBS
from app.jobs.notifier import MAX_LISTENERS
from app.measure.example_file import MAX_LINE_BYTES, MAX_ROWS
from app.registry.formats.binding import MAX_UPLOAD_BYTES
from app.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP, MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS
from app.task_prompt import MAX_VIRTUAL_TOKENS
from app.tuning.config import MAX_JOB_BATCH_SIZE, MAX_JOB_EPOCHS, MAX_JOB_UPDATES
from app.tuning.search import MAX_MEMBERS

LIMITS: Final[dict[str, int | float]] = {
    "body_bytes": MAX_BODY_BYTES,
    "upload_bytes": MAX_UPLOAD_BYTES,
    "header_bytes": MAX_HEADER_BYTES,
    "prompts": MAX_PROMPTS,
    "text_chars": MAX_TEXT_CHARS,
    "token_ids": MAX_TOKEN_IDS,
    "n": MAX_N,
    "stop": MAX_STOP,
    "stop_chars": MAX_STOP_CHARS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "logprobs": MAX_LOGPROBS,
    "logit_bias": MAX_LOGIT_BIAS,
    "messages": MAX_MESSAGES,
    "inputs": MAX_INPUTS,
    "ensemble_members": MAX_ENSEMBLE,
    "examples": MAX_EXAMPLES,
    "examples_body_bytes": MAX_EXAMPLES_BODY_BYTES,
    "ablations": MAX_ABLATIONS,
    "questions": MAX_QUESTIONS,
    "choices": MAX_CHOICES,
    "levels": MAX_LEVELS,
    "labels": MAX_LABELS,
    "virtual_tokens": MAX_VIRTUAL_TOKENS,
    "file_bytes": MAX_FILE_BYTES,
    "file_uploads": MAX_UPLOADS,
    "file_line_chars": MAX_LINE_BYTES,
    "file_lines": MAX_ROWS,
    "files": MAX_FILES,
    "all_files_bytes": MAX_ALL_FILES_BYTES,
    "jobs": MAX_JOBS,
    "unfinished_jobs": MAX_UNFINISHED_JOBS,
    "job_followers": MAX_LISTENERS,
    "job_members": MAX_MEMBERS,
    "job_epochs": MAX_JOB_EPOCHS,
    "job_updates": MAX_JOB_UPDATES,
    "job_batch_size": MAX_JOB_BATCH_SIZE,
    "timeout_s": MAX_TIMEOUT_S,
}
